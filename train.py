"""Pretrain, finetune, evaluate: `python train.py`; with `-m`, for every value of a list."""

import os
import sys

from birthplace_lm.runs import signals

signals.install()  # first of all: the imports below take a moment
os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us, and we say them in one line

import hydra
from omegaconf import DictConfig

from birthplace_lm.cli import app, sweep
from birthplace_lm.config.compose import explain
from birthplace_lm.errors import BirthplaceError, CheckpointError
from birthplace_lm.training.distributed import torchrun


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def job(config: DictConfig) -> float | None:
    """One run; its result, the dev exact match, is what a sweeper may optimise."""
    return app.run(config)


def main() -> int:
    """Give the exit code; an error is one line."""
    if not torchrun.is_first():
        return 0
    try:
        job()
    except BirthplaceError as error:  # of a job in another process
        app.fail(error) if sweep.unheard else app.remember(error)
    except sweep.Refused as refused:
        app.fail(refused.error)
    except PermissionError as error:  # the folder of a sweep
        app.fail(CheckpointError(f"{error.filename}: {error.strerror}"))
    except Exception as error:  # Hydra's, before a job begins: jobs say themselves what goes wrong
        app.fail(explain(error))
    return app.finish()


if __name__ == "__main__":
    sys.exit(main())
