"""What composes, what is refused and in which words, and the protocol of 2021 number by number."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ReadonlyConfigError

from birthplace_lm.config.compose import compose, resolve_and_validate
from birthplace_lm.config.groups import conf_dir
from birthplace_lm.config.messages import to_input_error
from birthplace_lm.errors import InputError
from birthplace_lm.models.build import build_model

CONF = conf_dir()
OPTIONS = sorted(f"{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml"))
COURSE = ["experiment=cs224n_2021", "data.root=DIR"]


@pytest.fixture(scope="module")
def plain() -> DictConfig:
    return compose()


def changed(config: DictConfig, **values: Any) -> DictConfig:
    """The configuration as a run directory keeps it, with other values."""
    copy: Any = OmegaConf.create(OmegaConf.to_yaml(config))
    for key, value in values.items():
        OmegaConf.update(copy, key, value, merge=False)
    return copy


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_lies_in_a_group_with_a_default(option: str) -> None:
    defaults = OmegaConf.load(CONF / "train.yaml").defaults
    assert option.partition("=")[0] in {
        key for entry in defaults if not isinstance(entry, str) for key in entry
    }


def test_what_a_group_chooses() -> None:
    """A value of the group's yaml arrives, and beats that of the data's."""
    config = compose(["attention=synthesizer", "pretrain=none", "model=gpt_3m", "optimizer=muon", "seed=3"])
    assert config.labels == {"attention": "synthesizer", "pretrain": "none", "data": "biographies"}
    assert config.model.attention._target_.endswith(".SynthesizerAttention")
    assert (config.model.n_layer, config.model.n_head, config.model.n_embd) == (4, 8, 256)
    assert config.optimizer._target_.endswith(".muon")
    assert (config.stages.pretrain.enabled, config.stages.finetune.max_epochs, config.seed) == (False, 75, 3)
    assert compose(["stages.finetune.max_epochs=4", "pretrain=none"]).stages.finetune.max_epochs == 4


def test_the_course_without_its_files_asks_for_them() -> None:
    with pytest.raises(InputError, match=r"^data\.root is missing; give data\.root=VALUE$"):
        compose(["data=cs224n"])


@pytest.mark.parametrize("pretrain", ["span_corruption", "none"])
@pytest.mark.parametrize(("attention", "count"), [("vanilla", 3_323_392), ("synthesizer", 3_076_988)])
def test_the_protocol_of_2021_to_the_letter(pretrain: str, attention: str, count: int) -> None:
    config = compose([*COURSE, f"pretrain={pretrain}", f"attention={attention}"])
    assert config.labels == {"attention": attention, "pretrain": pretrain, "data": "cs224n"}
    files = {key: config.data[key] for key in ("root", "corpus", "train", "dev", "test", "holdout_size")}
    assert files == {
        "root": "DIR",
        "corpus": "wiki.txt",
        "train": "birth_places_train.tsv",
        "dev": "birth_dev.tsv",
        "test": "birth_test_inputs.tsv",
        "holdout_size": 0,
    }
    sizes = {key: value for key, value in config.model.items() if key != "attention"}
    assert sizes == {
        "n_layer": 4,
        "n_head": 8,
        "n_embd": 256,
        "block_size": 128,
        "dropout": 0.1,
        "learned_positions": True,
        "canon": False,
        "mask_pads": False,
        "block": None,
    }
    assert build_model(config.model, vocab_size=256).num_parameters == count
    assert config.optimizer == {
        "_target_": "birthplace_lm.training.optimizers.adamw",
        "_partial_": True,
        "betas": [0.9, 0.95],
        "weight_decay": 0.1,
        "decay_all_but_bias": True,
    }
    trainer = config.trainer
    assert (trainer.gradient_clip_val, trainer.gradient_clip_algorithm) == (1.0, "norm")
    assert (trainer.accumulate_grad_batches, trainer.max_epochs, trainer.max_steps) == (1, None, -1)
    assert trainer.limit_train_batches is None

    stages = config.stages
    recipe = ("max_epochs", "batch_size", "learning_rate", "shuffle")
    assert stages.pretrain.enabled == (pretrain != "none")
    if stages.pretrain.enabled:
        assert [stages.pretrain[key] for key in recipe] == [650, 128, 6e-3, False]
        data = {key: value for key, value in stages.pretrain.dataset.items() if not key.startswith("_")}
        spans = data.pop("spans")
        assert data == {
            "closing_mask": False,
            "loss_on": "all",
            "masks_per_row": 1,
            "question_fraction": 0.0,
            "min_shift": 0,
            "max_shift": 0,
        }
        assert spans == {"_target_": "birthplace_lm.data.masking.spans.RandomSpans", "_partial_": True}
    epochs = 10 if stages.pretrain.enabled else 75
    assert stages.finetune.enabled
    assert [stages.finetune[key] for key in recipe] == [epochs, 256, 6e-4, False]
    assert stages.finetune.dataset.ascii_only is True
    for stage in stages.values():
        assert stage.schedule == {
            "_target_": "birthplace_lm.training.lr_schedules.cosine_2021",
            "_partial_": True,
            "warmup_positions": 10_240,
            "final_positions": 200 * 2938 * 128,
            "min_lr_factor": 0.1,
        }


UNKNOWN = [  # overrides, the name that is wrong, the nearest valid one
    ("attention=vanila", "attention=vanila", "vanilla"),
    ("model=tinny", "model=tinny", "tiny"),
    ("pretrain=span_corupt", "pretrain=span_corupt", "span_corruption"),
    ("experiment=cs224n", "experiment=cs224n", "cs224n_2021"),
    ("data=cs24n", "data=cs24n", "cs224n"),
    ("attention=zzz", "attention=zzz", None),
    ("atention=vanilla", "atention", "attention"),
    ("optimiser=muon", "optimiser", "optimizer"),
    ("zzz=3", "zzz", None),
    ("+foo=3", "foo", None),
    ("++foo.bar=3", "foo", None),
    ("n_layer=3", "n_layer", "model.n_layer"),
    ("batch_size=3", "batch_size", "stages.pretrain.batch_size"),
    ("model.n_lyer=3", "model.n_lyer", "model.n_layer"),
    ("+model.n_lyer=3", "model.n_lyer", "model.n_layer"),
    ("stages.pretrian.shuffle=true", "stages.pretrian", "stages.pretrain"),
    ("stages.finetune.lr=1", "stages.finetune.lr", None),
    ("stages.finetune.lerning_rate=1", "stages.finetune.lerning_rate", "stages.finetune.learning_rate"),
    ("+stages.finetune.epochs=3", "stages.finetune.epochs", "stages.finetune.max_epochs"),
    ("trainer.max_epoch=3", "trainer.max_epoch", "trainer.max_epochs"),
    ("+trainer.gpus=3", "trainer.gpus", None),
    ("optimizer.beta=3", "optimizer.beta", "optimizer.betas"),
    ("+optimizer.wait_decay=3", "optimizer.wait_decay", "optimizer.weight_decay"),
    (
        "attention=rope model.attention.bases=3",
        "model.attention.bases",
        "model.attention.base",
    ),
    (
        "stages.finetune.dataset.ascii=true",
        "stages.finetune.dataset.ascii",
        "stages.finetune.dataset.ascii_only",
    ),
]
INVALID = [  # overrides, how the message begins
    ("+optimizer.lr=0.5", "optimizer.lr: cannot be set here; the program gives it"),  # had no effect
    ("+model.attention.dropout=0.5", "model.attention.dropout: cannot be set here"),
    ("attention=differential +model.attention.layer=1", "model.attention.layer: cannot be set here"),
    ("+stages.pretrain.dataset.spans.block_size=9", "stages.pretrain.dataset.spans.block_size: cannot be"),
    ("+model.attention.foo=3", "model.attention.foo: unknown key; there is none"),
    ("trainer.devices=foo", "trainer.devices=foo: must be a number, a list"),  # were called our mistake
    ("trainer.devices=null", "trainer.devices=None: must be a number, a list"),
    ("trainer.devices=[0,a]", "trainer.devices=[0, 'a']: must be a number, a list"),
    ("trainer.fast_dev_run=0.5", "trainer.fast_dev_run=0.5: must be true, false or"),  # failed after training
    ("model.n_layer=many", "model.n_layer=many: must be a whole number"),
    ("model.n_layer=2.5", "model.n_layer=2.5: must be a whole number"),
    ("stages.finetune.learning_rate=fast", "stages.finetune.learning_rate=fast: must be a number"),
    ("plugins=own_parts", "plugins=own_parts: must be a list: 'plugins=[own_parts]'"),
    ("callbacks.early_stopping.patience=2", "callbacks.early_stopping: is not chosen; give callbacks=early_"),
    ("model.n_layer=null", "model.n_layer=null: must not be null"),
    ("seed=x", "seed=x: must be a whole number"),
    ("seed=1e10", "seed=1e10: must be a whole number"),
    ("stages.pretrain.enabled=perhaps", "stages.pretrain.enabled=perhaps: must be true or false"),
    ("stages.pretrain=3", "stages.pretrain=3: "),
    ("stages.finetune.dataset.ascii_only=no", "stages.finetune.dataset.ascii_only=no: must be of type bool"),
    ("stages.finetune.learning_rate=inf", "stages.finetune.learning_rate=inf: must be from"),
    ("model.n_head=${model.heads}", "model.n_head: Interpolation key 'model.heads' not found"),
    ("init_from=a.ckpt", "init_from=a.ckpt: it replaces pretraining; give pretrain=none"),
    ("seed=1,2", "seed=1,2: several values; add -m"),
    ("attention=vanilla,synthesizer", "attention=vanilla,synthesizer: several values; add -m"),
    ("seed", "seed: cannot be read; expected KEY=VALUE"),
    ("++plugins=${oc.select:seed,3}", "plugins=0: must be a list of packages"),
    ("plugins=[birthplace_lm.runs]", "plugins=['birthplace_lm.runs']: birthplace_lm is not a package of"),
    ("labels.data='a", "labels.data='a: cannot be read; expected KEY=VALUE; text with"),
    ("data=null", "data=null: needs a name, or leave it out; valid: biographies, bios_birth_date, "),
    ("debug=null,smoke", "debug=null,smoke: needs a name, or leave it out; valid: overfit, profile, smoke"),
    ("logger=", "logger=: needs a name, or leave it out; valid: csv, "),
    ("+experiment=best", "experiment: chosen twice; write experiment=NAME, once and without +"),
    ("trainer.overfit_batches=null", "trainer.overfit_batches=null: must be a number; 0 trains on all"),
    ("trainer.max_steps=0", "trainer.max_steps=0: must be 1 or more, or -1 for no limit"),
    ("data=[{a:1}]", "no name for a group: attention, callbacks, data, "),
    ("attention=[vanilla]", "attention: needs one name; valid: additive, alibi, "),
    ("finetune={a:1}", "finetune: needs one name; valid: cs224n_2021, name_to_birthplace"),
    ("~data", "data: needs one name; valid: biographies, bios_birth_date, "),
    ("data=/tmp/people", "data=/tmp/people: needs one name, not a path; give the folder as data.root=DIR"),
    (
        "pretrain.max_epochs=3",
        "pretrain: needs one name; valid: language_modeling, none, span_corruption; keys of the stage are",
    ),
    (f"attention={'x' * 5000}", "[Errno 36] File name too long: "),
    (f"model.dropout={10**400}", "model.dropout: int too large to convert to float"),
    (f"seed={'{a:' * 300}1{'}' * 300}", "brackets within brackets: nested too deeply"),
    ("labels.attention=../../x", "labels.attention=../../x: must be letters, digits, _ and -, at most 64"),
    ("attention=/vanilla", "labels.attention=/vanilla: must be letters"),
    ("attention=vanilla.yaml", "labels.attention=vanilla.yaml: must be letters"),
    (
        "run_dir='~nobody_has_it/x'",
        "run_dir=~nobody_has_it/x: cannot expand ~nobody_has_it: unknown user",
    ),
    ("runs_root='\\${seed}'", "runs_root=${seed}: ${ cannot be part of a value"),
    ("runs_root='a\0b'", "runs_root=a\\x00b: \\x00 cannot be part of a value"),
    ("runs_root='a\u2028b'", "runs_root=a\\u2028b: \\u2028 cannot be part of a value"),
    ("run_dir=", "run_dir=: must not be empty"),
    ("trainer.limit_val_batches=[1]", "trainer.limit_val_batches=[1]: must be a number from 0.0"),
    ("trainer.limit_val_batches=true", "trainer.limit_val_batches=True: must be a number from 0.0"),
    ("trainer.devices={1:2,a:3}", "trainer.devices={1: 2, 'a': 3}: 1 is not a name"),
    ("precision=foo", "precision=foo: unknown; valid: "),
    ("stages.pretrain.enabled=false", "stages.pretrain.enabled=False: give pretrain=none"),
    ("trainer.accelerator=gqu", "trainer.accelerator=gqu: unknown; did you mean gpu?"),
    ("trainer.strategy=ddp_spawn", "trainer.strategy=ddp_spawn: unknown; "),
    ("trainer.gradient_clip_algorithm=foo", "trainer.gradient_clip_algorithm=foo: unknown; "),
    ("trainer.precision=bf17", "trainer.precision=bf17: unknown; did you mean bf16?"),
    ("trainer.accelerator=cpu precision=16-mixed", "trainer.precision=16-mixed: needs a GPU"),
    ("trainer.devices={a:1}", "trainer.devices={'a': 1}: must not be a mapping"),
    ("trainer.deterministic=nan", "trainer.deterministic=nan: unknown; valid: false, true, warn"),
    ("trainer.val_check_interval=0", "trainer.val_check_interval=0: must be above 0"),
    ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]: must be of type tuple[float, float]"),
    ("optimizer.betas=[0.9,nan]", "optimizer.betas=[0.9, nan]: must be finite"),
    (f"optimizer.weight_decay={10**400}", "optimizer.weight_decay=1000"),
    ("stages.pretrain.dataset.spans=3", "stages.pretrain.dataset.spans=3: must be of type Callable"),
    ("checkpoint=${seed}", "checkpoint=0: must be a mapping; give checkpoint.KEY=VALUE"),
    ("optimizer._partial_=false", "optimizer._partial_=False: must be true"),
    ("~optimizer._partial_", "optimizer._partial_=None: must be true"),
    ("+optimizer._args_=[1]", "optimizer._args_: unknown key"),
    ("optimizer.weight_decay=nan", "optimizer.weight_decay=nan: must be finite"),
    (
        "stages.finetune.schedule.warmup_fraction=inf",
        "stages.finetune.schedule.warmup_fraction=inf: must be finite",
    ),
]
OUT_OF_RANGE = [  # the same for what is found after composing
    ("optimizer.weight_decay=much", "optimizer.weight_decay=much: must be of type float"),
    ("seed=-1", "seed=-1: must be from 0 to 2147483647; the nearest is 0"),
    ("model.n_layer=0", "model.n_layer=0: must be from 1 to 1000; the nearest is 1"),
    ("model.n_embd=-8", "model.n_embd=-8: must be from 1"),
    ("model.dropout=1", "model.dropout=1.0: must be from 0.0 to 0.99; the nearest is 0.99"),
    ("model.dropout=nan", "model.dropout=nan: must be from"),
    ("stages.finetune.learning_rate=nan", "stages.finetune.learning_rate=nan: must be from"),
    ("stages.finetune.learning_rate=-inf", "stages.finetune.learning_rate=-inf: must be from"),
    ("stages.pretrain.batch_size=0", "stages.pretrain.batch_size=0: must be from 1"),
    ("trainer.gradient_clip_val=nan", "trainer.gradient_clip_val=nan: must be from"),
    ("checkpoint.keep_last=1", "checkpoint.keep_last=1: must be from 2 to 1000; the nearest is 2"),
    ("data.holdout_size=-1", "data.holdout_size=-1: must be from 0"),
    ("model.n_embd=100 model.n_head=8", "model.n_embd=100: not divisible by model.n_head=8; nearest is 96"),
    ("model.n_embd=3 model.n_head=8", "model.n_embd=3: not divisible by model.n_head=8; nearest is 8"),
    ("model.attention=null", "model.attention=None: must be a mapping"),
    ("stages.finetune.schedule=3", "stages.finetune.schedule=3: must be a mapping"),
]


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value).isprintable(), "one line"
    return str(error.value)


@pytest.mark.parametrize(("overrides", "wrong", "nearest"), UNKNOWN)
def test_an_unknown_name_comes_with_the_nearest(overrides: str, wrong: str, nearest: str | None) -> None:
    message = message_of(lambda: compose(overrides.split()))
    assert message.startswith((f"{wrong}: unknown; ", f"{wrong}: unknown key; "))
    assert ("did you mean" in message) == (nearest is not None)
    assert nearest is None or f"did you mean {nearest}? " in message


def test_an_unknown_option_comes_with_all_valid_ones() -> None:
    names = ", ".join(sorted(path.stem for path in (CONF / "attention").glob("*.yaml")))
    assert message_of(lambda: compose(["attention=zzz"])) == f"attention=zzz: unknown; valid: {names}"


@pytest.mark.parametrize(("overrides", "begins"), INVALID)
def test_an_invalid_value_is_named_with_its_key(overrides: str, begins: str) -> None:
    assert message_of(lambda: compose(overrides.split(" "))).startswith(begins)


@pytest.mark.parametrize(("overrides", "begins"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_named_with_the_range(plain: DictConfig, overrides: str, begins: str) -> None:
    values = OmegaConf.to_container(OmegaConf.from_dotlist(overrides.split()))
    copy = OmegaConf.merge(changed(plain), values)
    assert message_of(lambda: resolve_and_validate(copy)).startswith(begins)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "builtins.eval",
        "birthplace_lm.runs.directory.os.system",  # what a file of ours has imported
        "birthplace_lm.training.stage.write_text",
        "birthplace_lm.runs.atomic_files",
        "birthplace_lm./etc/passwd.x",
        "birthplace_lm..config.load",
        "birthplace_lm.training.optimizers.nothing",
        "birthplace_lmx.optimizers.adamw",
        "torch.optim.optimizer.inspect.os.system",
        "lightning.TrainerX",
        3,
    ],
)
def test_a_config_may_only_name_what_we_define(plain: DictConfig, target: object) -> None:
    for key in (
        "optimizer",
        "model.attention",
        "stages.finetune.dataset",
        "stages.pretrain.dataset.spans",
        "trainer",
    ):
        message = message_of(partial(resolve_and_validate, changed(plain, **{f"{key}._target_": target})))
        assert message.startswith(f"{key}._target_={target}: not allowed")


def test_a_target_hidden_in_a_list_is_found() -> None:
    with pytest.raises(InputError, match=r"os\.system: not allowed"):
        compose(["optimizer.betas=[0.9,{_target_:os.system}]"])


def test_arguments_of_every_kind_of_target() -> None:
    compose(
        [
            "attention=rope",
            "model.attention.base=64",
            "model.dropout=0",
            "optimizer.weight_decay=0",
        ]
    )
    compose(["stages.pretrain.dataset.min_shift=null"])
    with pytest.raises(InputError, match=r"min_shift=True: must be of type int \| None"):
        compose(["stages.pretrain.dataset.min_shift=true"])


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        ("runs_root=${oc.env:PLACE}/runs", "runs_root", "/a b/runs"),
        ("seed=${oc.env:NOT_THERE,3}", "seed", 3),
        ("seed='${oc.decode:${oc.env:NUMBER}}'", "seed", 7),
        ("run_dir=${runs_root}/one", "run_dir", "runs/one"),
        ("run_dir=${labels.attention}-${hydra:runtime.choices.spans}", "run_dir", "vanilla-salient"),
        (
            "stages.finetune.schedule=${stages.pretrain.schedule}",
            "stages.finetune.schedule.warmup_fraction",
            0.02,
        ),
    ],
)
def test_interpolations_are_resolved_once(
    monkeypatch: pytest.MonkeyPatch, overrides: str, key: str, value: object
) -> None:
    """A run directory keeps what they meant, whatever the environment says later."""
    monkeypatch.setenv("PLACE", "/a b")
    monkeypatch.setenv("NUMBER", "7")
    monkeypatch.delenv("NOT_THERE", raising=False)
    config = compose([overrides])
    assert OmegaConf.select(config, key) == value
    assert "${" not in OmegaConf.to_yaml(config)


@pytest.mark.parametrize(
    ("overrides", "begins"),
    [
        ("runs_root=${oc.env:NOT_THERE}", "runs_root: KeyError raised while resolving interpolation: "),
        ("seed=${oc.env:TRICKY}", "seed: While dereferencing interpolation '${oc.env:TRICKY}': Value '${oc"),
        ("runs_root=${oc.env:TRICKY}", "runs_root=${oc.env:HOME}: ${ cannot be part of a value"),
        ("seed=${oc.decode:'{a'}", "seed: GrammarParseError raised while resolving interpolation: "),
        ("seed=${seed}", "seed: Recursive interpolation detected"),
        ("model.attention=${model}", "model.attention: Interpolation to parent node detected"),
        ("runs_root=${hydra:nope}", "runs_root: While dereferencing interpolation '${hydra:nope}'"),
        ("runs_root=${hydra:}", "runs_root: TypeError raised while resolving interpolation: "),
        ("runs_root=${python:os.system}", "runs_root: Unsupported interpolation type python"),
        ("labels.attention=${oc.env:PLACE}", "labels.attention=/a b: must be letters, digits, _ and -"),
    ],
)
def test_an_interpolation_that_leads_nowhere(
    monkeypatch: pytest.MonkeyPatch, overrides: str, begins: str
) -> None:
    monkeypatch.setenv("PLACE", "/a b")
    monkeypatch.setenv("TRICKY", "${oc.env:HOME}")
    monkeypatch.delenv("NOT_THERE", raising=False)
    assert message_of(lambda: compose([overrides])).startswith(begins)


def test_it_is_composed_once_and_never_written_to() -> None:
    config = compose()
    with pytest.raises(ReadonlyConfigError):
        config.seed = 3
    with pytest.raises(ReadonlyConfigError):
        config.stages.finetune.dataset.ascii_only = True
    assert compose() == config
    assert compose(["seed=1"]) != config


def test_a_saved_configuration_is_checked_alike() -> None:
    config = compose(["attention=synthesizer", "pretrain=none", *COURSE])

    assert resolve_and_validate(changed(config)) == config
    for key, value, message in [
        ("model.n_layer", "many", "model.n_layer: must be a whole number"),
        ("model.n_layer", -1, "model.n_layer=-1: must be from 1"),
        ("model.depth", 3, "model.depth: unknown key"),
        ("model", 3, "int is not a subclass of Model"),
        ("surprise", 3, "surprise: unknown key"),
    ]:
        with pytest.raises(InputError, match=message):
            resolve_and_validate(changed(config, **{key: value}))
    for key in ("stages.pretrain.batch_size", "optimizer"):
        without = changed(config)
        parent, _, name = key.rpartition(".")
        del (OmegaConf.select(without, parent) if parent else without)[name]
        with pytest.raises(InputError, match=f"{key} is missing"):
            resolve_and_validate(without)
    older = changed(config)
    del older.model.learned_positions  # a key that did not exist yet has its default
    assert resolve_and_validate(older) == config


def test_explain_survives_an_error_without_words() -> None:
    assert str(to_input_error(OmegaConfBaseException())) == "OmegaConfBaseException"


@pytest.mark.parametrize("overrides", [[], ["model.n_lyer=3"], COURSE])
def test_composing_is_quick(overrides: list[str]) -> None:
    """A mistake shows before seconds of importing torch and lightning."""
    code = f"""
import sys
from birthplace_lm.config.compose import compose
from birthplace_lm.errors import InputError
try:
    compose({overrides!r})
except InputError:
    pass
print([name for name in ("torch", "lightning", "torchmetrics", "numpy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CONF.parent)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("overrides", [[1], ["seed=1", None], "seed=1"])
def test_overrides_are_a_list_of_texts(overrides: Any) -> None:
    """Bug: "no name for a group"."""
    with pytest.raises(InputError, match=r"^overrides=.*: must be a list of texts"):
        compose(overrides)
