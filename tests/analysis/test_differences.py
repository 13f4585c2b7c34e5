"""Differences between settings that answer the same people, with their standard errors."""

import json
import math
import random
import shutil
from pathlib import Path
from statistics import fmean, variance

import pytest
import yaml
from command_line import run_command
from run_files import DEV, write_answers, write_run

from birthplace_lm.analysis.report.collect import find_runs
from birthplace_lm.analysis.report.differences import differences, paired_difference
from birthplace_lm.analysis.report.page import write_page
from birthplace_lm.analysis.report.summary import as_tables, table_of_runs, table_of_seeds
from birthplace_lm.errors import InputError


def test_one_seed_is_mcnemars() -> None:
    """Against the variance of McNemar's test, from the people whom one of the two settings knows."""
    rng = random.Random(0)
    n = 500
    first = [rng.random() < 0.8 for _ in range(n)]
    second = [right if rng.random() < 0.9 else not right for right in first]
    b = sum(x and not y for x, y in zip(first, second, strict=True))
    c = sum(y and not x for x, y in zip(first, second, strict=True))
    found = paired_difference([first], [second])
    assert found.mean == pytest.approx((b - c) / n)
    assert found.standard_error == pytest.approx(math.sqrt(b + c - (b - c) ** 2 / n) / math.sqrt(n * (n - 1)))


def test_equal_answers_do_not_differ() -> None:
    answers = [[True, False, True], [False, False, True]]
    same = paired_difference(answers, answers)
    assert same.mean == 0
    assert str(paired_difference(answers[:1], answers[:1])) == "+0.0 ± 0.0"


def test_standard_error_holds_over_people_and_seeds() -> None:
    """Draw people and trainings again and again: the estimated variance is that of the differences."""
    rng = random.Random(0)
    people, seeds = 60, 4

    def draw(shift: float, known: list[float]) -> list[list[bool]]:
        rows = []
        for _ in range(seeds):
            training = rng.gauss(0, 0.08)
            rows.append([rng.random() < person + shift + training for person in known])
        return rows

    found = []
    for _ in range(1500):
        known = [rng.choice((0.25, 0.5, 0.7)) for _ in range(people)]
        found.append(paired_difference(draw(0.0, known), draw(-0.05, known)))
    true = variance(result.mean for result in found)
    assert fmean(result.standard_error**2 for result in found) == pytest.approx(true, rel=0.1)
    assert fmean(result.mean for result in found) == pytest.approx(0.05, abs=0.006)


def write_runs(folder: Path) -> None:
    """Two settings of two seeds, where the second misses four people more, and one that has not ended."""
    for seed in range(2):
        for layers, right in ((1, 100), (2, 96)):
            write_run(folder / f"{layers}-{seed}", correct=right, seed=seed, model=model(layers))
    write_run(folder / "running", state="failed", model=model(3))


def model(layers: int) -> dict[str, int]:
    return {"block_size": 128, "n_layer": layers}


def test_settings_are_compared_person_by_person(tmp_path: Path) -> None:
    write_runs(tmp_path)
    runs = find_runs(tmp_path)
    compared = differences(runs)
    assert {run.value("model.n_layer") for run in compared.of} == {"2"}
    (found,) = set(compared.of.values())
    d = 4 / 140
    assert found.mean == pytest.approx(-d)
    assert found.standard_error == pytest.approx(math.sqrt(d * (1 - d) / 139))  # the seeds do not differ
    head, *rows = table_of_seeds(runs, compared)
    column = head.index("difference")
    assert [row[column] for row in rows] == ["", str(found)]
    assert "difference" not in table_of_runs(runs, compared=compared)[0]
    text = as_tables(runs, compared=compared)
    assert "difference: dev less that of n_layer=1, in points" in text
    assert "difference" not in as_tables(runs)


def test_without_seeds_the_table_of_runs_has_the_differences(tmp_path: Path) -> None:
    for layers, right in ((1, 100), (2, 96)):
        write_run(tmp_path / f"{layers}", correct=right, model=model(layers))
    runs = find_runs(tmp_path)
    head, *rows = table_of_runs(runs, compared=differences(runs))
    assert [row[head.index("difference")] for row in rows] == ["", "-2.9 ± 2.8"]
    page = tmp_path / "page.html"
    write_page(runs, tmp_path, page, differences(runs))
    assert "-2.9 ± 2.8" in page.read_text()
    assert "person by person." in page.read_text()


