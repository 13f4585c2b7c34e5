"""Import of models that students have saved."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run_command
from safetensors import safe_open

import birthplace_lm
from birthplace_lm.config.compose import compose
from birthplace_lm.inference.import_course import read_course_model
from birthplace_lm.models.build import build_model
from birthplace_lm.models.gpt import GPT

ROOT = os.environ.get("BIRTHPLACE_LM_COURSE_DATA")
SIZES = ["model.n_layer=2", "model.n_head=4", "model.n_embd=32", "model.block_size=24"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """With 38 characters, and so 40 symbols, as the references have."""
    file = tmp_path / "wiki.txt"
    letters = "".join(chr(ord("a") + i) for i in range(26)) + "ABCDEFGHI"
    file.write_text(f"Ada Bee. {letters}.\n")
    return file


def with_masks(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mask = torch.ones(1, 1, 24, 24).tril()
    return {**weights, "blocks.0.attn.mask": mask, "blocks.1.attn.mask": mask}


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("attention", ["vanilla", "synthesizer"])
def test_is_imported_with_its_logits(attention: str, old_format: bool, corpus: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(compose([f"attention={attention}", *SIZES]).model, 40).eval()
    file, out = tmp_path / "a.params", tmp_path / "out"
    torch.save(with_masks(model.state_dict()), file, _use_new_zipfile_serialization=not old_format)
    options = ["--attention", attention, "--corpus", corpus, "--n-head", 4]
    assert run_command("import-course", file, out, *options) == 0
    ids = torch.randint(0, 40, (3, 23))
    assert torch.equal(birthplace_lm.load(out).model(ids), model(ids))
    assert "Imported from a.params" in (out / "README.md").read_text()
    assert run_command("ask", out, "Ada Bee") == 0


def compiled(model: torch.nn.Module) -> Any:
    return torch.compile(model)


WRAPPED = {
    "DataParallel": lambda model: torch.nn.DataParallel(model).state_dict(),
    "torch.compile": lambda model: compiled(model).state_dict(),
    "compiled, then DataParallel": lambda model: torch.nn.DataParallel(compiled(model)).state_dict(),
    "compiled block": lambda model: {
        name.replace("blocks.0.", "blocks.0._orig_mod."): value for name, value in model.state_dict().items()
    },
    "Lightning": lambda model: {
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
        "epoch": 3,
    },
    "with an optimizer": lambda model: {"model": model.state_dict(), "optimizer": {"lr": 0.1}},
}


@pytest.mark.parametrize("save", WRAPPED.values(), ids=WRAPPED)
def test_weights_of_a_wrapped_model(save: Callable[[GPT], Any], corpus: Path, tmp_path: Path) -> None:
    """`module.tok_emb.weight` was "no model of the course"."""
    model = build_model(compose(SIZES).model, 40).eval()
    file = tmp_path / "a.params"
    torch.save(save(model), file)
    trained, _ = read_course_model(file, "vanilla", corpus, 4)
    ids = torch.randint(0, 40, (3, 23))
    assert torch.equal(trained.model(ids), model(ids))


@pytest.mark.skipif(ROOT is None, reason="needs the course's files: BIRTHPLACE_LM_COURSE_DATA")
@pytest.mark.parametrize("attention", ["vanilla", "synthesizer"])
def test_has_the_logits_of_the_reference(attention: str, corpus: Path, tmp_path: Path) -> None:
    with safe_open(Path(ROOT or "").parent / "reference" / f"{attention}.safetensors", "pt") as saved:
        tensors = {key: saved.get_tensor(key) for key in saved.keys()}  # noqa: SIM118, safe_open is no dict
    weights = {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}
    file, out = tmp_path / "a.params", tmp_path / "out"
    torch.save(with_masks(weights), file)
    options = ["--attention", attention, "--corpus", corpus, "--n-head", 4]
    assert run_command("import-course", file, out, *options) == 0
    logits = birthplace_lm.load(out).model(tensors["inputs"])
    torch.testing.assert_close(logits, tensors["logits"], atol=1e-4, rtol=0)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def test_what_cannot_be_imported_is_one_line(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = build_model(compose(SIZES).model, 40).state_dict()
    small = tmp_path / "small.txt"
    small.write_text("Ada Bee. abc.\n")
    cases: list[tuple[object, list[object], int, str]] = [
        (weights, ["--corpus", small], 2, "symbols, and"),
        (weights, ["--corpus", corpus, "--attention", "synthesizer"], 4, "give its --attention"),
        (weights, ["--corpus", corpus, "--attention", "synthesiser"], 2, "synthesizer"),
        (weights, ["--corpus", corpus, "--n-head", "5"], 2, "model.n_head=5"),
        ({**weights, "more": torch.zeros(1)}, ["--corpus", corpus], 4, "more"),
        ({"a": 1}, ["--corpus", corpus], 4, "no state_dict"),
        ({"model": {"a": 1}}, ["--corpus", corpus], 4, "no state_dict"),
        ({**weights, "model.pos_emb": torch.zeros(1)}, ["--corpus", corpus], 4, "several models"),
        ({"a": torch.zeros(1)}, ["--corpus", corpus], 4, "not a model of the course"),
        (Evil(), ["--corpus", corpus], 4, "cannot be read as weights"),
        (b"half", ["--corpus", corpus], 4, "cannot be read as weights"),
    ]
    for content, options, code, reason in cases:
        file = tmp_path / "a.params"
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content, file)
        arguments = options if "--n-head" in options else [*options, "--n-head", 4]
        assert run_command("import-course", file, tmp_path / "out", *arguments) == code
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert reason in message
        assert message.count("\n") == 1
        assert not (tmp_path / "out").exists()
    assert not (tmp_path / "executed").exists()


def test_sizes_that_fit_nowhere_take_no_memory(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: a file of two kilobytes, whose tensors repeat one number, was given 286 GiB."""
    weights = {
        "tok_emb.weight": torch.zeros(1).expand(40, 4096),
        "pos_emb": torch.zeros(1).expand(1, 1024, 4096),
        "blocks.99.ln1.weight": torch.zeros(1),
    }
    file = tmp_path / "large.params"
    torch.save(weights, file)
    options = ["--attention", "vanilla", "--corpus", corpus]
    assert run_command("import-course", file, tmp_path / "out", *options) == 4
    message = capsys.readouterr().err
    assert message.startswith(f"error: {file}: belongs to another model: ")
    assert message.endswith("; give its --attention\n")


def test_a_synthesizer_without_channels(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: a ZeroDivisionError."""
    weights = build_model(compose(["attention=synthesizer", *SIZES]).model, 40).state_dict()
    file = tmp_path / "empty.params"
    torch.save({**weights, "blocks.0.attn.w2": torch.zeros(0, 24)}, file)
    options = ["--attention", "synthesizer", "--corpus", corpus, "--n-head", 4]
    assert run_command("import-course", file, tmp_path / "out", *options) == 4
    assert "blocks.0.attn.w2 is (0, 24) there" in capsys.readouterr().err
