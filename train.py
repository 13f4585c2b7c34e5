"""Pretrain, finetune, evaluate: `python train.py`; with `-m`, for every value of a list."""

import os
import sys

from birthplace_lm.runs import signals

signals.install()  # first of all: the imports below take a moment
os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us, and we say them in one line

import hydra
from omegaconf import DictConfig

from birthplace_lm.cli import app, sweep
from birthplace_lm.config.compose import to_input_error
from birthplace_lm.errors import BirthplaceError, CheckpointError
from birthplace_lm.training.distributed import torchrun


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def job(config: DictConfig) -> float | None:
    """One run; its result, the dev exact match, is what a sweeper may optimise."""
    return app.run(config)


def main() -> int:
    """Give the exit code; an error is one line."""
    if not torchrun.claim_rank_zero():
        return 0
    try:
        job()
    except BirthplaceError as error:  # of a job in another process
        app.report_error(error) if sweep.jobs_log_to_files else app.record_error(error)
    except sweep.SweepRejected as refused:
        app.report_error(refused.error)
    except PermissionError as error:  # the folder of a sweep
        app.report_error(CheckpointError(f"{error.filename}: {error.strerror}"))
    except Exception as error:  # Hydra's, before a job begins: jobs say themselves what goes wrong
        app.report_error(to_input_error(error))
    return app.exit_code()


if __name__ == "__main__":
    sys.exit(main())
