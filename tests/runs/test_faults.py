"""Killed inside a save, a disk that fails, numbers that are not finite: nothing is lost but time."""

import errno
import functools
import json
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import pytest
import torch
from omegaconf import DictConfig
from program import Program, leftovers
from stage import Stop, digest, fit, forked, hydra_job, quick, run, sampled
from tensorboard.summary.writer.record_writer import RecordWriter

from birthplace_lm.cli import app, session
from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.data.vocab import PAD
from birthplace_lm.errors import CheckpointError, NonFiniteError
from birthplace_lm.models.gpt import GPT
from birthplace_lm.runs import atomic_files as files
from birthplace_lm.runs import checkpoint
from birthplace_lm.training import microbatching

# Where to kill: a call, the end of the name of its file, before or after it.
KILL_POINTS = {
    "before the temporary file": ("open", ".ckpt.tmp", "before"),
    "with an empty temporary file": ("open", ".ckpt.tmp", "after"),
    "with half of it written": ("write", ".ckpt.tmp", "half"),
    "written but not synced": ("fsync", ".ckpt.tmp", "before"),
    "synced": ("fsync", ".ckpt.tmp", "after"),
    "before the temporary hash": ("open", ".ckpt.sha256.tmp", "before"),
    "with half of the hash written": ("write", ".ckpt.sha256.tmp", "half"),
    "with the hash synced": ("fsync", ".ckpt.sha256.tmp", "after"),
    "before the hash has its name": ("replace", ".ckpt.sha256", "before"),
    "with the hash in place": ("replace", ".ckpt.sha256", "after"),
    "before the checkpoint has its name": ("replace", ".ckpt", "before"),
    "with the checkpoint in place": ("replace", ".ckpt", "after"),
}
PRUNING_POINTS = {
    "before pruning": ("unlink", ".ckpt", "before"),
    "with the checkpoint pruned": ("unlink", ".ckpt", "after"),
    "with its hash pruned": ("unlink", ".ckpt.sha256", "after"),
}
Alone = Callable[..., tuple[str, dict[int, float]]]
FAILURES = [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EROFS]


