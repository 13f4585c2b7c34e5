"""Run directories for tests that only read them."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

DEV = Path(__file__).parents[1] / "data" / "biographies" / "dev.tsv"


def write_answers(run: Path, right: Sequence[bool]) -> None:
    """The predictions of a run on the embedded dev: the gold places, and where not right another place."""
    places = [line.split("\t")[1] for line in DEV.read_text(encoding="utf-8").splitlines()]
    wrong = {place: "Oslo" if place == "Lisbon" else "Lisbon" for place in places}
    answers = [place if is_right else wrong[place] for place, is_right in zip(places, right, strict=True)]
    (run / "predictions" / "dev.txt").write_text("".join(f"{answer}\n" for answer in answers))


def write_run(folder: Path, state: str = "done", correct: int = 70, **config: Any) -> Path:
    folder.mkdir(parents=True)
    values: dict[str, Any] = {
        "labels": {"attention": "vanilla", "pretrain": "none", "data": "biographies"},
        "seed": 0,
        "data": {
            "root": None,
            "corpus": "corpus.txt",
            "train": "train.tsv",
            "dev": "dev.tsv",
            "test": None,
            "holdout_size": 0,
            "exclude": None,
            "replace": None,
            "question": "Where was {name} born?",
        },
        "model": {"block_size": 128},
        "stages": {"finetune": {"learning_rate": 1e-3}},
        "runs_root": str(folder.parent),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({**values, **config}))
    status = {
        "state": state,
        "stage": "finetune",
        "error": "it broke" if state == "failed" else None,
        "pid": 1,
    }
    (folder / "status.json").write_text(json.dumps(status))
    if state == "done":
        score = {"correct": correct, "total": 140, "exact_match": correct / 140}
        spent = {"steps": 10, "epochs": 1, "characters": 1000, "seconds": 60.0, "loss": 0.5}
        weights = hashlib.sha256(os.fsencode(folder)).hexdigest()  # a run has its own
        metrics = {
            "attention": "vanilla", "pretrain": "none", "data": "biographies", "seed": 0, "vocab_size": 50,
            "data_sha256": {"train": "0" * 64}, "weights_sha256": weights, "parameters": 1234,
            "dev": score, "baseline": {**score, "answer": "Lisbon", "correct": 13},
            "stages": {"finetune": spent, "evaluate": {"names": 140, "seconds": 6.0, "precision": "float32"}},
        }  # fmt: skip
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "predictions").mkdir()
        write_answers(folder, [index < correct for index in range(140)])
        (folder / "finetune").mkdir()
    return folder
