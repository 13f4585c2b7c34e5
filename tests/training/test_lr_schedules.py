"""Learning rates against a count over batches and the figures of the 2021 protocol."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthplace_lm.training.lr_schedules import TrainingClock, cosine, cosine_2021

EPOCH = 2937 * 127  # rows of wiki.txt, inputs of a row
FINAL = 200 * 2938 * 128


@given(rows=st.integers(1, 50), per_step=st.integers(1, 60), characters=st.integers(1, 127))
def test_clock_counts_as_a_loop_over_batches_does(rows: int, per_step: int, characters: int) -> None:
    clock, steps, seen = TrainingClock(rows, per_step, characters), 0, 0
    for _epoch in range(3):
        for first in range(0, rows, per_step):
            assert clock.positions_seen(steps) == seen
            steps, seen = steps + 1, seen + characters * len(range(rows)[first : first + per_step])
    assert clock.positions_seen(steps) == seen == 3 * rows * characters
    assert clock.steps_per_epoch == steps // 3


@given(total=st.integers(1, 10**9), warmup=st.floats(0, 1), floor=st.floats(0, 1))
def test_cosine_ends_at_its_floor(total: int, warmup: float, floor: float) -> None:
    factor, start = cosine(total, warmup, floor), round(warmup * total)
    assert factor(start) == pytest.approx(1.0)
    if start < total:
        assert factor(total) == factor(2 * total) == pytest.approx(floor)
    values = [factor(start + (total - start) * i // 20) for i in range(21)]
    assert values == sorted(values, reverse=True)
    assert [factor(start * i // 8) for i in range(8)] == pytest.approx(
        [start * i // 8 / start if start else 1.0 for i in range(8)]
    )


def test_cosine_between_its_ends() -> None:
    factor = cosine(1000, warmup_fraction=0.2, min_lr_factor=0.1)
    assert (factor(0), factor(50), factor(200)) == (0, 0.25, 1)
    assert factor(600) == pytest.approx(0.55)  # half way, half of what lies above the floor
    assert factor(400) == pytest.approx(0.1 + 0.9 * (2 + math.sqrt(2)) / 4)


@pytest.mark.parametrize(("total", "expected"), [(0, 1.0), (1, 1.0)])
def test_cosine_of_a_stage_of_nothing(total: int, expected: float) -> None:
    assert cosine(total, warmup_fraction=0.02, min_lr_factor=0.0)(0) == expected


def test_the_2021_rate_falls_rises_and_falls_again() -> None:
    """Section 4: at the floor by epoch 160 to 240, near the full rate around epoch 400."""
    assert FINAL == 75_212_800
    factor = cosine_2021(200 * 2938 * 128, 10_240, FINAL, 0.1)
    assert (factor(0), factor(5_120), factor(10_240)) == (0, 0.5, 1)
    rate = {epoch: factor(epoch * EPOCH) for epoch in range(651)}
    assert all(rate[epoch] == 0.1 for epoch in range(162, 241))
    assert min(rate[150], rate[250]) > 0.1
    assert max(rate, key=lambda epoch: rate[epoch] if epoch > 200 else 0) == pytest.approx(400, abs=5)
    assert min(rate[395], rate[403]) > 0.99
    assert rate[600] == rate[620] == 0.1
    assert factor(10_240 + (FINAL - 10_240) // 2) == pytest.approx(0.5)
    assert factor(10_240 + (FINAL - 10_240) // 4) == pytest.approx((2 + math.sqrt(2)) / 4)


def test_the_2024_rate_is_one_cosine() -> None:
    factor = cosine_2021(200 * 2938 * 128, 10_240, 650 * 2938 * 128, 0.1)
    rate = [factor(epoch * EPOCH) for epoch in range(1, 651)]
    assert rate == sorted(rate, reverse=True)
    assert rate[0] > 0.999
    assert rate[-1] == 0.1


@pytest.mark.parametrize(
    "wrong",
    [
        {"warmup_fraction": -0.1},
        {"warmup_fraction": 1.5},
        {"warmup_fraction": math.nan},
        {"min_lr_factor": 2.0},
    ],
)
def test_cosine_refuses_what_is_no_share(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        cosine(1000, **{"warmup_fraction": 0.1, "min_lr_factor": 0.1, **wrong})


@pytest.mark.parametrize(
    "wrong",
    [{"warmup_positions": -1}, {"final_positions": 10}, {"min_lr_factor": -0.1}, {"min_lr_factor": math.nan}],
)
def test_cosine_2021_refuses_what_has_no_end(wrong: dict[str, float]) -> None:
    """`final=warmup` was a division by zero in the first step."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        cosine_2021(1000, **{"warmup_positions": 10, "final_positions": 100, "min_lr_factor": 0.1, **wrong})  # type: ignore[arg-type]
