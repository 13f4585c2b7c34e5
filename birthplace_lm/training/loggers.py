"""Loggers of the training curves: TensorBoard, CSV, Weights & Biases, MLflow.

A factory in the configuration, `logger.NAME`, is called once per stage, in the first process only. It makes
a logger of Lightning from `folder` (of the stage), `name` (of the run and the stage) and `first_step`: the
optimizer steps of the checkpoint that the stage continues from, otherwise 0.
"""

import csv
import io
import uuid
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import lightning as L
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch.utils.tensorboard import SummaryWriter

from birthplace_lm.errors import InputError
from birthplace_lm.runs.atomic_files import atomic_write_text

CURVES_CSV = "curves.csv"  # in the folder of a stage
EXTRAS = {"wandb_logger": "wandb", "mlflow_logger": "mlflow"}  # factory -> package, which is also the extra


def check_installed(loggers: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that the packages of the chosen loggers are installed.

    Raises:
        InputError: with the command that installs the missing one.
    """
    for key, node in loggers.items():
        home, _, factory = node["_target_"].rpartition(".")
        package = EXTRAS.get(factory) if home == __name__ else None
        if package is not None and find_spec(package) is None:
            raise InputError(f"logger={key}: not installed; pip install 'birthplace-lm[{package}]'")


def uses_tensorboard(loggers: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the curves of a configuration go to TensorBoard."""
    return any(node["_target_"] == f"{__name__}.tensorboard_logger" for node in loggers.values())


def tensorboard_of(trainer: L.Trainer) -> SummaryWriter | None:
    """The writer of TensorBoard's event file; None without TensorBoard, and in processes after the first."""
    writers = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return writers[0] if writers else None


def logged_validation_step(trainer: L.Trainer) -> int:
    """The step at which Lightning logs a validation; between accumulated batches that of the next step."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def tensorboard_logger(folder: Path, name: str, first_step: int) -> TensorBoardLogger:
    """TensorBoard. A start from step 0 replaces earlier curves; before a resume see `TrainingCurves`."""
    # name="" and version="" keep the event files of a stage in one folder.
    return TensorBoardLogger(
        folder, name="", version="", default_hp_metric=False, purge_step=None if first_step else 0
    )


class CsvLogger(Logger):
    """Writes `curves.csv`: one line `step,metric,value` for every point of every curve.

    A resumed stage removes the points after its checkpoint, which it logs again.
    """

    def __init__(self, folder: Path, name: str, first_step: int) -> None:
        super().__init__()
        self.file = folder / CURVES_CSV
        self.first_step = first_step
        self._name = name
        self._stream: IO[str] | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows((step, key, value) for key, value in metrics.items())
        if self._stream is None:
            self._stream = self._open()
        self._stream.write(lines.getvalue())
        self._stream.flush()

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the run has its config.yaml."""

    def finalize(self, status: str) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _open(self) -> IO[str]:
        lines = ["step,metric,value\n"]
        if self.first_step and self.file.is_file():
            for line in self.file.read_text(encoding="utf-8").splitlines(keepends=True)[1:]:
                step, complete = line.partition(",")[0], line.endswith("\n")  # a killed run may leave a part
                if complete and step.isdigit() and int(step) < self.first_step:
                    lines.append(line)
        atomic_write_text(self.file, "".join(lines))
        return self.file.open("a", encoding="utf-8")


def wandb_logger(
    folder: Path, name: str, first_step: int, project: str, entity: str | None, offline: bool
) -> WandbLogger:
    """Weights & Biases: one run per stage; a resumed stage continues its own."""
    id_file = folder / "wandb-id"
    if first_step == 0 or not id_file.is_file():
        atomic_write_text(id_file, uuid.uuid4().hex[:16])
    return _StageWandbLogger(
        name=name,
        save_dir=folder,
        id=id_file.read_text(encoding="utf-8"),
        project=project,
        entity=entity,
        resume="allow",
        mode="offline" if offline else None,  # None: what WANDB_MODE says
    )


class _StageWandbLogger(WandbLogger):
    """Ends its run with the stage: the next one in this process would otherwise write into the same."""

    def finalize(self, status: str) -> None:
        super().finalize(status)
        self.experiment.finish(exit_code=0 if status == "success" else 1)


def mlflow_logger(
    folder: Path, name: str, first_step: int, experiment: str, tracking_uri: str
) -> MLFlowLogger:
    """MLflow: one run per stage; a resumed stage continues its own."""
    id_file = folder / "mlflow-id"
    resumed = first_step > 0 and id_file.is_file()
    logger = MLFlowLogger(
        experiment_name=experiment,
        run_name=name,
        tracking_uri=tracking_uri,
        run_id=id_file.read_text(encoding="utf-8") if resumed else None,
    )
    atomic_write_text(id_file, str(logger.run_id))
    return logger
