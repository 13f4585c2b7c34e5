"""`birthplace-lm` in this process."""

from unittest import mock

import pytest

from birthplace_lm.cli import commands


def run_command(*arguments: object) -> int:
    """The exit code of `birthplace-lm ARGUMENTS`."""
    with (
        mock.patch("sys.argv", ["birthplace-lm", *map(str, arguments)]),
        pytest.raises(SystemExit) as ended,
    ):
        commands.main()
    return int(ended.value.code or 0)
