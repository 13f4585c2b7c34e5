"""What a trained model answers, on disk and as numbers."""

import hashlib
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig

from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.data.corpora.qa_files import Question
from birthplace_lm.inference.decoding import answer_questions
from birthplace_lm.models.gpt import GPT
from birthplace_lm.runs import signals
from birthplace_lm.runs.atomic_files import atomic_write_text
from birthplace_lm.training.metrics import score

HYPERPARAMETERS = ".hparams"  # ends the name of the event file that holds them


def evaluate(model: GPT, corpus: Corpus, run: Path, on_gpu: bool) -> tuple[dict[str, Any], float]:
    """Answer all questions and write `predictions/SPLIT.txt`, one answer per line.

    Args:
        run: the run directory.
        on_gpu: use one if there is one.

    Returns:
        For every split with known places `correct`, `total` and `exact_match`, and the same for the
        `baseline` that always gives the most frequent train answer; and the seconds it took to answer dev.
    """
    model.eval().to("cuda" if on_gpu and torch.cuda.is_available() else "cpu")
    splits = {
        "dev": corpus.dev.rows,
        "test": corpus.test.rows if corpus.test else [],
        "holdout": corpus.holdout,
    }
    found: dict[str, Any] = {}
    seconds = {}
    for split, rows in splits.items():
        signals.raise_if_signalled("during the evaluation")
        began = time.perf_counter()
        scored = _answer_all(model, corpus, rows, run / "predictions" / f"{split}.txt") if rows else None
        seconds[split] = time.perf_counter() - began
        if scored is not None:
            found[split] = scored
    golds = [row.place or "" for row in corpus.dev.rows]
    found["baseline"] = {"answer": corpus.majority, **score([corpus.majority] * len(golds), golds)}
    return found, seconds["dev"]


def log_hyperparameters(config: DictConfig, metrics: dict[str, Any], folder: Path) -> None:
    """Fill TensorBoard's HParams tab: what was chosen, with what came out."""
    stages = config.stages
    chosen = {
        **config.labels,
        "seed": config.seed,
        "parameters": metrics["parameters"],
        **{key: config.model[key] for key in ("n_layer", "n_head", "n_embd", "dropout")},
        "precision": config.trainer.precision,
        **_plain("optimizer", config.optimizer),
    }
    for name, stage in stages.items():
        chosen |= {
            f"{name}.{key}": (config.trainer.get(key) or stage[key]) if stage.enabled else 0
            for key in ("max_epochs", "batch_size", "learning_rate", "ema_decay")
        }
        if stage.enabled:
            chosen |= {
                k: v for k, v in _plain(f"{name}.dataset", stage.dataset).items() if k != f"{name}.dataset"
            }
    spent = [metrics["stages"][name] for name in stages]
    reached = {
        **{
            f"final/{split}_exact_match": metrics[split]["exact_match"]
            for split in ("dev", "holdout")
            if split in metrics
        },
        "final/loss": next((stage["loss"] for stage in reversed(spent) if stage["steps"]), 0.0),
        "final/million_characters": sum(stage["characters"] for stage in spent) / 1e6,
        "final/seconds": sum(stage["seconds"] for stage in spent),
    }
    for before in folder.glob(f"*{HYPERPARAMETERS}"):  # of a run that was killed after this
        before.unlink()
    logger = TensorBoardLogger(
        folder, name="", version="", default_hp_metric=False, filename_suffix=HYPERPARAMETERS
    )
    logger.log_hyperparams(chosen, reached)
    logger.finalize("success")


def _plain(key: str, node: Any) -> dict[str, bool | int | float | str]:
    """What a factory is given: a column for each number or word, and one for the factory."""
    if not isinstance(node, DictConfig):
        return {key: node} if isinstance(node, bool | int | float | str) else {}
    found: dict[str, bool | int | float | str] = {}
    for name, inner in node.items():
        if name == "_target_":
            found[key] = str(inner).rpartition(".")[2]
        elif name != "_partial_":
            found |= _plain(f"{key}.{name!s}", inner)
    return found


def weights_sha256(model: GPT) -> str:
    """A hash of all weights, by which two runs can be compared."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _answer_all(model: GPT, corpus: Corpus, rows: list[Question], file: Path) -> dict[str, Any] | None:
    """The score, where all places are known."""
    answers = answer_questions(model, corpus.vocab, [row.question for row in rows])
    file.parent.mkdir(exist_ok=True)
    atomic_write_text(file, "".join(a.line + "\n" for a in answers))
    places = [row.place for row in rows]
    return None if None in places else score([a.text for a in answers], [place or "" for place in places])
