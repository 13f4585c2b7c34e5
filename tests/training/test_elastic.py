"""A run continues with another number of processes: the same batches in the same order, the same loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from program import curves
from stage import continued, digest, fit, quick

from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.errors import InputError
from birthplace_lm.runs import checkpoint
from birthplace_lm.runs.identity import run_directory, with_inputs
from birthplace_lm.training.preflight import preflight

STEPS = 10


def configuration(people: Path, root: Path, *overrides: str) -> DictConfig:
    often = ["checkpoint.every_n_steps=1", "checkpoint.keep_last=100", "stages.pretrain.num_workers=1"]
    return quick(people, root, *often, "stages.pretrain.batch_size=7", *overrides)


def losses(folder: Path, since: int) -> list[float]:
    return [value for step, value in curves(folder)["pretrain/loss"] if step >= since]


def positions(folder: Path, since: int) -> dict[int, Any]:
    """Place in the data and hash of the next batch, by step."""
    contents = [checkpoint.load(path) for path in checkpoint.list_checkpoints(folder)]
    return {
        content["global_step"]: content["SpanCorruptionDataModule"]
        for content in contents
        if content["global_step"] > since
    }


def test_another_number_of_processes_continues(
    people: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One, then two, then one; 7 rows a step are 4 and 3 in two processes. FSDP2: `test_several_hosts`."""
    caplog.set_level("DEBUG", "birthplace_lm")  # the stacks, should the processes hang
    alone = configuration(people, tmp_path)
    whole = tmp_path / "whole"
    fit(alone, "pretrain", whole)
    assert checkpoint.parse_step(checkpoint.list_checkpoints(whole)[0]) == STEPS
    folder = whole
    for step, trainer in ((2, "ddp"), (6, "cpu")):
        config = configuration(people, tmp_path, f"trainer={trainer}", "trainer.accelerator=cpu")
        assert named(config) == named(alone)
        folder = continued(folder, step, config, tmp_path / trainer)
        assert losses(folder, step) == pytest.approx(losses(whole, step), abs=1e-4)
        assert positions(folder, step) == positions(whole, step)
    weights, others = (
        checkpoint.load(checkpoint.list_checkpoints(f)[0])["state_dict"] for f in (whole, folder)
    )
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, atol=1e-2, rtol=0)
    assert digest(folder) != digest(whole)  # the last bits
    assert digest(continued(folder, 7, alone, tmp_path / "again")) == digest(folder)


def named(config: DictConfig) -> Path:
    return run_directory(with_inputs(config, read_corpus(config.data, config.model.block_size).sha256))


def test_more_processes_than_rows_are_refused(people: Path, tmp_path: Path) -> None:
    config = configuration(people, tmp_path, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=6")
    corpus = read_corpus(config.data, config.model.block_size)
    with pytest.raises(InputError, match=r"^stages.finetune.batch_size=5: the 6 processes .* at most 5"):
        preflight(config, corpus)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ((), "7 rows a step"),
        (("trainer=ddp",), "7 rows a step (3 or 4 in each of 2 processes)"),
        (
            ("trainer=ddp", "stages.pretrain.batch_size=8", "trainer.accumulate_grad_batches=3"),
            "24 rows a step (3 batches of 8, 4 in each of 2 processes)",
        ),
    ],
)
def test_the_rows_of_a_step_are_shown(
    overrides: tuple[str, ...], text: str, people: Path, tmp_path: Path
) -> None:
    config = configuration(people, tmp_path, *overrides, "trainer.accelerator=cpu")
    plan = preflight(config, read_corpus(config.data, config.model.block_size))[0]
    assert plan.describe_step() == text
