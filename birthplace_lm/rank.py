"""One of several processes that train a stage: `python -m birthplace_lm.rank CONFIG STAGE FOLDER [START]`."""

import logging
import os
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from birthplace_lm.config import checked
from birthplace_lm.data.corpus import read_corpus
from birthplace_lm.error import BirthplaceError


def main(config_file: str, stage: str, folder: str, start: str | None = None) -> int:
    """Train, and say in one line what went wrong."""
    from birthplace_lm.pipeline import train_stage

    level = logging.INFO if os.environ["LOCAL_RANK"] == "0" else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
    try:
        config = checked(DictConfig(OmegaConf.load(config_file)))
        corpus = read_corpus(config.data, config.model.block_size)
        train_stage(stage, config, corpus, Path(folder), None if start is None else Path(start))
    except BirthplaceError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
