"""`python train.py` as it is, on the embedded corpus, killed twenty times; with --torture only."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TRAIN = Path(__file__).parents[1] / "train.py"
KILLS = 20


def start(root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(TRAIN), f"runs_root={root}", "checkpoint.every_n_steps=10"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def result(root: Path) -> dict[str, Any]:
    (file,) = root.glob("*/metrics.json")
    metrics: dict[str, Any] = json.loads(file.read_text())
    for spent in metrics["stages"].values():
        del spent["seconds"]
    metrics["predictions"] = {p.name: p.read_text() for p in (file.parent / "predictions").iterdir()}
    return metrics


def test_killed_twenty_times(tmp_path: Path, request: pytest.FixtureRequest, record: Any) -> None:
    if not request.config.getoption("--torture"):
        pytest.skip("takes minutes: --torture")
    whole = start(tmp_path / "whole")
    assert "dev exact match" in whole.communicate()[0]
    draw, kills, moments = random.Random(0), 0, []
    while kills < KILLS:
        process = start(tmp_path / "killed")
        moment = draw.uniform(1, 14)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            moments.append(moment)
            continue
        break
    assert kills == KILLS, f"it ended after {kills} kills"
    last = start(tmp_path / "killed")
    output = last.communicate()[0]
    assert last.returncode == 0, output
    assert result(tmp_path / "killed") == result(tmp_path / "whole")
    record(
        "SIGKILLs of python train.py on the embedded corpus",
        f"{kills}, 1 to 14 s after a start; metrics, predictions and weights equal an undisturbed run's:"
        f" weights_sha256 {result(tmp_path / 'whole')['weights_sha256'][:16]}",
    )
