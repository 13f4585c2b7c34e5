"""The state of one command."""

import pytest

from birthplace_lm.cli import session
from birthplace_lm.errors import CheckpointError, InputError


def test_a_single_run_ends_with_the_code_of_its_first_error(capsys: pytest.CaptureFixture[str]) -> None:
    state = session.Session()
    assert state.exit_code() == 0
    state.report_error(CheckpointError("a"))
    state.report_error(InputError("b"))
    assert state.exit_code() == 4
    assert capsys.readouterr().err == "error: a\nerror: b\n"
