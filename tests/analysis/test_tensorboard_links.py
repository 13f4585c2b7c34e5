"""The folder of links that TensorBoard reads."""

import shutil
from pathlib import Path

from run_files import write_run
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from birthplace_lm.analysis.report.collect import find_runs
from birthplace_lm.analysis.tensorboard import update_links, update_view

EVENTS = "events.out.tfevents.1"


def links(root: Path, folder: Path) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    update_links(find_runs(root), folder)
    return {str(path.relative_to(folder)): path.resolve().name for path in folder.glob("*/*")}


def test_runs_are_named_by_what_varies_and_a_shared_pretraining_is_there_once(tmp_path: Path) -> None:
    root, view = tmp_path / "runs", tmp_path / "view"
    for seed in (0, 1):
        shared = root / "pretrained" / f"vanilla-s{seed}"
        shared.mkdir(parents=True)
        (shared / EVENTS).touch()
        for rate in (0.001, 0.002):
            run = write_run(root / f"{seed}-{rate}", seed=seed, stages={"finetune": {"learning_rate": rate}})
            (run / "pretrain").symlink_to(shared)
            (run / "finetune" / EVENTS).touch()
    expected = {
        f"finetune.learning_rate={rate}, seed {seed}/finetune": "finetune"
        for seed in (0, 1)
        for rate in (0.001, 0.002)
    } | {f"seed {seed}/pretrain": f"vanilla-s{seed}" for seed in (0, 1)}
    assert links(root, view) == expected

    run = write_run(root / "new", "running", seed=2, stages={"finetune": {"learning_rate": 0.002}})
    assert links(root, view) == expected  # it has no events so far
    (run / "finetune").mkdir()
    (run / "finetune" / EVENTS).touch()
    assert links(root, view) == {**expected, "finetune.learning_rate=0.002, seed 2/finetune": "finetune"}


def test_links_are_renamed_when_something_else_varies(tmp_path: Path) -> None:
    root, view = tmp_path / "runs", tmp_path / "view"
    (write_run(root / "a") / "finetune" / EVENTS).touch()
    assert [*links(root, view)] == ["vanilla, none/finetune"]
    (write_run(root / "b", init_from="/x/vanilla-67ecb466/step-00000007.ckpt") / "finetune" / EVENTS).touch()
    assert {*links(root, view)} == {"none/finetune", "init_from 67ecb466@7/finetune"}
    assert {path.name for path in view.iterdir()} == {"none", "init_from 67ecb466@7"}


def test_runs_with_one_label_are_told_apart(tmp_path: Path) -> None:
    """As when the content of a data file changed between them."""
    root = tmp_path / "runs"
    for name in ("vanilla-none-x-s0-0000000a", "vanilla-none-x-s0-0000000b"):
        (write_run(root / name) / "finetune" / EVENTS).touch()
    names = {*links(root, tmp_path / "view")}
    assert names == {"vanilla, none/finetune", "vanilla, none, 0000000b/finetune"}


def test_a_long_label_is_a_name_that_file_systems_take(tmp_path: Path) -> None:
    """Bug: its characters were counted, not its bytes."""
    for word in ("Где", "Когда"):
        question = f"{word} {'родился ' * 30}{{name}}?"
        run = write_run(tmp_path / "runs" / word, data={"question": question}, seed=0)
        (run / "finetune" / EVENTS).touch()
    assert len(links(tmp_path / "runs", tmp_path / "view")) == 2


def test_the_hparams_tab_has_what_varies_and_the_score(tmp_path: Path) -> None:
    root, view = tmp_path / "runs", tmp_path / "view"
    for seed in (0, 1):
        for rate in (0.001, 0.002):
            run = write_run(root / f"{seed}-{rate}", seed=seed, stages={"finetune": {"learning_rate": rate}})
            (run / "finetune" / EVENTS).touch()
    view.mkdir()
    update_view(find_runs(root), view)
    (file,) = view.glob("*columns*/events.out.tfevents.*")
    (experiment,) = [
        HParamsPluginData.FromString(value.metadata.plugin_data.content).experiment
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    ]
    assert [info.name for info in experiment.hparam_infos] == ["finetune.learning_rate", "seed"]
    assert [info.name.tag for info in experiment.metric_infos] == ["final/dev_exact_match", "final/loss"]
    update_view(find_runs(root), view)
    assert [*view.glob("*columns*/events.out.tfevents.*")] == [file]  # nothing new varies
    before = file.read_bytes()
    for rate in (0.001, 0.002):
        shutil.rmtree(root / f"1-{rate}")
    update_view(find_runs(root), view)
    (file,) = view.glob("*columns*/events.out.tfevents.*")
    assert file.read_bytes() != before
