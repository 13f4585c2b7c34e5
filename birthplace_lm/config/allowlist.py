"""Allow-list for Hydra's `_target_`: classes and functions of this package, and of packages the user names.

The arguments in the configuration must be those of the class or function.
"""

import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from birthplace_lm.config.messages import suggest
from birthplace_lm.errors import InputError

PACKAGE = Path(__file__).parents[1]
TRAINER = "lightning.Trainer"  # the only target outside this package, for the key `trainer` alone
# For each other key: the module or package that defines its targets, and the arguments of the call.
FACTORIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "attention": ("models.attention", ("n_embd", "n_head", "block_size", "dropout")),
    "block": ("models.attention", ("attention", "n_embd", "dropout", "layer", "n_layer", "canon")),
    "optimizer": ("training.optimizers", ("model", "lr")),
    "schedule": ("training.lr_schedules", ("total_positions",)),
    "dataset": ("data", ("corpus", "loading", "block_size")),
    "spans": ("data", ("documents", "titles", "people", "places", "block_size")),
}
# Further arguments of the call, for a factory that takes them.
OPTIONAL_ARGUMENTS: dict[str, tuple[str, ...]] = {"attention": ("layer",)}
# Keys that hold several factories by name, such as callbacks.early_stopping.
COLLECTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "callbacks": ("training.callbacks.monitoring", ()),
    "logger": ("training.loggers", ("folder", "name", "first_step")),
}
ANY_ARGUMENTS: dict[str, tuple[str, bool]] = {}  # of a class or function whose arguments are not checked
KINDS: dict[str, Any] = {"bool": bool, "int": int, "float": (int, float), "str": str, "None": type(None)}


def check_allowlist(node: Any, key: str, plugins: Collection[str] = ()) -> None:
    """Check every `_target_` below a node.

    Args:
        node: a configuration, or a part of it.
        key: of the node.
        plugins: packages that may be named too. They are imported.

    Raises:
        InputError: a target is not on the allow-list, or an argument is unknown, missing or of another type.
    """
    if isinstance(node, DictConfig):
        for name in map(str, node):
            check_allowlist(node[name], f"{key}.{name}".lstrip("."), plugins)
        if "_target_" in node:
            _check_arguments(node, key, plugins)
    elif OmegaConf.is_list(node):
        for item in node:
            check_allowlist(item, key, plugins)


def check_plugins(plugins: Collection[str]) -> None:
    """Check that Python finds the packages that a user names.

    Raises:
        InputError: it does not find one.
    """
    for package in plugins:
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):  # a package above it is missing, or fails to import
            spec = None
        if spec is None:
            raise InputError(
                f"plugins: no package {package}; install it, or give its folder as PYTHONPATH=FOLDER"
            )


def _check_arguments(node: DictConfig, key: str, plugins: Collection[str]) -> None:
    target = node["_target_"]
    if key == "trainer":
        if target != TRAINER:
            raise InputError(f"{key}._target_={target}: not allowed; it is {TRAINER}")
        return  # its keys are those of the schema
    home, called_with = _contract(key)
    is_own = any(str(target).startswith(f"{plugin}.") for plugin in plugins)
    if is_own:
        arguments: dict[str, tuple[str, bool]] | None = _import_signature(str(target), key)
    else:  # a factory that is an argument of another factory is defined in the same package
        arguments = _parse_signature(str(target)) if home and str(target).startswith(f"{home}.") else None
    parameters = called_with if arguments is None or arguments is ANY_ARGUMENTS else arguments
    missing = [name for name in called_with if name not in parameters]
    if arguments is None or (missing and not is_own):
        raise InputError(
            f"{key}._target_={target}: not allowed; name a class or function that {home or 'birthplace_lm'}"
            f" defines and that takes {', '.join(called_with) or 'the arguments in this mapping'}"
            f"{_plugin_hint(str(target), plugins)}"
        )
    if missing:
        raise InputError(
            f"{key}._target_={target}: is called with {', '.join(called_with)}, and does not take"
            f" {', '.join(missing)}"
        )
    if node.get("_partial_") is not True:
        # Called at once, with arguments from the configuration alone, it could write anywhere.
        raise InputError(f"{key}._partial_={node.get('_partial_')}: must be true")
    optional = OPTIONAL_ARGUMENTS.get(key.rpartition(".")[2], ())
    supplied = {*called_with, *(name for name in optional if name in arguments)}
    configurable = [name for name in arguments if name not in supplied]
    for name in (name for name in map(str, node) if name not in ("_target_", "_partial_")):
        if name in supplied:  # it would have no effect
            raise InputError(f"{key}.{name}: cannot be set here; the program gives it, from its other keys")
        if name.startswith("_") or (arguments is not ANY_ARGUMENTS and name not in configurable):
            valid = suggest(name, configurable, f"{key}.") if configurable else "there is none"
            raise InputError(f"{key}.{name}: unknown key; {valid}")
        kind, value = arguments.get(name, ("", False))[0], node[name]
        if not _matches_annotation(value, kind):
            raise InputError(f"{key}.{name}={value}: must be of type {kind}")
        numbers = [n for n in (value if OmegaConf.is_list(value) else [value]) if isinstance(n, int | float)]
        if any(not abs(n) <= sys.float_info.max for n in numbers):  # also refuses nan
            raise InputError(f"{key}.{name}={value}: must be finite")
    for name, (_, required) in arguments.items():
        if required and name not in node and name not in supplied:
            raise InputError(f"{key}.{name} is missing; give {key}.{name}=VALUE")


