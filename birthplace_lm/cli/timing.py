"""How long things take."""

import time
from collections.abc import Callable, Mapping

Benchmarks = Mapping[str, Callable[[], float]]  # name -> one measurement


def interleave(benchmarks: Benchmarks, rounds: int) -> dict[str, list[float]]:
    """Measure everything by turns."""
    measurements: dict[str, list[float]] = {name: [] for name in benchmarks}
    for _ in range(rounds):
        for name, measure in benchmarks.items():
            measurements[name].append(measure())
    return measurements


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
