"""Learning-rate schedules: factors of the peak rate, as functions of the characters seen."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from birthplace_lm.errors import InputError


@dataclass(frozen=True)
class Clock:
    """How far a stage is after a number of optimizer steps, counted without looking at the data.

    A character here is a position of the batch, PAD counted: every row counts `block_size - 1`, so the clock
    depends on the configuration alone and a resumed run reads the same time.

    Args:
        rows: rows of one epoch.
        rows_per_step: rows of one optimizer step, over all processes and accumulated batches.
        row_characters: characters that a row counts.
    """

    rows: int
    rows_per_step: int
    row_characters: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows // self.rows_per_step)

    def steps_of(self, epochs: int, max_steps: int) -> int:
        """Optimizer steps of so many epochs, but at most `max_steps` if that is not negative."""
        steps = self.steps_per_epoch * epochs
        return steps if max_steps < 0 else min(steps, max_steps)

    def characters(self, steps: int) -> int:
        """Characters seen after `steps` optimizer steps."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        return self.row_characters * (epochs * self.rows + rest * self.rows_per_step)


Schedule = Callable[[int], float]  # characters seen -> factor of the peak learning rate


def cosine(total: int, warmup: float, floor: float) -> Schedule:
    """Linear warm-up, then half a cosine from 1 down to `floor` at the end of the stage.

    Args:
        total: characters of the whole stage.
        warmup: the share of them to warm up in.

    Raises:
        InputError: `warmup` or `floor` is no share.
    """
    if not (0.0 <= warmup <= 1.0 and 0.0 <= floor <= 1.0):
        raise InputError(f"schedule: warmup={warmup} and floor={floor} must be from 0 to 1")
    start = round(warmup * total)

    def factor(characters: int) -> float:
        if characters < start:
            return characters / start
        progress = min(1.0, (characters - start) / max(1, total - start))
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


def cosine_2021(total: int, warmup: int, final: int, floor: float) -> Schedule:
    """max(floor, (1 + cos(pi p)) / 2), p = characters since `warmup` / (`final` - `warmup`).

    Neither follows the length of the stage, and past `final` the cosine rises again. A step's rate counts its
    own characters too; the source counts those before it, and takes the first step at the full rate.

    Args:
        total: characters of the whole stage, for a check only.
        warmup, final: in characters.

    Raises:
        InputError: `final` or the end of the stage does not come after `warmup`, or `floor` is no share.

    Source: CS224N 2021, assignment 5.
    """
    if not (0 <= warmup < final and 0.0 <= floor <= 1.0):
        raise InputError(
            f"schedule: warmup={warmup}, final={final}, floor={floor}:"
            " warmup must be from 0 to below final, and floor from 0 to 1"
        )

    if warmup > total:
        raise InputError(
            f"schedule: warmup={warmup}, but the stage has {total} characters; the nearest is {total}"
        )

    def factor(characters: int) -> float:
        if characters < warmup:
            return characters / warmup
        progress = (characters - warmup) / (final - warmup)
        return max(floor, 0.5 * (1.0 + math.cos(math.pi * progress)))

    return factor
