"""The benchmark measures what it says."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from birthplace_lm.cli import attention_costs, training_speed
from birthplace_lm.cli import bench as bench_module
from birthplace_lm.cli.bench import bench
from birthplace_lm.cli.training_speed import flops_per_character
from birthplace_lm.config.compose import compose
from birthplace_lm.errors import InputError
from birthplace_lm.models.build import build_model
from birthplace_lm.models.float32_products import current_library


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


@pytest.mark.parametrize("starts", [False, pytest.param(True, marks=pytest.mark.torture)])
def test_tables_of_all_sides(starts: bool, people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not starts:  # real commands, four of them
        monkeypatch.setattr(bench_module, "_starting", lambda *_: "")
    # Bug: the epochs of the trainer ended the measurement.
    overrides = ["model=tiny", f"data.root={people}", "stages.pretrain.batch_size=8", "trainer.max_epochs=1"]
    tables = bench(overrides, rounds=1, steps=4)
    rows = dict(re.findall(r"^\| (\w[^|]*) \| ([\d,.]+) \|", tables, re.MULTILINE))
    assert all(float(value.replace(",", "")) > 0 for value in rows.values())
    assert {"dropout 0.1", "synthesizer", "500 names", "10,000 names"} <= set(rows)
    assert ({"birthplace-lm train --help", "birthplace-lm ask"} <= set(rows)) == starts


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_share_of_the_matrix_rate_is_of_the_precision_that_trains(
    precision: str, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: there was none in bfloat16, whose products were not measured."""
    measured = []

    def matrix_rate(dtype: torch.dtype) -> float:
        measured.append(dtype)
        return 1e9

    monkeypatch.setattr(training_speed, "matrix_rate", matrix_rate)
    monkeypatch.setattr(bench_module, "_answering", lambda *_: "")
    monkeypatch.setattr(bench_module, "_starting", lambda *_: "")
    overrides = ["model=tiny", f"data.root={people}", "stages.pretrain.batch_size=8"]
    table = bench([*overrides, f"trainer.precision={precision}"], rounds=1, steps=4)
    assert measured == [torch.float32 if precision == "32-true" else torch.bfloat16]
    cost = float(re.search(r"([\d.]+) MFLOP a character", table)[1]) * 1e6  # type: ignore[index]
    for name in ("a bare loop over the same batches", "dropout 0.1"):
        speed, share = re.search(rf"\| {name} \| ([\d,]+) \| ([\d.]+) \|", table).groups()  # type: ignore[union-attr]
        rate = float(speed.replace(",", ""))
        rounding = rate * 0.051e6 / 1e9 + 0.01  # of the digits that the table has
        assert float(share) == pytest.approx(rate * cost / 1e9, abs=rounding)


def test_a_precision_that_is_not_measured_is_refused() -> None:
    """Bug: the table of 64-true had the speed of float32."""
    with pytest.raises(InputError, match="bench measures bf16-mixed and 32-true, not 64-true"):
        bench(["trainer.precision=64-true"], rounds=1, steps=4)


def test_a_table_of_the_costs_of_attention(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_costs, "_peak_memory", lambda arguments: 50_000_000)
    overrides = ["model=tiny", f"data.root={people}", "stages.pretrain.batch_size=8"]
    table = attention_costs.attention_costs("gqa,vanilla+canon", overrides, rounds=1, steps=8)
    rows = {name: cells for name, *cells in (row.strip("| ").split(" | ") for row in table.splitlines()[4:])}
    assert [*rows] == ["vanilla", "gqa", "vanilla+canon"]
    for name, cells in rows.items():
        ratios = [float(re.search(r"\((.*)\)", cell)[1]) for cell in cells]  # type: ignore[index]
        assert all(ratio > 0 for ratio in ratios)
        if name == "vanilla":
            assert set(ratios) == {1.0}
    vanilla, gqa, canon = (int(cells[0].partition(" ")[0].replace(",", "")) for cells in rows.values())
    assert canon - vanilla == 2 * 2 * 4 * 32  # layers, convolutions, kernel, channels
    assert vanilla - gqa == 0  # two heads, two of keys and values
    with pytest.raises(InputError, match="no such variant; they are additive, alibi"):
        attention_costs.attention_costs("vanila", [], rounds=1, steps=8)
    with pytest.raises(InputError, match="n_layer=1"):  # was a traceback
        attention_costs.attention_costs("perceiver", [*overrides, "model.n_layer=1"], rounds=1, steps=8)


def test_costs_in_the_precision_and_with_the_library_that_are_faster_here(
    people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: precision=auto failed, and the costs were measured with torch's default library."""
    libraries = []
    monkeypatch.setattr(attention_costs, "_peak_memory", lambda arguments: 50_000_000)
    monkeypatch.setattr(bench_module, "measured_precision", lambda *_: "32-true")
    monkeypatch.setattr(bench_module, "faster_library", lambda _: "onednn")

    def names_per_second(*_: object) -> float:
        libraries.append(current_library())
        return 1.0

    monkeypatch.setattr(attention_costs, "_names_per_second", names_per_second)
    overrides = ["model=tiny", f"data.root={people}", "stages.pretrain.batch_size=8", "precision=auto"]
    overrides += ["model.block_size=48"]  # shorter than the rows whose operations are counted
    table = attention_costs.attention_costs("vanilla", overrides, rounds=1, steps=2)
    assert "32-true, float32 products by onednn" in table
    assert "operations of rows of 48 characters" in table
    assert libraries == ["onednn"]


def test_a_measurement_of_memory_that_fails_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="measures the memory of model=nosuch ended with code 1"):
        attention_costs._peak_memory(["model=nosuch"])
    monkeypatch.setattr(attention_costs, "Path", lambda _: Path("/nowhere"))  # a system without /proc
    with pytest.raises(InputError, match="needs Linux"):
        attention_costs.attention_costs("all", [], rounds=1, steps=8)


def test_operations_are_counted_with_a_known_model() -> None:
    sizes = compose(["model=tiny", "attention=vanilla"]).model
    model = build_model(sizes, vocab_size=50)
    weights = 2 * (4 * 32 * 32 + 8 * 32 * 32) + 50 * 32  # of linear layers
    pairs = 2 * 2 * 64 * 32  # layers, products, keys, channels
    assert attention_costs._flops_per_character(model, 64) == pytest.approx(6 * (weights + pairs), rel=0.01)


@pytest.mark.torture
def test_memory_is_that_of_training(people: Path) -> None:
    overrides = ["model=tiny", f"data.root={people}", "stages.pretrain.batch_size=8"]
    small = attention_costs._peak_memory(overrides)
    wide = attention_costs._peak_memory([*overrides, "model.n_embd=512"])
    extra = 16 * 2 * 12 * (512**2 - 32**2)  # weights, gradients and AdamW's or Muon's state, at least
    assert wide - small > extra / 2
