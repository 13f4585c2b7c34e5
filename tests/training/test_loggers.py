"""Loggers: several at once, none, resumed; Weights & Biases and MLflow offline, where they are installed."""

import csv
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from program import curves
from stage import Stop, StopAt, fit, quick, run

from birthplace_lm.errors import InputError
from birthplace_lm.runs import checkpoint
from birthplace_lm.training import loggers

WANDB_BLOCK = 32768  # bytes
STAGE = ("pretrain=none", "stages.finetune.check_val_every_n_epoch=1")


def rows(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points of every curve in curves.csv; of speeds the steps alone."""
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    with (folder / loggers.CURVES_CSV).open(newline="") as file:
        for row in csv.DictReader(file):
            timed = row["metric"].endswith("characters_per_second")
            points[row["metric"]].append((int(row["step"]), 0.0 if timed else float(row["value"])))
    return points


def test_csv_has_the_curves_of_tensorboard(people: Path, tmp_path: Path) -> None:
    """Also after a kill and a resume, when both drop what the resumed run writes again."""
    config = quick(people, tmp_path, *STAGE, "logger=[tensorboard,csv]")
    fit(config, "finetune", tmp_path / "whole")
    stopped = tmp_path / "stopped"
    with pytest.raises(Stop):
        fit(config, "finetune", stopped, StopAt("on_train_epoch_end", 3))  # its newest checkpoint: 2
    assert max(step for step, _ in rows(stopped)["finetune/loss"]) == 2
    with (stopped / loggers.CURVES_CSV).open("a") as file:
        file.write("3,finetune/lo")  # half a line, as of a killed process
    fit(config, "finetune", stopped)
    assert rows(stopped) == rows(tmp_path / "whole")
    assert [step for step, _ in rows(stopped)["finetune/loss"]] == [*range(6)]
    drawn = curves(stopped)
    for name in ("loss", "learning_rate", "grad_norm", "val_loss", "exact_match"):
        points, expected = rows(stopped)[f"finetune/{name}"], drawn[f"finetune/{name}"]
        assert [step for step, _ in points] == [step for step, _ in expected]
        assert [value for _, value in points] == pytest.approx([value for _, value in expected])


def test_csv_continues_from_another_folder(people: Path, tmp_path: Path) -> None:
    """Bug: the curve began at the checkpoint; TensorBoard's files were copied, curves.csv was not."""
    fit(quick(people, tmp_path, *STAGE, "logger=csv"), "finetune", tmp_path / "one")
    file = checkpoint.list_checkpoints(tmp_path / "one")[-1]
    assert checkpoint.parse_step(file) == 4
    fit(quick(people, tmp_path, *STAGE, "logger=csv", f"resume={file}"), "finetune", tmp_path / "two")
    assert rows(tmp_path / "two") == rows(tmp_path / "one")


def test_no_logger_leaves_no_curves_and_the_same_run(people: Path, tmp_path: Path) -> None:
    with_curves = run(quick(people, tmp_path / "a", "pretrain=none"))
    without = run(quick(people, tmp_path / "b", "pretrain=none", "logger=none"))
    assert without["weights_sha256"] == with_curves["weights_sha256"]
    (one,), (other,) = ([*(tmp_path / name / "runs").glob("vanilla-*")] for name in "ab")
    assert one.name == other.name, "a logger is no part of the identity"
    assert [*one.rglob("events.out.tfevents*")]
    assert not [*other.rglob("events.out.tfevents*")]


def test_a_logger_that_is_not_installed_is_refused(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    for name in ("wandb", "mlflow"):
        with pytest.raises(
            InputError, match=rf"logger={name}: not installed; pip install 'birthplace-lm\[{name}\]'"
        ):
            run(quick(people, tmp_path, f"logger={name}"))
    assert not (tmp_path / "runs").exists()


def wandb_records(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file, which has the format of LevelDB's log."""
    content, place, record = file.read_bytes(), 7, b""  # after the file's own header
    while place + 7 <= len(content):
        if WANDB_BLOCK - place % WANDB_BLOCK < 7:  # no room for the header of a record
            place += WANDB_BLOCK - place % WANDB_BLOCK
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb_offline(people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run per stage; a resumed stage continues its own. Read from the files that are uploaded later."""
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_SILENT", "true")
    config = quick(people, tmp_path, *STAGE, "logger=wandb", "logger.wandb.offline=true")
    folder = tmp_path / "run" / "finetune"
    with pytest.raises(Stop):
        fit(config, "finetune", folder, StopAt("on_train_epoch_end", 3))
    fit(config, "finetune", folder)
    runs: set[tuple[str, str, str]] = set()
    losses: dict[int, float] = {}
    parse = getattr(wandb_internal_pb2, "Record").FromString  # noqa: B009  # made at import, unknown to mypy
    files = [*folder.glob("wandb/offline-run-*/*.wandb")]
    for record in map(parse, (record for file in files for record in wandb_records(file))):
        if record.HasField("run"):
            runs.add((record.run.run_id, record.run.display_name, record.run.project))
        items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        if "finetune/loss" in items:
            losses[int(items["trainer/global_step"])] = float(items["finetune/loss"])
    assert len(files) == 2, "one before the kill and one after"
    assert runs == {((folder / "wandb-id").read_text(), "run/finetune", "birthplace-lm")}
    assert sorted(losses) == [*range(6)]


def test_mlflow_offline(people: Path, tmp_path: Path) -> None:
    """One run per stage in a file; a resumed stage continues its own."""
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = quick(people, tmp_path, *STAGE, "logger=mlflow", f"logger.mlflow.tracking_uri={uri}")
    folder = tmp_path / "run" / "finetune"
    with pytest.raises(Stop):
        fit(config, "finetune", folder, StopAt("on_train_epoch_end", 3))
    fit(config, "finetune", folder)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("birthplace-lm")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.run_name == "run/finetune"
    assert logged.info.status == "FINISHED"
    assert logged.data.params["seed"] == "0"
    points = {
        point.step: point.value for point in client.get_metric_history(logged.info.run_id, "finetune/loss")
    }
    assert sorted(points) == [*range(6)]
