"""How long things take."""

import time
from collections.abc import Callable, Mapping

Benchmarks = Mapping[str, Callable[[], float]]  # name -> one measurement


def interleave(benchmarks: Benchmarks, rounds: int) -> dict[str, list[float]]:
    """Run the benchmarks in turn, round by round, so that a slow phase of the machine affects all of them.

    Returns:
        The `rounds` measurements of each benchmark, by its name.
    """
    measurements: dict[str, list[float]] = {name: [] for name in benchmarks}
    for _ in range(rounds):
        for name, measure in benchmarks.items():
            measurements[name].append(measure())
    return measurements


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call of `work`."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
