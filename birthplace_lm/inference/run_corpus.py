"""The corpus that a run was trained on."""

from pathlib import Path

from omegaconf import DictConfig

from birthplace_lm.data.corpora.corpus import Corpus, read_corpus
from birthplace_lm.errors import CheckpointError


def corpus_of_run(run: Path, config: DictConfig) -> Corpus:
    """Read the corpus of a run again.

    Args:
        run: its directory, for messages.
        config: its configuration.

    Raises:
        CheckpointError: a file has changed since the run began.
        InputError: a file cannot be read.
    """
    corpus = read_corpus(config.data, config.model.block_size)
    if any(corpus.sha256.get(key) != value for key, value in config.inputs.items() if key in corpus.sha256):
        raise CheckpointError(
            f"{run}: the files of its corpus have changed; restore them, or name another run"
        )
    return corpus
