"""Sweepers that search: they choose the next job by the results of the last ones."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from birthplace_lm.config.overrides import as_typed
from birthplace_lm.errors import InputError

# How Optuna, Nevergrad and Ax are told to maximise exact match; by default they minimise.
MAXIMISING = {
    "direction": "maximize",
    "optim.maximize": True,
    "ax_config.experiment.minimize": False,
    "ax_config.early_stop.minimize": False,
}


def searches(settings: Any) -> bool:
    """Whether Hydra's settings name a sweeper that searches; it may choose a job twice."""
    return not settings.sweeper._target_.endswith(".BasicSweeper")


def check_maximises(sweeper: DictConfig) -> None:
    """Check that a sweeper that searches looks for the largest exact match.

    Raises:
        InputError: it minimises.
    """
    for key, value in MAXIMISING.items():
        chosen = OmegaConf.select(sweeper, key)
        chosen = getattr(chosen, "name", chosen)  # Optuna's default is an Enum
        if chosen not in (None, value):
            raise InputError(
                f"hydra.sweeper.{key}={as_typed(chosen)}: looks for the smallest exact match;"
                f" give hydra.sweeper.{key}={as_typed(value)}"
            )
