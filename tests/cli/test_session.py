"""The state of one command."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stage import METRICS, hydra_job

from birthplace_lm.cli import app, session, sweep
from birthplace_lm.errors import CheckpointError, InputError, InternalError
from birthplace_lm.runs import signals
from birthplace_lm.runs.directory import RunDirectory
from birthplace_lm.runs.lock import run_lock
from birthplace_lm.runs.metrics import Score
from birthplace_lm.training import pipeline


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


def test_a_search_maximises_what_recipes_are_chosen_by(
    configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: with held-out rows, too, it was the score on dev, which is only to be reported."""
    monkeypatch.setattr(app, "_log_to_console", lambda prefix: None)
    for holdout, expected in ((Score(3, 4), 0.75), (None, METRICS.dev.exact_match)):
        metrics = replace(METRICS, holdout=holdout)
        monkeypatch.setattr(signals, "installed", lambda: True)
        monkeypatch.setattr(pipeline, "run", lambda *_, metrics=metrics, **__: metrics)
        with hydra_job():
            assert app.run(configure()) == expected


@pytest.mark.parametrize("shown", [False, True])
def test_a_traceback_is_shown_on_request(
    shown: bool, configure: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "_log_to_console", lambda prefix: None)
    with hydra_job():
        app.run(configure("data.dev=gone.tsv", f"traceback={shown}"))
    assert ("Traceback" in capsys.readouterr().err) == shown


def test_every_job_of_a_launcher_has_lines_instead_of_a_bar(
    configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: a process that the launcher used again drew a bar from its second job on."""
    monkeypatch.setattr(signals, "installed", lambda: True)
    bars = []
    monkeypatch.setattr(app, "_log_to_console", lambda prefix: None)
    monkeypatch.setattr(app, "_run", lambda config: bars.append(config.trainer.enable_progress_bar))
    with hydra_job():
        app.run(configure())
        session.current().started_by_launcher = True
        app.run(configure())
        app.run(configure())
    assert bars == [True, False, False]


def test_a_run_of_another_process_is_running(configure: Any, tmp_path: Path) -> None:
    """Bug: the table of a sweep called it killed."""
    job = sweep.Job([], RunDirectory(tmp_path, configure()), False, None)
    (tmp_path / "status.json").write_text('{"state": "running", "pid": 1}')
    with run_lock(tmp_path, wait=False):
        assert sweep._state(job) == "running"
    assert sweep._state(job) == "killed"
