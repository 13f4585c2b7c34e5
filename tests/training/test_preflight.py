"""Every decision is taken and checked before the first stage trains."""

from types import SimpleNamespace
from typing import Any

import pytest

from birthplace_lm.data import batch_datamodule
from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.errors import InputError
from birthplace_lm.training import preflight as module
from birthplace_lm.training.plan import StagePlan
from birthplace_lm.training.preflight import preflight


def plans(configure: Any, *overrides: str) -> list[StagePlan]:
    config = configure(*overrides)
    return preflight(config, read_corpus(config.data, config.model.block_size))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("limit_train_batches=0", "nothing to train on"),
        ("limit_train_batches=0.01", "less than one of the 3 batches of pretrain"),
        ("overfit_batches=0.1", "less than one of the 3 batches of pretrain"),
        ("limit_val_batches=0.5", "less than one of the 1 batches of pretrain"),
        ("limit_train_batches=2.5", "limit_train_batches=2.5: must be a whole number of batches, or"),
        ("val_check_interval=1.5", "val_check_interval=1.5: must be a whole number of batches, or"),
        ("max_time=soon", "not a valid duration"),
    ],
)
def test_flags_that_do_not_fit_the_loaders_are_refused(configure: Any, flag: str, message: str) -> None:
    """They once showed after pretraining as a mistake of ours."""
    with pytest.raises(InputError, match=message):
        plans(configure, f"trainer.{flag}")


