"""The settings in which runs differ, and labels of runs made of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from birthplace_lm.analysis.report.collect import Run, flat_settings, value_in
from birthplace_lm.config.compose import compose
from birthplace_lm.config.groups import options
from birthplace_lm.runs.identity import EXCLUDED_FROM_HASH, FILE_KEYS, TRAINER_EXCLUDED_FROM_HASH

GROUPS = {"labels.attention": "attention", "labels.pretrain": "pretrain", "labels.data": "data"}
NAMES = {**GROUPS, "labels.pretrain": "pretraining"}
# What an option of a user, which is not composed here, may choose by itself.
OWN_KEYS = {
    "attention": (
        "model.attention",
        "model.block",
        "model.learned_positions",
        "model.canon",
        "model.mask_pads",
    ),
    "pretrain": ("stages.pretrain",),
    "data": ("data", "model"),
}
PATH_KEYS = ("data.root", *(f"data.{file}" for file in FILE_KEYS))
IGNORED_KEYS = {
    *EXCLUDED_FROM_HASH,
    *(f"trainer.{key}" for key in TRAINER_EXCLUDED_FROM_HASH),
    "seed",
    "init_from",  # part of the pretraining's name
}
# Headings of other columns in the tables and in CSV; a setting with such a name is shown with its whole key.
TAKEN_NAMES = {"dev", "seed", "correct", "total", "low", "high", "majority", "parameters", "bits", "loss"} | {
    "characters", "seconds", "minutes", "state", "reason", "run", "attention", "pretraining", "data",
    "difference",
}  # fmt: skip
NAMED_TOGETHER = 3  # so many keys that vary together are each named in a label
# Of keys that vary together one names the column: these first, then the others, then how often to validate.
FIRST_KEYS = ("n_layer", "n_embd", "max_epochs", "learning_rate", "batch_size", "n_head")
LAST_KEYS = ("check_val_every_n_epoch", "val_check_interval", "max_steps", "every_n_steps", "keep_last")


@dataclass(frozen=True)
class Setting:
    """A setting in which runs differ.

    Attributes:
        keys: configuration keys that vary together: two runs differ in all of them or in none.
        names: short names of the keys, the stage included.
        path_parts: number of components at the end of a path that are needed to tell the runs apart.
    """

    keys: tuple[str, ...]
    names: tuple[str, ...]
    path_parts: int = 1

    @property
    def heading(self) -> str:
        """A heading for a column that shows the first key."""
        return self.names[0] if len(self.keys) == 1 else f"{self.names[0]} (+{len(self.keys) - 1})"

    def display(self, run: Run, key: str | None = None) -> str:
        """The value of the first key, or of another one, in this run."""
        return run.display(key or self.keys[0], self.path_parts)

    def label(self, run: Run) -> str:
        """The value in this run, with the name unless the value tells what it is."""
        value = self.display(run)
        if self.keys[0] in NAMES or not value:
            return value
        if self.keys[0] == "extend_from":
            return f"extends {value}"
        if len(self.keys) > NAMED_TOGETHER:
            return f"{self.heading}={value}"
        return ", ".join(
            f"{name}={self.display(run, key)}" for key, name in zip(self.keys, self.names, strict=True)
        )


def varying_settings(runs: Sequence[Run]) -> list[Setting]:
    """The settings in which runs differ; attention, pretraining and data come first, and the seed is none.

    Left out is what the options of attention, pretraining and data choose by themselves.
    """
    runs = [run for run in runs if run.config]
    settings = [Setting((key,), (name,)) for key, name in NAMES.items() if len(_values(runs, key)) > 1]
    keys = {key for run in runs for key in run.config if key.partition(".")[0] not in IGNORED_KEYS}
    if not any(run.value("trainer.strategy") == "fsdp2" for run in runs):
        keys -= {"trainer.strategy"}  # as for the name of a run
    varying = [key for key in sorted(keys - IGNORED_KEYS - {*NAMES}) if len(_values(runs, key)) > 1]
    if settings and varying:
        varying = _without_defaults(runs, varying)
    if _have_equal_files(runs):  # wherever they are
        varying = [key for key in varying if key not in PATH_KEYS]
    varying += _changed_files(runs)
    together: dict[tuple[int, ...], list[str]] = {}  # by which runs have equal values
    for key in varying:
        values = [run.value(key) for run in runs]
        together.setdefault(tuple(values.index(value) for value in values), []).append(key)
    names = _short_names(varying)
    return settings + [
        Setting(
            tuple(group), tuple(names[key] for key in group), max(_path_parts(runs, key) for key in group)
        )
        for group in (sorted(group, key=_importance) for group in together.values())
    ]


def _importance(key: str) -> tuple[int, str]:
    """What keys are sorted by."""
    name = key.rpartition(".")[2]
    if name in FIRST_KEYS:
        return FIRST_KEYS.index(name), key
    return len(FIRST_KEYS) + (name in LAST_KEYS), key


def _path_parts(runs: Sequence[Run], key: str) -> int:
    """The fewest parts at the end of the paths that tell as many of them apart as the whole paths do."""
    longest = max(len(Path(value).parts) for value in _values(runs, key))
    distinct = [len({run.display(key, parts) for run in runs}) for parts in range(1, longest + 1)]
    return 1 + distinct.index(max(distinct))


def shown_settings(runs: Sequence[Run]) -> list[Setting]:
    """`varying_settings`, or attention and pretraining if the runs do not differ."""
    return varying_settings(runs) or [Setting((key,), (NAMES[key],)) for key in [*NAMES][:2]]


def common_settings(runs: Sequence[Run]) -> list[str]:
    """Labels, seed and extend_from, each as "NAME VALUE", where all runs agree and no column shows them."""
    columns = {key for setting in shown_settings(runs) for key in setting.keys}
    runs = [run for run in runs if run.config]
    common = [key for key in (*NAMES, "seed", "extend_from") if key not in columns]
    common = [key for key in common if len(_values(runs, key)) == 1 and runs[0].display(key)]
    return [f"{NAMES.get(key, key)} {runs[0].display(key)}" for key in common]


def labels(runs: Sequence[Run]) -> dict[Run, str]:
    """A label for each run, equal for all its seeds: the value of every setting that varies."""
    return {run: ", ".join(parts) for run, parts in label_parts(runs).items()}


def label_parts(runs: Sequence[Run]) -> dict[Run, list[str]]:
    """The parts of the labels."""
    settings = shown_settings(runs)
    return {run: [*filter(None, (setting.label(run) for setting in settings))] for run in runs}


def seed_varies(runs: Sequence[Run]) -> bool:
    """Whether the runs have several seeds."""
    return len(_values([run for run in runs if run.config], "seed")) > 1


def _values(runs: Sequence[Run], key: str) -> set[str]:
    """The values of a key in the runs that have it; a disabled stage has none."""
    return {run.value(key) for run in runs} - {""}


def _without_defaults(runs: Sequence[Run], keys: list[str]) -> list[str]:
    """The keys that do not follow from attention, pretraining and data.

    Compares with what these compose by themselves. From an option of a user, which cannot be composed here,
    follow those of `OWN_KEYS` that are equal in all runs with the same options.
    """
    choices = {run: tuple(str(run.config.get(key)) for key in GROUPS) for run in runs}

    def follows(run: Run, key: str) -> bool:
        choice = choices[run]
        unknown, composed = _composed(choice)
        if run.value(key) in ("", value_in(composed, key)):
            return True
        own = tuple(f"{prefix}." for group in unknown for prefix in OWN_KEYS[group])
        same_options = [other for other in runs if choices[other] == choice]
        return f"{key}.".startswith(own) and len(_values(same_options, key)) == 1

    return [key for key in keys if not all(follows(run, key) for run in runs)]


def _have_equal_files(runs: Sequence[Run]) -> bool:
    """Whether all runs have read the same contents, as far as they have recorded what they read."""
    contents = {tuple(run.value(f"inputs.{file}") for file in FILE_KEYS) for run in runs}
    return len(contents) == 1 and any(contents.pop())


def _changed_files(runs: Sequence[Run]) -> list[str]:
    """The hashes that differ among runs with equal paths: of files that changed between the runs."""
    changed = []
    for file in FILE_KEYS:
        keys = (f"inputs.{file}", "data.root", f"data.{file}")
        versions = {tuple(run.value(key) for key in keys) for run in runs if run.value(keys[0])}
        if len(versions) > len({version[1:] for version in versions}):
            changed.append(keys[0])
    return changed


@cache
def _composed(choice: tuple[str, ...]) -> tuple[list[str], Mapping[str, Any]]:
    """The groups whose option is not one of this project, and the settings that the others compose."""
    chosen = dict(zip(GROUPS.values(), choice, strict=True))
    unknown = [group for group, option in chosen.items() if option not in options()[group]]
    overrides = [f"{group}={option}" for group, option in chosen.items() if group not in unknown]
    plain: Any = OmegaConf.to_container(compose([*overrides, "data.root=."]))
    return unknown, flat_settings(plain)


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, with its stage; the whole path if another key or column has the same."""
    paths = {key: key.removesuffix("._target_").removeprefix("stages.") for key in keys}
    names = {}
    for key, path in paths.items():
        parts = path.split(".")
        names[key] = f"{parts[0]}.{parts[-1]}" if key.startswith("stages.") else parts[-1]
    repeated = Counter(names.values())
    return {
        key: paths[key] if repeated[name] > 1 or name in TAKEN_NAMES else name for key, name in names.items()
    }
