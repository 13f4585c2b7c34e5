"""The state of one command."""

from typing import Any

import pytest

from birthplace_lm.cli import session
from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.errors import CheckpointError, InputError


def test_each_corpus_is_read_once(configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep of 12 jobs read it 24 times."""
    sizes = []

    def count(data: Any, block_size: int) -> Any:
        sizes.append(block_size)
        return read_corpus(data, block_size)

    monkeypatch.setattr(session, "read_corpus", count)
    state = session.Session()
    corpora = [state.corpus(configure(f"seed={seed}")) for seed in range(3)]
    assert len(sizes) == 1
    assert corpora[0] is corpora[2]
    assert state.corpus(configure("data.holdout_size=2")).holdout
    assert len(sizes) == 2


def test_a_single_run_ends_with_the_code_of_its_first_error(capsys: pytest.CaptureFixture[str]) -> None:
    state = session.Session()
    assert state.exit_code() == 0
    state.report_error(CheckpointError("a"))
    state.report_error(InputError("b"))
    assert state.exit_code() == 4
    assert capsys.readouterr().err == "error: a\nerror: b\n"
