"""Tables and a page of runs in any state, built from files alone."""

import csv
import io
import json
import random
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import yaml

from birthplace_lm.analysis.report.collect import find_runs
from birthplace_lm.analysis.report.page import learning_curve, write_page
from birthplace_lm.analysis.report.summary import (
    as_csv,
    as_json,
    failures,
    state_counts,
    table_of_runs,
    table_of_seeds,
)
from birthplace_lm.analysis.report.tables import as_markdown, as_text, show
from birthplace_lm.cli import commands as cli
from birthplace_lm.errors import InputError
from birthplace_lm.runs.metrics import Score

HOSTILE = "<script>alert(1)</script> | a*b* \x1b[31m\nsecond"


def write_run(folder: Path, state: str = "done", correct: int = 70, **config: Any) -> Path:
    folder.mkdir(parents=True)
    values: dict[str, Any] = {
        "labels": {"attention": "vanilla", "pretrain": "none", "data": "biographies"},
        "seed": 0,
        "data": {"root": None, "train": "train.tsv", "dev": "dev.tsv"},
        "stages": {"finetune": {"learning_rate": 1e-3}},
        "runs_root": str(folder.parent),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({**values, **config}))
    status = {
        "state": state,
        "stage": "finetune",
        "error": "it broke" if state == "failed" else None,
        "pid": 1,
    }
    (folder / "status.json").write_text(json.dumps(status))
    if state == "done":
        score = {"correct": correct, "total": 140, "exact_match": correct / 140}
        spent = {"steps": 10, "epochs": 1, "characters": 1000, "seconds": 60.0, "loss": 0.5}
        metrics = {
            "attention": "vanilla", "pretrain": "none", "data": "biographies", "seed": 0, "vocab_size": 50,
            "data_sha256": {"train": "0" * 64}, "weights_sha256": "0" * 64, "parameters": 1234,
            "dev": score, "baseline": {**score, "answer": "Lisbon", "correct": 13},
            "stages": {"finetune": spent, "evaluate": {"names": 140, "seconds": 6.0}},
        }  # fmt: skip
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "predictions").mkdir()
        (folder / "predictions" / "dev.txt").write_text("Lisbon\n" * 140)
        (folder / "finetune").mkdir()
    return folder


def test_interval_is_wilsons() -> None:
    """Against the worked examples of Newcombe 1998, table I."""
    for correct, total, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
    ):
        assert Score(correct, total).interval == pytest.approx((low, high), abs=5e-5)


