"""Every yaml of conf/: its keys arrive, a group changes only its own part, a preset says how to run it."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from program import Program

from birthplace_lm.config.compose import compose, resolve_and_validate
from birthplace_lm.config.groups import conf_dir, options
from birthplace_lm.errors import InputError
from birthplace_lm.models.build import build_model

CONF = conf_dir()
FILES = sorted(str(file.relative_to(CONF)) for file in CONF.glob("*/**/*.yaml"))
PARTS = {  # the keys that each group may set
    "callbacks": ("callbacks",),
    "logger": ("logger",),
    "attention": ("model.attention", "model.block", "model.learned_positions"),
    "data": ("data",),
    "finetune": ("stages.finetune",),
    "model": ("model.n_layer", "model.n_head", "model.n_embd", "model.block_size"),
    "optimizer": ("optimizer",),
    "pretrain": ("stages.pretrain",),
    "schedule": ("stages.pretrain.schedule", "stages.finetune.schedule"),
    "spans": ("stages.pretrain.dataset.spans",),
    "trainer": ("trainer",),
}
PRESETS = ("debug", "experiment")  # these may set anything


def own_keys(file: str) -> dict[str, Any]:
    """Every key that a file sets itself, in full, with its value."""
    text = (CONF / file).read_text()
    first, _, _ = text.partition("\n")
    package = first.removeprefix("# @package ") if first.startswith("# @package ") else file.partition("/")[0]
    content = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(content, dict)
    content.pop("defaults", None)
    return dict(flat(content, "" if package == "_global_" else f"{package}."))


def flat(node: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def composed(*overrides: str) -> DictConfig:
    """The configuration with Hydra's own part, neither resolved nor validated."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", list(overrides), return_hydra_config=True)


def choice(file: str) -> list[str]:
    """The overrides that choose a file."""
    special = {
        "finetune/after/name_to_birthplace/none.yaml": ["pretrain=none"],
        "finetune/after/name_to_birthplace/language_modeling.yaml": ["pretrain=language_modeling"],
        "finetune/after/cs224n_2021/none.yaml": ["finetune=cs224n_2021", "pretrain=none"],
        "model/for_data/biographies.yaml": [],
    }
    group, _, name = file.removesuffix(".yaml").partition("/")
    return special.get(file, [f"{group}={name}"])


@pytest.mark.parametrize("file", FILES)
def test_what_a_file_says_is_what_the_configuration_has(file: str) -> None:
    """It is valid, and its model builds.

    The bug: keys of train.yaml won over presets, so that `seed: 7` in an experiment was ignored.
    """
    config = composed(*choice(file))
    for key, value in own_keys(file).items():
        arrived = OmegaConf.to_container(config)
        before, swept, rest = key.partition("hydra.sweeper.params.")  # whose names have dots themselves
        for name in [*swept.rstrip(".").split("."), rest] if swept else before.split("."):
            arrived = arrived[name]  # type: ignore[call-overload, index]
        assert arrived == value, key
    HydraConfig.instance().set_config(config)
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    if OmegaConf.is_missing(config.data, "root"):
        config.data.root = "DIR"
    valid = resolve_and_validate(config)
    group, _, name = file.removesuffix(".yaml").partition("/")
    assert valid.labels.get(group, name) == name
    assert build_model(valid.model, vocab_size=256).num_parameters > 0


@pytest.mark.parametrize("file", [file for file in FILES if not file.startswith(PRESETS)])
def test_a_group_changes_only_its_own_part(file: str) -> None:
    """The bug: data=biographies set the sizes of the model, pretrain=none the epochs of finetuning."""
    for key in own_keys(file):
        assert f"{key}.".startswith(tuple(f"{part}." for part in PARTS[file.partition("/")[0]])), key


