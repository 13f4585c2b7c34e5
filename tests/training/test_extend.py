"""A finished run is trained longer with extend_from, as a run of its own."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from stage import quick, sampled, without_waiting

from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.errors import CheckpointError, InputError
from birthplace_lm.inference.weights import model_state_dict
from birthplace_lm.models.build import build_model
from birthplace_lm.runs import checkpoint
from birthplace_lm.runs.checkpoint import LoadedCheckpoint
from birthplace_lm.runs.identity import run_directory, with_inputs
from birthplace_lm.runs.metrics import METRICS_FILE, RunMetrics, StageResult
from birthplace_lm.training import pipeline
from birthplace_lm.training.components import build_datamodule
from birthplace_lm.training.preflight import preflight

# Of this schedule the period does not depend on the length of the stage.
CONSTANT = (
    "schedule=cosine_2021",
    "stages.pretrain.schedule.warmup_positions=700",
    "stages.finetune.schedule.warmup_positions=700",
    "stages.finetune.schedule.final_positions=100000",
    "stages.pretrain.max_epochs=1",
    "model.dropout=0.1",
)


def train(config: DictConfig) -> tuple[RunMetrics, Path]:
    corpus = read_corpus(config.data, config.model.block_size)
    config = with_inputs(config, corpus.sha256)
    with without_waiting():
        pipeline.run(config, corpus)
    folder = run_directory(config)
    return RunMetrics.read(folder / METRICS_FILE), folder


FINETUNING_ONLY = ("pretrain=none", "stages.finetune.max_epochs=1")


@pytest.fixture(scope="module")
def finished(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finetuning of a finished run."""
    root = tmp_path_factory.mktemp("finished")
    _, folder = train(quick(people, root, *FINETUNING_ONLY))
    return folder / "finetune"


def longer(configure: Any, *overrides: str) -> DictConfig:
    return configure(*CONSTANT, "stages.finetune.max_epochs=4", *overrides)


@pytest.mark.parametrize("ema", [0, 0.9])
def test_an_extended_run_ends_as_an_uninterrupted_one(configure: Any, ema: float) -> None:
    """As far as the schedule does not depend on the length of the stage."""
    average = f"stages.finetune.ema_decay={ema}"
    expected, uninterrupted = train(longer(configure, average))
    short, run = train(configure(*CONSTANT, average))
    extended, folder = train(longer(configure, average, f"extend_from={run}"))
    assert len({uninterrupted, run, folder}) == 3
    assert extended.weights_sha256 == expected.weights_sha256 != short.weights_sha256
    assert extended.extended_from == str(checkpoint.list_checkpoints(run / "finetune")[0])
    assert extended.stages["pretrain"] == short.stages["pretrain"]
    assert extended.stages["finetune"].steps == expected.stages["finetune"].steps
    assert extended.stages["finetune"].characters == expected.stages["finetune"].characters


@pytest.mark.parametrize(("count", "steps"), sampled([1, 2], [1, 2, 3, 4]))
def test_an_extension_goes_on_within_an_epoch(configure: Any, count: int, steps: int) -> None:
    """Bug: after `max_steps` within an epoch an extension left out the rest of it, and ended with an error.

    An epoch has three batches.
    """
    common = (
        "pretrain=none",
        "model.dropout=0.1",
        "stages.finetune.max_epochs=3",
        "stages.finetune.schedule.warmup_fraction=0",
        "stages.finetune.schedule.min_lr_factor=1",
        f"trainer.accumulate_grad_batches={count}",
    )
    expected, _ = train(configure(*common))
    _, run = train(configure(*common, f"trainer.max_steps={steps}"))
    extended, _ = train(configure(*common, f"extend_from={run}"))
    assert extended.weights_sha256 == expected.weights_sha256
    stages = extended.stages["finetune"], expected.stages["finetune"]
    assert stages[0].characters == stages[1].characters
    assert stages[0].epochs == stages[1].epochs == 3


