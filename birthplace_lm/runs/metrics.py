"""metrics.json, the numbers that a finished run leaves, and result.json, those of one stage."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from birthplace_lm.errors import CheckpointError
from birthplace_lm.runs.atomic_files import atomic_write_text

METRICS_FILE = "metrics.json"  # in a run directory
STAGE_RESULT = "result.json"  # in the folder of a stage
SCORES = ("dev", "baseline", "test", "holdout")

Z = 1.959964  # of a two-sided 95 % interval

T = TypeVar("T")


def percent(p: float) -> str:
    """A probability in percent; none above 0 is shown as 0."""
    return "<1%" if 0 < p < 0.005 else f"{p:.0%}"


def wilson(right: float, total: float, z: float = Z) -> tuple[float, float]:
    """The Wilson interval of a share, of 95 % by default.

    With several answers per person, divide both counts by that number: the interval is then over people.
    """
    if total == 0:
        return 0.0, 1.0
    share, z2 = right / total, z * z
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = z * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total)) / (1 + z2 / total)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Score:
    """Exact match: how many answers of one run, or of several, equal the gold place."""

    correct: int
    total: int

    @property
    def exact_match(self) -> float:
        """A fraction in [0, 1]; 0 if there is nothing to score."""
        return self.correct / max(1, self.total)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of `exact_match`."""
        return wilson(self.correct, self.total)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.correct}/{self.total} = {self.exact_match:.1%} ({low:.1%} to {high:.1%})"

    def to_dict(self) -> dict[str, Any]:
        return {"correct": self.correct, "total": self.total, "exact_match": self.exact_match}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Score":
        score = _build(cls, content)
        if not score.correct <= score.total > 0:
            raise ValueError(f"{score.correct} correct answers of {score.total} are impossible")
        return score


@dataclass(frozen=True)
class StageResult:
    """What a stage cost and reached.

    Attributes:
        characters: read in training, PAD not included.
        loss: mean of the batches of the last epoch, in nats per character; None if the stage took no step.
    """

    steps: int = 0
    epochs: int = 0
    characters: int = 0
    seconds: float = 0.0
    loss: float | None = None

    def write(self, path: Path) -> None:
        """Replace the file.

        Raises:
            OSError: it cannot be written.
        """
        _write(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "StageResult":
        """Read a result.json.

        Raises:
            CheckpointError: it is missing or holds something else.
        """
        return _read(path, partial(_build, cls))


@dataclass(frozen=True)
class RunMetrics:
    """The numbers of a finished run.

    Attributes:
        attention, pretrain, data: the labels of the configuration.
        data_sha256: of each data file, by the name of the file's key.
        majority_answer, baseline: the most frequent train answer, and the score of always giving it.
        questions, evaluate_seconds: how many questions of dev were answered in which time.
        evaluate_precision: in which the answers were computed, for example "float32".
        test, holdout: scores of the splits that not every corpus has.
        surprisal: mean -log2 P(gold place | question) on dev; None if a place does not fit into the block.
        prior_surprisal: the same of the frequencies of the places in train; the difference of the two is what
            the model knows, in bits per person.
        extended_from: the checkpoint of another run that this one continues; None for a run from its start.
    """

    attention: str
    pretrain: str
    data: str
    seed: int
    data_sha256: Mapping[str, str]
    weights_sha256: str
    vocab_size: int
    parameters: int
    dev: Score
    majority_answer: str
    baseline: Score
    stages: Mapping[str, StageResult]
    questions: int
    evaluate_seconds: float
    evaluate_precision: str
    test: Score | None = None
    holdout: Score | None = None
    surprisal: float | None = None
    prior_surprisal: float | None = None
    extended_from: str | None = None

    @property
    def characters(self) -> int:
        """Characters read in all stages."""
        return sum(stage.characters for stage in self.stages.values())

    @property
    def training_seconds(self) -> float:
        """Seconds of all stages, without the evaluation."""
        return sum(stage.seconds for stage in self.stages.values())

    @property
    def bits(self) -> float | None:
        """Bits per person that the answers to dev questions hold beyond the frequencies of the places."""
        if self.surprisal is None or self.prior_surprisal is None:
            return None
        return self.prior_surprisal - self.surprisal

    @property
    def loss(self) -> float | None:
        """Training loss of the last stage that took a step."""
        return next((stage.loss for stage in reversed([*self.stages.values()]) if stage.steps), None)

    def to_dict(self) -> dict[str, Any]:
        """The content of metrics.json."""
        content = {key: value for key, value in asdict(self).items() if value is not None}
        for name in SCORES:
            if name in content:
                content[name] = getattr(self, name).to_dict()
        content["baseline"]["answer"] = content.pop("majority_answer")
        if self.bits is not None:
            content["bits"] = self.bits
        content["stages"]["evaluate"] = {
            "names": content.pop("questions"),
            "seconds": content.pop("evaluate_seconds"),
            "precision": content.pop("evaluate_precision"),
        }
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "RunMetrics":
        """The inverse of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: a key is missing, or its value is impossible.
        """
        stages = dict(content["stages"])
        evaluation = stages.pop("evaluate")
        flat = {
            **content,
            "majority_answer": content["baseline"]["answer"],
            "questions": evaluation["names"],
            "evaluate_seconds": evaluation["seconds"],
            "evaluate_precision": evaluation["precision"],
        }
        return _build(
            cls,
            flat,
            data_sha256={key: _checked(key, digest, str) for key, digest in content["data_sha256"].items()},
            stages={name: _build(StageResult, result) for name, result in stages.items()},
            **{name: Score.from_dict(content[name]) for name in SCORES if name in content},
        )

    def write(self, path: Path) -> None:
        """Replace the file.

        Raises:
            OSError: it cannot be written.
        """
        _write(path, self.to_dict())

    @classmethod
    def read(cls, path: Path) -> "RunMetrics":
        """Read a metrics.json.

        Raises:
            CheckpointError: it is missing or holds something else.
        """
        return _read(path, cls.from_dict)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    atomic_write_text(path, json.dumps(content, indent=2) + "\n")


def _read(path: Path, parse: Callable[[Any], T]) -> T:
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{path}: not written by this version of birthplace_lm: {reason}; remove it,"
            " and the command of its run writes it again"
        ) from error


def _build(cls: type[T], content: Mapping[str, Any], **parts: Any) -> T:
    """A dataclass of `parts` and, for its other fields, the entries of `content`; None may lack there."""
    for f in fields(cls):  # type: ignore[arg-type]
        if f.name not in parts:
            value = content.get(f.name) if f.default is None else content[f.name]
            optional = value is None and f.default is None
            parts[f.name] = None if optional else _checked(f.name, value, f.type)
    return cls(**parts)


def _checked(name: str, value: Any, kind: Any) -> Any:
    """A value of its kind, where a number is finite and not negative."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
    if kind in (str, str | None):
        valid, expected = isinstance(value, str), "text"
    elif kind is int:
        valid, expected = is_number and isinstance(value, int), "an integer from 0"
    else:
        valid, expected = is_number, "a number from 0"
    if not valid:
        raise ValueError(f"{name} is {value!r:.40}; expected {expected}")
    return value
