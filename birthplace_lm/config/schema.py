"""The schema of the configuration: every key with its meaning, type, default and range.

docs/configuration.md is generated from it (`birthplace_lm/config/reference.py`).
"""

import os
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

# Lightning's short names of precisions, with the names that the configuration keeps.
PRECISION_ALIASES = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed", "64": "64-true"}
PRECISIONS = (*PRECISION_ALIASES.values(), "bf16-true", "16-true", *PRECISION_ALIASES, "auto")
# Flags of the trainer that are a number of batches (int) or a fraction of all batches (float, at most 1.0).
BATCH_LIMITS = ("limit_train_batches", "limit_val_batches", "overfit_batches", "val_check_interval")


def described(meaning: str, default: Any = MISSING, values: str = "") -> Any:
    """A field of any value of its type; `values` says in words what is valid, for the documentation."""
    return field(default=default, metadata={"meaning": meaning, "values": values})


def bounded(low: float, high: float, meaning: str, default: Any = MISSING) -> Any:
    """A field whose value, unless it is None, lies in [low, high]."""
    return field(default=default, metadata={"meaning": meaning, "low": low, "high": high})


def one_of(words: tuple[str | bool | None, ...], meaning: str) -> Any:
    """A field whose value is one of these words, the first by default."""
    return field(default=words[0], metadata={"meaning": meaning, "words": words})


def factory(meaning: str, default: Any = MISSING) -> Any:
    """A field that is a mapping whose `_target_` names the class or function that makes the object."""
    return field(default=default, metadata={"meaning": meaning, "factory": True})


def collection(kind: type, meaning: str, values: str) -> Any:
    """A field that is a list or a mapping, empty by default."""
    return field(default_factory=kind, metadata={"meaning": meaning, "values": values})


@dataclass
class Model:
    """Sizes of the GPT; the attention's yaml adds its factory."""

    n_layer: int = bounded(1, 1000, "number of transformer blocks", 4)
    n_head: int = bounded(1, 1000, "number of attention heads; divides n_embd", 8)
    n_embd: int = bounded(1, 100_000, "width of embeddings and blocks", 256)
    block_size: int = bounded(8, 1_000_000, "length of the longest sequence, in characters", 128)
    dropout: float = bounded(0.0, 0.99, "probability of dropout, everywhere in the network", 0.0)
    learned_positions: bool = described("add a learned embedding of each position", True)
    canon: bool = described("short causal convolutions before attention and MLP (Canon layers)", False)
    mask_pads: bool = described("hide the PADs of shifted rows from attention and convolutions", False)
    attention: Any = factory("the attention of every block")
    block: Any = factory("blocks of a variant that is more than an attention; null: the usual ones", None)


@dataclass
class Data:
    """The files, relative to `root`."""

    root: str | None = described("folder of the files; null: the embedded corpus", values="path or null")
    corpus: str = described("text with one document a line", values="path below data.root")
    train: str = described("questions of the train split, TSV", values="path below data.root")
    dev: str = described("questions of the dev split, TSV", values="path below data.root")
    test: str | None = described(
        "questions of the test split; answers may be missing", None, "path below data.root, or null"
    )
    holdout_size: int = bounded(0, 1_000_000, "train questions held out to choose between recipes", 0)
    exclude: str | None = one_of(
        (None, "dev", "test", "train"), "leave out the lines of the people that a split asks about"
    )
    replace: str | None = described(
        "TSV of NAME and PLACE: the new birthplaces of some people, in their lines and their answers",
        None,
        "path, absolute or below data.root, or null",
    )
    question: str = described(
        "wording of all questions; {name} stands for the name of a person",
        "Where was {name} born?",
        "text with one {name}",
    )


@dataclass
class Stage:
    """One call of fit: pretraining or finetuning."""

    enabled: bool = described("run this stage", True)
    max_epochs: int = bounded(1, 1_000_000, "epochs to train")
    check_val_every_n_epoch: int = bounded(
        1,
        1_000_000,
        "at most so many epochs between two validations: the largest number up to it that divides max_epochs",
        1,
    )
    batch_size: int = bounded(1, 1_000_000, "sequences in a batch; several processes share them")
    learning_rate: float = bounded(1e-12, 1.0, "peak learning rate")
    ema_decay: float = bounded(0.0, 0.999999, "decay of the moving average of weights (EMA); 0: none", 0.0)
    shuffle: bool = described(
        "draw a new order of the rows in every epoch; false: file order, then the mixed-in questions", True
    )
    length_bucket: int = bounded(
        1,
        1_000_000,
        "batches whose rows are sorted by length together, which saves padding; 1: none; needs shuffle=true",
        8,
    )
    num_workers: int = bounded(0, 64, "processes that prepare batches; 0: the training process does", 0)
    dataset: Any = factory("the data module, which turns the corpus into sequences")
    schedule: Any = factory("the learning rate schedule")
    optimizer: Any = factory("the optimizer of this stage; null: that of both stages", None)


@dataclass
class Stages:
    """The stages in their order."""

    pretrain: Stage = field(default_factory=Stage)
    finetune: Stage = field(default_factory=Stage)