@pytest.mark.parametrize("part", ["QuestionAnsweringDataModule", "loops"])
def test_a_checkpoint_that_does_not_say_where_it_ended(configure: Any, tmp_path: Path, part: str) -> None:
    _, run = train(configure("pretrain=none", "trainer.max_steps=2"))
    content = checkpoint.load(checkpoint.list_checkpoints(run / "finetune")[0])
    del content[part]
    file = tmp_path / "step-00000002.ckpt"
    checkpoint.save(content, file)
    with pytest.raises(CheckpointError, match="does not say where in"):
        train(configure("pretrain=none", f"extend_from={file}"))


# Of one number at a time: what the finished run had.
BEFORE = {
    "lr": 4e-3,
    "weight_decay": 0.1,
    "betas": [0.9, 0.95],
    "matrix_lr_multiplier": 7.5,
    "momentum": 0.95,
}
AFTER = {"lr": 2e-3, "weight_decay": 5.0, "betas": [0.6, 0.7], "matrix_lr_multiplier": 3.0, "momentum": 0.5}


def optimizer_overrides(optimizer: str, numbers: dict[str, Any]) -> list[str]:
    keys = ["weight_decay", "betas", *(["matrix_lr_multiplier", "momentum"] if optimizer == "muon" else [])]
    return [f"stages.finetune.learning_rate={numbers['lr']}", *(f"optimizer.{k}={numbers[k]}" for k in keys)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_first_step_of_an_extension_uses_the_configured_numbers(optimizer: str, configure: Any) -> None:
    """Against a step computed from the checkpoint alone; each old number alone would give another one."""
    constant = [
        f"optimizer={optimizer}",
        "pretrain=none",
        "stages.finetune.schedule.warmup_fraction=0",
        "stages.finetune.schedule.min_lr_factor=1",
    ]
    before = configure(*constant, *optimizer_overrides(optimizer, BEFORE), "trainer.max_steps=2")
    _, run = train(before)
    more = [f"extend_from={run}", "trainer.max_steps=3"]
    _, folder = train(configure(*constant, *optimizer_overrides(optimizer, AFTER), *more))
    first, second = (checkpoint.load(checkpoint.list_checkpoints(f / "finetune")[0]) for f in (run, folder))
    assert (first["global_step"], second["global_step"]) == (2, 3)
    gradients = gradients_of_next_batch(before, first)
    expected = step_by_formula(optimizer, first, gradients, AFTER)
    for name, weight in expected.items():
        torch.testing.assert_close(second["state_dict"][name].double(), weight, atol=1e-5, rtol=0, msg=name)
    changed = [
        key for key in BEFORE if optimizer == "muon" or key not in ("matrix_lr_multiplier", "momentum")
    ]
    for key in changed:
        other = step_by_formula(optimizer, first, gradients, {**AFTER, key: BEFORE[key]})
        assert max((other[name] - expected[name]).abs().max() for name in expected) > 1e-4, key


def gradients_of_next_batch(config: DictConfig, content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Of the mean loss, clipped to norm 1; by autograd over the whole batch."""
    corpus = read_corpus(config.data, config.model.block_size)
    [plan] = preflight(with_inputs(config, corpus.sha256), corpus)
    data = build_datamodule(plan, corpus)
    data.load_state_dict(content["QuestionAnsweringDataModule"])
    batch = next(iter(data.train_dataloader()))
    model = build_model(config.model, len(corpus.vocab))
    model.load_state_dict(model_state_dict(content))
    model.loss(batch["inputs"], batch["targets"], corpus.vocab.pad_id).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return {f"model.{name}": p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def step_by_formula(
    optimizer: str, content: dict[str, Any], gradients: dict[str, torch.Tensor], numbers: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """The weights after one more step of AdamW, or of Muon for the matrices of the blocks, in float64."""
    weights = {name: content["state_dict"][name].double() for name in gradients}
    by_muon = optimizer == "muon"
    matrices = {name for name, w in weights.items() if w.dim() == 2 and name.startswith("model.blocks.")}
    first_group = [name for name, w in weights.items() if (name in matrices if by_muon else w.dim() >= 2)]
    names = [*first_group, *(name for name in weights if name not in first_group)]
    states = content["optimizer_states"][0]["state"]
    result = {}
    for index, name in enumerate(names):
        weight, gradient, state = weights[name], gradients[name], states[index]
        decay = numbers["weight_decay"] if name in first_group else 0.0
        if by_muon and name in first_group:
            rate, momentum = numbers["lr"] * numbers["matrix_lr_multiplier"], numbers["momentum"]
            average = momentum * state["momentum"].double() + (1 - momentum) * gradient
            update = (1 - momentum) * gradient + momentum * average
            rows, columns = update.shape
            x = update / update.norm()
            for _ in range(5):
                square = x @ x.T
                x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
            step = max(1.0, rows / columns) ** 0.5 * x
        else:
            rate, (beta1, beta2), t = numbers["lr"], numbers["betas"], int(state["step"]) + 1
            average = beta1 * state["exp_avg"].double() + (1 - beta1) * gradient
            square = beta2 * state["exp_avg_sq"].double() + (1 - beta2) * gradient**2
            step = (average / (1 - beta1**t)) / ((square / (1 - beta2**t)).sqrt() + 1e-8)
        result[name] = weight * (1 - rate * decay) - rate * step
    return result


@pytest.mark.parametrize(
    "number",
    [
        "stages.finetune.learning_rate=3e-4",
        "optimizer.weight_decay=0.5",
        "optimizer.matrix_lr_multiplier=3",
        "optimizer.betas=[0.6,0.7]",
        "optimizer.momentum=0.5",
    ],
)
def test_a_resume_refuses_other_optimizer_numbers(number: str, configure: Any, finished: Path) -> None:
    """They are neither ignored nor taken from the checkpoint."""
    file = checkpoint.list_checkpoints(finished)[0]
    key = number.partition("=")[0]
    with pytest.raises(InputError, match=re.escape(f"belongs to a run with another {key}")):
        train(configure(*FINETUNING_ONLY, number, f"resume={file}"))
    with pytest.raises(InputError, match=re.escape(f"belongs to a run with another {key}")):
        train(configure(*FINETUNING_ONLY, number, f"run_dir={finished.parent}"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("stages.finetune.max_epochs=4", "seed=1"), r"another seed \(0 there, 1 here\)"),
        (("stages.finetune.max_epochs=4", "stages.finetune.batch_size=4"), "stages.finetune.batch_size"),
        (("stages.finetune.max_epochs=4", "model.dropout=0.2"), "model.dropout"),
        (("stages.finetune.max_epochs=4", "optimizer=adamw"), "optimizer._target_"),
        ((), "give more stages.finetune.max_epochs"),
    ],
)
def test_another_run_is_not_extended(configure: Any, overrides: tuple[str, ...], message: str) -> None:
    _, run = train(configure(*CONSTANT))
    with pytest.raises(InputError, match=message):
        train(configure(*CONSTANT, *overrides, f"extend_from={run}"))


def test_a_flag_of_the_optimizer_is_no_number(configure: Any) -> None:
    """It decides which group a parameter is in; torch refused the checkpoint's groups with a traceback."""
    adamw = ("optimizer=adamw", *FINETUNING_ONLY)
    _, run = train(configure(*adamw))
    more = ("stages.finetune.max_epochs=2", "optimizer.decay_all_but_bias=true", f"extend_from={run}")
    with pytest.raises(InputError, match=r"another optimizer\.decay_all_but_bias"):
        train(configure(*adamw, *more))


def test_a_checkpoint_in_the_working_directory_is_extended(
    configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: an IndexError, because `step-N.ckpt` names no folder of a run."""
    short, run = train(configure(*CONSTANT))
    monkeypatch.chdir(run / "finetune")
    file = checkpoint.list_checkpoints(Path())[0]
    extended, _ = train(longer(configure, f"extend_from={file}"))
    assert extended.stages["pretrain"] == short.stages["pretrain"]


def test_the_pretraining_of_an_unfinished_run_counts(configure: Any) -> None:
    """Bug: its cost was read from metrics.json, which that run did not have yet."""
    short, run = train(configure(*CONSTANT))
    (run / METRICS_FILE).unlink()
    extended, _ = train(longer(configure, f"extend_from={checkpoint.list_checkpoints(run / 'finetune')[0]}"))
    assert extended.stages["pretrain"] == short.stages["pretrain"] != StageResult()


def test_stages_that_the_extension_leaves_out_count_nothing(configure: Any) -> None:
    """The finetuning of the earlier run was once reported as a stage of this one."""
    _, run = train(configure(*CONSTANT))
    extended, _ = train(
        configure(
            *CONSTANT,
            "stages.pretrain.max_epochs=2",
            "stages.finetune.enabled=false",
            f"extend_from={run / 'pretrain'}",
        )
    )
    assert extended.stages["finetune"] == StageResult()
    assert extended.stages["pretrain"].epochs == 2


def test_the_extension_of_a_run_that_stopped_early_trains(configure: Any) -> None:
    """Bug: its checkpoint had used up the patience, so the extension took no step and ended as done."""
    overrides = (
        "pretrain=none",
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "stages.finetune.check_val_every_n_epoch=1",
        "stages.finetune.learning_rate=1e-5",  # no answer gets right: the first validation is the best
    )
    stopped, run = train(configure(*overrides, "stages.finetune.max_epochs=4"))
    assert stopped.stages["finetune"].epochs == 2
    extended, _ = train(configure(*overrides, "stages.finetune.max_epochs=5", f"extend_from={run}"))
    assert extended.stages["finetune"].epochs == 3


def test_the_extension_of_a_run_that_ran_out_of_time_trains(configure: Any) -> None:
    """Bug: its checkpoint had used up the time, so the extension took no step and ended as done."""
    overrides = ("pretrain=none", "trainer.max_time=00:00:00:05")
    _, run = train(configure(*overrides, "stages.finetune.max_epochs=1"))
    file = checkpoint.list_checkpoints(run / "finetune")[0]
    content = checkpoint.load(file)
    elapsed = content["callbacks"]["Timer"]["time_elapsed"]
    elapsed["train"] = 10.0
    checkpoint.save(content, file)
    extended, _ = train(configure(*overrides, "stages.finetune.max_epochs=2", f"extend_from={run}"))
    assert extended.stages["finetune"].epochs == 2


@pytest.mark.parametrize(("present", "step"), [(True, 3), (False, 9)])
def test_the_best_checkpoint_goes_into_the_extension(configure: Any, present: bool, step: int) -> None:
    """Bug: its value went along without its file, so a value below it left the extension without a file."""
    overrides = (
        "pretrain=none",
        "callbacks=best_checkpoint",
        "stages.finetune.check_val_every_n_epoch=1",
        "stages.finetune.learning_rate=1e-5",  # no answer gets right: the first validation is the best
    )
    _, run = train(configure(*overrides, "stages.finetune.max_epochs=2"))
    file = checkpoint.best_path(run / "finetune")
    if not present:
        checkpoint.remove(file)
    _, folder = train(configure(*overrides, "stages.finetune.max_epochs=4", f"extend_from={run}"))
    best = LoadedCheckpoint.read(checkpoint.best_path(folder / "finetune"))
    last = LoadedCheckpoint.read(checkpoint.list_checkpoints(folder / "finetune")[0])
    assert best.step == step
    assert best.metadata["config_sha256"] == last.metadata["config_sha256"]