def test_another_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_runs(tmp_path)
    command = ["report", str(tmp_path), "--format", "json"]
    for name in ("n_layer", "model.n_layer"):
        assert run_command(*command, "--reference", f"{name}=2") == 0
        rows = json.loads(capsys.readouterr().out)
        found = {row["n_layer"]: row["difference"] for row in rows}
        assert found == {1: pytest.approx(4 / 140), 2: None, 3: None}
    for wrong in ("n_layer=7", "n_layer", "layers=2"):
        assert run_command(*command, "--reference", wrong) == 2
        message = f"--reference {wrong}: no setting of finished runs is so; there are: n_layer=1; n_layer=2"
        assert message in capsys.readouterr().err


def test_a_reference_is_one_setting(tmp_path: Path) -> None:
    for layers in (1, 2):
        for heads in (2, 4):
            sizes = {**model(layers), "n_head": heads}
            write_run(tmp_path / f"{layers}-{heads}", model=sizes)
    runs = find_runs(tmp_path)
    with pytest.raises(InputError, match=r"n_layer=2: 2 settings are so .*give one of them with more of n_"):
        differences(runs, ["n_layer=2"])
    assert differences(runs, ["n_layer=2", "n_head=4"]).reference == "n_head=4, n_layer=2"


def test_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    """Changed predictions, no predictions."""
    for layers, right in ((1, 100), (2, 96), (3, 90), (4, 80)):
        write_run(tmp_path / f"{layers}", correct=right, model=model(layers))
    write_answers(tmp_path / "2", [True] * 95 + [False] * 45)
    (tmp_path / "3" / "predictions" / "dev.txt").unlink()
    compared = differences(find_runs(tmp_path))
    assert [run.value("model.n_layer") for run in compared.of] == ["4"]
    assert f"{tmp_path / '2'} is not compared: 95 of its predictions are right, not 96." in compared.failures
    assert len(compared.failures) == 2


def test_many_runs_that_cannot_be_compared_are_counted(tmp_path: Path) -> None:
    """A folder that was copied without its data has no line for each of its runs."""
    for layers in range(1, 9):
        run = write_run(tmp_path / f"{layers}", model=model(layers))
        (run / "predictions" / "dev.txt").unlink()
    *first, last = differences(find_runs(tmp_path)).failures
    assert len(first) == 5
    assert last == "3 more runs are not compared."


def test_one_person_is_not_compared(tmp_path: Path) -> None:
    """Bug: the report divided by zero."""
    write_run(tmp_path / "1", model=model(1))
    data = yaml.safe_load((tmp_path / "1" / "config.yaml").read_text())["data"]
    root = tmp_path / "one"
    shutil.copytree(DEV.parent, root)
    line = DEV.read_text(encoding="utf-8").splitlines()[0]
    (root / "dev.tsv").write_text(f"{line}\n")
    for layers in (2, 3):
        run = write_run(tmp_path / f"{layers}", model=model(layers), data={**data, "root": str(root)})
        metrics = json.loads((run / "metrics.json").read_text())
        metrics["dev"] = {"correct": 1, "total": 1, "exact_match": 1.0}
        (run / "metrics.json").write_text(json.dumps(metrics))
        (run / "predictions" / "dev.txt").write_text(line.split("\t")[1] + "\n")
    compared = differences(find_runs(tmp_path))
    assert (compared.of, compared.failures) == ({}, [])


def test_settings_of_other_questions_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "1", correct=100, model=model(1))
    data = yaml.safe_load((tmp_path / "1" / "config.yaml").read_text())["data"]
    root = tmp_path / "reversed"
    shutil.copytree(DEV.parent, root)
    rows = [row.split("\t") for row in DEV.read_text(encoding="utf-8").splitlines()][::-1]
    (root / "dev.tsv").write_text("".join(f"{question}\t{place}\n" for question, place in rows))
    run = write_run(tmp_path / "2", correct=140, model=model(2), data={**data, "root": str(root)})
    (run / "predictions" / "dev.txt").write_text("".join(f"{place}\n" for _, place in rows))
    compared = differences(find_runs(tmp_path))
    assert (compared.of, compared.failures) == ({}, [])
