"""docs/configuration.md has every key, with its meaning, and is up to date."""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from birthplace_lm.config.compose import compose
from birthplace_lm.config.groups import conf_dir, options
from birthplace_lm.config.reference import reference

PAGE = conf_dir().parent / "docs/configuration.md"
ROWS = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
GROUPS = [
    "callbacks",
    "logger",
    "optimizer",
    "schedule",
    "spans",
    "pretrain",
    "finetune",
    "model",
    "data",
    "trainer",
]


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, dict) and prefix + name != "inputs":
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == reference(), (
        "run python -m birthplace_lm.config.reference > docs/configuration.md"
    )


def test_every_folder_of_recipes_is_on_the_page() -> None:
    """Also those within a group, except what another option chooses: as groups or as options that compose."""
    files = {file.relative_to(conf_dir()).with_suffix("") for file in conf_dir().glob("*/*/*.yaml")}
    rows = {row[0].strip("`"): row[1] for row in ROWS if len(row) == 2}
    for file in files:
        group, folder, name = file.parts
        if (group, folder) in (("model", "for_data"), ("finetune", "after")):
            continue
        if f"{group}/{folder}" in rows:
            assert f"`{name}`" in rows[f"{group}/{folder}"]
        else:
            assert f"`{folder}/{name}`" in rows[group]
            compose([f"{group}={folder}/{name}"])


def test_every_key_of_every_option_is_on_the_page() -> None:
    """Against what is composed, not against the schema that the page is made of."""
    on_page = {row[0].strip("`") for row in ROWS}
    for option in ["attention=synthesizer", *(f"{g}={n}" for g in GROUPS for n in options()[g])]:
        for key in leaves(OmegaConf.to_container(compose([option, "data.root=DIR"]))):
            _, _, name = key.rpartition(".")
            in_any_stage = re.sub(r"^stages\.(pretrain|finetune)", "stages.STAGE", key)
            of_all_stages = re.sub(r"^stages\.(pretrain|finetune)\.(optimizer\.)", r"\2", key)
            spellings = {key, in_any_stage, of_all_stages} & on_page
            assert name.startswith("_") or key == "inputs" or spellings, key


def test_every_key_stands_once_with_its_meaning() -> None:
    keys = [row for row in ROWS if "." in row[0] or len(row) == 4]
    assert len(keys) > 80
    assert all(len(row) >= 3 and all(row) for row in keys)
    of_the_schema = [row[0] for row in keys if len(row) == 4]
    assert len(set(of_the_schema)) == len(of_the_schema)


def test_defaults_and_ranges_are_those_that_hold() -> None:
    page = {row[0].strip("`"): row[2:] for row in ROWS}
    assert page["stages.STAGE.max_epochs"] == ["`50` in pretraining, `2` in finetuning", "1 to 1,000,000"]
    assert page["model.n_embd"] == ["`128`", "1 to 100,000"]
    assert page["trainer.gradient_clip_val"] == ["`1.0`", "0 to 1e+09, or null"]
