"""Ask a character-level GPT where people were born, and see how it stores the answer."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from birthplace_lm.inference.language_model import TrainedModel


def load(path: "str | Path") -> "TrainedModel":
    """Load the model of a run directory or of an export: `lm.model(ids)`, `lm.vocab`, `lm.answer([NAME])`.

    To move a model to another machine, copy the folder that `birthplace-lm export RUN OUT` writes. A run
    directory also works, but a run that only pretrains needs the folder `pretrained/` beside it.

    Raises:
        BirthplaceError: the folder holds no intact checkpoint.
    """
    from birthplace_lm.inference.language_model import TrainedModel  # imports torch, which takes seconds

    return TrainedModel.from_run(path)
