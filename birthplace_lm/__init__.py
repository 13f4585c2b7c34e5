"""Ask a character-level GPT where people were born, and see how it stores the answer."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from birthplace_lm.inference.language_model import TrainedModel


def load(path: "str | Path") -> "TrainedModel":
    """The trained model of a run directory: `lm.model(ids)`, `lm.vocab`, `lm.answer(["NAME", ...])`.

    Raises:
        BirthplaceError: there is no whole checkpoint in it.
    """
    from birthplace_lm.inference.language_model import (
        TrainedModel,  # torch takes its time: import it when it is needed
    )

    return TrainedModel.from_run(path)