@dataclass
class Trainer:
    """The flags of Lightning's Trainer that make sense here; None leaves Lightning's default."""

    _target_: str = "lightning.Trainer"
    accelerator: str = one_of(("auto", "cpu", "gpu", "cuda", "mps"), "kind of device")
    devices: Any = described(
        "number of devices of each host, one process for each", 1, "number, list of indices or text"
    )
    num_nodes: int | None = bounded(
        1, 10_000, "number of hosts; null: those on which torchrun or srun has started the program", None
    )
    strategy: str = one_of(
        ("auto", "ddp", "ddp_find_unused_parameters_true", "fsdp2"), "how processes share the work"
    )
    precision: str = one_of(PRECISIONS, "numeric precision; by default that of the key precision")
    max_epochs: int | None = bounded(1, 1_000_000, "epochs of every stage; null: the stage's own", None)
    max_steps: int = bounded(
        -1, 1_000_000_000, "optimizer steps of every stage, at least 1; -1: no limit", -1
    )
    max_time: str | None = described("longest time of a stage", None, "DD:HH:MM:SS or null")
    accumulate_grad_batches: int = bounded(1, 1_000_000, "batches to an optimizer step", 1)
    gradient_clip_val: float | None = bounded(0.0, 1e9, "where gradients are clipped; null: nowhere", 1.0)
    gradient_clip_algorithm: str = one_of(("norm", "value"), "what is clipped: the total norm or each value")
    check_val_every_n_epoch: int | None = bounded(
        1,
        1_000_000,
        "at most so many epochs between two validations, of every stage; null: the stage's own",
        None,
    )
    val_check_interval: Any = bounded(
        0.0, 1e9, "batches between two validations (int) or a fraction of the epoch (float), above 0", None
    )
    num_sanity_val_steps: int = bounded(-1, 1_000_000, "validation batches before training; -1: all", 0)
    limit_train_batches: Any = bounded(
        0.0, 1e9, "batches (int) or fraction (float) of a train epoch, above 0", None
    )
    limit_val_batches: Any = bounded(0.0, 1e9, "batches (int) or fraction (float) of a validation", None)
    overfit_batches: Any = bounded(0.0, 1e9, "train and validate on so few batches; 0: on all", 0.0)
    fast_dev_run: Any = described("run so many batches as a trial; true: one", False, "true, false or number")
    log_every_n_steps: int = bounded(1, 1_000_000, "optimizer steps between two points of a curve", 10)
    enable_progress_bar: bool = described("show progress", True)
    enable_model_summary: bool = described("print a table of the modules", False)
    deterministic: Any = one_of((None, True, False, "warn"), "use deterministic kernels")
    benchmark: bool | None = described("let cuDNN choose kernels by timing them", None)
    inference_mode: bool = described("validate in torch.inference_mode; never with fsdp2", True)
    detect_anomaly: bool = described("let autograd report the operation that made NaN; slow", False)
    profiler: str | None = one_of((None, "simple", "advanced", "pytorch"), "profiler of every stage")


@dataclass
class Labels:
    """The chosen options of the groups that tables compare."""

    attention: str = described("name of the attention in tables and run directories", values="name")
    pretrain: str = described("name of the pretraining", values="name")
    data: str = described("name of the data", values="name")


@dataclass
class Checkpoint:
    """How often to save within a stage, and how many to keep."""

    every_n_steps: int = bounded(1, 1_000_000_000, "optimizer steps between two checkpoints", 100)
    keep_last: int = bounded(2, 1000, "checkpoints of a stage that are kept", 2)


@dataclass
class Config:
    """Everything a run depends on."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    stages: Stages = field(default_factory=Stages)
    optimizer: Any = factory("the optimizer")
    precision: str = one_of(
        PRECISIONS,
        "precision of all stages; auto: bf16-mixed if this machine multiplies matrices faster in bfloat16,"
        " which is measured once, otherwise 32-true",
    )
    trainer: Trainer = field(default_factory=Trainer)
    callbacks: dict[str, Any] = collection(
        dict, "further callbacks of every stage, by name", "mappings with `_target_`"
    )
    logger: dict[str, Any] = collection(
        dict, "where the curves of every stage go, by name", "mappings with `_target_`"
    )
    plugins: list[str] = collection(
        list,
        "packages whose classes and functions a `_target_` may name; a saved configuration never names them",
        "list of package names",
    )
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    labels: Labels = field(default_factory=Labels)
    seed: int = bounded(0, 2**31 - 1, "seed of weights, order, masks and dropout", 0)
    float32_products: str = one_of(
        ("auto", "mkl", "onednn"),
        "library that multiplies float32 matrices on a CPU; auto: oneDNN where it is faster and exact, which"
        " is measured once; a run that continues keeps its own",
    )
    runs_root: str = described("folder of the run directories", "runs", "path")
    run_dir: str | None = described(
        "folder of this run; null: named after the labels, the seed and a hash of what changes the result",
        None,
        "path or null",
    )
    resume: str = described(
        "auto: continue where the run stopped; never: start an unfinished stage again; or continue from a"
        " checkpoint",
        "auto",
        "auto, never or path",
    )
    overwrite: bool = described(
        "delete the content of the run directory first; a shared pretraining stays", False
    )
    dry_run: bool = described("check everything, print what would run, train nothing", False)
    traceback: bool = described("print the traceback of an error, which otherwise is in log.txt only", False)
    on_nonfinite: str = one_of(
        ("stop", "skip"), "what to do about a step whose gradient holds NaN or infinity"
    )
    max_nonfinite_steps: int = bounded(1, 1_000_000, "steps of a stage that may be skipped", 10)
    stop_timeout_seconds: float = bounded(
        0.1,
        86_400.0,
        "seconds from a signal until processes that hang are killed: those that this program has started; "
        "those of torchrun or srun only after their launcher has ended",
        60.0,
    )
    init_from: str | None = described(
        "checkpoint whose weights to start from; needs pretrain=none", None, "path or null"
    )
    extend_from: str | None = described(
        "finished run, or one of its stages, whose last stage to train longer, with more max_epochs",
        None,
        "path or null",
    )
    inputs: dict[str, str] = field(default_factory=dict)  # SHA-256 of the files; filled in by the program


ConfigStore.instance().store(name="schema", node=Config)
OmegaConf.register_new_resolver("expanduser", os.path.expanduser, replace=True)  # for hydra.sweep.dir
