"""Overrides as users type them: quote paths and the question for Hydra's grammar, write a value as text."""

import os
import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from birthplace_lm.config.groups import TEXT_KEYS, options
from birthplace_lm.errors import InputError

_TEXT = re.compile(rf"(\+{{0,2}}(?:{'|'.join(map(re.escape, TEXT_KEYS))}))=(.*)", re.DOTALL)
_MULTIRUN = ("-m", "--multirun", "hydra.mode=MULTIRUN")


def checked_overrides(arguments: Sequence[str]) -> list[str]:
    """Quote the values of text keys that Hydra's grammar would refuse or read as something else than text.

    `run_dir=/x (1)` becomes `run_dir='/x (1)'`. A value that Hydra reads as text or as null stays as it is:
    quoted text, interpolations, escaped characters. So does a list for a sweep, with `-m`.

    Raises:
        InputError: with `-m`, a comma may separate values or belong to one; or a group is set to null.
    """
    _check_groups(arguments)
    multirun = any(argument in _MULTIRUN for argument in arguments)
    return [
        _quote(a, match[1], match[2], multirun) if (match := _TEXT.fullmatch(a)) else a for a in arguments
    ]


def _check_groups(arguments: Sequence[str]) -> None:
    """Hydra reports a group that is null without its name."""
    for argument in arguments:
        group, equals, value = argument.partition("=")
        names = options().get(group.lstrip("+"))
        if equals and names and {"", "null"} & {*value.split(",")}:
            raise InputError(f"{argument}: needs a name, or leave it out; valid: {', '.join(names)}")


def as_typed(value: object) -> str:
    """A value as it is typed after `KEY=`."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _quote(argument: str, key: str, value: str, multirun: bool) -> str:
    try:
        override = OverridesParser.create().parse_override(argument)
        if override.is_sweep_override():
            readable = multirun
        else:
            text = override.value()
            readable = text is None or (isinstance(text, str) and value == value.strip())
    except (HydraException, RecursionError):
        readable = False
        if multirun and "," in value:
            typed = ",".join(f'"{text}"' for text in value.split(","))
            raise InputError(
                f"{argument}: with -m a comma separates values; quote each: '{key}={typed}'"
            ) from None
    if readable:
        return argument
    text = value if "\0" in value else os.path.expanduser(value)
    return f"{key}={QuotedString(text, Quote.single).with_quotes()}"
