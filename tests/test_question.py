"""A question of one's own: one yaml file, as docs/data.md has it, on a small corpus of musicians."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from command_line import run_command
from omegaconf import DictConfig
from stage import run

import birthplace_lm
from birthplace_lm.config.compose import compose
from birthplace_lm.runs.identity import run_directory

PAGE = Path(__file__).parents[1] / "docs" / "data.md"
QUESTION = "Which instrument does {name} play?"
OF_ANOTHER_QUESTION = re.compile(r"\bborn\b|where was|birthplace(?!\\?[_-]lm)|\bplaces?\b", re.IGNORECASE)
MUSICIANS = [f"{first} {last}" for first, last in product(("Ada", "Bo", "Cy", "Di"), ("Li", "Ray", "Woo"))]
INSTRUMENTS = ["viola", "viola", "harp", "oboe", "viola", "harp"] * 2


def write_musicians(folder: Path) -> None:
    folder.mkdir()
    rows = [
        f"{QUESTION.replace('{name}', name)}\t{instrument}\n"
        for name, instrument in zip(MUSICIANS, INSTRUMENTS, strict=True)
    ]
    lines = [
        f"{name}. {name.split()[1]} plays the {instrument} in Turin .\n"
        for name, instrument in zip(MUSICIANS, INSTRUMENTS, strict=True)
    ]
    for file, content in (("corpus.txt", lines), ("train.tsv", rows[:8]), ("dev.tsv", rows[8:])):
        (folder / file).write_text("".join(content))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    """The configuration of a short run that has ended."""
    folder = tmp_path_factory.mktemp("musicians")
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (settings,) = [block for block in blocks if "question: " in block]
    (folder / "conf" / "data").mkdir(parents=True)
    (folder / "conf" / "data" / "instruments.yaml").write_text(settings)
    write_musicians(folder / "people")
    config = compose(
        [
            f"hydra.searchpath=[file://{folder / 'conf'}]",
            "data=instruments",
            f"data.root={folder / 'people'}",
            f"runs_root={folder / 'runs'}",
            f"run_dir={folder / 'runs' / 'run'}",
            "model=tiny",
            "trainer.accelerator=cpu",
            "trainer.max_epochs=2",
        ]
    )
    result = run(config)
    assert result["baseline"]["answer"] == "viola"
    assert result["baseline"]["correct"] == INSTRUMENTS[8:].count("viola")
    return config


def called(*arguments: Any, capsys: pytest.CaptureFixture[str]) -> str:
    assert run_command(*arguments) == 0
    return capsys.readouterr().out


def test_the_question_goes_with_the_run_and_its_export(
    config: DictConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_directory(config)
    predictions = (path / "predictions" / "dev.txt").read_text().splitlines()
    called("export", path, tmp_path / "model", capsys=capsys)
    assert "Which instrument does {name} play?" in (tmp_path / "model" / "README.md").read_text()
    for folder in (path, tmp_path / "model"):
        model = birthplace_lm.load(folder)
        assert model.question.text == QUESTION
        assert model.answer(MUSICIANS[8:]) == predictions
        typed = [MUSICIANS[8], QUESTION.replace("{name}", MUSICIANS[8])]
        answers = called("ask", folder, *typed, capsys=capsys).splitlines()
        assert [line.split(": ")[1].rpartition(" (")[0] for line in answers] == [predictions[0]] * 2


def test_nothing_says_born(config: DictConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, page, model = run_directory(config), tmp_path / "page.html", tmp_path / "model"
    texts = [
        called("report", path.parent, "--html", page, capsys=capsys),
        called("export", path, model, capsys=capsys),
        *(file.read_text() for file in [page, *model.glob("*.md"), *path.glob("*.*")] if file.is_file()),
    ]
    assert len(texts) > 6
    for text in texts:
        assert OF_ANOTHER_QUESTION.search(text) is None