def test_every_state_is_shown(tmp_path: Path) -> None:
    for state in ("done", "failed", "preempted", "running"):
        write_run(tmp_path / state, state)
    busy = write_run(tmp_path / "busy", "running")
    (busy / "finetune").mkdir()
    for step in (7, 12):
        (busy / "finetune" / f"step-{step:08d}.ckpt").touch()
    (write_run(tmp_path / "new") / "status.json").unlink()
    (tmp_path / "pretrained").mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl,sys; f = open(sys.argv[1], 'w');"
         "fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()", str(busy / "lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        table = table_of_runs(find_runs(tmp_path))
    finally:
        holder.communicate("\n")
    result = {Path(row[-1]).name: row[-2] for row in table[1:]}
    assert result == {
        "done": "done",
        "failed": "failed",
        "preempted": "stopped",
        "running": "killed",
        "busy": "running, finetune step 12",
        "new": "not started",
    }
    assert failures(find_runs(tmp_path)) == [f"{tmp_path / 'failed'} failed: it broke"]


def test_columns_are_what_varies(tmp_path: Path) -> None:
    """What follows from attention, pretraining or data is not shown, and the same thing once."""
    for number, (attention, rate) in enumerate([("vanilla", 1e-3), ("vanilla", 2e-3), ("synthesizer", 1e-3)]):
        write_run(
            tmp_path / str(number),
            labels={"attention": attention, "pretrain": "none", "data": "biographies"},
            model={"attention": {"_target_": f"x.{attention}"}, "n_head": 8},
            stages={"finetune": {"learning_rate": rate, "epochs": rate * 1e4}},
        )
    head, *rows = table_of_runs(find_runs(tmp_path))
    assert head[:5] == ["attention", "pretraining", "data", "epochs", "seed"]
    assert [row[3] for row in rows] == ["10.0", "20.0", "10.0"]


def test_seeds_are_summed_up(tmp_path: Path) -> None:
    correct = [70, 84, 91]
    for seed, right in enumerate(correct):
        write_run(tmp_path / str(seed), correct=right, seed=seed)
    head, row = table_of_seeds(find_runs(tmp_path))
    result = dict(zip(head, row, strict=True))
    shares = [right / 140 for right in correct]
    assert result["seeds"] == "3"
    assert result["dev exact match"] == f"{fmean(shares):.1%}"
    assert result["standard deviation"] == f"{100 * stdev(shares):.1f} points"
    assert result["all seeds together"].startswith("245/420 = 58.3%")


def test_formats_can_be_read(tmp_path: Path) -> None:
    write_run(tmp_path / "one", correct=70)
    write_run(tmp_path / "two", "failed", seed=1)
    runs = find_runs(tmp_path)
    one, two = csv.DictReader(io.StringIO(as_csv(runs)))
    assert (one["correct"], one["exact_match"], one["state"]) == ("70", "0.5", "done")
    assert (two["correct"], two["reason"]) == ("", "it broke")
    assert [result["correct"] for result in json.loads(as_json(runs))] == [70, None]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_page_needs_nothing_else_and_runs_nothing_of_theirs(tmp_path: Path) -> None:
    names = {"attention": HOSTILE, "pretrain": HOSTILE, "data": "biographies"}
    bad = write_run(tmp_path / "bad", names=names)
    (bad / "predictions" / "dev.txt").write_text(f"{HOSTILE}\n".replace("\nsecond", "") * 140)
    write_run(tmp_path / "good", seed=1)
    runs = find_runs(tmp_path)
    out = tmp_path / "page.html"
    write_page(runs, tmp_path, out)
    page = _Page()
    page.feed(out.read_text())
    assert page.tags.count("script") == 1
    assert page.tags.count("svg") == 4
    assert page.tags.count("table") == 3
    assert {link[:1] for link in page.links} <= {"#"}
    for table in (table_of_runs(runs), table_of_seeds(runs)):
        assert as_text(table).count("\n") == as_markdown(table).count("\n") - 1 == len(table) - 1
        assert "\x1b" not in as_text(table)
        assert {line.replace("\\|", "").count("|") for line in as_markdown(table).split("\n")} == {
            len(table[0]) + 1
        }


def test_garbage_is_one_unreadable_row(tmp_path: Path) -> None:
    """Whatever the files hold, the other runs are shown."""
    draw = random.Random(0)
    good = write_run(tmp_path / "good")
    for number in range(60):
        bad = tmp_path / f"bad{number:02d}"
        shutil.copytree(good, bad)
        file = bad / draw.choice(["config.yaml", "status.json", "metrics.json"])
        content = bytearray(file.read_bytes())
        for _ in range(3):
            at = draw.randrange(len(content))
            content[at : at + draw.randrange(9)] = draw.choice([b"", b"\xff", b"null", b"[", b"NaN", b"-1"])
        file.write_bytes(content)
    runs = find_runs(tmp_path)
    assert len(runs) == 61
    assert next(run for run in runs if run.path == good).dev == Score(70, 140)
    assert "unreadable" in state_counts(runs)
    for form in (as_csv, as_json):
        assert form(runs)
    write_page(runs, tmp_path, tmp_path / "page.html")


def test_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run in it"):
        find_runs(tmp_path)


def test_no_torch_is_imported(tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    code = f"""
import sys
from birthplace_lm.cli.commands import app
try: app(["report", {str(tmp_path)!r}, "--format", "csv"])
finally: assert "torch" not in sys.modules and "tensorboard" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_real_run_is_reported(configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stage import run

    result = run(configure("pretrain=none", "trainer.check_val_every_n_epoch=1"))
    page, picture = tmp_path / "page.html", tmp_path / "curves.png"
    arguments = ["report", str(tmp_path / "runs"), "--html", str(page), "--figure", str(picture)]
    monkeypatch.setattr(sys, "argv", ["birthplace-lm", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert f"{result['dev']['correct']}/8" in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    (made,) = find_runs(tmp_path / "runs")
    read, share = learning_curve(made)[-1]
    assert read == result["stages"]["finetune"]["characters"]
    assert share == pytest.approx(result["dev"]["exact_match"])
    for name in ("finetune", "predictions"):  # not copied, or deleted
        shutil.rmtree(made.path / name)
    write_page([made], tmp_path / "runs", page)
    assert "is not shown: " in page.read_text()


@pytest.mark.parametrize("width", [300, 40])
def test_a_table_fits_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost of it, and nothing in it is taken for markup."""
    table = [["run", "state"], ["vanilla-" * 9, "failed: [red]no[/red] such file"], ["b", "done"]]
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    show(table)
    lines = re.sub(r"\x1b\[\d*m", "", out.getvalue()).splitlines()
    assert max(map(len, lines)) <= width
    for column in range(2):
        shown = {c for row in table for c in row[column]}
        assert shown <= set("".join(lines))
    assert sum(line.count("vanilla-") for line in lines) == 9 or width == 40
    assert any("[red]no[/red] such file" in line for line in lines) or width == 40
