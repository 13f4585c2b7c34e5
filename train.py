"""Pretrain, finetune, evaluate: `python train.py`; with `-m`, for every value of a list."""

import os
import sys

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us, and we say them in one line

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from birthplace_lm import app
from birthplace_lm.config import explain
from birthplace_lm.error import BirthplaceError


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def job(config: DictConfig) -> float | None:
    """One run; its result, the dev exact match, is what a sweeper may optimise."""
    return app.run(config)


def main() -> int:
    """Give the exit code; an error is one line."""
    try:
        job()
    except BirthplaceError:
        return 1  # a job of a sweep failed, and has said why
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if isinstance(error, ValueError) and app.composed():
            raise  # not Hydra's way to say that data=null is no choice
        app.fail(explain(error))
    return app.exit_code()


if __name__ == "__main__":
    sys.exit(main())
