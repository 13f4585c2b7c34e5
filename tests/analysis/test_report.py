"""Tables and a page of runs in any state, built from files alone."""

import csv
import io
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from unittest import mock

import pytest
from command_line import run_command
from html_page import Page
from matplotlib.text import Text
from omegaconf import OmegaConf
from run_files import write_run

from birthplace_lm.analysis.report import axes as axes_module
from birthplace_lm.analysis.report import plots
from birthplace_lm.analysis.report.collect import find_runs
from birthplace_lm.analysis.report.curves import characters_until_half, learning_curve
from birthplace_lm.analysis.report.page import write_page
from birthplace_lm.analysis.report.plots import smoothed
from birthplace_lm.analysis.report.setting_figure import (
    chosen_setting,
    numeric_settings,
    setting_figure,
)
from birthplace_lm.analysis.report.settings import labels, varying_settings
from birthplace_lm.analysis.report.summary import (
    OPTIONAL_COLUMNS,
    as_csv,
    as_json,
    as_tables,
    failures,
    notes,
    state_counts,
    table_of_runs,
    table_of_seeds,
)
from birthplace_lm.analysis.report.tables import as_markdown, as_text, fit, show
from birthplace_lm.config.compose import compose
from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.errors import InputError
from birthplace_lm.runs.metrics import Score

HOSTILE = "<script>alert(1)</script> | a*b* \x1b[31m\nsecond"


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
    assert table[0][-2:] == ["state", "run directory"]
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


def real_config(*overrides: str) -> dict[str, Any]:
    """What a run of these overrides writes into its config.yaml."""
    content: Any = OmegaConf.to_container(compose(overrides))
    return {key: value for key, value in content.items() if key != "runs_root"}


def test_columns_are_what_varies(tmp_path: Path) -> None:
    """Not what an option of attention, pretraining or data chooses by itself: epochs, shapes and the like."""
    for number, overrides in enumerate(
        [
            ("attention=vanilla", "pretrain=none", "stages.finetune.learning_rate=1e-3"),
            ("attention=vanilla", "stages.pretrain.learning_rate=2e-3", "stages.finetune.learning_rate=1e-3"),
            ("attention=synthesizer", "stages.finetune.learning_rate=4e-3"),
        ]
    ):
        write_run(tmp_path / f"{number}-0000000{number}", correct=number, **real_config(*overrides))
    runs = find_runs(tmp_path)
    head, *rows = table_of_runs(runs)
    shown = ["attention", "pretraining", "finetune.learning_rate", "pretrain.learning_rate"]
    assert head[: head.index("dev")] == shown
    assert [row[:4] for row in rows] == [
        ["synthesizer", "span_corruption", "0.004", "0.004"],
        ["vanilla", "span_corruption", "0.001", "0.002"],
        ["vanilla", "none", "0.001", ""],  # a disabled stage has no rate
    ]
    assert [*labels(runs).values()] == [
        "synthesizer, span_corruption, finetune.learning_rate=0.004, pretrain.learning_rate=0.004",
        "vanilla, span_corruption, finetune.learning_rate=0.001, pretrain.learning_rate=0.002",
        "vanilla, none, finetune.learning_rate=0.001",
    ]
    assert "All runs: data biographies, seed 0." in notes(runs)


