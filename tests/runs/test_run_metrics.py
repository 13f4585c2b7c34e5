"""metrics.json as design and README document it, and what is refused as none."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stage import METRICS

from birthplace_lm.errors import CheckpointError
from birthplace_lm.runs.metrics import RunMetrics, Score, StageResult

DOCUMENTED = """{"attention": "vanilla", "pretrain": "none", "data": "biographies", "seed": 0,
 "data_sha256": {"train": "ab"}, "weights_sha256": "cd", "vocab_size": 60, "parameters": 1000,
 "dev": {"correct": 3, "total": 8, "exact_match": 0.375},
 "baseline": {"answer": "Lisbon", "correct": 2, "total": 8, "exact_match": 0.25},
 "stages": {"pretrain": {"steps": 0, "epochs": 0, "characters": 0, "seconds": 0.0, "loss": null},
            "finetune": {"steps": 6, "epochs": 2, "characters": 900, "seconds": 1.5, "loss": 0.25},
            "evaluate": {"names": 8, "seconds": 0.5, "precision": "float32"}}}"""


def test_reads_and_writes_the_documented_keys(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    file.write_text(DOCUMENTED)
    assert RunMetrics.read(file) == METRICS
    METRICS.write(file)
    assert json.loads(file.read_text()) == json.loads(DOCUMENTED)
    with_more = replace(METRICS, test=Score(1, 4), holdout=Score(0, 4), extended_from="a.ckpt")
    with_more.write(file)
    assert RunMetrics.read(file) == with_more


def test_sums_over_stages() -> None:
    stages = {"pretrain": StageResult(5, 1, 100, 2.0, 1.5), "finetune": StageResult()}
    metrics = replace(METRICS, stages=stages)
    assert (metrics.characters, metrics.training_seconds, metrics.loss) == (100, 2.0, 1.5)


@pytest.mark.parametrize(
    ("keys", "value", "reason"),
    [
        (["dev"], None, "'dev' is missing"),
        (["dev", "correct"], 9, "9 correct answers of 8 are impossible"),
        (["dev", "total"], 0, "3 correct answers of 0"),
        (["dev", "correct"], "3", "correct is '3'"),
        (["dev", "correct"], -1, "correct is -1"),
        (["seed"], True, "seed is True"),
        (["parameters"], 1.5, "parameters is 1.5"),
        (["stages", "finetune", "loss"], float("nan"), "loss is nan"),
        (["stages", "evaluate"], None, "'evaluate' is missing"),
        (["stages", "evaluate", "precision"], None, "'precision' is missing"),
        (["stages", "finetune"], 3, ""),
        (["attention"], ["vanilla"], "attention is"),
        (["holdout"], {"correct": 1}, "'total' is missing"),
    ],
)
def test_refuses_what_cannot_be(keys: list[str], value: Any, reason: str, tmp_path: Path) -> None:
    content = json.loads(DOCUMENTED)
    node = content
    for key in keys[:-1]:
        node = node[key]
    if value is None:
        del node[keys[-1]]
    else:
        node[keys[-1]] = value
    file = tmp_path / "metrics.json"
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        RunMetrics.read(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert reason in str(caught.value)


def test_damaged_bytes_are_a_checkpoint_error_or_metrics(tmp_path: Path) -> None:
    draw, file = random.Random(0), tmp_path / "metrics.json"
    for _ in range(300):
        content = bytearray(DOCUMENTED.encode())
        for _ in range(draw.choice([1, 2, 5])):
            content[draw.randrange(len(content))] = draw.choice(b'[{"0-,n\xff')
        file.write_bytes(content)
        try:
            assert isinstance(RunMetrics.read(file), RunMetrics)
        except CheckpointError:
            continue
