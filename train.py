"""Pretrain, finetune, evaluate: `python train.py`; with `-m`, for every value of a list."""

import os
import sys

from birthplace_lm.runs import signals

signals.install()  # first of all: the imports below take a moment
os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # we print errors ourselves, in one line

import hydra
from omegaconf import DictConfig

from birthplace_lm.cli import app


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def job(config: DictConfig) -> float | None:
    """One run; its result, the dev exact match, is what a sweeper may optimise."""
    return app.run(config)


if __name__ == "__main__":
    sys.exit(app.main(job))
