"""The state of one command."""

import pytest

from birthplace_lm.cli import session, sweep
from birthplace_lm.errors import CheckpointError, InputError, InternalError


def test_a_single_run_ends_with_the_code_of_its_first_error(capsys: pytest.CaptureFixture[str]) -> None:
    state = session.Session()
    assert state.exit_code() == 0
    state.report_error(CheckpointError("a"))
    state.report_error(InputError("b"))
    assert state.exit_code() == 4
    assert capsys.readouterr().err == "error: a\nerror: b\n"


def test_a_path_that_the_system_refuses_is_no_mistake_of_ours() -> None:
    """Bug: run_dir= with a name that is too long was an internal error."""
    error = sweep.unexpected(OSError(36, "File name too long", "runs/x"))
    assert isinstance(error, CheckpointError)
    assert str(error) == "runs/x: File name too long"
    assert isinstance(sweep.unexpected(OSError("no file")), InternalError)
