"""Output that cannot be written does not fail the work; a closed pipe is no error."""

import fcntl
import json
import os
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from program import TRAIN

BIRTHPLACE_LM = f"{sys.executable} -c 'from birthplace_lm.cli.commands import main; main()'"


def shell(command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )


def state(run: Path) -> str:
    return str(json.loads((run / "status.json").read_text())["state"])


@pytest.mark.parametrize(
    "redirection",
    [
        "2>&1 | head -1",
        "<&- >&- 2>&-",
        *(pytest.param(r, marks=pytest.mark.torture) for r in ("| head -1", "> /dev/full", "2>&-")),
    ],
)
def test_a_run_ends_whoever_reads_its_output(redirection: str, tiny: list[str], tmp_path: Path) -> None:
    """`train.py | head -1` ended with a BrokenPipeError, `> /dev/full` with code 120."""
    run = tmp_path / "run"
    done = shell(f"{sys.executable} {TRAIN} {' '.join(tiny)} pretrain=none run_dir={run} {redirection}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert state(run) == "done"
    assert "Broken pipe" not in (run / "log.txt").read_text()


@pytest.mark.parametrize("redirection", ["> /dev/full", "2>&-", "2> /dev/full", ">&- 2>&-"])
def test_the_exit_code_of_an_error_is_about_the_run(redirection: str) -> None:
    assert shell(f"{sys.executable} {TRAIN} sed=1 {redirection}").returncode == 2


def test_the_command_is_as_lenient_as_the_script() -> None:
    """Bug: `birthplace-lm train` ended with code 4 where `train.py` ended with 2."""
    assert shell(f"{BIRTHPLACE_LM} train sed=1 2> /dev/full").returncode == 2


def test_names_that_the_encoding_lacks_are_escaped(tiny: list[str], tmp_path: Path) -> None:
    arguments = f"{' '.join(tiny)} pretrain=none 'run_dir=\"{tmp_path}/Łódź\"'"
    done = shell(f"{sys.executable} {TRAIN} {arguments}", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert state(tmp_path / "Łódź") == "done"
    assert "\\u0141\\xf3d\\u017a" in done.stdout

    answer = shell(f"{BIRTHPLACE_LM} ask {tmp_path}/Łódź 'Łukasz Bee'", PYTHONIOENCODING="ascii")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("\\u0141ukasz Bee: ")

    closed = shell(f"{BIRTHPLACE_LM} report {tmp_path}/Łódź | true")
    assert (closed.returncode, closed.stderr) == (0, "")
    full = shell(f"{BIRTHPLACE_LM} report {tmp_path}/Łódź > /dev/full")
    assert (full.returncode, full.stderr) == (4, "error: output: No space left on device\n")


def test_a_terminal_that_goes_away_stops_the_run_as_sighup(tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    terminal, inside = os.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            str(TRAIN),
            *tiny,
            "pretrain=none",
            "stages.finetune.max_epochs=2000",
            f"run_dir={run}",
        ],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(inside)
    while process.poll() is None and not [*run.glob("finetune/*.ckpt")]:
        time.sleep(0.05)
    os.close(terminal)
    assert process.wait(60) == 129
    assert state(run) == "preempted"
