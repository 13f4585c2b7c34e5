"""Freed memory stays with the process between steps and goes back between validations."""

import ctypes
import os
from pathlib import Path

import pytest
import torch
from stage import forked

from birthplace_lm.training.allocator import disable_malloc_trim, release_free_memory

MIB = 1 << 20


def resident() -> int:
    """Resident set of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_freed_memory_stays_until_it_is_released() -> None:
    """The heap once grew to 2 GB in experiment=fast: gaps between live tensors were never given back."""

    def work() -> None:
        disable_malloc_trim()
        before = resident()
        tensors = [torch.ones(MIB // 4) for _ in range(200)]
        last = tensors[-1]  # above all others in the heap
        del tensors
        assert resident() - before > 150 * MIB
        release_free_memory()
        assert resident() - before < 50 * MIB
        assert bool((last == 1).all())

    assert forked(work) == 0
