"""One of several processes that train a stage.

`python -m birthplace_lm.training.worker TASK`, TASK being JSON.
"""

import json
import logging
import os
import sys
import threading
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from birthplace_lm.config.compose import resolve_and_validate
from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.errors import BirthplaceError, Interrupted
from birthplace_lm.runs import signals


def main(task: str) -> int:
    """Train, and say in one line what went wrong."""
    signals.install()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from birthplace_lm.training.stage import train_stage

    level = logging.INFO if os.environ["LOCAL_RANK"] == "0" else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
    given = json.loads(task)
    start, resume = (None if given[key] is None else Path(given[key]) for key in ("start", "resume"))
    try:
        config = resolve_and_validate(DictConfig(OmegaConf.create(given["config"])))
        corpus = read_corpus(config.data, config.model.block_size)
        train_stage(given["stage"], config, corpus, Path(given["folder"]), start, resume)
    except BirthplaceError as error:
        print(f"{'' if isinstance(error, Interrupted) else 'error: '}{error}", file=sys.stderr)
        return error.exit_code
    return 0


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when the other end is closed, which is when the parent has ended
    os._exit(1)


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # torch's own threads sometimes abort a process that tidies up before it ends