def test_keys_that_vary_together_are_one_column(tmp_path: Path) -> None:
    for number, size in enumerate((64, 128)):
        sizes = {"n_embd": size, "n_head": size // 32, "block_size": 2 * size, "n_layer": size // 16}
        write_run(tmp_path / str(number), model=sizes, correct=number)
    runs = find_runs(tmp_path)
    head, *rows = table_of_runs(runs)
    assert head[0] == "n_layer (+3)"
    assert [row[0] for row in rows] == ["8", "4"]
    assert [*labels(runs).values()] == ["n_layer (+3)=8", "n_layer (+3)=4"]
    together = "n_layer (+3): these vary together: n_layer, n_embd, n_head, block_size."
    assert together in notes(runs)
    assert [row["n_head"] for row in json.loads(as_json(runs))] == [4, 2]


def test_how_often_a_run_validates_does_not_name_a_column(tmp_path: Path) -> None:
    for number, (epochs, every) in enumerate(((4, 2), (20, 10))):
        stage = {"enabled": True, "max_epochs": epochs, "check_val_every_n_epoch": every}
        write_run(tmp_path / str(number), stages={"pretrain": stage})
    head, *_ = table_of_runs(find_runs(tmp_path))
    assert head[0] == "pretrain.max_epochs (+1)"


def test_labels_are_wrapped_and_do_not_narrow_the_axes(tmp_path: Path) -> None:
    """Bug: a long label made the axes half as wide, and was cut at the edge of the figure."""
    for number in range(2):
        write_run(tmp_path / str(number), correct=10 + number, trainer={"gradient_clip_val": number})
    runs = find_runs(tmp_path)

    def drawn(label: str) -> tuple[float, list[str]]:
        names = {run: f"{label}{run.name}" for run in runs}
        with (
            mock.patch.object(plots, "labels", return_value=names),
            mock.patch.object(axes_module, "labels", return_value=names),
        ):
            figure = plots.scores_figure(runs)
        figure.canvas.draw()
        return figure.axes[0].get_position().width, [text.get_text() for text in figure.axes[0].texts]

    width, _ = drawn("short")
    same, texts = drawn(", ".join(f"setting_{i}=value" for i in range(20)))
    assert same == pytest.approx(width, abs=0.01)
    assert max(len(line) for text in texts for line in text.splitlines()) <= axes_module.LABEL_CHARACTERS


def test_a_run_that_starts_from_another_says_so(tmp_path: Path) -> None:
    """By the hash and not by a long path."""
    source = f"{tmp_path}/some where/pretrained/vanilla-span_corruption-biographies-s0-67ecb466"
    write_run(tmp_path / "a", correct=3, init_from=None, extend_from=None)
    write_run(tmp_path / "b", correct=2, init_from=f"{source}/step-00000850.ckpt", extend_from=None)
    write_run(tmp_path / "c", correct=1, init_from=None, extend_from=f"{source}/finetune")
    runs = find_runs(tmp_path)
    assert [*labels(runs).values()] == ["none", "init_from 67ecb466@850", "none, extends 67ecb466/finetune"]
    assert "extend_from 67ecb466/finetune" in " ".join(notes([runs[2]]))


def test_seeds_are_summed_up(tmp_path: Path) -> None:
    correct = [70, 84, 91]
    for seed, right in enumerate(correct):
        write_run(tmp_path / str(seed), correct=right, seed=seed)
    head, row = table_of_seeds(find_runs(tmp_path))
    result = dict(zip(head, row, strict=True))
    shares = [right / 140 for right in correct]
    assert result["seeds"] == "3"
    assert result["dev mean"] == f"{fmean(shares):.1%}"
    assert result["deviation"] == f"{100 * stdev(shares):.1f}"
    assert result["correct"] == "245/420"


def test_a_copy_of_a_run_is_no_other_seed(tmp_path: Path) -> None:
    for seed, right in ((0, 70), (1, 84)):
        write_run(tmp_path / str(seed), correct=right, seed=seed)
    shutil.copytree(tmp_path / "1", tmp_path / "copy")
    runs = find_runs(tmp_path)
    head, row = table_of_seeds(runs)
    result = dict(zip(head, row, strict=True))
    assert (result["seeds"], result["correct"]) == ("2", "154/280")
    assert "Left out of means, as copies with the settings, seed and weights of another: 1." in notes(runs)


def test_a_setting_without_effect_makes_no_copy(tmp_path: Path) -> None:
    """Runs with equal weights that differ in a setting are points of a figure."""
    for patience in (3, 5, 10):
        run = write_run(tmp_path / str(patience), callbacks={"early_stopping": {"patience": patience}})
        metrics = json.loads((run / "metrics.json").read_text())
        (run / "metrics.json").write_text(json.dumps({**metrics, "weights_sha256": "0" * 64}))
    runs = find_runs(tmp_path)
    (setting,) = numeric_settings(runs)
    (axes,) = setting_figure(runs, setting).axes
    assert [*axes.lines[0].get_xdata()] == [3, 5, 10]
    assert "copies" not in " ".join(notes(runs))


def test_several_processes_are_no_other_setting(tmp_path: Path) -> None:
    """Bug: a seed that was resumed with trainer=ddp was no seed of its setting. FSDP2 has other weights."""
    for seed, strategy in enumerate(("auto", "ddp", "ddp")):
        write_run(tmp_path / str(seed), seed=seed, trainer={"strategy": strategy})
    assert table_of_seeds(find_runs(tmp_path))[1][2] == "3"
    write_run(tmp_path / "3", seed=3, trainer={"strategy": "fsdp2"})
    assert len({*labels(find_runs(tmp_path)).values()}) > 1


def test_what_only_some_runs_have_makes_another_setting(tmp_path: Path) -> None:
    """Bug: with and without early stopping, or an optimizer of the stage, were seeds of one setting."""
    stopping = {"early_stopping": {"_target_": "birthplace_lm.x.EarlyStopping", "patience": 3}}
    adamw = {"_target_": "birthplace_lm.training.optimizers.adamw", "weight_decay": 0.1}
    own = {"_target_": "my_package.adamw"}
    configs: list[dict[str, Any]] = [
        {},
        {"callbacks": stopping},
        {"stages": {"finetune": {"optimizer": adamw}}},
        {"stages": {"finetune": {"optimizer": own}}},
    ]
    for number, config in enumerate(configs):
        for seed in range(2):
            stages = {"finetune": {"optimizer": None}}
            values = {"callbacks": {}, "stages": stages, **config}
            write_run(tmp_path / f"{number}{seed}", seed=seed, **values)
    runs = find_runs(tmp_path)
    assert {*labels(runs).values()} == {
        "callbacks=none, finetune.optimizer=null",
        "callbacks=early_stopping, finetune.optimizer=null",
        "callbacks=none, finetune.optimizer=adamw",
        "callbacks=none, finetune.optimizer=my_package.adamw",
    }
    assert [row[2] for row in table_of_seeds(runs)[1:]] == ["2"] * 4


def test_a_setting_with_the_name_of_a_column(tmp_path: Path) -> None:
    """Bug: the column of exact match on dev took the place of the setting data.dev."""
    for number in range(2):
        data = {"root": "people", "dev": f"{number}.tsv"}
        write_run(tmp_path / str(number), data=data, inputs={"dev": f"{number}" * 64})
    head, *rows = table_of_runs(find_runs(tmp_path))
    assert {row[head.index("data.dev")] for row in rows} == {"0.tsv", "1.tsv"}
    assert {row[head.index("dev")] for row in rows} == {"50.0%"}


def test_the_same_files_elsewhere_make_no_other_setting(tmp_path: Path) -> None:
    for seed, root in enumerate(["~/people", "/home/ada/people"]):
        write_run(tmp_path / str(seed), data={"root": root}, inputs={"corpus": "0" * 64}, seed=seed)
    head, row = table_of_seeds(find_runs(tmp_path))
    assert row[head.index("seeds")] == "2"


def test_a_note_is_about_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: it spoke of seeds where there was one, and of intervals that a narrow terminal left out."""
    write_run(tmp_path / "a", seed=0)
    assert "over the names of dev." in as_tables(find_runs(tmp_path))
    write_run(tmp_path / "b", seed=1)
    assert "they leave out how much seeds differ." in as_tables(find_runs(tmp_path))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    assert "Wilson" not in as_tables(find_runs(tmp_path))


def test_a_logarithmic_axis_has_the_values_and_no_formulas(tmp_path: Path) -> None:
    """Bug: its numbers were `$\\mathdefault{10^{-4}}$`, because names are no formulas."""
    rates = [0.0001, 0.0003, 0.001, 0.003]
    for rate in rates:
        write_run(tmp_path / str(rate), stages={"finetune": {"learning_rate": rate}})
    runs = find_runs(tmp_path)
    (setting,) = numeric_settings(runs)
    figure = setting_figure(runs, setting)
    figure.draw_without_rendering()
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == [f"{rate:g}" for rate in rates]
    assert not [text for text in figure.findobj(Text) if "$" in text.get_text()]


def test_seeds_do_not_make_an_interval_narrower(tmp_path: Path) -> None:
    """Bug: it counted every dev question once for each seed."""
    for seed in range(3):
        write_run(tmp_path / str(seed), correct=70, seed=seed, model={"n_layer": 1})
        write_run(tmp_path / f"more-{seed}", correct=70, seed=seed, model={"n_layer": 2})
    runs = find_runs(tmp_path)
    low, high = Score(70, 140).interval
    head, *rows = table_of_seeds(runs)
    assert {row[head.index("95 % interval")] for row in rows} == {f"{100 * low:.1f} to {100 * high:.1f}"}
    (setting,) = varying_settings(runs)
    (axes,) = setting_figure(runs, setting).axes
    bars = [[*line.get_ydata()] for line in axes.lines if [*line.get_xdata()] in ([1, 1], [2, 2])]
    assert bars == [pytest.approx([low, high])] * 2


def test_files_that_changed_make_another_setting(tmp_path: Path) -> None:
    """Bug: runs on other contents of the same files counted as seeds of one setting."""
    paths = {"root": "people", "corpus": "corpus.txt", "dev": "dev.tsv"}
    for number in range(4):
        inputs = {"corpus": f"{number // 2}" * 64, "dev": "d" * 64}
        write_run(tmp_path / str(number), data=paths, inputs=inputs, seed=number)
    runs = find_runs(tmp_path)
    assert {*labels(runs).values()} == {"corpus=00000000", "corpus=11111111"}
    assert [row[:2] for row in table_of_seeds(runs)] == [
        ["corpus", "seeds"],
        ["00000000", "2"],
        ["11111111", "2"],
    ]


def test_a_part_of_a_user_hides_no_setting(tmp_path: Path) -> None:
    """Bug: one run with an attention of its own took the column away that told the others apart."""
    choices: list[tuple[str, dict[str, Any]]] = [
        ("vanilla", {}),
        ("rope", {"learned_positions": False}),
        ("mine", {"attention": {"_target_": "my_package.Mine", "power": 0.5}}),
    ]
    for number, (name, model) in enumerate(choices):
        names = {"attention": name, "pretrain": "none", "data": "biographies"}
        rate = {"finetune": {"learning_rate": 6e-4 if name == "vanilla" else 1e-3}}
        write_run(tmp_path / str(number), labels=names, model={"block_size": 128, **model}, stages=rate)
    shown = [setting.keys for setting in varying_settings(find_runs(tmp_path))]
    assert shown == [("labels.attention",), ("stages.finetune.learning_rate",)]
    model = {"block_size": 128, "attention": {"_target_": "my_package.Mine", "power": 0.7}}
    write_run(tmp_path / "other", labels={**names, "attention": "mine"}, model=model, stages=rate)
    keys = {key for setting in varying_settings(find_runs(tmp_path)) for key in setting.keys}
    assert keys == {"labels.attention", "stages.finetune.learning_rate", "model.attention.power"}


def test_a_folder_tells_its_files(tmp_path: Path) -> None:
    for number in range(2):
        paths = {"root": f"people/{number}", "corpus": "corpus.txt"}
        write_run(tmp_path / str(number), data=paths, inputs={"corpus": f"{number}" * 64})
    write_run(tmp_path / "no-hash", data={"root": "people/0", "corpus": "corpus.txt"})
    assert {*labels(find_runs(tmp_path)).values()} == {"root=0", "root=1"}


def test_formats_can_be_read(tmp_path: Path) -> None:
    write_run(tmp_path / "one", correct=70)
    write_run(tmp_path / "two", "failed", seed=1)
    runs = find_runs(tmp_path)
    one, two = csv.DictReader(io.StringIO(as_csv(runs)))
    assert (one["correct"], one["exact_match"], one["state"]) == ("70", "0.5", "done")
    assert (two["correct"], two["reason"]) == ("", "it broke")
    assert [result["correct"] for result in json.loads(as_json(runs))] == [70, None]


def test_page_needs_nothing_else_and_runs_nothing_of_theirs(tmp_path: Path) -> None:
    names = {"attention": HOSTILE, "pretrain": HOSTILE, "data": "biographies"}
    bad = write_run(tmp_path / "bad", labels=names)
    (bad / "predictions" / "dev.txt").write_text(f"{HOSTILE}\n".replace("\nsecond", "") * 140)
    write_run(tmp_path / "good", seed=1)
    runs = find_runs(tmp_path)
    out = tmp_path / "page.html"
    write_page(runs, tmp_path, out)
    page = Page(out.read_text())
    assert page.tags.count("script") == 1
    assert page.tags.count("svg") == 4  # scores, two curves, answers
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


def test_a_real_run_is_reported(configure: Any, tmp_path: Path) -> None:
    from stage import run

    result = run(configure("pretrain=none", "trainer.check_val_every_n_epoch=1"))
    page, picture, points = (tmp_path / name for name in ("page.html", "curves.png", "curves.csv"))
    arguments = ["report", str(tmp_path / "runs"), "--html", str(page), "--figure", str(picture)]
    arguments += ["--curve", "learning_rate", "--curves-csv", str(points)]
    assert run_command(*arguments) == 0
    assert f"{result['dev']['correct']}/8" in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = [*csv.DictReader(io.StringIO(points.read_text()))]
    spent = result["stages"]["finetune"]
    assert [row["curve"] for row in rows].count("loss") == spent["steps"]
    (last,) = [row for row in rows if row["curve"] == "val_loss"][-1:]
    assert int(last["characters"]) == spent["characters"]
    assert int(last["seconds"]) <= round(spent["seconds"])
    (made,) = find_runs(tmp_path / "runs")
    rates = [float(row["value"]) for row in rows if row["curve"] == "learning_rate"]
    peak = made.config["stages.finetune.learning_rate"]
    assert len(rates) == spent["steps"]
    assert max(rates) == pytest.approx(peak, rel=0.2)
    assert rates[-1] < 0.2 * peak  # a cosine down to zero
    read, share = learning_curve(made)[-1]
    assert read == result["stages"]["finetune"]["characters"]
    assert share == pytest.approx(result["dev"]["exact_match"])
    for name in ("finetune", "predictions"):  # not copied, or deleted
        shutil.rmtree(made.path / name)
    write_page([made], tmp_path / "runs", page)
    assert "is not shown: " in page.read_text()


def test_errors_are_those_of_the_corpus_of_the_run(tmp_path: Path) -> None:
    """Bug: replaced places counted as wrong answers, and files that had changed since as those of the run."""
    config = compose(["data.replace=counterfactual.tsv"])
    dev = read_corpus(config.data, config.model.block_size).dev.rows
    data: Any = OmegaConf.to_container(config.data)
    run = write_run(tmp_path / "replaced", data=data, model={"block_size": 128})
    (run / "predictions" / "dev.txt").write_text("".join(f"{row.place}\n" for row in dev))
    write_run(tmp_path / "changed", seed=1, inputs={"dev": "0" * 64})
    write_page(find_runs(tmp_path), tmp_path, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "gold: " not in page
    (run / "predictions" / "dev.txt").write_text("".join(f" {row.place}\n" for row in dev))
    write_page(find_runs(tmp_path), tmp_path, tmp_path / "wrong.html")
    assert "gold: " in (tmp_path / "wrong.html").read_text()
    assert "changed is not shown: " in page
    assert "the files of its corpus have changed" in page


@pytest.mark.parametrize(
    ("option", "file"), [("--html", "none/page.html"), ("--figure", "none/a.png"), ("--figure", "a.pdf")]
)
def test_a_file_is_refused_before_the_tables(option: str, file: str, tmp_path: Path, capsys: Any) -> None:
    write_run(tmp_path / "one")
    assert run_command("report", tmp_path, option, tmp_path / file) == 2
    captured = capsys.readouterr()
    assert option in captured.err
    assert not captured.out


@pytest.mark.parametrize("option", ["--html", "--figure", "--curves-csv"])
def test_a_device_is_no_file(option: str, tmp_path: Path, capsys: Any) -> None:
    """Bug: as root, `--curves-csv /dev/null` replaced the device by a file."""
    write_run(tmp_path / "one")
    os.mkfifo(tmp_path / "pipe.svg")
    assert run_command("report", tmp_path, option, tmp_path / "pipe.svg") == 2
    assert f"error: {option} {tmp_path / 'pipe.svg'}: cannot be written" in capsys.readouterr().err
    assert (tmp_path / "pipe.svg").is_fifo()


@pytest.mark.parametrize("option", ["--html", "--figure"])
def test_without_matplotlib_it_is_one_line(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Bug: with ten settings, whose colours matplotlib makes, it was a traceback."""
    for number in range(10):
        write_run(tmp_path / str(number), model={"n_layer": number})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run_command("report", tmp_path, option, tmp_path / "a.svg") == 2
    assert capsys.readouterr().err == "error: a picture needs matplotlib: pip install 'birthplace-lm[plot]'\n"


def test_a_heading_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Bug: names in square brackets were taken for markup."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show([["vanilla[best]"], ["1"]])
    assert "vanilla[best]" in capsys.readouterr().out


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
    cells = [re.split(r"  +", line.strip()) for line in lines]
    assert "".join(row[0] for row in cells).count("vanilla-") == 9, lines
    assert "failed:[red]no[/red]suchfile" in "".join(row[-1] for row in cells).replace(" ", ""), lines


def test_a_narrow_terminal_has_one_line_for_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80 columns without what matters least; at 20 the longest cells are cut."""
    for seed, correct in enumerate((3, 70)):
        write_run(tmp_path / f"vanilla-none-biographies-s{seed}-1234567{seed}", seed=seed, correct=correct)
    monkeypatch.setattr("sys.stdout", out := io.StringIO())
    monkeypatch.setattr(out, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    lines = as_tables(find_runs(tmp_path)).splitlines()
    assert max(map(len, lines)) <= 80
    head, _, best, worst, blank, *_ = lines
    assert not blank
    assert head.split()[-1] == "run"
    assert (best.split()[-1], worst.split()[-1]) == ("12345671", "12345670")
    assert "50.0%" in best
    table = table_of_runs(find_runs(tmp_path))
    narrow = fit(table, 20, OPTIONAL_COLUMNS)
    assert max(map(len, as_text(narrow).splitlines())) <= 20
    assert len(narrow) == len(table)
    assert len(narrow[0]) == len({*table[0]} - {*OPTIONAL_COLUMNS})


def test_what_settings_share_is_grey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: the last setting hid the others in the part that they had in common."""
    for number in range(3):
        write_run(
            tmp_path / f"run-0000000{number}", stages={"finetune": {"learning_rate": 1e-3 * (number + 1)}}
        )
    shared = [(1e6, 0.1), (2e6, 0.2)]
    by_chance = [(1e6, 0.1), (3e6, 0.1)]
    curves = {0: [*shared, (3e6, 0.3)], 1: [*shared, (3e6, 0.4)], 2: by_chance}
    falls = [(1e6, 2.1), (2e6, 2.0)]
    losses = {0: [*falls, (3e6, 1.9)], 1: [*falls, (3e6, 1.8)], 2: [(1e6, 2.2), (3e6, 1.9)]}
    by_name = {"exact_match": curves, "loss": losses}
    monkeypatch.setattr(plots, "learning_curve", lambda run, name: by_name[name][int(run.path.name[-1])])
    figure = plots.curves_figure(find_runs(tmp_path), "exact_match")
    lines = [(line.get_color(), [*line.get_xdata()]) for line in figure.axes[0].lines]
    assert lines.count((plots.SHARED, [1.0, 2.0])) == 2
    own = [(color, x) for color, x in lines if color in axes_module.COLORS]
    assert [x for _, x in own] == [[2.0, 3.0], [2.0, 3.0], [1.0, 3.0]]
    assert len({color for color, _ in own}) == 3


def test_many_settings_have_a_panel_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: the curves of 40 settings had one pair of axes and colours that nobody could tell apart."""
    for layers in range(1, 10):
        for seed in range(2):
            write_run(
                tmp_path / f"{layers}-{seed}", correct=60 + layers, seed=seed, model={"n_layer": layers}
            )
    layers_of = lambda run: float(run.value("model.n_layer"))  # noqa: E731
    monkeypatch.setattr(
        plots, "learning_curve", lambda run, name: [(1e6, layers_of(run) / 10), (2e6, layers_of(run))]
    )
    runs = find_runs(tmp_path)
    figure = plots.curves_figure(runs, "exact_match")
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels] == [f"n_layer={layers}" for layers in range(9, 0, -1)]
    for layers, axes in zip(range(9, 0, -1), panels, strict=True):
        ends = [(line.get_color(), line.get_ydata()[-1]) for line in axes.lines[:4]]
        assert ends == [(plots.SHARED, 9)] * 2 + [(plots.PANEL_COLOR, layers)] * 2
    fewer = [run for run in runs if run.value("model.n_layer") != "9"]
    assert len(plots.curves_figure(fewer, "exact_match").axes) == 1


def test_the_table_of_seeds_has_mean_bits_and_characters(tmp_path: Path) -> None:
    for seed, surprisal in enumerate((2.0, 1.0, None)):
        run = write_run(tmp_path / str(seed), seed=seed)
        metrics = json.loads((run / "metrics.json").read_text())
        (run / "metrics.json").write_text(
            json.dumps({**metrics, "surprisal": surprisal, "prior_surprisal": 6.0})
        )
    runs = sorted(find_runs(tmp_path), key=lambda run: run.path.name)
    learned_after = dict(zip(runs, (400_000, None, 600_000), strict=True))
    head, row = table_of_seeds(runs, learned_after=learned_after)
    assert row[head.index("mean bits")] == "4.50 (2 of 3)"
    assert row[head.index("until 50%")] == "0.50 (2 of 3)"
    assert "until 50%" not in table_of_seeds(runs)[0]


def test_two_reports_of_the_same_settings_have_the_same_colors(tmp_path: Path) -> None:
    """Bug: an attention changed its color with its result."""
    scores = {("rope", 2): 10, ("rope", 10): 20, ("alibi", 2): 30}
    palettes = []
    for name, correct in (("first", scores), ("second", {key: 100 - n for key, n in scores.items()})):
        for (attention, layers), right in correct.items():
            write_run(
                tmp_path / name / f"{attention}{layers}",
                correct=right,
                labels={"attention": attention, "pretrain": "none", "data": "biographies"},
                model={"n_layer": layers},
            )
        palettes.append(axes_module.colors(find_runs(tmp_path / name)))
    first, second = palettes
    assert [*first] == [*reversed(second)], "in the order of the runs: the best first"
    assert first == second
    labels_in_order = sorted(first, key=lambda label: axes_module.COLORS.index(first[label]))
    assert labels_in_order == ["alibi, n_layer=2", "rope, n_layer=2", "rope, n_layer=10"]


def test_labels_have_a_natural_order() -> None:
    names = ["", "²", "a 10", "a 2", "a 2.5", "a 4e-3", "a 1e999", "a", "b 1"]
    expected = ["", "a", "a 4e-3", "a 2", "a 2.5", "a 10", "a 1e999", "b 1", "²"]
    assert sorted(names, key=axes_module.natural_order) == expected


def test_exact_match_against_a_numeric_setting(tmp_path: Path) -> None:
    """A line through the means over seeds; a setting with one value of it, and text, have none."""
    correct = {
        ("rope", 1): (70, 84),
        ("rope", 2): (98, 98),
        ("rope", 4): (126, 140),
        ("nope", 1): (14, 14),
        ("nope", 2): (28, 28),
        ("vanilla", 2): (112, 112),
    }
    for (attention, layers), scores in correct.items():
        for seed, right in enumerate(scores):
            write_run(
                tmp_path / f"{attention}{layers}-{seed}",
                correct=right,
                seed=seed,
                labels={"attention": attention, "pretrain": "none", "data": "biographies"},
                model={"n_layer": layers, "n_embd": 96 if attention == "vanilla" else 128},
            )
    runs = find_runs(tmp_path)
    (setting,) = numeric_settings(runs)
    assert setting.names == ("n_layer",)
    (axes,) = setting_figure(runs, setting).axes
    lines = {str(line.get_label()): line for line in axes.lines}
    # By label, whatever is best, so that two reports give an attention the same color.
    assert [name for name in lines if name[0] != "_"] == ["nope", "rope", "majority answer"]
    assert [*lines["rope"].get_xdata()] == [1, 2, 4]
    assert [*lines["rope"].get_ydata()] == pytest.approx([0.55, 0.7, 0.95])
    dots = [y for line in axes.lines if line.get_marker() == "o" for y in line.get_ydata()]
    assert sorted(dots) == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.5, 0.6, 0.7, 0.7, 0.9, 1.0])
    for name in ("n_layer", "model.n_layer"):
        out = tmp_path / f"{name}.svg"
        plots.save_figure(runs, out, name)
        assert "n_layer" in out.read_text()
    for name, message in (
        ("seed", "--against seed: the seed is no setting: .*; possible: attention, n_"),
        ("labels.data", "--against labels.data: the finished runs do not differ in this setting; possible"),
        ("layers", "--against layers: no such setting; possible: attention"),
    ):
        with pytest.raises(InputError, match=message):
            plots.save_figure(runs, tmp_path / "figure.svg", name)


def test_exact_match_against_a_setting_that_is_no_number(tmp_path: Path) -> None:
    """A row for each value, the best first, and a color for each choice of the others."""
    correct = {("rope", "none"): (7, 9), ("rope", "spans"): (98, 112), ("nope", "spans"): (126, 133)}
    for (attention, pretrain), scores in correct.items():
        for seed, right in enumerate(scores):
            chosen = {"attention": attention, "pretrain": pretrain, "data": "biographies"}
            write_run(tmp_path / f"{attention}-{pretrain}-{seed}", correct=right, seed=seed, labels=chosen)
    runs = find_runs(tmp_path)
    (axes,) = setting_figure(runs, chosen_setting(runs, "attention")).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["nope", "rope"]
    dots = {
        y: [*line.get_xdata()] for line in axes.lines if line.get_marker() == "o" for y in line.get_ydata()
    }
    assert dots[0] == pytest.approx([0.95, 0.9])
    means = sorted(
        (line.get_ydata()[0], *line.get_xdata()) for line in axes.lines if line.get_marker() == "|"
    )
    assert means == [(0, pytest.approx(0.925)), (1, pytest.approx(8 / 140)), (1, pytest.approx(0.75))]
    drawn = {str(line.get_label()): line.get_color() for line in axes.lines if line.get_marker() == "o"}
    assert drawn["none"] != drawn["spans"]
    low, high = Score(210, 280).interval
    bars = [
        [*line.get_xdata()] for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() != "o"
    ]
    assert any(bar[0] < low < high < bar[1] for bar in bars)  # over 140 people, not over 280 answers


def test_paths_that_end_alike_are_told_apart(tmp_path: Path) -> None:
    """Bug: two settings had one label, and --against joined them into one line."""
    for corpus, correct in (("first", 14), ("second", 70), ("third", 126)):
        for layers in (1, 2):
            write_run(
                tmp_path / f"{corpus}-{layers}",
                correct=correct,
                data={"root": f"/people/{corpus}/files" if corpus != "third" else "files"},
                model={"n_layer": layers},
            )
    runs = find_runs(tmp_path)
    roots = ["files", "first/files", "second/files"]
    assert {row[0] for row in table_of_runs(runs)[1:]} == {*roots}
    setting = next(setting for setting in varying_settings(runs) if setting.names == ("n_layer",))
    (axes,) = setting_figure(runs, setting).axes
    lines = {line.get_label(): [*line.get_ydata()] for line in axes.lines if len(line.get_xdata()) == 2}
    for root, share in zip(roots, (0.9, 0.1, 0.5), strict=True):
        assert lines[f"root={root}"] == pytest.approx([share, share])


def test_every_corpus_has_its_majority_answer(tmp_path: Path) -> None:
    """Bug: one line, at the largest baseline."""
    for data, correct in (("biographies", 13), ("cs224n", 5), ("same", 5)):
        run = write_run(tmp_path / data, labels={"attention": "rope", "pretrain": "none", "data": data})
        metrics = json.loads((run / "metrics.json").read_text())
        metrics["baseline"]["correct"] = correct
        (run / "metrics.json").write_text(json.dumps(metrics))
    runs = find_runs(tmp_path)

    def lines(*names: str) -> dict[str, float]:
        (axes,) = plots.scores_figure([run for run in runs if run.path.name in names]).axes
        drawn = {str(line.get_label()): line.get_xdata()[0] for line in axes.lines}
        return {label: share for label, share in drawn.items() if label[0] != "_"}

    assert lines("cs224n", "same") == {"majority answer": pytest.approx(5 / 140)}
    majorities = lines("biographies", "cs224n", "same")
    assert sorted(majorities.values()) == pytest.approx([5 / 140, 13 / 140])
    labels = ["biographies (9.3 %)", "cs224n, same (3.6 %)"]
    assert sorted(majorities) == [f"majority answer of {label}" for label in labels]


def test_a_truth_value_is_no_number(tmp_path: Path) -> None:
    for canon in (False, True):
        write_run(tmp_path / str(canon), model={"canon": canon})
    runs = find_runs(tmp_path)
    assert numeric_settings(runs) == []
    (axes,) = setting_figure(runs, chosen_setting(runs, "canon")).axes
    assert {tick.get_text() for tick in axes.get_yticklabels()} == {"True", "False"}


def test_an_older_run_has_the_default_of_a_key_that_was_added_later(tmp_path: Path) -> None:
    """Bug: it had no value, so it counted as another seed of the runs with any value."""
    write_run(tmp_path / "old", model={"n_layer": 4})
    write_run(tmp_path / "same", model={"n_layer": 4, "mask_pads": False})
    write_run(tmp_path / "other", model={"n_layer": 4, "mask_pads": True})
    runs = find_runs(tmp_path)
    (setting,) = varying_settings(runs)
    assert setting.keys == ("model.mask_pads",)
    values = {run.path.name: setting.display(run) for run in runs}
    assert values == {"old": "False", "same": "False", "other": "True"}


def test_a_list_is_no_number(tmp_path: Path) -> None:
    """Bug: a page about runs with several of them was a traceback."""
    for number in range(3):
        write_run(tmp_path / str(number), optimizer={"betas": [0.9, 0.9 + number / 100]})
    runs = find_runs(tmp_path)
    assert labels(runs)[runs[1]] == "betas=[0.9, 0.91]"
    assert numeric_settings(runs) == []
    write_page(runs, tmp_path, tmp_path / "page.html")


def test_characters_until_half_of_the_answers_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        write_run(tmp_path / f"run-0000000{number}", seed=number)
    curves = {0: [(1e6, 0.1), (2.5e6, 0.5), (3e6, 0.4)], 1: [(1e6, 0.49)]}
    monkeypatch.setattr(
        "birthplace_lm.analysis.report.curves.learning_curve", lambda run: curves[int(run.path.name[-1])]
    )
    runs = find_runs(tmp_path)
    reached = {run: characters_until_half(run) for run in runs}
    assert sorted(reached.values(), key=str) == [2_500_000, None]
    head, *rows = table_of_runs(runs, learned_after=reached)
    assert {row[head.index("seed")]: row[head.index("until 50%")] for row in rows} == {"0": "2.50", "1": ""}


def test_a_smoothed_curve_does_not_lag() -> None:
    """Bug: the smoothed loss of a long run was half as large again as the raw one while that fell."""
    falling = [(float(x), 5 - 0.01 * x) for x in range(400)]
    assert [y for _, y in smoothed(falling)] == pytest.approx([y for _, y in falling])
    noise = [(float(x), (-1.0) ** x) for x in range(400)]
    inner = [abs(y) for _, y in smoothed([*noise, (400.0, math.nan)])][20:-20]
    assert max(inner) == pytest.approx(1 / 21)  # the mean of ten points on each side and the point itself
    assert smoothed([]) == []
