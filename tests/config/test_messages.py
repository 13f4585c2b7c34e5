"""A mistake in a yaml file of the user's own is one line that names the file and the reason."""

from pathlib import Path

import pytest

from birthplace_lm.config.compose import compose
from birthplace_lm.errors import InputError

HEADER = b"# @package _global_\n"
FIRST_LINE = "must begin with the line `# @package _global_`; it is empty, lacks that line, or has a"
MISTAKES = [  # the file experiment/mine.yaml, the message
    (b"seed: 7\n", f"experiment/mine.yaml: {FIRST_LINE}"),
    (b"", f"experiment/mine.yaml: {FIRST_LINE}"),
    (b"\xef\xbb\xbf" + HEADER + b"seed: 7\n", f"experiment/mine.yaml: {FIRST_LINE}"),
    (HEADER + b"modle: {n_layer: 3}\n", "experiment/mine.yaml: modle: unknown key; did you mean model?"),
    (
        HEADER + b"model: {n_lyer: 3}\n",
        "experiment/mine.yaml: model.n_lyer: unknown key; did you mean",
    ),
    (HEADER + b"model: {n_layer: many}\n", "experiment/mine.yaml: model.n_layer: must be a whole number"),
    (HEADER + b"model: 3\n", "experiment/mine.yaml: Merge error: int is not a subclass of Model"),
    (HEADER + b"- 3\n", "experiment/mine.yaml: must be a mapping of keys to values"),
    (HEADER + b"model:\n\tn_layer: 3\n", "{folder}/experiment/mine.yaml:3: not YAML: found character '\\t'"),
    (HEADER + b"seed: 7\nseed: 8\n", "{folder}/experiment/mine.yaml:3: not YAML: found duplicate key seed"),
    (HEADER + b"seed: \xe9\n", "a configuration file is not UTF-8 text, after 'seed: '"),
    (HEADER + b"defaults: [nothere]\n", "experiment/nothere.yaml: no such file"),
    (
        HEADER + b"defaults: [{override /attention: vanila}]\n",
        "attention=vanila: unknown; did you mean",
    ),
    (
        HEADER + b"defaults: [{/attention: vanilla}]\n",
        "attention: chosen twice; in a defaults",
    ),
    (HEADER + b"model: {n_layer: -3}\n", "model.n_layer=-3: must be from 1 to 1000"),
]


def message(folder: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as error:
        compose([f"hydra.searchpath=[file://{folder}]", *overrides])
    assert str(error.value).isprintable(), "one line"
    return str(error.value)


@pytest.mark.parametrize(("content", "begins"), MISTAKES)
def test_a_mistake_in_a_users_own_yaml(content: bytes, begins: str, tmp_path: Path) -> None:
    """The bug: "ConfigKeyError raised while composing config:" and nothing else."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_bytes(content)
    assert message(tmp_path, "experiment=mine").startswith(begins.format(folder=tmp_path))


def test_a_group_elsewhere_needs_a_plus(tmp_path: Path) -> None:
    """Bug: "unknown key; did you mean" and the very same key."""
    key = "optimizer@stages.finetune.optimizer"
    assert message(tmp_path, f"{key}=adamw") == f"{key}: is not in the defaults list; write +{key}=NAME"


def test_the_package_of_a_group_is_named(tmp_path: Path) -> None:
    (tmp_path / "attention").mkdir()
    (tmp_path / "attention/mine.yaml").write_text("attention: {_target_: a.B, _partial_: true}\n")
    begins = "attention/mine.yaml: must begin with the line `# @package model`"
    assert message(tmp_path, "attention=mine").startswith(begins)
