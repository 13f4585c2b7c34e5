"""Entry point of a worker process: one of several that train a stage.

`python -m birthplace_lm.training.worker PLAN RESUME REPORT`: a StagePlan as JSON, a checkpoint or nothing,
and the descriptor of an open file that an error is written to as JSON.
"""

import faulthandler
import logging
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from types import SimpleNamespace

from birthplace_lm.data.corpora.corpus import check_data_hashes, read_corpus
from birthplace_lm.errors import BirthplaceError, Interrupted
from birthplace_lm.runs import signals


def main(plan_json: str, resume: str, report: str) -> int:
    """Train; write an error into `report`, its traceback to stderr."""
    faulthandler.enable()  # a crash leaves the stacks of all threads in log.txt
    faulthandler.register(signal.SIGUSR2)  # the launcher asks for them before it kills
    signals.install()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    level = logging.INFO if os.environ["LOCAL_RANK"] == "0" else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
    try:
        train_stage_from_json(plan_json, resume)
    except BirthplaceError as failure:
        os.write(int(report), failure.to_json().encode())
        if not isinstance(failure, Interrupted):
            traceback.print_exc()
        return failure.exit_code
    return 0


def train_stage_from_json(plan_json: str, resume: str) -> None:
    """Train a stage as one of several processes.

    Args:
        plan_json: a StagePlan.
        resume: path of the checkpoint to continue from, or nothing.

    Raises:
        BirthplaceError: for everything that goes wrong.
    """
    from birthplace_lm.training.pipeline import to_birthplace_error  # torch takes seconds to import
    from birthplace_lm.training.plan import StagePlan
    from birthplace_lm.training.stage import train_stage

    plan = StagePlan.from_json(plan_json)
    try:
        corpus = read_corpus(SimpleNamespace(**plan.data), plan.model["block_size"])
        check_data_hashes(plan.data_sha256, corpus.sha256)  # hours may have passed since preflight
        train_stage(plan, corpus, Path(resume) if resume else None)
    except Exception as error:
        raise to_birthplace_error(error, plan.directory, plan.plugins) from error


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when the other end is closed, which is when the parent has ended
    os._exit(1)


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # torch's own threads sometimes abort a process that tidies up before it ends
