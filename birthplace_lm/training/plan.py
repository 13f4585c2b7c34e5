"""What a run will do: one frozen plan per stage, with every decision taken and checked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from birthplace_lm.data.batch_datamodule import LoaderConfig

PATHS = ("directory", "init_checkpoint", "resume_checkpoint", "extended_checkpoint")


@dataclass(frozen=True)
class StagePlan:
    """One stage of a run; `preflight` makes it.

    Attributes:
        name: of the stage, the prefix of its curves.
        directory: where its checkpoints and curves go.
        shared: whether other runs use this directory too, so that it has a lock of its own.
        data, model, dataset, optimizer, schedule: plain parts of the configuration, factories included.
        data_sha256: of the data files that preflight has checked.
        callbacks, logger: the factories of `callbacks.NAME` and `logger.NAME`.
        trainer: the flags of Lightning's Trainer with the stage's own epochs; `max_steps` is apart.
        loading: how rows become batches.
        seed: of the run.
        learning_rate: the peak rate.
        ema_decay: of the average of the weights; 0 for none.
        max_steps: optimizer steps to end after; -1 for the end of the epochs.
        total_steps: optimizer steps of the whole stage.
        processes: to train in; 1 is this process.
        float32_products: the library that multiplies float32 matrices on a CPU, mkl or onednn.
        stop_timeout_seconds: time for processes to stop after a signal, before they are killed.
        max_nonfinite_steps: steps that may be skipped because their gradient is not finite.
        save_every_n_steps, keep_last: of checkpoints.
        config: the run's whole configuration as YAML, for the checkpoints.
        config_sha256: hash of everything that the weights of this stage depend on.
        start_over: do not look for checkpoints in the directory.
        init_checkpoint: its weights are the first ones.
        resume_checkpoint: continue from this one (resume=PATH), whatever the directory holds.
        extended_checkpoint: continue from this one unless the directory holds a later one (extend_from).
        plugins: the packages of the user.
        warnings: for the log.
    """

    name: str
    directory: Path
    shared: bool
    data: Mapping[str, Any]
    data_sha256: Mapping[str, str]
    model: Mapping[str, Any]
    dataset: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    callbacks: Mapping[str, Mapping[str, Any]]
    logger: Mapping[str, Mapping[str, Any]]
    trainer: Mapping[str, Any]
    loading: LoaderConfig
    seed: int
    learning_rate: float
    ema_decay: float
    max_steps: int
    total_steps: int
    processes: int
    float32_products: str
    stop_timeout_seconds: float
    max_nonfinite_steps: int
    save_every_n_steps: int
    keep_last: int
    config: str
    config_sha256: str
    start_over: bool
    init_checkpoint: Path | None = None
    resume_checkpoint: Path | None = None
    extended_checkpoint: Path | None = None
    plugins: Sequence[str] = ()
    warnings: Sequence[str] = ()

    def describe_step(self) -> str:
        """The rows of an optimizer step, and how many of them a process has."""
        rows, batches = self.loading.batch_size, self.trainer["accumulate_grad_batches"]
        least, rest = divmod(rows, self.processes)
        share = f"{least} or {least + 1}" if rest else str(least)
        parts = [f"{batches} batches of {rows}"] * (batches > 1)
        parts += [f"{share} in each of {self.processes} processes"] * (self.processes > 1)
        return f"{rows * batches} rows a step" + (f" ({', '.join(parts)})" if parts else "")

    def to_json(self) -> str:
        """The plan for a worker process."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "StagePlan":
        """The plan that `to_json` wrote."""
        fields = json.loads(text)
        for key in PATHS:
            fields[key] = None if fields[key] is None else Path(fields[key])
        return cls(**{**fields, "loading": LoaderConfig(**fields["loading"])})
