"""The schema of the configuration: what there is, of which type, and the ranges of our own numbers."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

FACTORY = {"factory": True}  # of a field that names in `_target_` what makes the object


def bounded(low: float, high: float, default: Any = MISSING) -> Any:
    """A field whose value, unless it is None, lies in [low, high]."""
    return field(default=default, metadata={"low": low, "high": high})


def one_of(default: str | None, *others: str) -> Any:
    """A field whose value is one of these words."""
    return field(default=default, metadata={"words": (default, *others)})


@dataclass
class Model:
    """Sizes of the GPT; the attention's yaml adds its factory."""

    n_layer: int = bounded(1, 1000, 4)
    n_head: int = bounded(1, 1000, 8)
    n_embd: int = bounded(1, 100_000, 256)
    block_size: int = bounded(8, 1_000_000, 128)
    dropout: float = bounded(0.0, 0.99, 0.0)
    learned_positions: bool = True
    attention: Any = field(default=MISSING, metadata=FACTORY)


@dataclass
class Data:
    """Where the files are, relative to `root`; None means the embedded corpus."""

    root: str | None = MISSING
    corpus: str = MISSING
    train: str = MISSING
    dev: str = MISSING
    test: str | None = None
    holdout_size: int = bounded(0, 1_000_000, 0)


@dataclass
class Stage:
    """One call of fit: pretraining or finetuning."""

    enabled: bool = True
    max_epochs: int = bounded(1, 1_000_000)
    check_val_every_n_epoch: int = bounded(1, 1_000_000, 1)
    batch_size: int = bounded(1, 1_000_000)
    learning_rate: float = bounded(1e-12, 1.0)
    ema_decay: float = bounded(0.0, 0.999999, 0.0)
    shuffle: bool = True
    length_bucket: int = bounded(1, 1_000_000, 8)
    num_workers: int = bounded(0, 64, 0)
    dataset: Any = field(default=MISSING, metadata=FACTORY)
    schedule: Any = field(default=MISSING, metadata=FACTORY)


@dataclass
class Stages:
    """The stages in their order."""

    pretrain: Stage = field(default_factory=Stage)
    finetune: Stage = field(default_factory=Stage)


@dataclass
class Trainer:
    """The flags of Lightning's Trainer that make sense here; None leaves Lightning's default."""

    _target_: str = "lightning.Trainer"
    accelerator: str = one_of("auto", "cpu", "gpu", "cuda", "mps")
    devices: Any = 1
    strategy: str = one_of("auto", "ddp", "ddp_find_unused_parameters_true", "fsdp2")
    precision: str = one_of(
        "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", "32", "bf16", "16", "64"
    )
    max_epochs: int | None = bounded(1, 1_000_000, None)
    max_steps: int = bounded(-1, 1_000_000_000, -1)
    max_time: str | None = None
    accumulate_grad_batches: int = bounded(1, 1_000_000, 1)
    gradient_clip_val: float | None = bounded(0.0, 1e9, 1.0)
    gradient_clip_algorithm: str = one_of("norm", "value")
    check_val_every_n_epoch: int | None = bounded(1, 1_000_000, None)
    val_check_interval: Any = bounded(0.0, 1e9, None)
    num_sanity_val_steps: int = bounded(-1, 1_000_000, 0)
    limit_train_batches: Any = bounded(0.0, 1e9, None)
    limit_val_batches: Any = bounded(0.0, 1e9, None)
    overfit_batches: Any = bounded(0.0, 1e9, 0.0)
    fast_dev_run: Any = False
    log_every_n_steps: int = bounded(1, 1_000_000, 10)
    enable_progress_bar: bool = True
    enable_model_summary: bool = False
    deterministic: Any = None
    benchmark: bool | None = None
    inference_mode: bool = True
    detect_anomaly: bool = False
    profiler: str | None = one_of(None, "simple", "advanced", "pytorch")


@dataclass
class Labels:
    """What was chosen in the groups that tables compare."""

    attention: str = MISSING
    pretrain: str = MISSING
    data: str = MISSING


@dataclass
class Checkpoint:
    """How often to save within a stage, in optimizer steps, and how many to keep."""

    every_n_steps: int = bounded(1, 1_000_000_000, 100)
    keep_last: int = bounded(2, 1000, 2)


@dataclass
class Config:
    """Everything a run depends on."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    stages: Stages = field(default_factory=Stages)
    optimizer: Any = field(default=MISSING, metadata=FACTORY)
    trainer: Trainer = field(default_factory=Trainer)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    labels: Labels = field(default_factory=Labels)
    seed: int = bounded(0, 2**31 - 1, 0)
    precision: str = "32-true"
    runs_root: str = "runs"
    run_dir: str | None = None
    resume: str = "auto"
    overwrite: bool = False
    dry_run: bool = False
    traceback: bool = False
    on_nonfinite: str = one_of("stop", "skip")
    max_nonfinite_steps: int = bounded(1, 1_000_000, 10)
    stop_timeout_seconds: float = bounded(0.1, 86_400.0, 60.0)
    init_from: str | None = None
    extend_from: str | None = None
    inputs: dict[str, str] = field(default_factory=dict)  # SHA-256 of the files; filled in by the program


ConfigStore.instance().store(name="schema", node=Config)