class Disk:
    """Calls `meet(call, file, when)` around everything that saving asks of the operating system.

    `when` is "before", "half" (of a write) or "after"; `file` is what the call is about, by name.
    """

    def __init__(self, folder: Path, meet: Callable[[str, str, str], None]) -> None:
        self.folder = folder
        self.meet = meet
        self._names: dict[int, str] = {}
        self._real = {name: getattr(os, name) for name in ("open", "write", "fsync", "replace", "unlink")}
        self._read_back = files.sha256_of
        self._patches = ExitStack()

    def __enter__(self) -> None:
        for name in self._real:
            self._patches.enter_context(mock.patch.object(os, name, functools.partial(self._call, name)))
        self._patches.enter_context(mock.patch.object(files, "sha256_of", self._sha256_of))

    def __exit__(self, *args: object) -> None:
        self._patches.close()

    def _call(self, name: str, first: Any, *rest: Any, **options: Any) -> Any:
        real = self._real[name]
        if name in ("write", "fsync"):
            file = self._names.get(first)
        else:
            path = Path(os.fsdecode(rest[0] if name == "replace" else first))
            file = path.name if path.is_relative_to(self.folder) else None
        if file is None:
            return real(first, *rest, **options)
        self.meet(name, file, "before")
        if name == "write":
            done = real(first, rest[0][: max(1, len(rest[0]) // 2)])
            self.meet(name, file, "half")
        else:
            done = real(first, *rest, **options)
        if name == "open":
            self._names[done] = file
        self.meet(name, file, "after")
        return done

    def _sha256_of(self, path: Path) -> str:
        self.meet("read back", path.name, "before")
        return self._read_back(path)


@pytest.fixture(scope="module")
def undisturbed(people: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """How the stages end when they are left alone."""
    root = tmp_path_factory.mktemp("undisturbed")
    for stage in ("pretrain", "finetune"):
        fit(quick(people, root), stage, root / stage)
    return {stage: digest(root / stage) for stage in ("pretrain", "finetune")}


def _at_once() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("point", "step"), [*sampled(list(KILL_POINTS), [2, 6]), *sampled(list(PRUNING_POINTS), [6, 8])]
)
def test_killed_inside_a_save(
    point: str,
    step: int,
    people: Path,
    tmp_path: Path,
    undisturbed: dict[str, str],
) -> None:
    about = step - 4 if point in PRUNING_POINTS else step  # the step of the checkpoint of the last call
    stage = "finetune" if (point, step) == ("with the hash in place", 6) else "pretrain"
    call, end, moment = {**KILL_POINTS, **PRUNING_POINTS}[point]
    config, folder = quick(people, tmp_path), tmp_path / "stage"

    def kill(done: str, file: str, when: str) -> None:
        if (done, file, when) == (call, f"step-{about:08d}{end}", moment):
            _at_once()

    def killed() -> None:
        with Disk(folder, kill):
            fit(config, stage, folder)

    assert forked(killed) == -signal.SIGKILL
    left = [path for path in checkpoint.list_checkpoints(folder) if checkpoint.is_intact(path)]
    assert left == checkpoint.list_checkpoints(folder), "whatever has its name is whole"
    newest = checkpoint.parse_step(left[0]) if left else 0
    complete = step if point in ("with the checkpoint in place", *PRUNING_POINTS) else step - 2
    assert newest == complete
    fit(config, stage, folder)
    assert digest(folder) == undisturbed[stage]
    assert leftovers(folder) == []


@pytest.mark.parametrize("point", KILL_POINTS)
def test_killed_while_a_checkpoint_is_replaced(point: str, tmp_path: Path) -> None:
    """Bug: the hash of the new one stood beside the old one, which counted as damaged."""
    path = checkpoint.best_path(tmp_path)
    checkpoint.save({"step": 1}, path)
    call, end, moment = KILL_POINTS[point]

    def kill(done: str, file: str, when: str) -> None:
        if (done, file, when) == (call, f"best{end}", moment):
            _at_once()

    def replace() -> None:
        with Disk(tmp_path, kill):
            checkpoint.save({"step": 2}, path)

    assert forked(replace) == -signal.SIGKILL
    assert checkpoint.is_intact(path)
    assert torch.load(path)["step"] == (2 if point == "with the checkpoint in place" else 1)
    checkpoint.save({"step": 3}, path)
    assert checkpoint.is_intact(path)
    assert len(path.with_name("best.ckpt.sha256").read_text().split()) == 1


class Failing:
    """The n-th of these calls fails; `failed` tells which file it was about."""

    def __init__(self, call: str, n: int, number: int) -> None:
        self.call, self.n, self.number = call, n, number
        self.failed = ""

    def __call__(self, call: str, file: str, when: str) -> None:
        if call == self.call and when == "before":
            self.n -= 1
            if self.n == 0:
                self.failed = file
                # os.write and os.fsync know of no name
                raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace", "read back", "unlink"])
def test_the_nth_call_fails(
    call: str, people: Path, tmp_path: Path, undisturbed: dict[str, str], amount: Any, record: Any
) -> None:
    config = quick(people, tmp_path)
    n = 0
    while True:
        n += 1
        folder = tmp_path / f"stage-{n}"
        failing = Failing(call, n, FAILURES[n % len(FAILURES)])
        if n > amount(3, 10**6):
            break
        caught: Exception | None = None
        try:
            with Disk(folder, failing):
                fit(config, "pretrain", folder)
        except (CheckpointError, OSError) as error:
            caught = error
        if caught is None:
            break
        assert failing.failed
        assert os.strerror(failing.number) in str(caught)
        assert str(folder) in str(caught)
        if "result.json" not in str(caught):  # that is for pipeline.run to say
            assert isinstance(caught, CheckpointError)
        assert all(map(checkpoint.is_intact, checkpoint.list_checkpoints(folder)))
        assert leftovers(folder) == [] or call == "unlink"
        fit(config, "pretrain", folder)
        assert digest(folder) == undisturbed["pretrain"]
        assert leftovers(folder) == []
    assert n > 2
    record(f"the n-th {call} of a stage fails", f"{n - 1} of {n - 1} recovered bit-identical")


@pytest.mark.parametrize("number", FAILURES, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace", "read back"])
@pytest.mark.parametrize("replaces", [False, True])
def test_a_failing_save_leaves_the_ones_before(
    call: str, number: int, replaces: bool, tmp_path: Path
) -> None:
    checkpoint.save({"step": 1}, checkpoint.checkpoint_path(tmp_path, 1))
    n = 0
    while True:
        n += 1
        path = checkpoint.checkpoint_path(tmp_path, 1 if replaces else 1 + n)
        message = ""
        try:
            with Disk(tmp_path, Failing(call, n, number)):
                checkpoint.save({"step": 1 + n}, path)
        except CheckpointError as error:
            message = str(error)
        if not message:
            break
        assert message == f"{path}: cannot be written: {os.strerror(number)}"
        assert checkpoint.is_intact(checkpoint.checkpoint_path(tmp_path, 1))
        assert all(map(checkpoint.is_intact, checkpoint.list_checkpoints(tmp_path)))
        assert leftovers(tmp_path) == []
    assert n > 2


def test_writes_that_take_a_part_only(people: Path, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    real = os.write
    with mock.patch.object(os, "write", lambda file, content: real(file, content[:1000])):
        fit(quick(people, tmp_path), "pretrain", tmp_path / "stage")
    assert digest(tmp_path / "stage") == undisturbed["pretrain"]


def full(file: str, folder: Path) -> Any:
    """A disk that takes nothing for files of this name any more."""

    def meet(call: str, name: str, when: str) -> None:
        if call == "write" and name == f"{file}.tmp" and when == "before":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return Disk(folder, meet)


@pytest.fixture(scope="module")
def whole_run(people: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The metrics of a run that is left alone."""
    return run(quick(people, tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize(
    "file", ["config.yaml", "status.json", "metrics.json", "result.json", "dev.txt", "step-00000006.ckpt"]
)
def test_a_full_disk_ends_the_program_in_one_line(
    file: str,
    people: Path,
    whole_run: dict[str, Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = quick(people, tmp_path, f"run_dir={tmp_path / 'run'}")
    caplog.set_level(logging.DEBUG, "birthplace_lm")  # as train.py does
    with full(file, tmp_path), pytest.raises(CheckpointError, match="No space left on device") as caught:
        run(config)
    assert "Traceback" not in capfd.readouterr().err
    assert file in str(caught.value) or file == "config.yaml"
    assert str(tmp_path) in str(caught.value)
    status = tmp_path / "run" / "status.json"
    if file not in ("config.yaml", "status.json"):
        content = json.loads(status.read_text())
        assert (content["state"], content["error"]) == ("failed", str(caught.value))
        assert "Traceback" in (tmp_path / "run" / "log.txt").read_text()
    again = run(config)
    assert json.loads(status.read_text())["state"] == "done"
    assert leftovers(tmp_path) == []
    assert again["weights_sha256"] == whole_run["weights_sha256"]


def test_a_full_disk_under_the_curves(people: Path, tmp_path: Path) -> None:
    config = quick(people, tmp_path, f"run_dir={tmp_path / 'run'}")
    output = tmp_path / "output"

    def refuse(self: RecordWriter, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def program() -> None:
        file = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        threading.excepthook = threading.__excepthook__  # which pytest has replaced
        RecordWriter.write = refuse
        with hydra_job():
            app.run(config)
        code = session.current().exit_code()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    assert forked(program) == 4, output.read_text()
    assert re.findall("^error: .*", output.read_text(), re.MULTILINE) == [
        f"error: {tmp_path / 'run'}: No space left on device"
    ]
    assert "Traceback" not in output.read_text()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    assert run(config)["stages"]["finetune"]["steps"] == 6


def test_a_full_disk_under_the_log(people: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = [
        "model=tiny", f"data.root={people}", f"runs_root={tmp_path}", f"run_dir={folder}", "pretrain=none",
        "stages.finetune.max_epochs=1", "trainer.accelerator=cpu",
    ]  # fmt: skip
    program = Program(arguments, tmp_path / "output")
    assert program.wait() == 0, program.stderr.read_text()
    for name in ("metrics.json", "status.json", "log.txt"):
        (folder / name).unlink()
    (folder / "log.txt").symlink_to("/dev/full")
    program = Program(arguments, tmp_path / "output")
    assert program.wait() == 4, program.stderr.read_text()
    message = program.stderr.read_text()
    assert message == f"error: {folder / 'log.txt'}: No space left on device\n"
    assert "Traceback" not in program.stdout.read_text()


class Poison(L.Callback):
    """Puts NaN or infinity where it is told to, in these optimizer steps, and notes what they do.

    Attributes:
        changed: whether the poisoned steps have changed weights or the state of the optimizer.
        rates: the learning rate of every step.
    """

    def __init__(self, where: str, value: float, steps: tuple[int, ...], stop_after: int = -1) -> None:
        self.where, self.value, self.steps, self.stop_after = where, value, steps, stop_after
        self.culprit: list[int] | None = None
        self.changed = False
        self.rates: dict[int, float] = {}
        self._hook: Any = None
        self._before: Any = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step + 1
        if step - 1 == self.stop_after:
            raise Stop
        self.rates[step] = trainer.optimizers[0].param_groups[-1]["lr"]
        if step not in self.steps or self._before is not None:
            return
        parameter = pl_module.model.blocks[0].mlp[0].weight
        if self.where == "loss":
            self.culprit = _real(batch["inputs"][-1])
        elif self.where == "gradient":
            self._hook = parameter.register_hook(self._bad)
        elif self.where == "weight":
            with torch.no_grad():
                parameter[0, 0] = self.value
        else:
            with torch.no_grad():
                pl_module.model.pos_emb[0, -1, 0] = self.value
        self._before = _state(trainer, pl_module)

    def _bad(self, gradient: torch.Tensor) -> torch.Tensor:
        bad = gradient.clone()
        bad[0, 0] = self.value
        return bad

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        if self._before is not None and trainer.global_step in self.steps:
            self.changed = self.changed or not _same(self._before, _state(trainer, pl_module))
            self._before = self.culprit = None
            if self._hook is not None:
                self._hook.remove()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        if self._before is not None:
            self.changed = self.changed or not _same(self._before, _state(trainer, pl_module))

    def loss(self, real: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """The model's loss, which is not finite for the culprit."""

        def poisoned(
            model: GPT, inputs: torch.Tensor, targets: torch.Tensor, *args: Any, **options: Any
        ) -> torch.Tensor:
            loss = real(model, inputs, targets, *args, **options)
            if self.culprit is not None and any(_real(row) == self.culprit for row in inputs):
                return loss * self.value
            return loss

        return poisoned


def _real(row: torch.Tensor) -> list[int]:
    return [i for i in row.tolist() if i]


def _state(trainer: L.Trainer, module: Any) -> list[torch.Tensor]:
    state = trainer.optimizers[0].state_dict()["state"]
    moments = [value for of_one in state.values() for value in of_one.values()]
    return [value.clone() for value in (*module.state_dict().values(), *moments)]


def _same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, other, strict=True)
    )


def poisoned(config: DictConfig, stage: str, folder: Path, poison: Poison) -> None:
    with (
        mock.patch.object(GPT, "loss", poison.loss(GPT.loss)),
        mock.patch.object(microbatching, "loss_sum", poison.loss(microbatching.loss_sum)),
    ):
        fit(config, stage, folder, poison)


@pytest.fixture(scope="module")
def alone(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """How a stage ends that nobody poisons, and the learning rate of its steps."""

    @functools.cache
    def end(stage: str, *overrides: str) -> tuple[str, dict[int, float]]:
        root, watcher = tmp_path_factory.mktemp("alone"), Poison("nowhere", 0.0, ())
        fit(quick(people, root, *overrides), stage, root / "stage", watcher)
        return digest(root / "stage"), watcher.rates

    return end


ACCUMULATED = (
    "trainer.accumulate_grad_batches=3",
    "stages.finetune.batch_size=2",
    "stages.pretrain.batch_size=2",
)


PLACES = ("loss", "gradient", "weight")
STAGES = ("pretrain", "finetune")


@pytest.mark.parametrize(
    ("where", "value", "stage", "optimizer", "extra"),
    [
        *sampled(PLACES, [float("nan")], STAGES, ["muon", "adamw"], [(), ACCUMULATED]),
        *sampled(PLACES, [float("inf"), float("-inf")], STAGES[1:], ["muon"], [()]),
    ],
)
def test_stops_before_a_step_that_is_not_finite(
    where: str,
    value: float,
    stage: str,
    optimizer: str,
    extra: tuple[str, ...],
    people: Path,
    tmp_path: Path,
    alone: Alone,
) -> None:
    config = quick(people, tmp_path, f"optimizer={optimizer}", *extra)
    poison = Poison(where, value, (4,))
    with pytest.raises(NonFiniteError) as caught:
        poisoned(config, stage, tmp_path / "stage", poison)
    assert caught.value.exit_code == 3
    assert not poison.changed
    newest = checkpoint.latest_intact(tmp_path / "stage")
    assert newest is not None
    state = checkpoint.load(newest)
    assert state["global_step"] == 2
    assert all(torch.isfinite(weight).all() for weight in state["state_dict"].values())
    (file,) = (tmp_path / "stage").glob("nonfinite-*.json")
    assert str(file) in str(caught.value)
    report = json.loads(file.read_text())
    assert (report["stage"], report["step"]) == (stage, 4)
    assert report["learning_rate"] == pytest.approx(poison.rates[4])
    assert report["gradient_norm"] in ("nan", "inf")
    per_step = 3 if extra else 1
    assert len({(e["epoch"], e["batch"]) for e in report["examples"]}) == per_step
    bad = [example["text"] for example in report["examples"] if isinstance(example["loss"], str)]
    if where == "loss":
        vocab = read_corpus(config.data, config.model.block_size).vocab
        assert poison.culprit is not None
        assert [text.strip(PAD) for text in bad] == [vocab.decode(poison.culprit)]
    elif where == "gradient":
        assert report["gradients_not_finite"]
        assert bad == []
    else:
        assert report["weights_not_finite"] == ["blocks.0.mlp.0.weight"]
    # where the cause is gone, the same command goes on to the end
    fit(config, stage, tmp_path / "stage")
    assert digest(tmp_path / "stage") == alone(stage, f"optimizer={optimizer}", *extra)[0]


@pytest.mark.parametrize(
    ("where", "stage", "optimizer", "extra"),
    sampled(PLACES[:2], STAGES, ["muon", "adamw"], [(), ACCUMULATED]),
)
def test_skips_a_step_that_is_not_finite(
    where: str,
    stage: str,
    optimizer: str,
    extra: tuple[str, ...],
    people: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    alone: Alone,
) -> None:
    config = quick(people, tmp_path, f"optimizer={optimizer}", "on_nonfinite=skip", *extra)
    whole = Poison(where, float("nan"), (3,))
    with caplog.at_level(logging.WARNING, "birthplace_lm"):
        poisoned(config, stage, tmp_path / "whole", whole)
    (warning,) = [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()]
    assert f"{stage}: the gradient is not finite in step 3" in warning
    assert "9 more may be" in warning
    assert not whole.changed
    state = checkpoint.load(checkpoint.list_checkpoints(tmp_path / "whole")[0])
    assert state["callbacks"]["nonfinite"] == {"skipped": 1}
    clean, rates = alone(stage, f"optimizer={optimizer}", *extra)
    assert whole.rates == rates
    assert digest(tmp_path / "whole") != clean
    with pytest.raises(Stop):
        poisoned(config, stage, tmp_path / "stage", Poison(where, float("nan"), (3,), stop_after=3))
    poisoned(config, stage, tmp_path / "stage", Poison(where, float("nan"), (3,)))
    assert digest(tmp_path / "stage") == digest(tmp_path / "whole")


def test_the_budget_counts_on_after_a_kill(people: Path, tmp_path: Path) -> None:
    config = quick(
        people, tmp_path, "on_nonfinite=skip", "max_nonfinite_steps=1", "checkpoint.every_n_steps=1"
    )
    with pytest.raises(Stop):
        poisoned(config, "pretrain", tmp_path / "stage", Poison("loss", float("nan"), (2, 5), stop_after=3))
    with pytest.raises(NonFiniteError) as caught:
        poisoned(config, "pretrain", tmp_path / "stage", Poison("loss", float("nan"), (2, 5)))
    assert caught.value.exit_code == 3
    assert "in step 5" in str(caught.value)
    assert checkpoint.load(checkpoint.list_checkpoints(tmp_path / "stage")[0])["global_step"] == 4


@pytest.mark.parametrize("how", ["stop", "skip"])
def test_a_weight_that_no_batch_touches_is_not_saved(how: str, people: Path, tmp_path: Path) -> None:
    config = quick(people, tmp_path, f"on_nonfinite={how}")
    with pytest.raises(NonFiniteError, match="pos_emb is not finite after step 4"):
        poisoned(config, "finetune", tmp_path / "stage", Poison("unused", float("nan"), (3,)))
    assert checkpoint.parse_step(checkpoint.list_checkpoints(tmp_path / "stage")[0]) == 2
