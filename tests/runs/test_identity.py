"""Whatever decides the weights is in the identity, and nothing else."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.errors import CheckpointError, InputError
from birthplace_lm.runs.directory import RunDirectory, check_run_dir
from birthplace_lm.runs.identity import flatten, hashed_config, named_checkpoint, run_directory, with_inputs


def identified(config: DictConfig) -> DictConfig:
    return with_inputs(config, read_corpus(config.data, config.model.block_size).sha256)


@pytest.mark.parametrize(
    "spelling",
    [
        ("trainer.max_epochs=2",),
        ("trainer.accelerator=auto",),
        ("trainer.precision=32",),
        ("trainer.devices=3", "trainer.strategy=ddp"),
        ("trainer=ddp", "trainer.num_nodes=2"),
        ("trainer.overfit_batches=0",),
        ("trainer.limit_train_batches=1.0",),
        ("optimizer.weight_decay=0.020",),
        ("labels.data=people",),
        ("trainer.detect_anomaly=true",),
        ("max_nonfinite_steps=3",),
    ],
    ids=lambda overrides: overrides[0],
)
def test_equal_settings_count_as_equal(configure: Any, spelling: tuple[str, ...]) -> None:
    assert hashed_config(configure(*spelling)) == hashed_config(configure())


@pytest.mark.parametrize(
    "override",
    [
        "trainer.max_epochs=3",
        "trainer.precision=bf16",
        "trainer=fsdp2",
        "trainer.limit_train_batches=1",
        "on_nonfinite=skip",
        "model.dropout=0.1",
        "data.question=Which town is {name} from?",
        "trainer.gradient_clip_val=0",
    ],
)
def test_other_settings_count(configure: Any, override: str) -> None:
    assert hashed_config(configure(override)) != hashed_config(configure())


def test_the_keys_that_do_not_count_are_these(configure: Any) -> None:
    """A key that decides weights must not be among them: two runs would share a folder."""
    content: Any = OmegaConf.to_container(configure("on_nonfinite=skip", "logger=[]"))
    hashed, ignored = hashed_config(OmegaConf.create(content)), []
    for key, value in flatten(content).items():
        changed = OmegaConf.create(content)
        OmegaConf.update(changed, key, another(value))
        if hashed_config(changed) == hashed:
            ignored.append(key)
    assert sorted(ignored) == [
        *("checkpoint.every_n_steps", "checkpoint.keep_last", "data.root", "dry_run", "float32_products"),
        *(
            "labels.attention",
            "labels.data",
            "labels.pretrain",
            "overwrite",
            "plugins",
            "precision",
            "resume",
        ),
        *("run_dir", "runs_root", "stages.finetune.num_workers", "stages.pretrain.num_workers"),
        *("stop_timeout_seconds", "traceback", "trainer.accelerator", "trainer.detect_anomaly"),
        *("trainer.devices", "trainer.enable_model_summary", "trainer.enable_progress_bar"),
        *("trainer.inference_mode", "trainer.log_every_n_steps", "trainer.num_nodes"),
        *("trainer.num_sanity_val_steps", "trainer.profiler", "trainer.strategy"),
    ]


def test_an_optimizer_that_no_stage_uses_does_not_count(configure: Any) -> None:
    """Another optimizer for finetuning once started the pretraining over, which had its own."""
    own = ["+optimizer@stages.pretrain.optimizer=adamw"]

    def hashes(stage: str | None, *overrides: str) -> list[dict[str, Any]]:
        optimizers = ("optimizer.weight_decay=0.02", "optimizer.weight_decay=0.03")
        return [hashed_config(configure(*overrides, optimizer), stage) for optimizer in optimizers]

    one, other = hashes("pretrain", *own)
    assert one == other
    one, other = hashes("pretrain")
    assert one != other
    one, other = hashes("finetune", *own)
    assert one != other, "finetuning uses it"
    one, other = hashes(None, *own, "+optimizer@stages.finetune.optimizer=adamw")
    assert one == other


def another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, str | list):
        return [*value, "x"] if isinstance(value, list) else f"{value}x"
    return 1 if value is None else value + 1


@pytest.mark.parametrize("key", ["limit_train_batches", "limit_val_batches", "overfit_batches"])
def test_all_batches_are_not_one_batch(configure: Any, key: str) -> None:
    """The run of overfit_batches=1.0, all batches, was once taken for that of overfit_batches=1."""
    assert hashed_config(configure(f"trainer.{key}=1.0")) != hashed_config(configure(f"trainer.{key}=1"))


def test_moved_data_are_the_same_and_changed_data_are_others(
    configure: Any, people: Path, tmp_path: Path
) -> None:
    """Moving the folder once started everything over, and `run_dir=OLD data.root=NEW` was refused."""
    here = identified(configure())
    with RunDirectory(tmp_path / "run", here).open_for_run():
        pass
    shutil.copytree(people, tmp_path / "moved")
    moved = identified(configure(f"data.root={tmp_path / 'moved'}"))
    assert run_directory(moved) == run_directory(here)
    check_run_dir(tmp_path / "run", moved)
    with (tmp_path / "moved" / "dev.tsv").open("a") as file:
        file.write("Where was Ada Lovelace born?\tLondon\n")
    changed = identified(configure(f"data.root={tmp_path / 'moved'}"))
    assert run_directory(changed) != run_directory(here)
    hashes = [config.inputs.dev for config in (here, changed)]
    with pytest.raises(InputError, match=rf"another data.dev \({hashes[0]} there, {hashes[1]} here\)"):
        check_run_dir(tmp_path / "run", changed)


def test_a_checkpoint_counts_by_its_content(configure: Any, tmp_path: Path) -> None:
    directories = []
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
        config = configure("pretrain=none", f"init_from={tmp_path / name}")
        directories.append(run_directory(identified(config)))
    assert directories[0] == directories[1] != directories[2]
    with pytest.raises(CheckpointError, match="no such run or checkpoint"):
        identified(configure("pretrain=none", f"init_from={tmp_path / 'd'}"))


def test_a_run_without_symbolic_links_is_extended(tmp_path: Path) -> None:
    """Where a text file stands for the link to a shared pretraining, no finished stage was seen."""
    shared, run = tmp_path / "pretrained" / "a", tmp_path / "run"
    shared.mkdir(parents=True)
    run.mkdir()
    for name in ("result.json", "step-00000002.ckpt", "step-00000004.ckpt"):
        (shared / name).touch()
    (run / "pretrain").write_text("../pretrained/a\n")
    assert named_checkpoint("extend_from", str(run)).resolve() == shared / "step-00000004.ckpt"


def test_a_run_directory_stands_for_its_last_checkpoint(tmp_path: Path) -> None:
    """For init_from as for extend_from; resume needs a file, because a run may have several to continue."""
    for stage, step in (("pretrain", 4), ("finetune", 9)):
        folder = tmp_path / stage
        folder.mkdir()
        (folder / f"step-{step:08d}.ckpt").touch()
        (folder / "result.json").touch()
        for key in ("init_from", "extend_from"):
            assert named_checkpoint(key, str(tmp_path)) == folder / f"step-{step:08d}.ckpt"
    with pytest.raises(CheckpointError, match="a directory"):
        named_checkpoint("resume", str(tmp_path))


@pytest.mark.parametrize("key", ["init_from", "extend_from"])
def test_a_run_that_is_not_finished_stands_for_none(key: str, tmp_path: Path) -> None:
    """Bug: the weights after pretraining were taken from a run that was interrupted in finetuning."""
    for stage in ("pretrain", "finetune"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "step-00000004.ckpt").touch()
    (tmp_path / "pretrain" / "result.json").touch()
    with pytest.raises(CheckpointError, match=r"its stage finetune is not finished.*/pretrain$"):
        named_checkpoint(key, str(tmp_path))
    assert named_checkpoint(key, str(tmp_path / "pretrain")).parent == tmp_path / "pretrain"
