"""precision=auto and float32_products=auto: what trains faster on this machine, measured once and cached.

A run that has begun keeps its precision: it is part of the run's identity. Imports torch only to measure.
"""

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from birthplace_lm.config.compose import load_config
from birthplace_lm.errors import InputError
from birthplace_lm.runs.identity import hashed_config, run_directory

CHOICES = ("bf16-mixed", "32-true")
MKL, ONEDNN, BFLOAT16 = "mkl", "onednn", "bfloat16"  # ways to multiply matrices
MIN_SPEEDUP = 1.25  # of the products; what is not a product gains nothing, and bfloat16 has fewer digits
CHARACTERS = 1024  # rows of the matrices, as many as a micro-batch of training has
PROBE_CHARACTERS, HOPELESS = 16, 0.25  # bfloat16 that is emulated takes 25 times as long as float32
MAX_WIDTH = 1024  # a wider model is measured with this width: time and memory grow with its square
SECONDS, MIN_ROUNDS = 0.1, 3  # of a measurement
MAX_CACHE_BYTES = 1 << 16
BUSY_LOAD = 0.25  # load average per processor; above it, other work distorts the comparison of the rates
BUSY_SECONDS = 600.0  # how long cached rates that were measured on a busy machine stay valid


@dataclass(frozen=True)
class MatmulRates:
    """FLOPs per second of the forward and backward products of a block's MLP, conversions included.

    Attributes:
        float32: by MKL, torch's choice.
        bfloat16: in mixed precision.
        float32_onednn: by oneDNN; 1 where it cannot multiply in float32.
    """

    float32: float
    bfloat16: float
    float32_onednn: float = 1.0

    def __post_init__(self) -> None:
        if not all(isinstance(rate, float) and 0 < rate < math.inf for rate in asdict(self).values()):
            raise ValueError(f"not rates: {self}")

    def or_better(self, other: "MatmulRates") -> "MatmulRates":
        """The higher of each rate."""
        return MatmulRates(*map(max, astuple(self), astuple(other)))

    @property
    def precision(self) -> str:
        """The precision to train in."""
        return "bf16-mixed" if self.bfloat16 >= MIN_SPEEDUP * self.best_float32 else "32-true"

    @property
    def best_float32(self) -> float:
        return self.float32_onednn if self.library == ONEDNN else self.float32

    @property
    def library(self) -> str:
        """What multiplies float32 matrices faster."""
        return ONEDNN if self.float32_onednn >= MIN_SPEEDUP * self.float32 else MKL


def resolve_auto_precision(config: DictConfig) -> tuple[DictConfig, list[str]]:
    """Replace precision=auto by the precision of the run that exists, otherwise by the faster one.

    Args:
        config: a validated configuration with its `inputs`.

    Returns:
        The configuration with a precision, and for the log why it has this one.
    """
    if config.trainer.precision != "auto":
        return config, []
    candidates = {precision: _with_precision(config, precision) for precision in CHOICES}
    for precision, candidate in candidates.items():
        if _has_begun(candidate):
            return candidate, [f"precision=auto: {precision}, with which this run began"]
    precision, reason = _faster(config.trainer.accelerator, config.model.n_embd)
    return candidates[precision], [f"precision=auto: {precision}, because {reason}"]


def _with_precision(config: DictConfig, precision: str) -> DictConfig:
    plain: Any = OmegaConf.to_container(config)
    of_stages = [stage["optimizer"] or {} for stage in plain["stages"].values()]
    for part in (plain["trainer"], plain["optimizer"], *of_stages):  # Muon's products follow the trainer
        if part.get("precision") == "auto":
            part["precision"] = precision
    resolved = DictConfig(plain)
    OmegaConf.set_readonly(resolved, True)
    return resolved


def _has_begun(config: DictConfig) -> bool:
    """Whether the run directory holds this run, begun with precision=auto."""
    try:
        saved = load_config(run_directory(config), config.plugins)
    except InputError:  # missing, or damaged: whoever claims the directory reports it
        return False
    return saved.precision == "auto" and hashed_config(saved) == hashed_config(config)


def measured_precision(accelerator: str, width: int) -> str:
    """The precision in which a model of `width` channels trains faster on this machine."""
    return _faster(accelerator, width)[0]


def faster_library(width: int) -> str:
    """What multiplies float32 matrices of this width faster on this machine: "mkl" or "onednn"."""
    import torch  # takes seconds

    return rates_of_machine(min(width, MAX_WIDTH), torch.get_num_threads()).library


def _faster(accelerator: str, width: int) -> tuple[str, str]:
    """The faster precision, and the reason."""
    import torch  # takes seconds

    device = device_kind(accelerator)
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        reason = f"the GPU {'multiplies' if native else 'does not multiply'} bfloat16 natively"
        return ("bf16-mixed" if native else "32-true"), reason
    if device == "mps":
        return "32-true", "nothing is measured on accelerator=mps"
    threads = torch.get_num_threads()
    rates = rates_of_machine(min(width, MAX_WIDTH), threads)
    return rates.precision, (
        f"matrix products of this model run at {rates.bfloat16 / 1e9:.0f} GFLOP/s in bfloat16 and"
        f" {rates.best_float32 / 1e9:.0f} in float32 ({threads} thread{'s' * (threads > 1)})"
    )


