"""Parts of a user, named by `plugins`: attention, spans, optimizer, schedule, data, callback, logger."""

import json
import re
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from stage import Stop, StopAt, digest, fit, quick, run, sign
from typer.testing import CliRunner

import birthplace_lm
from birthplace_lm.cli.commands import app
from birthplace_lm.config.compose import compose, load_saved, resolve_and_validate
from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.errors import CheckpointError, InputError, InternalError
from birthplace_lm.models.build import build_model
from birthplace_lm.runs import checkpoint
from birthplace_lm.training.preflight import preflight

PLUGIN = "plugins=[own_parts]"
CONF = {  # a configuration folder of a user
    "attention/scaled.yaml": """# @package model
attention: {_target_: own_parts.ScaledAttention, _partial_: true, gain: 2.0}
""",
    "spans/own.yaml": """# @package stages.pretrain.dataset.spans
_target_: own_parts.OwnSpans
_partial_: true
""",
    "optimizer/sgd.yaml": """_target_: own_parts.sgd
_partial_: true
momentum: 0.5
""",
    "schedule/constant.yaml": """# @package stages
pretrain: {schedule: {_target_: own_parts.constant, _partial_: true, factor: 0.5}}
finetune: {schedule: {_target_: own_parts.constant, _partial_: true, factor: 0.5}}
""",
    "finetune/own.yaml": """# @package stages.finetune
defaults: [name_to_birthplace]
dataset: {_target_: own_parts.OwnQuestions, repeats: 2}
""",
    "callbacks/noise.yaml": "noise: {_target_: own_parts.GradientNoise, _partial_: true, scale: 0.01}\n",
    "callbacks/forgetful.yaml": "noise: {_target_: own_parts.Forgetful, _partial_: true}\n",
    "callbacks/unsaveable.yaml": "unsaveable: {_target_: own_parts.Unsaveable, _partial_: true}\n",
    "callbacks/frozen.yaml": "frozen: {_target_: own_parts.FrozenEmbedding, _partial_: true}\n",
    "callbacks/wrong.yaml": "wrong: {_target_: own_parts.not_a_callback, _partial_: true}\n",
    "logger/own.yaml": "own: {_target_: own_parts.JsonLogger, _partial_: true}\n",
}
CHOICES = (
    "attention=scaled",
    "spans=own",
    "optimizer=sgd",
    "schedule=constant",
    "finetune=own",
    "callbacks=[early_stopping,noise]",
    "logger=[csv,own]",
)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The override by which Hydra also looks in the user's folder, as `--config-dir` does."""
    folder = tmp_path_factory.mktemp("conf")
    for name, text in CONF.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return f"hydra.searchpath=[file://{folder}]"


