"""From a validated configuration to its corpus and its run directory; nothing is written."""

from pathlib import Path

from omegaconf import DictConfig

from birthplace_lm.data.corpora.corpus import Corpus, read_corpus
from birthplace_lm.errors import InputError
from birthplace_lm.runs.auto_precision import resolve_auto_precision
from birthplace_lm.runs.directory import RunDirectory, check_run_dir
from birthplace_lm.runs.identity import CHECKPOINT_KEYS, named_checkpoint, run_directory, with_inputs


def find_run(config: DictConfig) -> tuple[RunDirectory, Corpus, list[str]]:
    """The directory of a run, whose `config` has the inputs and the precision; its corpus; notes for the log.

    Args:
        config: resolved and validated.

    Raises:
        BirthplaceError: the data are not valid, a named checkpoint is missing, or `run_dir` is another run's.
    """
    if config.resume not in ("auto", "never"):
        named_checkpoint("resume", config.resume)
    corpus = read_corpus(config.data, config.model.block_size)
    config, notes = resolve_auto_precision(with_inputs(config, corpus.sha256))
    path = run_directory(config)
    check_run_dir(path, config)
    if Path(config.runs_root).expanduser().resolve().is_relative_to(path.resolve()):
        raise InputError(  # overwrite=true would remove the other runs
            f"run_dir={path}: holds the other runs, runs_root={config.runs_root}; give a folder of its own"
        )
    if config.overwrite:
        _check_kept(config, path)
    return RunDirectory(path, config), corpus, notes


def _check_kept(config: DictConfig, path: Path) -> None:
    """Check that `overwrite=true` does not remove a checkpoint that the run starts from."""
    named = {key: config[key] for key in CHECKPOINT_KEYS if config[key] is not None}
    if config.resume not in ("auto", "never"):
        named["resume"] = config.resume
    for key, value in named.items():
        if named_checkpoint(key, value).resolve().is_relative_to(path.resolve()):
            raise InputError(f"overwrite=True: would remove {key}={value}; copy it, or leave overwrite out")
