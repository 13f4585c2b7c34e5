"""Export a trained model to a folder; loading it executes nothing."""

import json
from pathlib import Path

import safetensors.torch
from omegaconf import DictConfig, OmegaConf

from birthplace_lm.config.compose import EXPORTED_CONFIG, to_exported
from birthplace_lm.errors import CheckpointError, InputError
from birthplace_lm.inference.language_model import VOCABULARY, WEIGHTS, TrainedModel
from birthplace_lm.runs.atomic_files import atomic_replace, atomic_write_text

MACHINE_SPECIFIC = {
    "data.root": None,
    "runs_root": "runs",
    "run_dir": None,
    "resume": "auto",
    "init_from": None,
    "extend_from": None,
}


def export_model(trained: TrainedModel, config: DictConfig, out: Path, card: str) -> None:
    """Write `model.safetensors`, `config.json`, `vocab.json` and a model card, for `birthplace_lm.load`.

    Loggers and the paths of this machine are removed from the configuration.

    Args:
        config: how the model was trained.
        out: a new or empty folder.
        card: Markdown for README.md.

    Raises:
        InputError: `out` is not empty.
        CheckpointError: `out` cannot be written.
    """
    portable = config.copy()
    OmegaConf.set_readonly(portable, False)
    for key, value in MACHINE_SPECIFIC.items():
        OmegaConf.update(portable, key, value)
    portable.logger = {}  # they name servers, accounts and files
    if portable.data.replace is not None:
        portable.data.replace = Path(portable.data.replace).name
    weights = {name: weight.contiguous().clone() for name, weight in trained.model.state_dict().items()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise InputError(f"{out}: is not empty; choose a new folder")
        with atomic_replace(out / WEIGHTS, safetensors.torch.save(weights, {"format": "pt"})):
            atomic_write_text(out / EXPORTED_CONFIG, to_exported(portable))
            atomic_write_text(out / "README.md", card)
            atomic_write_text(
                out / VOCABULARY, json.dumps(trained.vocab.to_dict(), ensure_ascii=False) + "\n"
            )
    except OSError as error:
        raise CheckpointError(f"{error.filename or out}: {error.strerror}") from error
