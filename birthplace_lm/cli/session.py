"""The state of one command in one process: errors, jobs of the sweep, what started the process."""

import os
import sys
import traceback
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

from birthplace_lm.errors import BirthplaceError, Interrupted
from birthplace_lm.runs import signals

if TYPE_CHECKING:
    from birthplace_lm.cli.sweep import Job


# Environment variable: the folder in which jobs in other processes leave their errors. If they raised them,
# Hydra would print a second line and, with hydra.sweeper.max_batch_size, leave out the batches after it.
JOB_FAILURES = "BIRTHPLACE_LM_JOB_FAILURES"


@dataclass
class Session:
    """One object per process. `current` makes it: Hydra gives a callback nothing but the configuration.

    Attributes:
        errors: what went wrong, in order.
        jobs: of the sweep that this process runs; empty for a single run.
        jobs_log_to_files: whether the launcher writes what jobs print to files, where nobody has seen it.
        started_by_launcher: whether a launcher has started this process, for one job or several.
        gpu_lock: open file that claims a GPU until the process ends.
    """

    errors: list[BirthplaceError] = field(default_factory=list)
    jobs: "list[Job]" = field(default_factory=list)
    jobs_log_to_files: bool = False
    started_by_launcher: bool = False
    gpu_lock: IO[str] | None = None

    def report_error(self, error: BirthplaceError, show_traceback: bool = False) -> None:
        """Print the error in one line and record it for the exit code."""
        if show_traceback:
            traceback.print_exc()
        # One write: other processes write to the same terminal.
        sys.stderr.write(f"{'' if isinstance(error, Interrupted) else 'error: '}{error}\n")
        self.record_error(error)

    def record_error(self, error: BirthplaceError) -> None:
        """Record an error that has been printed already."""
        if error not in self.errors:
            self.errors.append(error)

    def record_job_failure(self, number: int, error: BirthplaceError) -> bool:
        """Record why a job of a sweep failed, for its table.

        Returns:
            False if the process of the sweep cannot learn it in this way; then the error must be raised.
        """
        if number < len(self.jobs):
            self.jobs[number].failure = error
            return True
        try:
            (Path(os.environ[JOB_FAILURES]) / f"{number}.json").write_text(error.to_json(), encoding="utf-8")
        except (KeyError, OSError):  # another launcher, or a full disk
            return False
        return True

    def exit_code(self) -> int:
        """0 done; a single run's own code; 1 if a job of a sweep failed; 128 + signal if one stopped it."""
        if not self.jobs:
            return self.errors[0].exit_code if self.errors else 0
        if (number := signals.pending_signal()) and not all(job.directory.finished for job in self.jobs):
            return 128 + number
        return 1 if self.errors else 0


@cache
def current() -> Session:
    """The session of this process; a process that a launcher starts has its own."""
    return Session()
