"""The benchmark measures what it says."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from birthplace_lm.cli.bench import bench, flops_per_character
from birthplace_lm.config.compose import compose
from birthplace_lm.models.build import build_model


@pytest.mark.parametrize("attention", ["vanilla", "synthesizer"])
@pytest.mark.parametrize("length", [20, 100])
def test_the_cost_of_a_character(attention: str, length: int) -> None:
    """Torch's own counter sees every product of a step; it counts all of a causal attention, not half."""
    model = build_model(compose(["model=gpt_3m", f"attention={attention}"]).model, vocab_size=256)
    ids = torch.randint(2, 256, (3, length))
    with FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    counted = counter.get_total_flops() / ids.numel()
    assert flops_per_character(model, length) == pytest.approx(counted, rel=0.08)


def test_the_cost_at_the_size_of_the_source() -> None:
    model = build_model(compose(["model=gpt_3m"]).model, vocab_size=256)
    assert flops_per_character(model, 50) == pytest.approx(19.6e6, rel=0.01)


def test_tables_of_all_sides(people: Path) -> None:
    tables = bench(["model=tiny", f"data.root={people}", "stages.pretrain.batch_size=8"], rounds=1, steps=8)
    rows = dict(re.findall(r"^\| (\w[^|]*) \| ([\d,.]+) \|", tables, re.MULTILINE))
    assert all(float(value.replace(",", "")) > 0 for value in rows.values())
    assert {"dropout 0.1", "synthesizer", "500 names", "10,000 names"} <= set(rows)
    assert {"birthplace-lm train --help", "birthplace-lm ask"} <= set(rows)
