"""Learning-rate schedules: factors of the peak rate as functions of the positions seen."""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingClock:
    """Progress of a stage after a number of optimizer steps, in positions.

    A position is a place of the batch, PAD counted: every row has `block_size - 1`. So the clock depends on
    the configuration alone, and a resumed run reads the same time.

    Args:
        rows: rows of one epoch.
        rows_per_step: rows of one optimizer step, over all processes and accumulated batches.
        positions_per_row: `block_size - 1`.
    """

    rows: int
    rows_per_step: int
    positions_per_row: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows // self.rows_per_step)

    def steps_of(self, epochs: int, max_steps: int) -> int:
        """Optimizer steps of `epochs`, at most `max_steps` unless that is negative."""
        steps = self.steps_per_epoch * epochs
        return steps if max_steps < 0 else min(steps, max_steps)

    def positions_seen(self, steps: int) -> int:
        """Positions seen after `steps` optimizer steps."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        return self.positions_per_row * (epochs * self.rows + rest * self.rows_per_step)


Schedule = Callable[[int], float]  # positions seen -> factor of the peak learning rate


def factor_by_step(schedule: Schedule, clock: TrainingClock) -> Callable[[int], float]:
    """The schedule over the optimizer steps taken before; the positions of the step itself count too."""
    return lambda step: schedule(clock.positions_seen(step + 1))


def cosine(total_positions: int, warmup_fraction: float, min_lr_factor: float) -> Schedule:
    """Linear warm-up, then half a cosine from 1 down to `min_lr_factor` at the end of the stage.

    Args:
        total_positions: positions of the whole stage, PAD counted.
        warmup_fraction: fraction of them for the warm-up.
        min_lr_factor: factor of the peak rate at the end.

    Raises:
        ValueError: `warmup_fraction` or `min_lr_factor` is not in [0, 1]; the message begins with its name.
    """
    for name, fraction in (("warmup_fraction", warmup_fraction), ("min_lr_factor", min_lr_factor)):
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"{name}={fraction}: must be from 0 to 1")
    warmup_positions = round(warmup_fraction * total_positions)

    def factor(positions: int) -> float:
        if positions < warmup_positions:
            return positions / warmup_positions
        progress = min(1.0, (positions - warmup_positions) / max(1, total_positions - warmup_positions))
        return min_lr_factor + (1.0 - min_lr_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


def cosine_2021(
    total_positions: int, warmup_positions: int, final_positions: int, min_lr_factor: float
) -> Schedule:
    """max(min_lr_factor, (1 + cos(pi p)) / 2), p = positions since the warm-up / (final - warm-up).

    The period does not depend on the length of the stage: past `final_positions` the cosine rises again. The
    rate of a step counts the positions of that step too; the source counts those before it, so its first
    step runs at the full rate.

    Args:
        total_positions: positions of the whole stage, used for validation only.
        warmup_positions: length of the linear warm-up.
        final_positions: where the cosine reaches its minimum.
        min_lr_factor: lower bound of the factor.

    Raises:
        ValueError: `final_positions` or the end of the stage does not come after the warm-up, or
            `min_lr_factor` is not in [0, 1]; the message begins with the name of the argument.

    Source: CS224N 2021, assignment 5.
    """
    if not 0 <= warmup_positions < final_positions:
        raise ValueError(
            f"warmup_positions={warmup_positions}: must be from 0 to below final_positions={final_positions}"
        )
    if not 0.0 <= min_lr_factor <= 1.0:
        raise ValueError(f"min_lr_factor={min_lr_factor}: must be from 0 to 1")
    if warmup_positions > total_positions:
        raise ValueError(
            f"warmup_positions={warmup_positions}: the stage has {total_positions} positions;"
            f" the nearest is {total_positions}"
        )

    def factor(positions: int) -> float:
        if positions < warmup_positions:
            return positions / warmup_positions
        progress = (positions - warmup_positions) / (final_positions - warmup_positions)
        return max(min_lr_factor, 0.5 * (1.0 + math.cos(math.pi * progress)))

    return factor