@pytest.fixture(scope="module")
def own_run(people: Path, search: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which every part is the user's; the spans are sampled in a data worker too."""
    root = tmp_path_factory.mktemp("own")
    run(quick(people, root, search, PLUGIN, *CHOICES, "stages.pretrain.num_workers=1"))
    (path,) = (root / "runs").glob("scaled-*")
    return path


def test_a_part_of_every_kind_takes_effect(own_run: Path) -> None:
    state = checkpoint.load(checkpoint.list_checkpoints(own_run / "finetune")[0])
    assert "model.blocks.0.attn.gain" in state["state_dict"]
    assert "momentum_buffer" in state["optimizer_states"][0]["state"][0]
    assert state["global_step"] == 2 * -(-24 // 5), "12 questions, twice an epoch"
    assert state["OwnQuestions"]["epoch"] == 2
    assert state["callbacks"]["GradientNoise"]["steps"] == state["global_step"]
    first, settings, *points = map(json.loads, (own_run / "finetune" / "own.jsonl").read_text().splitlines())
    assert first == {"name": f"{own_run.name}/finetune", "first_step": 0}
    assert settings == {"seed": 0}
    rates = [point["finetune/learning_rate"] for point in points if "finetune/learning_rate" in point]
    assert rates == [0.5e-4] * state["global_step"]
    config = load_saved(own_run / "config.yaml", ["own_parts"])
    plan, *_ = preflight(config, read_corpus(config.data, config.model.block_size))
    assert [*plan.warnings] == ["spans: mine"]
    assert not [*own_run.rglob("events.out.tfevents*")], "no TensorBoard without its logger"


def test_state_that_an_optimizer_keeps_beside_its_settings_is_resumed(
    people: Path, search: str, tmp_path: Path
) -> None:
    """Bug: all of a parameter group but its weights became what a new optimizer has."""
    config = quick(people, tmp_path, search, PLUGIN, "optimizer=sgd", "pretrain=none", "trainer.max_steps=6")
    fit(config, "finetune", tmp_path / "whole")
    with pytest.raises(Stop):
        fit(config, "finetune", tmp_path / "stopped", StopAt("on_train_batch_end", 5))
    fit(config, "finetune", tmp_path / "stopped")
    assert digest(tmp_path / "stopped") == digest(tmp_path / "whole")
    content = checkpoint.load(checkpoint.list_checkpoints(tmp_path / "stopped")[0])
    assert content["optimizer_states"][0]["param_groups"][0]["count"] == 6


def test_a_saved_configuration_names_no_plugin(own_run: Path) -> None:
    """Not config.yaml, not the copy in a checkpoint, and not one that was edited to name some."""
    file = own_run / "config.yaml"
    last = checkpoint.load(checkpoint.list_checkpoints(own_run / "finetune")[0])
    for text in (file.read_text(), last["birthplace_lm"]["config"]):
        assert "plugins: []" in text
        assert "own_parts.ScaledAttention" in text
    edited = own_run / "edited.yaml"
    edited.write_text(file.read_text().replace("plugins: []", "plugins: [own_parts]"))
    for saved in (file, edited):
        with pytest.raises(InputError, match=r"own_parts.* not allowed.*--plugin own_parts"):
            load_saved(saved)
        assert load_saved(saved, ["own_parts"]).model.attention.gain == 2.0
    edited.unlink()


def test_who_asks_names_the_plugin_again(own_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.yaml: .*not allowed.*plugins=\[\"own_parts\"\] in Python"):
        birthplace_lm.load(own_run)
    answer = birthplace_lm.load(own_run, plugins=["own_parts"]).answer(["Ada Bee"])
    command = CliRunner()
    refused = command.invoke(app, ["ask", str(own_run), "Ada Bee"])
    assert isinstance(refused.exception, InputError)
    asked = command.invoke(app, ["ask", str(own_run), "Ada Bee", "--plugin", "own_parts", "--json"])
    assert [row["answer"] for row in json.loads(asked.stdout)] == answer
    exported = str(tmp_path / "model")
    assert command.invoke(app, ["export", str(own_run), exported, "--plugin", "own_parts"]).exit_code == 0
    with pytest.raises(InputError, match="--plugin own_parts"):
        birthplace_lm.load(exported)
    assert birthplace_lm.load(exported, plugins=["own_parts"]).answer(["Ada Bee"]) == answer


def test_the_same_command_finds_its_run_and_its_checkpoints(own_run: Path, people: Path, search: str) -> None:
    root = own_run.parents[1]
    again = quick(people, root, search, PLUGIN, *CHOICES, "stages.pretrain.num_workers=1")
    before = (own_run / "metrics.json").stat().st_mtime
    assert run(again) == json.loads((own_run / "metrics.json").read_text())
    assert (own_run / "metrics.json").stat().st_mtime == before
    file = checkpoint.list_checkpoints(own_run / "finetune")[-1]
    longer = quick(
        people, root, search, PLUGIN, *CHOICES, "stages.finetune.max_epochs=3", f"extend_from={own_run}"
    )
    assert run(longer)["stages"]["finetune"]["steps"] == 3 * -(-24 // 5)
    # A forged checkpoint cannot add a package to those that the caller names.
    content = checkpoint.load(file)
    content["birthplace_lm"]["config"] = content["birthplace_lm"]["config"].replace(
        "own_parts.sgd", "subprocess.Popen"
    )
    forged = own_run.parent / "step-00000002.ckpt"
    torch.save(content, forged)
    sign(forged)
    with pytest.raises(CheckpointError, match=r"subprocess\.Popen: not allowed"):
        run(quick(people, root, search, PLUGIN, *CHOICES, f"resume={forged}"))


def message_of(config: DictConfig, changes: dict[str, object]) -> str:
    """What is wrong with a configuration in which some keys have other values."""
    changed = DictConfig(OmegaConf.to_container(config))
    for key, value in changes.items():
        OmegaConf.update(changed, key, value, force_add=True)
    with pytest.raises(InputError) as caught:
        resolve_and_validate(changed)
    return str(caught.value)


def test_mistakes_are_one_line(search: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = compose([search, PLUGIN, "attention=scaled"])
    refused = message_of(own, {"plugins": []})
    assert refused.startswith(
        "model.attention._target_=own_parts.ScaledAttention: not allowed; name a class or function that"
        " birthplace_lm.models.attention defines"
    )
    assert "'plugins=[own_parts]' to train" in refused
    # A package that is allowed allows no other whose name begins alike.
    (tmp_path / "own.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert message_of(own, {"plugins": ["own"]}) == refused
    for plugins in (["a/b"], ["birthplace_lm"], ["own_parts", "x."]):
        assert "is not a package of yours" in message_of(own, {"plugins": plugins})
    target, absent = "model.attention._target_", "absent_package.attention.Mean"
    missing = message_of(own, {"plugins": ["absent_package"], target: absent})
    assert missing.startswith("plugins: no package absent_package; install it")
    assert "PYTHONPATH=FOLDER" in missing
    assert "no package absent.part" in message_of(own, {"plugins": ["own_parts", "absent.part"]})
    assert "no attribute 'Men'" in message_of(own, {target: "own_parts.Men"})
    for other in ("constant", "not_a_callback"):
        refused = message_of(own, {target: f"own_parts.{other}"})
        assert f"own_parts.{other}: is called with n_embd, n_head, block_size, dropout, and does" in refused
    unknown = message_of(own, {"model.attention.gian": 1})
    assert unknown.startswith("model.attention.gian: unknown key; did you mean model.attention.gain?")
    assert "must be of type float" in message_of(own, {"model.attention.gain": "much"})
    assert "_partial_=False: must be true" in message_of(own, {"model.attention._partial_": False})
    assert "callbacks.x=3: must be a mapping" in message_of(own, {"callbacks.x": 3})
    for key, hostile in (
        ("callbacks.x", "os.system"),
        ("callbacks.x", "birthplace_lm.training.callbacks.checkpointing.CheckpointCallback"),
        ("logger.x", "birthplace_lm.runs.checkpoint.save"),
    ):
        node = {"_target_": hostile, "_partial_": True}
        assert f"{key}._target_={hostile}: not allowed" in message_of(own, {key: node})


def test_what_is_no_callback_or_cannot_be_saved_is_refused(people: Path, search: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"callbacks\.wrong\._target_: makes a tuple; must make a Callback"):
        run(quick(people, tmp_path, search, PLUGIN, "callbacks=wrong"))
    assert not (tmp_path / "runs").exists()
    with pytest.raises(
        CheckpointError, match=r"callbacks\.Unsaveable\.best is a pathlib\.\w+; a checkpoint holds"
    ):
        run(quick(people, tmp_path, search, PLUGIN, "callbacks=unsaveable"))


def with_part(config: DictConfig, key: str, target: str) -> DictConfig:
    """The configuration with a part of `broken_parts` in place of another."""
    changed = DictConfig(OmegaConf.to_container(config))
    part = {"_target_": f"broken_parts.{target}", "_partial_": True}
    OmegaConf.update(changed, key, part, merge=False, force_add=True)
    return changed


SPANS, SCHEDULE = "stages.pretrain.dataset", "stages.finetune.schedule"


@pytest.mark.parametrize(
    ("key", "target", "message"),
    [
        (SPANS, "WithoutSample", "AttributeError: 'WithoutSample' object has no attribute 'sample'"),
        (SPANS, "SamplesNothing", "SamplesNothing.sample: must return `Spans`: five int64 tensors"),
        (SPANS, "SamplesAList", "SamplesAList.sample: must return `Spans`: five int64 tensors"),
        (SPANS, "WithoutMaskIndex", "TypeError: WithoutMaskIndex.sample() takes 2 positional arguments"),
        (SPANS, "SamplesTenDocuments", "with a number for each of the 24 documents"),
        (SPANS, "SamplesFloats", "five int64 tensors"),
        (SPANS, "SamplesUnlikeBefore", "take all random numbers from the generator"),
        (SPANS, "NeedsAServer", "OSError: no server"),
        (SCHEDULE, "no_schedule", "TypeError: makes a NoneType; must make a function of the positions read"),
        (SCHEDULE, "failing", "KeyError: 'rate'"),
        (SCHEDULE, "uphill", "its factor before step 1 is -1.0; must be a number, 0 or more"),
        (SCHEDULE, "no_number", "its factor before step 1 is None; must be a number, 0 or more"),
        (SCHEDULE, "divides_by_zero_at_the_end", "ZeroDivisionError: "),
        (
            "optimizer",
            "without_biases",
            "of the model's weights, first blocks.0.ln1.weight; to freeze weights",
        ),
        ("optimizer", "mistyped", "TypeError: "),
        ("callbacks.own", "NeedsAHost", "KeyError: 'host'"),
        ("stages.finetune.dataset", "WithoutSources", "AttributeError: "),
        ("stages.finetune.dataset", "WithoutInit", "AttributeError: "),
    ],
)
def test_a_part_that_breaks_its_promise_is_named_before_the_start(
    people: Path, tmp_path: Path, key: str, target: str, message: str
) -> None:
    """Bug: some were a traceback, others were found in training, and a negative rate was never found."""
    config = quick(people, tmp_path, "plugins=[broken_parts]")
    place = f"{key}.spans" if key == SPANS else key
    config = with_part(config, place, target)
    with pytest.raises(InputError) as caught:
        preflight(config, read_corpus(config.data, config.model.block_size))
    assert str(caught.value).startswith((f"{key}: broken_parts.{target}: ", f"{target}.sample: "))
    assert message in str(caught.value)


def test_a_callback_may_freeze_weights(people: Path, search: str, tmp_path: Path) -> None:
    config = quick(people, tmp_path, search, PLUGIN, "callbacks=frozen", "pretrain=none", "seed=1")
    fit(config, "finetune", tmp_path / "stage")
    state = checkpoint.load(checkpoint.list_checkpoints(tmp_path / "stage")[0])["state_dict"]
    torch.manual_seed(1)
    corpus = read_corpus(config.data, config.model.block_size)
    before = build_model(config.model, len(corpus.vocab)).state_dict()
    assert torch.equal(state["model.tok_emb.weight"], before["tok_emb.weight"])
    assert not torch.equal(state["model.head.weight"], before["head.weight"])
    with pytest.raises(Stop):
        fit(config, "finetune", tmp_path / "stopped", StopAt("on_train_batch_end", 5))
    fit(config, "finetune", tmp_path / "stopped")
    assert digest(tmp_path / "stopped") == digest(tmp_path / "stage")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("FailsInAHook", "AttributeError: 'Block' object has no attribute 'attention'"),
        (
            "ReadsAFileInAHook",
            "FileNotFoundError: [Errno 2] No such file or directory: '/gone/x'",
        ),
    ],
)
def test_an_error_in_a_hook_names_its_place(people: Path, tmp_path: Path, target: str, message: str) -> None:
    """Bug: it looked like one of this project, and a missing file like a full disk."""
    config = quick(people, tmp_path, "plugins=[broken_parts]", "pretrain=none")
    config = with_part(config, "callbacks.own", target)
    with pytest.raises(InternalError) as caught:
        run(config)
    place = r", in on_train_batch_end \(/.*/broken_parts\.py:\d+\); log\.txt has the traceback"
    assert re.fullmatch(re.escape(message) + place, str(caught.value))
