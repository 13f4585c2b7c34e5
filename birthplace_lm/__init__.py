"""Ask a character-level GPT where people were born, and see how it stores the answer.

    config = birthplace_lm.compose(["attention=synthesizer"])
    run = birthplace_lm.train(config)
    run.metrics.dev.exact_match, run.model.answer(["NAME"])

Each function imports what it needs when it is called, so `import birthplace_lm` takes milliseconds.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from omegaconf import DictConfig
    from pandas import DataFrame

    from birthplace_lm.inference.language_model import TrainedModel
    from birthplace_lm.training.api import FinishedRun


def compose(overrides: Sequence[str] = ()) -> "DictConfig":
    """The configuration that `python train.py OVERRIDES` would run: checked, resolved and read-only.

    Raises:
        BirthplaceError: the overrides do not make a valid configuration.
    """
    from birthplace_lm.config.compose import compose

    if isinstance(overrides, str):
        raise TypeError("overrides is a string; pass a list of strings")
    return compose(overrides)


def train(config: "DictConfig") -> "FinishedRun":
    """Train a configuration from `compose`, or resume its run; the result has `metrics`, `model` and `path`.

    In the main thread, Ctrl-C ends the run: the current step is finished and saved, then KeyboardInterrupt is
    raised.

    Raises:
        BirthplaceError: what is wrong, in one line.
        TypeError: `config` is not a DictConfig.
    """
    from birthplace_lm.training.api import train

    return train(config)


def load(
    path: "str | Path",
    plugins: "Collection[str]" = (),
    checkpoint: str = "last",
    stage: str | None = None,
    device: str = "cpu",
) -> "TrainedModel":
    """Load the model of a run directory or of an export: `lm.model(ids)`, `lm.vocab`, `lm.answer([NAME])`.

    To move a model to another machine, copy the folder that `birthplace-lm export RUN OUT` writes. A run
    directory also works, but a run that only pretrains needs the folder `pretrained/` beside it.

    Args:
        path: of the directory.
        plugins: packages of yours whose classes the run names, such as its attention. They are imported.
        checkpoint: "last", or "best" for the best validation of a run with callbacks=best_checkpoint.
        stage: "pretrain" or "finetune"; None: the last stage of the run.
        device: of torch, such as "cuda".

    Raises:
        BirthplaceError: the folder holds no intact checkpoint, or no such stage.
        RuntimeError: torch has no such device.
    """
    from birthplace_lm.inference.language_model import TrainedModel

    trained = TrainedModel.from_run(path, plugins, checkpoint, stage)
    trained.model.to(device)
    return trained


def report(folder: "str | Path") -> "DataFrame":
    """The runs of a folder as a pandas data frame, one row per run, finished or not.

    Raises:
        BirthplaceError: the folder has no run, or pandas is not installed.
    """
    from birthplace_lm.analysis.report.frame import report

    return report(folder)
