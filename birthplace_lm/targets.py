"""What a configuration may name in `_target_` to be called: configs are code, so this is an allow-list."""

import ast
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from birthplace_lm.error import InputError, closest

PACKAGE = Path(__file__).parent
TARGETS = ("lightning.Trainer",)  # besides what our own files define
KINDS: dict[str, Any] = {"bool": bool, "int": int, "float": (int, float), "str": str, "None": type(None)}


def check_targets(node: Any, key: str) -> None:
    """Check every `_target_` below a node: only what we define is called, with arguments that it takes.

    Raises:
        InputError: with the key, for anything else.
    """
    if isinstance(node, DictConfig):
        for name in map(str, node):
            check_targets(node[name], f"{key}.{name}".lstrip("."))
        if "_target_" in node:
            _check_arguments(node, key)
    elif OmegaConf.is_list(node):
        for item in node:
            check_targets(item, key)


def _check_arguments(node: DictConfig, key: str) -> None:
    target = node["_target_"]
    arguments = {} if target in TARGETS else _arguments(str(target))
    if arguments is None:
        raise InputError(
            f"{key}._target_={target}: not allowed; name a class or function that a file of birthplace_lm"
            f" defines, or {', '.join(TARGETS)}"
        )
    if key != "trainer" and node.get("_partial_") is not True:
        # Called at once, with nothing but what the configuration says, it could be made to write anywhere.
        raise InputError(f"{key}._partial_={node.get('_partial_')}: must be true")
    for name in (name for name in map(str, node) if name not in ("_target_", "_partial_")):
        if name.startswith("_") or (arguments and name not in arguments):
            raise InputError(f"{key}.{name}: unknown key; {closest(name, [*arguments], f'{key}.')}")
        kind, value = arguments.get(name, ""), node[name]
        if not _is_of(value, kind):
            raise InputError(f"{key}.{name}={value}: must be of type {kind}")
        numbers = [n for n in (value if OmegaConf.is_list(value) else [value]) if isinstance(n, int | float)]
        if any(not abs(n) <= sys.float_info.max for n in numbers):  # also refuses nan
            raise InputError(f"{key}.{name}={value}: must be finite")


def _is_of(value: Any, kind: str) -> bool:
    """Whether a value is of a type as it is written; True for types that a configuration cannot check."""
    if kind.startswith("Callable["):
        return isinstance(value, DictConfig) and "_target_" in value
    if items := re.fullmatch(r"tuple\[([\w, ]+)\]", kind):
        kinds = items[1].split(", ")
        return OmegaConf.is_list(value) and len(value) == len(kinds) and all(map(_is_of, value, kinds))
    if not (alternatives := set(kind.split(" | "))) <= set(KINDS):
        return True
    if isinstance(value, bool):
        return "bool" in alternatives
    return any(isinstance(value, KINDS[alternative]) for alternative in alternatives)


@cache
def _arguments(target: str) -> dict[str, str] | None:
    """Names and types of what one of our classes or functions takes, read from its file: importing is slow.

    None: no file of ours defines it. What a file has imported does not count: `os` would be among it. Empty:
    it inherits what it takes, and is not checked.
    """
    match = re.fullmatch(r"birthplace_lm((?:\.\w+)+)\.(\w+)", target)
    path = PACKAGE / f"{match[1][1:].replace('.', '/')}.py" if match else None
    if match is None or path is None or not path.is_file():
        return None
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == match[2]:
            made_by = node.body if isinstance(node, ast.ClassDef) else [node]
            for f in made_by:
                if isinstance(f, ast.FunctionDef) and f.name in ("__init__", match[2]):
                    names = [*f.args.args, *f.args.kwonlyargs]
                    return {a.arg: ast.unparse(a.annotation) for a in names if a.annotation}
            return {}
    return None