def other_value(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"{value}x"
    return 1 if value is None else value + 1


def test_a_preset_of_a_user_wins_over_defaults_and_the_command_line_over_it(tmp_path: Path) -> None:
    defaults = OmegaConf.to_container(compose())
    assert isinstance(defaults, dict)
    wanted = {
        key: other_value(value)
        for key, value in flat(defaults)
        if not isinstance(value, list) and not key.rpartition(".")[2].startswith("_")
    }
    assert len(wanted) > 80, "keys of all kinds"
    nested = OmegaConf.create()
    for key, value in wanted.items():
        OmegaConf.update(nested, key, value)
    for group in ("experiment", "debug"):
        file = tmp_path / group / "mine.yaml"
        file.parent.mkdir()
        file.write_text("# @package _global_\n" + OmegaConf.to_yaml(nested))
        search = f"hydra.searchpath=[file://{tmp_path}]"
        config = composed(search, f"{group}=mine")
        for key, value in wanted.items():
            assert OmegaConf.select(config, key) in (value, str(value)), key
        assert composed(search, f"{group}=mine", "seed=5", "labels.data=y").seed == 5


def test_the_finetuning_of_a_user_wins_without_pretraining_too(tmp_path: Path) -> None:
    """Bug: pretrain=none set the epochs and the rate of every finetuning."""
    (tmp_path / "finetune/after/mine").mkdir(parents=True)
    head = "# @package stages.finetune\n"
    (tmp_path / "finetune/mine.yaml").write_text(head + "defaults: [name_to_birthplace]\nmax_epochs: 5\n")
    search = f"hydra.searchpath=[file://{tmp_path}]"
    for pretrain in ("none", "language_modeling", "span_corruption"):
        config = composed(search, "finetune=mine", f"pretrain={pretrain}")
        assert (config.stages.finetune.max_epochs, config.stages.finetune.learning_rate) == (5, 1e-4)
    (tmp_path / "finetune/after/mine/none.yaml").write_text(head + "max_epochs: 9\n")
    assert composed(search, "finetune=mine", "pretrain=none").stages.finetune.max_epochs == 9
    assert composed(search, "finetune=mine").stages.finetune.max_epochs == 5


def test_a_partial_preset_of_a_user_keeps_the_other_defaults(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults: [{override /attention: synthesizer}]\nseed: 7\n"
        "precision: bf16-mixed\n"
        "checkpoint: {keep_last: 5}\non_nonfinite: skip\nresume: never\ntraceback: true\n"
    )
    config = compose([f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"])
    assert (config.seed, config.trainer.precision, config.labels.attention) == (
        7,
        "bf16-mixed",
        "synthesizer",
    )
    assert config.checkpoint == {"every_n_steps": 100, "keep_last": 5}
    assert (config.on_nonfinite, config.resume, config.traceback) == ("skip", "never", True)


def test_sizes_suit_the_corpus_unless_a_model_is_chosen() -> None:
    def width(*overrides: str) -> int:
        return int(compose(overrides).model.n_embd)

    assert (width(), width("data=cs224n", "data.root=DIR")) == (128, 256)
    assert (width("model=gpt_3m"), width("model=tiny", "data=cs224n", "data.root=DIR")) == (256, 32)
    assert width("experiment=best", "data.root=DIR") == 256


def test_finetuning_is_longer_without_pretraining() -> None:
    def recipe(*overrides: str) -> tuple[int, float]:
        stage = compose(overrides).stages.finetune
        return stage.max_epochs, stage.learning_rate

    assert (recipe(), recipe("pretrain=none")) == ((2, 1e-4), (75, 6e-4))
    assert recipe("finetune=cs224n_2021") == (10, 6e-4)
    assert recipe("finetune=cs224n_2021", "pretrain=none") == (75, 6e-4)
    assert recipe("pretrain=none", "stages.finetune.max_epochs=4") == (4, 6e-4)


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith(PRESETS)])
def test_a_preset_says_command_time_and_result(file: str) -> None:
    package, command, *rest = (CONF / file).read_text().splitlines()
    assert package == "# @package _global_"
    python, script, *arguments = shlex.split(command.removeprefix("# "))
    assert (python, script) == ("python", "train.py")
    assert choice(file)[0] in arguments
    comment = " ".join(line for line in rest if line.startswith("# "))
    assert "# Time: " in comment
    assert "Result: " in comment
    if file.startswith("experiment"):
        assert re.search("float32|bf16-mixed", f"{command} {comment}")  # which its figures are of
    chosen = [
        argument.partition(",")[0] for argument in arguments if "=" in argument and "hydra" not in argument
    ]
    sweep = yaml.safe_load((CONF / file).read_text()).get("hydra", {}).get("sweeper", {}).get("params", {})
    first = {"attention": "vanilla", "experiment/ablation": "none"}  # in place of glob(*)
    keys = {override.partition("=")[0] for override in chosen}
    one = [
        f"{key}={first[key] if 'glob' in str(values) else str(values).partition(',')[0]}"
        for key, values in sweep.items()
        if key not in keys
    ]
    if one:
        assert "-m" in arguments
        with pytest.raises(InputError, match=r"this recipe sweeps over .*: add -m, or give"):
            compose(chosen)
    compose([*chosen, *one])


def test_a_recipe_that_is_a_sweep_is_no_single_run(tmp_path: Path) -> None:
    """Bug: without -m the recipe was ignored, and one default run was trained in its place."""
    program = Program(["experiment=grid", "dry_run=true"], tmp_path)
    assert program.wait() == 2
    assert "this recipe sweeps over attention, pretrain, seed: add -m" in program.stderr.read_text()


def test_the_sweep_of_ablations_has_every_file_of_its_folder() -> None:
    params = composed("experiment=ablation").hydra.sweeper.params
    assert params == {"experiment/ablation": "glob(*)"}
    for name in ("no_shift", "adamw"):
        one = compose([f"experiment=ablation/{name}", "data.root=DIR"])
        assert one == compose(["experiment=ablation", f"experiment/ablation={name}", "data.root=DIR"])
        assert (one.data.holdout_size, one.stages.pretrain.max_epochs) == (200, 24)


def test_one_schedule_for_both_stages() -> None:
    stages = compose(["schedule=cosine_2021", "stages.finetune.schedule.min_lr_factor=0.2"]).stages
    assert stages.pretrain.schedule._target_.endswith(".cosine_2021")
    assert (stages.pretrain.schedule.min_lr_factor, stages.finetune.schedule.min_lr_factor) == (0.1, 0.2)


def test_options_of_a_group() -> None:
    assert options()["finetune"] == ["cs224n_2021", "name_to_birthplace"]
