"""From a validated configuration to its corpus and its run directory; nothing is written."""

from omegaconf import DictConfig

from birthplace_lm.data.corpora.corpus import Corpus, read_corpus
from birthplace_lm.runs.auto_precision import resolve_auto_precision
from birthplace_lm.runs.directory import RunDirectory, check_run_dir
from birthplace_lm.runs.identity import named_checkpoint, run_directory, with_inputs


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
    return RunDirectory(path, config), corpus, notes
