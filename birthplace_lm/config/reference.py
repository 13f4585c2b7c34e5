"""Generate docs/configuration.md: `python -m birthplace_lm.config.reference > docs/configuration.md`."""

import re
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from birthplace_lm.config.compose import compose
from birthplace_lm.config.groups import conf_dir, options
from birthplace_lm.config.overrides import as_typed
from birthplace_lm.config.schema import Config, Stage

Row = tuple[str, str, str, str]
INTRODUCTION = """# Configuration

Generated from the schema and from `conf/` by `python -m birthplace_lm.config.reference`; do not edit.

Give keys as `KEY=VALUE` and options as `GROUP=OPTION`; with `-m` a comma between values makes a sweep.
Presets (`experiment`, `debug`) win over the defaults, the command line over both. For groups of your own give
`--config-dir DIR`; a preset in it begins with the line `# @package _global_`. Paths need only the quotes of
the shell. STAGE stands for `pretrain` or `finetune`.

## Groups

The options of a group are the files of a folder of `conf/`. The default, where there is one, comes first.
"""


def reference() -> str:
    """The page, from the schema, the default run and the comments in the yaml files."""
    defaults = compose()
    lines = [INTRODUCTION, *_table(["group", "options"], _groups()), "## Keys", ""]
    sections: dict[str, list[Row]] = {}
    for key, f in keys(Config):
        section = key.rpartition(".")[0]
        sections.setdefault(section, []).append(
            (f"`{key}`", f.metadata["meaning"], _default(defaults, key), _range(f))
        )
    for section, rows in sections.items():
        title = f"`{section}`" if section else "The run"
        lines += [f"### {title}", "", *_table(["key", "meaning", "default", "range"], rows)]
    lines += [
        "## Keys of an option",
        "",
        "These exist only with the option that is named above the table.",
        "",
    ]
    for file in sorted(conf_dir().glob("*/*.yaml")):
        if rows_of_file := option_keys(file):
            lines += [
                f"### `{file.parent.name}={file.stem}`",
                "",
                *_table(["key", "meaning", "default"], rows_of_file),
            ]
    return "\n".join(lines).rstrip() + "\n"


def keys(schema: Any, prefix: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """Every key of the schema that a user may set; those of the stages once, as `stages.STAGE.KEY`."""
    for f in fields(schema):
        if f.type is Stage:
            if f.name == "pretrain":
                yield from keys(Stage, f"{prefix}STAGE.")
        elif is_dataclass(f.type):
            yield from keys(f.type, f"{prefix}{f.name}.")
        elif "meaning" in f.metadata:
            yield prefix + f.name, f


def option_keys(file: Path) -> list[tuple[str, str, str]]:
    """The keys that a yaml file gives to the class or function in its `_target_`: name, comment, value."""
    text = file.read_text(encoding="utf-8")
    package = re.match(r"# @package (\S+)", text)
    comments = dict(re.findall(r"^ *(\w+): [^#\n]+ # (.+)$", text, re.MULTILINE))

    def arguments(node: dict[str, Any], key: str) -> Iterator[tuple[str, str, str]]:
        for name, value in node.items():
            if isinstance(value, dict):
                yield from arguments(value, f"{key}.{name}")
            elif "_target_" in node and not name.startswith("_") and key != "trainer":
                stage_key = re.sub(r"^stages\.\w+\.schedule", "stages.STAGE.schedule", f"{key}.{name}")
                yield f"`{stage_key}`", comments.get(name, ""), f"`{as_typed(value)}`"

    content: Any = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    return [*dict.fromkeys(arguments(content, package[1] if package else file.parent.name))]


def _groups() -> Iterator[tuple[str, str]]:
    train: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "train.yaml"), resolve=False)
    chosen = {k: v for entry in train["defaults"] if isinstance(entry, dict) for k, v in entry.items()}
    for group in [*options(), "experiment/ablation"]:
        folder = conf_dir() / group
        files = [*folder.glob("*.yaml"), *(folder.glob("depth/*.yaml") if group == "model" else [])]
        names = sorted(file.relative_to(folder).with_suffix("").as_posix() for file in files)
        names.sort(key=lambda name: (name != chosen.get(group), "/" in name))
        yield f"`{group}`", ", ".join(f"`{name}`" for name in names)


def _default(defaults: DictConfig, key: str) -> str:
    values = [OmegaConf.select(defaults, key.replace("STAGE", stage)) for stage in ("pretrain", "finetune")]
    if isinstance(values[0], DictConfig):
        return "see the option"
    texts = list(dict.fromkeys(f"`{as_typed(value)}`" for value in values))
    return " in pretraining, ".join(texts) + (" in finetuning" if len(texts) > 1 else "")


def _range(f: Field[Any]) -> str:
    if "low" in f.metadata:
        null = ", or null" if f.default is None or "None" in str(f.type) else ""
        return f"{_number(f.metadata['low'])} to {_number(f.metadata['high'])}{null}"
    if "words" in f.metadata:
        return ", ".join(f"`{as_typed(word)}`" for word in f.metadata["words"])
    if "factory" in f.metadata:
        return "a mapping with `_target_`"
    return f.metadata["values"] or ("true, false or null" if "None" in str(f.type) else "true or false")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _table(head: list[str], rows: Any) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines] + [""]


if __name__ == "__main__":
    print(reference(), end="")
