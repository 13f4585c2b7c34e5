"""`python train.py` as its users run it, in processes of its own."""

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import Any

import pytest
from program import Program
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from birthplace_lm.runs import auto_precision, checkpoint
from birthplace_lm.runs.auto_precision import MatmulRates

REPOSITORY = Path(__file__).parents[2]


def train(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        program = Program(arguments, Path(folder), os.environ)
        ended = program.wait(300)
        out, err = program.stdout.read_text(), program.stderr.read_text()
    assert ended == code, out + err
    return subprocess.CompletedProcess(arguments, ended, out, err)


def metrics(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return result


def curves(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def losses(folder: Path, tag: str) -> list[float]:
    return [event.value for event in curves(folder).Scalars(tag)]


@pytest.fixture(scope="module")
def finished(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a short run."""
    root = tmp_path_factory.mktemp("finished")
    train(*short(people), f"run_dir={root / 'run'}", f"runs_root={root / 'runs'}", "seed=3")
    return root / "run"


def short(people: Path) -> list[str]:
    return [
        "model=tiny",
        f"data.root={people}",
        "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=1",
        "stages.pretrain.max_epochs=2",
        "stages.pretrain.batch_size=8",
        "stages.pretrain.check_val_every_n_epoch=1",
        "stages.finetune.max_epochs=2",
        "stages.finetune.batch_size=8",
    ]


def test_leaves_what_it_promises(finished: Path) -> None:
    result = metrics(finished)
    assert {k: result[k] for k in ("attention", "pretrain", "data", "seed")} == {
        "attention": "vanilla",
        "pretrain": "span_corruption",
        "data": "biographies",
        "seed": 3,
    }
    assert result["dev"]["total"] == result["baseline"]["total"] == result["stages"]["evaluate"]["names"] == 8
    assert result["dev"]["exact_match"] == result["dev"]["correct"] / 8
    for stage, count in (("pretrain", 24 + 6), ("finetune", 12)):
        spent = result["stages"][stage]
        assert spent["steps"] == 2 * -(-count // 8)
        assert spent["epochs"] == 2
        assert spent["seconds"] > 0
    examples = [line.split("\t") for line in Path(found_root(finished), "train.tsv").read_text().splitlines()]
    # of `question MASK place MASK` all but the last character is read, in two epochs
    assert result["stages"]["finetune"]["characters"] == 2 * sum(
        len(q) + len(place) + 1 for q, place in examples
    )
    predictions = (finished / "predictions" / "dev.txt").read_text().splitlines()
    places = [line.split("\t")[1] for line in Path(found_root(finished), "dev.tsv").read_text().splitlines()]
    assert result["dev"]["correct"] == sum(a == b for a, b in zip(predictions, places, strict=True))
    assert len((finished / "predictions" / "test.txt").read_text().splitlines()) == 4
    assert json.loads((finished / "status.json").read_text())["state"] == "done"
    assert (finished / "log.txt").stat().st_size > 0
    assert "\r" not in (finished / "log.txt").read_text()


def found_root(run: Path) -> str:
    return next(line.split()[1] for line in (run / "config.yaml").read_text().splitlines() if "root:" in line)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_tensorboard_has_the_curves(finished: Path, stage: str) -> None:
    events = curves(finished / stage)
    tags = events.Tags()
    names = ("loss", "val_loss", "exact_match", "learning_rate", "grad_norm", "characters_per_second")
    assert {f"{stage}/{name}" for name in names} <= set(tags["scalars"])
    assert f"{stage}/answers/text_summary" in tags["tensors"]
    steps = [event.step for event in events.Scalars(f"{stage}/loss")]
    assert steps == list(range(metrics(finished)["stages"][stage]["steps"]))


def test_the_last_exact_match_is_that_of_the_evaluation(finished: Path) -> None:
    assert curves(finished / "finetune").Scalars("finetune/exact_match")[-1].value == pytest.approx(
        metrics(finished)["dev"]["exact_match"]
    )


def test_hyperparameters_come_with_the_final_metric(finished: Path) -> None:
    events = curves(finished / "finetune")
    # With a description of the experiment TensorBoard would not show first what differs.
    assert "_hparams_/experiment" not in events.summary_metadata
    data = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    chosen = HParamsPluginData.FromString(data).session_start_info.hparams
    assert chosen["attention"].string_value == "vanilla"
    assert chosen["seed"].number_value == 3
    assert chosen["optimizer"].string_value == "muon"
    assert chosen["data.holdout_size"].number_value == 0
    result = metrics(finished)
    stages = [result["stages"][name] for name in ("pretrain", "finetune")]
    expected = {
        "dev_exact_match": result["dev"]["exact_match"],
        "loss": stages[1]["loss"],
        "million_characters": sum(stage["characters"] for stage in stages) / 1e6,
        "seconds": sum(stage["seconds"] for stage in stages),
    }
    for name, value in expected.items():
        assert [e.value for e in events.Scalars(f"final/{name}")] == pytest.approx([value]), name


def test_hyperparameters_are_those_that_were_used(people: Path, tmp_path: Path) -> None:
    """Once the epochs were those of the stage, though `trainer.max_epochs` beat them."""
    run = tmp_path / "run"
    train(
        *short(people), f"run_dir={run}", f"runs_root={tmp_path}",
        "stages.finetune.enabled=false", "trainer.max_epochs=1",
    )  # fmt: skip
    events = curves(run / "finetune")
    data = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    chosen = HParamsPluginData.FromString(data).session_start_info.hparams
    assert chosen["pretrain.max_epochs"].number_value == metrics(run)["stages"]["pretrain"]["epochs"] == 1
    assert not [key for key in chosen if key.startswith("finetune.")]
    reached = [event.value for event in events.Scalars("final/loss")]
    assert reached == pytest.approx([metrics(run)["stages"]["pretrain"]["loss"]])


def test_the_same_command_again_returns_at_once(finished: Path, people: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    command = [*short(people), f"run_dir={finished}", f"runs_root={finished.parent / 'runs'}", "seed=3"]
    code = (
        f"import sys; from birthplace_lm.cli.app import main; main({command}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "dev exact match" in done.stdout
    assert done.stdout.endswith("\nFalse\n")  # which takes longer to import than all else
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


def test_refuses_the_directory_of_another_run(finished: Path, people: Path) -> None:
    done = train(*short(people), f"run_dir={finished}", "seed=4", code=2)
    assert done.stderr == (
        f"error: run_dir={finished}: belongs to a run with another seed (3 there, 4 here);"
        " give another run_dir\n"
    )


def test_a_bar_is_for_terminals(people: Path, tmp_path: Path) -> None:
    terminal, other = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    command = [sys.executable, str(REPOSITORY / "train.py"), *short(people), "pretrain=none"]
    with subprocess.Popen([*command, f"run_dir={tmp_path / 'run'}"], stdout=other, stderr=other) as child:
        os.close(other)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
            while some := os.read(terminal, 65536):
                shown += some
    assert child.returncode == 0
    assert re.search(rb"\rfinetune: +\d+%\|.*<\d\d:\d\d, .*loss \d", shown)
    assert "\r" not in (tmp_path / "run" / "log.txt").read_text()


def test_dry_run_leaves_nothing(people: Path, tmp_path: Path) -> None:
    """And warns as a run does. Bug: it did not say that train and dev overlap."""
    done = train(*short(people), f"runs_root={tmp_path / 'runs'}", "data.dev=train.tsv", "dry_run=true")
    assert "24 documents" in done.stdout
    assert "12 of 12 questions are also in" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_sweep_pretrains_once_for_all_that_need_it(people: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    train(
        "-m",
        *short(people),
        f"runs_root={root}",
        "pretrain=none,span_corruption",
        "stages.finetune.learning_rate=1e-3,1e-4",
        "stages.finetune.max_epochs=1",
    )
    runs = [path.parent for path in root.glob("*/metrics.json")]
    assert len(runs) == 4
    assert len(list((root / "pretrained").iterdir())) == 1
    assert sorted(metrics(run)["stages"]["pretrain"]["steps"] for run in runs) == [0, 0, 8, 8]


@pytest.mark.torture
@pytest.mark.parametrize("trainer", ["ddp", "fsdp2"])
def test_two_processes_learn_as_one(trainer: str, people: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    common = [*short(people), "stages.pretrain.max_epochs=3"]
    train(*common, f"run_dir={one}", f"runs_root={tmp_path / 'roots' / 'one'}")
    several = [f"trainer={trainer}", "trainer.accelerator=cpu", f"runs_root={tmp_path / 'roots' / 'two'}"]
    train(*common, *several, f"run_dir={two}")
    for stage in ("pretrain", "finetune"):
        expected = losses(one / stage, f"{stage}/loss")
        assert losses(two / stage, f"{stage}/loss") == pytest.approx(expected, abs=1e-4)
        assert losses(two / stage, f"{stage}/exact_match") == losses(one / stage, f"{stage}/exact_match")
        a, b = metrics(one)["stages"][stage], metrics(two)["stages"][stage]
        assert (a["steps"], a["characters"]) == (b["steps"], b["characters"])
    assert metrics(two)["dev"]["total"] == 8


def test_mixed_precision_is_a_flag(
    finished: Path, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With precision=auto, where another process has measured that bfloat16 is faster."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(auto_precision, "measure_rates", lambda width: MatmulRates(1e11, 3e11))
    auto_precision.rates_of_machine.cache_clear()  # another test may have measured this machine
    assert auto_precision.measured_precision("cpu", 32) == "bf16-mixed"
    auto_precision.rates_of_machine.cache_clear()
    run = tmp_path / "run"
    train(*short(people), f"run_dir={run}", f"runs_root={tmp_path}", "seed=3", "precision=auto")
    assert "precision=auto: bf16-mixed, because matrix products" in (run / "log.txt").read_text()
    exact = losses(finished / "pretrain", "pretrain/loss")
    rough = losses(run / "pretrain", "pretrain/loss")
    assert rough != exact
    assert rough == pytest.approx(exact, abs=0.05)
    state = checkpoint.load(checkpoint.list_checkpoints(run / "finetune")[0])["state_dict"]
    assert {str(value.dtype) for value in state.values()} == {"torch.float32"}
    assert metrics(run)["dev"]["total"] == 8


@pytest.mark.parametrize("preset", ["smoke", "overfit", "profile"])
def test_debug_presets_do_what_they_say(preset: str, people: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    smaller = {
        "smoke": [],
        "overfit": ["model=tiny", "model.n_embd=64"],
        "profile": ["model=tiny", "trainer.max_steps=4"],
    }[preset]
    root = [] if preset == "overfit" else [f"data.root={people}"]  # of more than one batch
    train(f"debug={preset}", *root, f"runs_root={tmp_path}", f"run_dir={run}", *smaller)
    result = metrics(run)["stages"]
    if preset == "smoke":
        assert [result[stage]["steps"] for stage in ("pretrain", "finetune")] == [3, 3]
    elif preset == "overfit":
        assert result["finetune"]["steps"] == 150
        first, *_, last = losses(run / "finetune", "finetune/loss")
        assert last < first / 10
    else:
        text = (run / "finetune" / "fit-profile.txt").read_text()
        assert "run_training_batch" in text