def test_a_fraction_of_the_questions_is_one_of_each_process(
    configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: half of four batches was right for one process; four have one batch each, and training failed."""
    monkeypatch.setattr(module, "QUESTIONS_PER_BATCH", 1)
    monkeypatch.setattr(batch_datamodule, "QUESTIONS_PER_BATCH", 1)
    overrides = ("pretrain=none", "trainer.accelerator=cpu", "trainer.limit_val_batches=0.5")
    plans(configure, *overrides)
    questions = len(read_corpus(configure().data, 128).dev.rows)
    devices = (f"trainer.devices={questions}", "trainer=ddp", f"stages.finetune.batch_size={questions}")
    with pytest.raises(InputError, match="less than one of the 1 batches of finetune"):
        plans(configure, *overrides, *devices)


def test_a_fraction_of_an_epoch_is_a_number_of_batches(configure: Any) -> None:
    """The loader and Lightning once both took half, which left a quarter."""
    pretrain, finetune = plans(configure, "trainer.limit_train_batches=0.7")
    assert [pretrain.trainer["limit_train_batches"], finetune.trainer["limit_train_batches"]] == [2, 2]


@pytest.mark.parametrize("interval", [2, 10, 1000])
def test_an_interval_in_batches_crosses_epochs(configure: Any, interval: int) -> None:
    for plan in plans(configure, f"trainer.val_check_interval={interval}"):
        assert plan.trainer["check_val_every_n_epoch"] is None


def test_the_steps_are_those_of_short_epochs(configure: Any) -> None:
    """Bug: the schedule and the step count were those of whole epochs."""
    for flag in ("limit_train_batches=2", "overfit_batches=2"):
        assert [plan.total_steps for plan in plans(configure, f"trainer.{flag}")] == [4, 4]
    limited = ("trainer.limit_train_batches=2", "trainer.accumulate_grad_batches=2")
    assert [plan.total_steps for plan in plans(configure, *limited)] == [2, 2]


@pytest.mark.parametrize(
    "flag", ["limit_train_batches=2", "limit_val_batches=2", "overfit_batches=2", "val_check_interval=2"]
)
def test_a_whole_float_is_a_number_of_batches(configure: Any, flag: str) -> None:
    """Bug: Lightning read 2.0 as two batches, but the plan had the steps and the schedule of whole epochs."""
    assert plans(configure, f"trainer.{flag}.0") == plans(configure, f"trainer.{flag}")


@pytest.mark.parametrize(("steps", "every"), [(-1, 10), (12, 4), (10, 4), (9, 3), (3, 1)])
def test_the_last_epoch_ends_with_a_validation(configure: Any, steps: int, every: int) -> None:
    """Bug: with max_steps that of all epochs did. An epoch of finetuning has three steps."""
    overrides = ("stages.finetune.max_epochs=20", "stages.finetune.check_val_every_n_epoch=10")
    _, finetune = plans(configure, *overrides, f"trainer.max_steps={steps}")
    assert finetune.trainer["check_val_every_n_epoch"] == every


def test_a_much_shorter_validation_interval_is_warned_of(configure: Any) -> None:
    """Bug: 53 epochs, which is a prime number, had 53 validations without a word."""
    interval = "stages.finetune.check_val_every_n_epoch=5"
    for epochs, warnings in (
        (50, []),
        (24, []),  # every 4
        (3, []),
        (53, ["validates after every 1 epochs, not 5, which does not divide its 53 epochs"]),
    ):
        _, finetune = plans(configure, f"stages.finetune.max_epochs={epochs}", interval)
        assert [*finetune.warnings] == warnings


@pytest.mark.parametrize("flag", ["limit_val_batches=0", "val_check_interval=7"])
def test_callbacks_that_watch_no_validation_are_warned_of(configure: Any, flag: str) -> None:
    """Bug: early stopping and best.ckpt had no effect without a word. A stage of finetuning has six steps."""
    overrides = ("pretrain=none", "callbacks=[early_stopping,best_checkpoint]")
    (plan,) = plans(configure, *overrides, f"trainer.{flag}")
    assert [*plan.warnings] == [
        f"callbacks.{name} has no effect: no validation, because of trainer.{flag}"
        for name in ("early_stopping", "best_checkpoint")
    ]
    (plan,) = plans(configure, *overrides, "trainer.val_check_interval=6")
    assert [*plan.warnings] == []
    (plan,) = plans(configure, "pretrain=none", f"trainer.{flag}")
    assert [*plan.warnings] == []


def test_shared_memory_is_checked_before_training(configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: that of finetuning was checked after pretraining."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=32 << 10))
    with pytest.raises(InputError, match=r"^stages\.finetune\.num_workers=2: needs 2048 kB"):
        plans(configure, "stages.finetune.num_workers=2")


def test_every_process_needs_a_question(configure: Any) -> None:
    """Bug: one without died after the start, as a connection that was lost."""
    devices = ("trainer.devices=2", "trainer.strategy=ddp")
    with pytest.raises(InputError, match=r"data.holdout_size=1: the 2 processes share the questions"):
        plans(configure, "data.holdout_size=1", *devices)


def test_fsdp2_validates_without_inference_mode(configure: Any) -> None:
    """Bug: weights that a sanity validation had gathered in inference mode could not be trained with NCCL."""
    overrides = ("pretrain=none", "trainer.strategy=fsdp2", "trainer.devices=2")
    (plan,) = plans(configure, *overrides)
    assert plan.trainer["inference_mode"] is False
    (plan,) = plans(configure, "pretrain=none")
    assert plan.trainer["inference_mode"] is True


def test_a_plan_survives_the_way_to_a_worker(configure: Any) -> None:
    for plan in plans(configure):
        assert StagePlan.from_json(plan.to_json()) == plan


def test_the_trainer_beats_the_stage(configure: Any) -> None:
    assert [plan.trainer["max_epochs"] for plan in plans(configure)] == [2, 2]
    assert [plan.trainer["max_epochs"] for plan in plans(configure, "trainer.max_epochs=4")] == [4, 4]


def test_a_number_out_of_range_names_its_key(configure: Any) -> None:
    with pytest.raises(InputError, match=r"stages\.pretrain\.dataset\.question_fraction=2: must be"):
        plans(configure, "stages.pretrain.dataset.question_fraction=2")
    key = "stages.finetune.schedule.warmup_fraction"
    with pytest.raises(InputError, match=rf"^{key}=1\.5: must be"):
        plans(configure, f"{key}=1.5")
    key = "stages.finetune.schedule.warmup_positions"
    with pytest.raises(InputError, match=rf"^{key}=10240: the stage has"):
        plans(configure, "schedule=cosine_2021", "stages.pretrain.schedule.warmup_positions=7")


def test_a_stage_may_have_an_optimizer_of_its_own(configure: Any) -> None:
    usual = plans(configure)
    chosen = plans(configure, "+optimizer@stages.finetune.optimizer=adamw")
    assert [plan.optimizer["_target_"].rpartition(".")[2] for plan in usual] == ["muon", "muon"]
    assert [plan.optimizer["_target_"].rpartition(".")[2] for plan in chosen] == ["muon", "adamw"]
    assert chosen[0].directory == usual[0].directory  # they share a pretraining
    assert chosen[1].directory != usual[1].directory
    with pytest.raises(InputError, match=r"stages\.finetune\.optimizer: Invalid beta"):
        plans(
            configure,
            "+optimizer@stages.finetune.optimizer=adamw",
            "stages.finetune.optimizer.betas=[2,0.9]",
        )
