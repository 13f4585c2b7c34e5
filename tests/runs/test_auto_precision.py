"""precision=auto: measured, cached for the machine, and kept by a run that has begun."""

import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from stage import without_waiting, write_config

from birthplace_lm.config.compose import compose, load_saved
from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.errors import InputError, Interrupted
from birthplace_lm.runs import auto_precision, checkpoint
from birthplace_lm.runs.auto_precision import MatmulRates, resolve_auto_precision
from birthplace_lm.runs.directory import check_run_dir
from birthplace_lm.runs.identity import run_directory, with_inputs
from birthplace_lm.training import pipeline

FAST_BFLOAT16, SLOW_BFLOAT16 = MatmulRates(1e11, 3e11), MatmulRates(1e11, 0.5e11)
Measured = Callable[[MatmulRates | None], mock.Mock]


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Measured]:
    """Let this machine be one with these rates, of which nothing is cached; None: nothing may be measured."""

    def be(rates: MatmulRates | None) -> mock.Mock:
        measure = mock.Mock(return_value=rates, side_effect=AssertionError if rates is None else None)
        monkeypatch.setattr(auto_precision, "measure_rates", measure)
        monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache of {rates}"))
        auto_precision.rates_of_machine.cache_clear()
        return measure

    yield be
    auto_precision.rates_of_machine.cache_clear()


def resolved(tiny: list[str], *overrides: str) -> tuple[DictConfig, list[str]]:
    """As `train.py` does it."""
    config = compose([*tiny, *overrides])
    corpus = read_corpus(config.data, config.model.block_size)
    return resolve_auto_precision(with_inputs(config, corpus.sha256))


def train(config: DictConfig, notes: list[str]) -> dict[str, Any]:
    with without_waiting():
        corpus = read_corpus(config.data, config.model.block_size)
        return pipeline.run(config, corpus, notes=notes).to_dict()


@pytest.mark.parametrize(
    ("rates", "precision"), [(FAST_BFLOAT16, "bf16-mixed"), (SLOW_BFLOAT16, "32-true")], ids=lambda x: str(x)
)
def test_the_faster_precision_is_taken_everywhere(
    tiny: list[str], measured: Measured, rates: MatmulRates, precision: str
) -> None:
    measure = measured(rates)
    config, notes = resolved(tiny, "precision=auto")
    assert config.trainer.precision == config.optimizer.precision == precision  # Muon's own products, too
    assert config.precision == "auto"
    (note,) = notes
    assert f"precision=auto: {precision}, " in note
    assert f"{rates.bfloat16 / 1e9:.0f} GFLOP/s in bfloat16 and 100 in float32" in note
    explicit, no_notes = resolved(tiny, f"precision={precision}")
    assert run_directory(explicit) == run_directory(config)
    assert (explicit.precision, no_notes, measure.call_count) == (precision, [], 1)
    assert resolved(tiny, "trainer.precision=auto")[0] == config


