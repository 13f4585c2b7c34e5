"""A tiny corpus and a quick configuration, so that whole runs take a second or two."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from birthplace_lm.config import load
from birthplace_lm.data.biographies import write_biographies

Configure = Callable[..., DictConfig]


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 people: 12 train, 8 dev, 4 test."""
    folder = tmp_path_factory.mktemp("people")
    write_biographies(folder, people=24, seed=0)
    return folder


@pytest.fixture
def tiny(people: Path) -> list[str]:
    """Overrides of a run that takes a moment: 7 steps of pretraining, 6 of finetuning."""
    return [
        "model=tiny",
        "model.n_layer=1",
        f"data.root={people}",
        "stages.pretrain.max_epochs=2",
        "stages.pretrain.batch_size=10",
        "stages.finetune.max_epochs=2",
        "stages.finetune.batch_size=5",
        "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=1",
    ]


@pytest.fixture
def configure(tiny: list[str], tmp_path: Path) -> Configure:
    """Compose such a configuration, its runs in `tmp_path / "runs"`."""

    def compose(*overrides: str) -> DictConfig:
        return load([*tiny, f"runs_root={tmp_path / 'runs'}", *overrides])

    return compose
