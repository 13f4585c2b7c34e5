"""The Python API: three lines, Ctrl-C in a notebook, and the notebook of the documentation."""

import contextlib
import io
import json
import logging
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import hydra
import lightning as L
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.version import VersionBase
from omegaconf import read_write
from stage import without_waiting

import birthplace_lm
from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.errors import InputError, InternalError
from birthplace_lm.runs import signals
from birthplace_lm.training import components
from birthplace_lm.training.api import FinishedRun
from birthplace_lm.training.preflight import preflight

ROOT = Path(__file__).parents[2]


def train(config: Any, *callbacks: L.Callback) -> FinishedRun:
    with without_waiting():
        if not callbacks:
            return birthplace_lm.train(config)
        with mock.patch.object(components, "progress", return_value=[*callbacks]):
            return birthplace_lm.train(config)


class SignalAfterStep(L.Callback):
    def __init__(self, number: int, step: int, times: int = 1) -> None:
        self.number, self.step, self.times = number, step, times

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            for _ in range(self.times):
                signal.raise_signal(self.number)


class FailAtStart(L.Callback):
    def on_train_start(self, *args: Any) -> None:
        raise RuntimeError("mine")


def test_a_run_answers_as_its_predictions_file(
    configure: Any, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure("pretrain=none")
    run = train(config)
    assert "finetune: " in capsys.readouterr().out
    assert run.metrics.dev.total == 8
    names = [line.split("\t")[0][10:-6] for line in (people / "dev.tsv").read_text().splitlines()]
    assert run.model.answer(names) == (run.path / "predictions" / "dev.txt").read_text().splitlines()
    log = (run.path / "log.txt").read_text()
    assert train(config).metrics == run.metrics
    assert capsys.readouterr().out == ""
    assert (run.path / "log.txt").read_text() == log != ""


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, str]:
    return {}


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_leaves_a_run_that_continues(
    configure: Any, times: int, uninterrupted: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning would end a notebook's kernel, and ignore Ctrl-C from then on."""
    if not uninterrupted:
        uninterrupted["weights"] = train(configure("pretrain=none")).metrics.weights_sha256
    config = configure("pretrain=none", "checkpoint.every_n_steps=2")
    with read_write(config):
        config.runs_root += "/other"
    handlers = {number: signal.getsignal(number) for number in signals.HANDLED}
    message = "interrupted by SIGINT after step 3 of finetune" if times == 1 else "stopped"
    with pytest.raises(KeyboardInterrupt, match=message):
        train(config, SignalAfterStep(signal.SIGINT, 3, times))
    assert {number: signal.getsignal(number) for number in signals.HANDLED} == handlers
    assert signals.pending_signal() is None
    assert not signals.installed()
    (status,) = Path(config.runs_root).glob("*/status.json")
    assert json.loads(status.read_text())["state"] == "preempted"
    capsys.readouterr()
    run = train(config)
    assert f"finetune: resuming after step {3 if times == 1 else 2}" in capsys.readouterr().out
    assert run.path == status.parent
    assert run.metrics.weights_sha256 == uninterrupted["weights"]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("override", ["resume=never", "overwrite=true"])
def test_ctrl_c_names_a_command_that_continues(configure: Any, override: str, times: int) -> None:
    """Bug: the same command was named, which would have thrown the saved steps away."""
    config = configure("pretrain=none", override)
    with pytest.raises(KeyboardInterrupt, match=r"; give resume=auto \(without overwrite\) to continue$"):
        train(config, SignalAfterStep(signal.SIGINT, 3, times))


def test_threads_take_turns(configure: Any, tmp_path: Path) -> None:
    """Bug: they drew from the same random numbers, and their weights were neither's."""
    alone = [
        configure("pretrain=none", f"seed={seed}", f"run_dir={tmp_path}/alone-{seed}") for seed in (0, 1)
    ]
    both = [configure("pretrain=none", f"seed={seed}", f"run_dir={tmp_path}/both-{seed}") for seed in (0, 1)]
    expected = [train(config).metrics.weights_sha256 for config in alone]
    found: dict[int, str] = {}

    def one(config: Any) -> None:
        found[config.seed] = birthplace_lm.train(config).metrics.weights_sha256

    with without_waiting():
        threads = [threading.Thread(target=one, args=(config,)) for config in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[0], found[1]] == expected


def test_a_result_is_found_from_another_folder(
    configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: the path was relative, as `runs_root` is, and the model is read at its first use."""
    monkeypatch.chdir(tmp_path)
    run = train(configure("pretrain=none", "run_dir=relative"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run.model.answer(["Ada"])


def test_the_callers_hydra_stays_as_it_was(tmp_path: Path) -> None:
    """Bug: inside an application of Hydra, and in two threads, compose raised a ValueError of Hydra."""
    (tmp_path / "theirs.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        assert birthplace_lm.compose(["model=tiny"]).model.n_embd == 32
        assert hydra.compose("theirs") == {"a": 1}
        assert not HydraConfig.initialized()
        assert str(VersionBase.instance().getbase()) == "1.2"
    with ThreadPoolExecutor(4) as pool:
        configs = [*pool.map(lambda seed: birthplace_lm.compose([f"seed={seed}"]), range(8))]
    assert [config.seed for config in configs] == [*range(8)]
    assert not GlobalHydra.instance().is_initialized()


def test_the_callers_log_stays_as_it_was(configure: Any) -> None:
    log, show = logging.getLogger("birthplace_lm"), warnings.showwarning
    before = (log.level, log.propagate, [*log.handlers])
    with pytest.raises(InternalError, match="mine"):
        train(configure("pretrain=none"), FailAtStart())
    assert (log.level, log.propagate, log.handlers) == before
    assert warnings.showwarning is show


def test_mistakes_are_named(configure: Any) -> None:
    with pytest.raises(TypeError, match=r"train takes a configuration.*compose"):
        birthplace_lm.train(["model=tiny"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="pass a list"):
        birthplace_lm.compose("model=tiny")
    with pytest.raises(InputError, match="dry_run=True"):
        birthplace_lm.train(configure("dry_run=true"))


def test_several_devices_from_a_notebook(configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning refuses its own launcher there; the processes are ours."""
    from lightning.pytorch.trainer.connectors import accelerator_connector

    monkeypatch.setattr(accelerator_connector, "_IS_INTERACTIVE", True)
    for flags in (["trainer=ddp"], ["trainer=fsdp2", "pretrain=none"]):
        config = configure(*flags, "trainer.devices=2", "trainer.accelerator=cpu")
        plans = preflight(config, read_corpus(config.data, config.model.block_size))
        assert {plan.processes for plan in plans} == {2}


def test_import_is_quick() -> None:
    heavy = "torch lightning hydra omegaconf pandas numpy"
    code = f"import sys, birthplace_lm; print([m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells in order, as in a kernel: with a prompt, and with an output that is no terminal."""
    pandas = pytest.importorskip("pandas")
    cells = json.loads((ROOT / "docs/notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    values: dict[str, Any] = {}
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), without_waiting():
        for number, cell in enumerate(cells):
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), f"cell {number}", "exec"), values)
    assert values["run"].path.is_dir()
    assert isinstance(values["runs"], pandas.DataFrame)
    assert sorted(values["runs"].pretraining) == ["none", "span_corruption"]
    assert values["runs"].exact_match.between(0, 1).all()
    assert "pretrain: 100%" in output.getvalue()
    assert "did you mean vanilla?" in output.getvalue()
