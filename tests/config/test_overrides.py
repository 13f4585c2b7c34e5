"""Paths are taken as the shell gives them."""

import os
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from birthplace_lm.config.compose import compose
from birthplace_lm.config.groups import TEXT_KEYS
from birthplace_lm.config.overrides import checked_overrides
from birthplace_lm.errors import InputError


@pytest.mark.parametrize("key", TEXT_KEYS)
@pytest.mark.parametrize(
    "path",
    [
        "/x/日本",
        "/x (1)",
        "a=b.ckpt",
        "a,b",
        "it's",
        'say "a"',
        "/a&b;c!",
        "007",
        "1e3",
        "true",
        "[a]",
        "{a:1}",
        "Where was {name} born?",
        "{name}",
    ],
)
def test_a_path_or_question_needs_no_quotes_of_hydra(key: str, path: str) -> None:
    """The bug: `cannot be read; expected KEY=VALUE`."""
    override = OverridesParser.create().parse_override(checked_overrides([f"{key}={path}"])[0])
    assert (override.key_or_group, override.value()) == (key, path)


@given(st.text(st.characters(exclude_characters="\\'\"\0", exclude_categories=["Cs"]), min_size=1))
def test_every_path_arrives_unless_it_is_written_in_the_grammar_of_hydra(path: str) -> None:
    value = OverridesParser.create().parse_override(checked_overrides([f"run_dir={path}"])[0]).value()
    assert value in (None if path.lower() == "null" else path, os.path.expanduser(path))


@pytest.mark.parametrize(
    "typed",
    ["null", "'a b'", '"/a b,c"', "${runs_root}/one", "a\\,b", "a b", "", "/plain/path-1.0_x", "'\\${seed}'"],
)
def test_what_hydra_reads_as_text_stays(typed: str) -> None:
    assert checked_overrides([f"run_dir={typed}"]) == [f"run_dir={typed}"]


def test_other_arguments_stay() -> None:
    typed = ["seed=(1)", "--config-dir=/a (1)", "--config-dir", "/a (1)", "labels.data=日本", "~run_dir"]
    assert checked_overrides(typed) == typed


def test_a_sweep_over_paths_stays_a_sweep() -> None:
    assert checked_overrides(["-m", "data.root=/a,/b"]) == ["-m", "data.root=/a,/b"]
    assert checked_overrides(["hydra.mode=MULTIRUN", "data.root=/a,/b"])[1] == "data.root=/a,/b"
    with pytest.raises(InputError) as error:
        checked_overrides(["-m", "data.root=/a (1),/b"])
    assert str(error.value).endswith("""quote each: 'data.root="/a (1)","/b"'""")


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compose(["data.root=~/x"]).data.root == f"{tmp_path}/x"
    for key in ("data.root", "data.replace"):
        with pytest.raises(InputError, match="cannot expand ~nobody_has_it: unknown user"):
            compose([f"{key}=~nobody_has_it/x"])


def test_other_text_is_answered_with_the_quotes_that_it_needs() -> None:
    with pytest.raises(InputError) as error:
        compose(["labels.data=日本"])
    assert str(error.value).endswith("""needs quotes: 'labels.data="日本"'""")