def _contract(key: str) -> tuple[str, tuple[str, ...]]:
    """Where the targets of a key are defined, empty if it has none, and the arguments of the call."""
    first, *inner = parts = key.split(".")
    if first in COLLECTIONS:
        home, called_with = COLLECTIONS[first]
        return (f"birthplace_lm.{home}", called_with if len(inner) == 1 else ()) if inner else ("", ())
    name = next((part for part in reversed(parts) if part in FACTORIES), None)
    if name is None:
        return "", ()
    home, called_with = FACTORIES[name]
    return f"birthplace_lm.{home}", called_with if parts[-1] == name else ()


def _plugin_hint(target: str, plugins: Collection[str]) -> str:
    """How to allow a target of another package."""
    package = target.partition(".")[0]
    if package == "birthplace_lm" or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", target) or package in plugins:
        return ""
    return (
        f". If you trust the package {package}, name it: --plugin {package} to ask a model,"
        f" 'plugins=[{package}]' to train, plugins=[\"{package}\"] in Python"
    )


def _matches_annotation(value: Any, kind: str) -> bool:
    """Whether a value has the type of an annotation; True for annotations that cannot be checked here."""
    if kind.startswith("Callable["):
        return isinstance(value, DictConfig) and "_target_" in value
    if items := re.fullmatch(r"tuple\[([\w, ]+)\]", kind):
        kinds = items[1].split(", ")
        return (
            OmegaConf.is_list(value)
            and len(value) == len(kinds)
            and all(map(_matches_annotation, value, kinds))
        )
    if not (alternatives := set(kind.split(" | "))) <= set(KINDS):
        return True
    if isinstance(value, bool):
        return "bool" in alternatives
    return any(isinstance(value, KINDS[alternative]) for alternative in alternatives)


@cache
def _parse_signature(target: str) -> dict[str, tuple[str, bool]] | None:
    """Parse the arguments of a class or function of this package from its file: importing it is slow.

    Returns:
        Annotation and whether it is required, by name. None: no file of this package defines the target;
        names that a file imports do not count, because `os` is one. ANY_ARGUMENTS: the class inherits
        its constructor.
    """
    match = re.fullmatch(r"birthplace_lm((?:\.\w+)+)\.(\w+)", target)
    path = PACKAGE / f"{match[1][1:].replace('.', '/')}.py" if match else None
    if match is None or path is None or not path.is_file():
        return None
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == match[2]:
            functions = node.body if isinstance(node, ast.ClassDef) else [node]
            for f in functions:
                if isinstance(f, ast.FunctionDef) and f.name in ("__init__", match[2]):
                    return _signature(f.args)
            return ANY_ARGUMENTS if isinstance(node, ast.ClassDef) and node.bases else None
    return None


def _import_signature(target: str, key: str) -> dict[str, tuple[str, bool]]:
    """The arguments of a class or function of a package that the user has named.

    Returns:
        As `_parse_signature`; ANY_ARGUMENTS if it takes any keyword.

    Raises:
        InputError: it cannot be imported.
    """
    module_name, _, name = target.rpartition(".")
    try:
        factory = getattr(importlib.import_module(module_name), name)
        parameters = inspect.signature(factory).parameters.values()
    except ImportError as error:
        raise InputError(
            f"{key}._target_={target}: {error}; install the package (pip install -e FOLDER), or put it on the"
            " path of Python (PYTHONPATH=FOLDER)"
        ) from error
    except Exception as error:  # of any kind: importing runs the user's code
        raise InputError(f"{key}._target_={target}: {type(error).__name__}: {error}") from error
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return ANY_ARGUMENTS
    return {p.name: (_annotation(p), p.default is p.empty) for p in parameters}


def _annotation(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return ""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _signature(arguments: ast.arguments) -> dict[str, tuple[str, bool]]:
    optional = arguments.args[len(arguments.args) - len(arguments.defaults) :]
    optional += [a for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default]
    named = [a for a in (*arguments.args, *arguments.kwonlyargs) if a.arg != "self"]
    return {a.arg: (ast.unparse(a.annotation) if a.annotation else "", a not in optional) for a in named}