def test_a_run_that_has_begun_keeps_its_precision(
    tiny: list[str],
    measured: Measured,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On another machine, or after the cache was lost, `auto` would mean another run."""
    caplog.set_level(logging.INFO, logger="birthplace_lm")
    settings = (f"runs_root={tmp_path / 'runs'}", "precision=auto", "pretrain=none")
    measured(FAST_BFLOAT16)
    config, notes = resolved(tiny, *settings)
    path = run_directory(config)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "evaluate", mock.Mock(side_effect=Interrupted(15, "during the evaluation")))
        with pytest.raises(Interrupted):
            train(config, notes)
    assert "precision=auto: bf16-mixed, because" in (path / "log.txt").read_text()
    measured(None)
    config, notes = resolved(tiny, *settings)
    assert run_directory(config) == path
    measured(SLOW_BFLOAT16)
    result = train(config, notes)
    assert "precision=auto: bf16-mixed, with which this run began" in (path / "log.txt").read_text()
    saved = checkpoint.load(checkpoint.list_checkpoints(path / "finetune")[0])["birthplace_lm"]
    assert saved["environment"]["precision"] == "bf16-mixed"
    assert load_saved(path / "config.yaml").trainer.precision == "bf16-mixed"
    assert result["stages"]["evaluate"]["precision"] == "float32"
    other, _ = resolved(tiny, *settings, "seed=1")  # another run is measured anew
    assert other.trainer.precision == "32-true"


def test_a_begun_run_with_plugins_keeps_its_precision(
    tiny: list[str], measured: Measured, tmp_path: Path
) -> None:
    """Bug: its config.yaml was read without them, so it counted as damaged."""
    noise = "+callbacks.noise={_target_:own_parts.GradientNoise,_partial_:true}"
    named = (f"run_dir={tmp_path / 'run'}", "pretrain=none", "precision=auto", "plugins=[own_parts]", noise)
    measured(FAST_BFLOAT16)
    config, _ = resolved(tiny, *named)
    write_config(tmp_path / "run", config)
    measured(SLOW_BFLOAT16)
    assert resolved(tiny, *named)[0] == config


def test_in_a_named_directory_too_and_only_if_it_began_with_auto(
    tiny: list[str], measured: Measured, tmp_path: Path
) -> None:
    named = (f"run_dir={tmp_path / 'run'}", "pretrain=none")
    path = tmp_path / "run" / "config.yaml"
    path.parent.mkdir()
    measured(FAST_BFLOAT16)
    config, _ = resolved(tiny, *named, "precision=auto")
    path.write_text(OmegaConf.to_yaml(config))
    measured(None)
    assert resolved(tiny, *named, "precision=auto")[0] == config
    measured(SLOW_BFLOAT16)
    explicit, _ = resolved(tiny, *named, "precision=bf16-mixed")
    path.write_text(OmegaConf.to_yaml(explicit))
    config, _ = resolved(tiny, *named, "precision=auto")
    with pytest.raises(InputError, match=r"another \w+.precision \(bf16-mixed there, 32-true here\)"):
        check_run_dir(tmp_path / "run", config)
    path.write_text("}")
    assert resolved(tiny, *named, "precision=auto")[0] == config


@pytest.mark.parametrize(
    ("rates", "precision", "times"),
    [(SLOW_BFLOAT16, "bf16-mixed", "2.0"), (FAST_BFLOAT16, "bf16-mixed", None), (None, "32-true", None)],
    ids=["emulated", "native", "float32"],
)
def test_a_precision_that_this_processor_emulates_is_warned_of(
    tiny: list[str],
    measured: Measured,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rates: MatmulRates | None,
    precision: str,
    times: str | None,
) -> None:
    """With AVX2 alone bfloat16 products take up to 40 times as long: a run of hours would take days."""
    measured(rates)
    settings = ("pretrain=none", f"precision={precision}", "float32_products=mkl")
    config, notes = resolved(tiny, *settings, f"run_dir={tmp_path / 'run'}")
    monkeypatch.setattr(pipeline, "evaluate", mock.Mock(side_effect=Interrupted(15, "during the evaluation")))
    with pytest.raises(Interrupted):
        train(config, notes)
    log = (tmp_path / "run/log.txt").read_text()
    warning = f"WARNING trainer.precision={precision}: float32 matrix products run {times} times as fast here"
    assert (warning in log) == (times is not None)
    assert ("times as fast" in log) == (times is not None)


def test_rates_are_cached_for_the_machine_and_the_threads(
    tiny: list[str], measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = measured(FAST_BFLOAT16)

    def rates(width: int = 32, threads: int = 1) -> MatmulRates:
        auto_precision.rates_of_machine.cache_clear()  # as in another process
        return auto_precision.rates_of_machine(width, threads)

    assert [rates(), rates(), measure.call_count] == [FAST_BFLOAT16, FAST_BFLOAT16, 1]
    rates(threads=2)
    rates(width=64)
    assert measure.call_count == 3
    for owner, name, value in (
        (torch, "__version__", "9.9"),
        (platform, "machine", lambda: "x"),
        (torch.backends.cpu, "get_cpu_capability", lambda: "x"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            before = measure.call_count
            rates()
            assert measure.call_count == before + 1, name
    assert rates() == FAST_BFLOAT16
    assert measure.call_count == 6
    cached = auto_precision.cache_file({**auto_precision._machine(), "width": 32, "threads": 1})
    assert "model name" in json.loads(cached.read_text()) or not Path("/proc/cpuinfo").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b'{"flops_per_second": 3}', b"[" * 100_000,
        b'{"flops_per_second": {"float32": 1e11}}',
        b'{"flops_per_second": {"float32": 1e11, "bfloat16": 0.0}}',
        b'{"flops_per_second": {"float32": 1e11, "bfloat16": NaN}}',
        b'{"flops_per_second": {"float32": 1e11, "bfloat16": 1e999}}',
        b'{"flops_per_second": {"float32": 1e11, "bfloat16": "x"}}',
        b'{"flops_per_second": {"float32": 1e11, "bfloat16": 1e11, "more": 1e11}}',
    ],
    ids=lambda content: content[:60].decode(errors="replace"),
)  # fmt: skip
def test_a_damaged_cache_is_measured_again(measured: Measured, content: bytes) -> None:
    measure = measured(FAST_BFLOAT16)
    auto_precision.rates_of_machine(32, 1)
    file = auto_precision.cache_file({**auto_precision._machine(), "width": 32, "threads": 1})
    good = file.read_bytes()
    file.write_bytes(content)
    auto_precision.rates_of_machine.cache_clear()
    assert auto_precision.rates_of_machine(32, 1) == FAST_BFLOAT16
    assert measure.call_count == 2
    assert file.read_bytes() == good


@pytest.mark.parametrize("busy", [True, False])
def test_rates_of_a_busy_machine_do_not_last(measured: Measured, monkeypatch: Any, busy: bool) -> None:
    """Bug: bfloat16 looked slower than float32 beside other work, from then on."""

    def rates_later(seconds: float) -> MatmulRates:
        auto_precision.rates_of_machine.cache_clear()
        now = time.time() + seconds
        with mock.patch("time.time", return_value=now):
            return auto_precision.rates_of_machine(32, 1)

    measure = measured(SLOW_BFLOAT16)
    monkeypatch.setattr("os.getloadavg", lambda: (2.0 if busy else 0.1, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert rates_later(0) == rates_later(60) == SLOW_BFLOAT16
    assert measure.call_count == 1
    measure.return_value = FAST_BFLOAT16
    assert rates_later(3600) == (FAST_BFLOAT16 if busy else SLOW_BFLOAT16)
    measure.return_value = SLOW_BFLOAT16  # slowed down by other work: two runs of a sweep choose alike
    assert rates_later(7200) == (FAST_BFLOAT16 if busy else SLOW_BFLOAT16)


@pytest.mark.parametrize("obstacle", ["file", "fifo", "folder", "relative", "no home", "read-only"])
def test_a_cache_that_cannot_be_written_does_not_matter(
    measured: Measured, obstacle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = measured(FAST_BFLOAT16)
    monkeypatch.chdir(tmp_path)
    file = auto_precision.cache_file({**auto_precision._machine(), "width": 32, "threads": 1})
    if obstacle == "file":
        file.parents[1].write_text("")
    elif obstacle == "fifo":
        file.parent.mkdir(parents=True)
        os.mkfifo(file)
    elif obstacle == "folder":
        file.mkdir(parents=True)
    elif obstacle == "relative":
        monkeypatch.setenv("XDG_CACHE_HOME", "cache")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
    elif obstacle == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", mock.Mock(side_effect=RuntimeError))
    else:
        monkeypatch.setattr(Path, "mkdir", mock.Mock(side_effect=PermissionError))
    assert auto_precision.rates_of_machine(32, 1) == FAST_BFLOAT16
    assert measure.call_count == 1
    assert not (tmp_path / "cache").exists()
    assert (obstacle == "relative") == (tmp_path / "home/.cache/birthplace_lm").is_dir()


def test_the_measurement_is_of_this_machine() -> None:
    """Against a single product, with room for the noise of a shared machine."""
    auto_precision.measure_rates(32)  # what torch imports at its first use is not part of the measurement
    began = time.thread_time()  # of this thread alone, whatever else runs
    rates = auto_precision.measure_rates(256)
    assert time.thread_time() - began < 5
    seconds = []
    a, b = torch.rand(1024, 256), torch.rand(256, 1024)
    for _ in range(9):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    product = 2 * 1024 * 256 * 1024 / median(seconds)
    assert 0.05 < rates.float32 / product < 20
    assert 0 < rates.bfloat16 < math.inf


def test_measuring_leaves_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    auto_precision.measure_rates(32)
    assert torch.equal(torch.get_rng_state(), before)