def device_kind(accelerator: str) -> str:
    """What trains with this `trainer.accelerator` on this machine: "cuda", "mps" or "cpu"."""
    import torch  # takes seconds

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    return "mps" if accelerator != "cpu" and torch.backends.mps.is_available() else "cpu"


def slow_precision_warning(config: DictConfig) -> str | None:
    """A warning if the precision is bfloat16 on a CPU that is faster in float32, as one that emulates it."""
    import torch  # takes seconds

    trainer = config.trainer
    if not trainer.precision.startswith("bf16") or device_kind(trainer.accelerator) != "cpu":
        return None
    rates = rates_of_machine(min(config.model.n_embd, MAX_WIDTH), torch.get_num_threads())
    if rates.bfloat16 >= rates.best_float32:
        return None
    return (
        f"trainer.precision={trainer.precision}: float32 matrix products run"
        f" {rates.best_float32 / rates.bfloat16:.1f} times as fast here; precision=32-true starts another run"
    )


@cache
def rates_of_machine(width: int, threads: int) -> MatmulRates:
    """The rates of this machine, from the cache or measured. A cache that cannot be used does not matter."""
    key = {**_machine(), "width": width, "threads": threads}
    cached = None
    with suppress(OSError, RuntimeError, ValueError, TypeError, KeyError):
        file = cache_file(key)
        if file.is_file():  # a FIFO would block
            with file.open("rb") as opened:
                content = json.loads(opened.read(MAX_CACHE_BYTES))
            cached = MatmulRates(**content["flops_per_second"])
            if not content.get("busy") or time.time() - file.stat().st_mtime < BUSY_SECONDS:
                return cached
    busy = _is_busy()
    rates = measure_rates(width)
    if busy and cached is not None:
        rates = rates.or_better(cached)  # other work only slows down; two runs of a sweep choose alike
    with suppress(OSError, RuntimeError):
        file = cache_file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file() or not file.exists():  # a file that is written in part is a damaged one
            content = {**key, "busy": busy, "flops_per_second": asdict(rates)}
            file.write_text(json.dumps(content, indent=2) + "\n")
    return rates


def _is_busy() -> bool:
    """Whether the processors have had other work in the last minute."""
    with suppress(OSError, AttributeError):  # Windows cannot tell
        return os.getloadavg()[0] > BUSY_LOAD * (os.cpu_count() or 1)
    return False


def cache_file(key: Mapping[str, Any]) -> Path:
    """The file of one machine, number of threads and width, in the XDG cache directory.

    Raises:
        RuntimeError: the user has no home directory.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():  # the XDG specification ignores it, too
        root = Path.home() / ".cache"
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return root / "birthplace_lm" / f"matmul-rates-{digest[:16]}.json"


def _machine() -> dict[str, str]:
    """What the rates depend on besides the sizes and the number of threads."""
    import torch

    cpu = {"machine": platform.machine(), "torch": torch.__version__}
    cpu["instructions"] = torch.backends.cpu.get_cpu_capability()
    with suppress(OSError):  # Linux alone has this file
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "flags", "CPU part", "Features"):
                cpu.setdefault(name.strip(), value.strip())
    return cpu


def measure_rates(width: int) -> MatmulRates:
    """Measure forward and backward passes of an MLP of `width` channels; takes a fraction of a second."""
    probe = _measure(width, PROBE_CHARACTERS)
    if probe.bfloat16 < HOPELESS * probe.float32:
        return probe
    return _measure(width, CHARACTERS * 256 // max(width, 256))


def _measure(width: int, characters: int) -> MatmulRates:
    """Rates of all ways, which take turns, from the best pass: other work only slows one down."""
    import torch
    from torch import nn

    from birthplace_lm.models.float32_products import float32_products, onednn_is_exact

    generator = torch.Generator().manual_seed(0)  # the run's random numbers stay as they are
    x = torch.rand(characters, width, generator=generator, requires_grad=True)
    with torch.device("meta"):
        mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.Linear(4 * width, width))
    mlp.to_empty(device="cpu")
    for weight in mlp.parameters():
        nn.init.uniform_(weight, -0.1, 0.1, generator=generator)

    def seconds(way: str) -> float:
        with float32_products(way):
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=way == BFLOAT16):
                y = mlp(x)
            torch.autograd.grad(y, [x, *mlp.parameters()], torch.ones_like(y))
            return time.perf_counter() - began

    best = dict.fromkeys((MKL, BFLOAT16, *([ONEDNN] if onednn_is_exact() else [])), math.inf)
    for way in best:  # the first pass prepares kernels
        seconds(way)
    began, rounds = time.perf_counter(), 0
    while rounds < MIN_ROUNDS or time.perf_counter() - began < SECONDS:
        for way in best:
            best[way] = min(best[way], seconds(way))
        rounds += 1
    flops = 3 * 2 * characters * 2 * 4 * width**2  # forward and two gradients, of two layers
    onednn = flops / best[ONEDNN] if ONEDNN in best else 1.0
    return MatmulRates(flops / best[MKL], flops / best[BFLOAT16], onednn)
