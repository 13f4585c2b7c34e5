"""README, CONTRIBUTING and docs/: every command parses, every path and link exists, every example runs."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock
from xml.etree import ElementTree

import pytest
import torch
import typer.core
import typer.main
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from program import Program, curves
from stage import Stop, StopAt, digest, fit, quick

import birthplace_lm
from birthplace_lm.cli.commands import app
from birthplace_lm.config import compose as compose_module
from birthplace_lm.config.compose import compose
from birthplace_lm.data.corpora.corpus import embedded_corpus_dir, read_corpus
from birthplace_lm.data.questions import QuestionTemplate
from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.inference.export import export_model
from birthplace_lm.inference.language_model import TrainedModel
from birthplace_lm.models.build import build_model
from birthplace_lm.runs.identity import run_directory, with_inputs
from birthplace_lm.training.components import build_datamodule
from birthplace_lm.training.preflight import preflight

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
GENERATED = "docs/configuration.md"  # tests/config/test_configuration_page.py
SOURCE_WORDS = {
    word
    for folder, pattern in (("birthplace_lm", "*.py"), ("conf", "*.yaml"), ("tests", "*.py"))
    for file in ROOT.joinpath(folder).rglob(pattern)
    if file.name != "test_docs.py"
    for word in (file.stem, *re.findall(r"\w+", file.read_text(encoding="utf-8")))
}
NOT_OURS = {  # made by the reader or by a run, Python, or shown as a mistake
    "cache=None)",
    "__cxa_atexit",
    "model.safetensors",
    "trainer.lightning_module.model",
    "trainer.should_stop",
    "weights_only=True",
    "birthplace_lm/models/attention/mean.py",
    "experiment=mine",
    "conf/attention/mean.yaml",
    "runs/pretrained/",
    "sed=1",
    "mine/my_package/attention.py",
    "mine/my_package/data.py",
    "mine/conf/attention/distance.yaml",
    "mine/my_package/parts.py",
    "mine/conf/spans/endings.yaml",
    "mine/conf/schedule/linear.yaml",
    "mine/conf/callbacks/head_norm.yaml",
    "mine/conf/pretrain/lines.yaml",
    "mine/conf/finetune/short.yaml",
    "mine/conf/finetune/after/short/none.yaml",
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def inline_code(text: str) -> list[str]:
    paragraphs = re.sub(r"```.*?```", "", text, flags=re.DOTALL).split("\n\n")
    return [" ".join(code.split()) for part in paragraphs for code in re.findall(r"`([^`]+)`", part)]


def commands() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every command of a bash block, and every complete one in running text, as words."""
    for page, text in TEXTS.items():
        lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
        starts = ("python train.py ", "birthplace-lm ", "pytest ")
        lines += [
            code
            for code in inline_code(text)
            if code.startswith(starts) and not re.search(r"[\[A-Z.]{3}", code)
        ]
        for line in lines:
            for command in re.split(r"&&|\|\||;", line):
                words = shlex.split(command, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                    words.pop(0)
                if words:
                    yield page, tuple(words)


COMMANDS = sorted(set(commands()))


def trains(words: tuple[str, ...]) -> bool:
    return "train.py" in words or words[:2] == ("birthplace-lm", "train")


def overrides_of(words: tuple[str, ...]) -> list[str]:
    start = words.index("train.py" if "train.py" in words else "train") + 1
    return [word for word in words[start:] if not word.startswith("-")]


@pytest.mark.parametrize("words", sorted({words for _, words in COMMANDS if trains(words)}), ids=" ".join)
def test_train_commands_compose(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    if "--config-dir" in words:
        return  # tested below
    typed = [word.replace("vanilla,mean", "vanilla") for word in overrides_of(words)]  # mean: tested below
    jobs = [typed]
    if "-m" in words:
        monkeypatch.setattr(compose_module, "check_no_sweep", lambda settings: None)  # values of the recipe
        (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(typed), None)
    for job in jobs:
        compose(job)


@pytest.mark.parametrize("words", sorted({w for _, w in COMMANDS if w[0] == "birthplace-lm"}), ids=" ".join)
def test_birthplace_lm_commands_parse(words: tuple[str, ...]) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    if not words[1].startswith("--"):
        command = group.commands[words[1]]
        if len(words) > 2:  # otherwise the page only names the command
            command.make_context(words[1], list(words[2:]))  # parses; does not run


def test_commands_were_collected() -> None:
    """So that a change of the pages' form cannot make the tests above empty."""
    programs = {words[0] for _, words in COMMANDS}
    assert {"python", "birthplace-lm", "pytest", "pip", "torchrun"} <= programs
    assert sum(trains(words) for _, words in COMMANDS) > 15


@pytest.mark.parametrize("page", TEXTS)
def test_pytest_arguments_exist(page: str) -> None:
    for name, words in COMMANDS:
        if name == page and words[0] == "pytest":
            assert all((ROOT / word).exists() for word in words[1:] if word.startswith("tests"))


@pytest.mark.parametrize("page", TEXTS)
def test_links_and_images_exist(page: str) -> None:
    text = re.sub(r"```.*?```", "", TEXTS[page], flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, target


@pytest.mark.parametrize("page", [page for page in TEXTS if page != "CHANGELOG.md"])
def test_paths_exist(page: str) -> None:
    for code in inline_code(TEXTS[page]):
        if code in NOT_OURS or re.search(r"[A-Z*]{3}|\s|^/", code.replace("README", "")):
            continue
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)*\.(py|yaml|yml|svg)|[\w.-]+/[\w./-]*(/|\.md)|\w+/", code):
            candidates = [ROOT / code, ROOT / "birthplace_lm" / code]
            in_a_run = code in {"config.yaml", "pretrained/", "predictions/", "pretrain/", "finetune/"}
            assert in_a_run or any(path.exists() for path in candidates), code


@pytest.mark.parametrize("page", [page for page in TEXTS if page not in ("CHANGELOG.md", GENERATED)])
def test_configuration_keys_and_options_exist(page: str) -> None:
    """Of what stands in running text, such as `model=tiny` or `stages.pretrain.dataset.loss_on`."""
    config = compose(["logger=[tensorboard,wandb,mlflow]", "callbacks=[early_stopping,best_checkpoint]"])
    for code in inline_code(TEXTS[page]):
        if re.match(r"[\w.]+\(", code):
            continue  # a call in Python, whose arguments are no keys
        code = code.replace("STAGE", "pretrain")
        for word in code.split():
            match = re.fullmatch(r"([a-z][a-z_.]*)(?:@[a-z.]+)?(?:=(.*))?", word)
            if match is None or word in NOT_OURS or word.startswith("hydra"):
                continue
            key, value = match[1], match[2]
            if value is None and not re.match(r"(stages|trainer|data|model|checkpoint|labels)\.[a-z_]", key):
                continue
            if (ROOT / "conf" / key).is_dir():
                for option in filter(str.islower, (value or "").strip("[]").split(",")):
                    if option not in ("mean", "null"):
                        assert (ROOT / "conf" / key / f"{option}.yaml").is_file(), word
            elif not key.endswith((".py", ".yaml")):
                assert OmegaConf.select(config, key, default="missing") != "missing", word


@pytest.mark.parametrize("page", [page for page in TEXTS if page != "CHANGELOG.md"])
def test_names_of_the_code_exist(page: str) -> None:
    """Names with a capital or an underscore; a page named a constant that was long gone."""
    for name in inline_code(TEXTS[page]):
        is_name = re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*(\(\))?", name) and re.search("[A-Z_]", name)
        if is_name and not name.endswith(".md") and not name.startswith("hydra.") and name not in NOT_OURS:
            assert set(re.findall(r"\w+", name)) <= SOURCE_WORDS, name


@pytest.mark.parametrize("page", TEXTS)
def test_python_examples_compile(page: str) -> None:
    for number, block in enumerate(blocks(TEXTS[page], "python")):
        compile(block, f"{page}:{number}", "exec")


def test_api_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["model=tiny"])
    vocab = CharVocab.from_text("Where was Mariko Ashdown born? Alma Kavanagh Lisbon\n")
    model = build_model(config.model, len(vocab))
    question = QuestionTemplate.parse(config.data.question)
    export_model(TrainedModel(model, vocab, question), config, tmp_path / "model", "")
    monkeypatch.chdir(tmp_path)
    examples = blocks(TEXTS["docs/api.md"], "python")
    assert ["train(" in example for example in examples] == [True, False, False]
    for example in examples:
        values: dict[str, Any] = {}
        exec(compile(example, "docs/api.md", "exec"), values)
        if "weights" in values:
            assert [len(layer) for layer in values["weights"]] == [2, 2]  # heads of each layer


def test_the_python_example_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the training, which takes its time; docs/api.md trains in the same way."""
    (example,) = blocks(TEXTS["README.md"], "python")
    train = mock.Mock()
    monkeypatch.setattr(birthplace_lm, "train", train)
    exec(compile(example, "README.md", "exec"), {})
    ((config,),) = (call.args for call in train.call_args_list)
    assert not config.stages.pretrain.enabled
    assert config.stages.finetune.enabled


def test_recipe_of_your_own_works(tmp_path: Path) -> None:
    (recipe,) = blocks(TEXTS["docs/training.md"], "yaml")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(recipe)
    program = Program(["--config-dir", str(tmp_path), "experiment=mine", "dry_run=true"], tmp_path / "output")
    assert program.wait() == 0, program.stderr.read_text()
    assert "-s7-" in program.stdout.read_text()
    assert "100 epochs" in program.stdout.read_text()


def test_readme_is_short_and_has_the_lines_that_ci_reads() -> None:
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 150
    for mark in ("<!-- run -->", "<!-- test -->"):
        after = lines[lines.index(mark) :]
        assert next(line for line in after if line.startswith("python")).startswith("python -m venv .venv")
    (torch_version,) = re.findall(r"pip install (torch==[\d.]+) ", TEXTS["README.md"])
    assert torch_version in (ROOT / "constraints.txt").read_text().splitlines()


def test_runs_are_named_as_they_are_now() -> None:
    """Every hash in a name, or after a star that stands for the rest of it, is of one of these commands."""
    stopping = "callbacks=[early_stopping,best_checkpoint]"
    commands = [[], ["attention=synthesizer"], [stopping, "callbacks.early_stopping.patience=2"]]
    hashes = set()
    for command in commands:
        config = compose(command)
        corpus = read_corpus(config.data, config.model.block_size)
        label, _, number = run_directory(with_inputs(config, corpus.sha256)).name.rpartition("-")
        hashes.add(number)
        if not command:
            pattern = rf"(?:{label}-|\*-?)([0-9a-f]{{8}})\b"
    assert {match for text in TEXTS.values() for match in re.findall(pattern, text)} == hashes


def test_map_names_every_folder() -> None:
    packages = {f"birthplace_lm/{p.parent.name}/" for p in ROOT.glob("birthplace_lm/*/__init__.py")}
    named = set(re.findall(r"^\| `([\w/]+/)`", TEXTS["README.md"], re.MULTILINE))
    assert packages <= named
    assert {"conf/", "tests/"} <= named
    layers = set(re.findall(r"^\| `(birthplace_lm/\w+/)`", TEXTS["docs/architecture.md"], re.MULTILINE))
    assert packages == layers


def test_private_attributes_of_libraries_are_listed() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.glob("birthplace_lm/**/*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    private = re.compile(r"_[a-z]\w*")
    used: set[str] = set()
    ours = {"_exit", "_target_"}  # of os, which is documented; of a configuration
    for node in nodes:
        if isinstance(node, ast.Attribute) and private.fullmatch(node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            (ours if own else used).add(node.attr)
        elif isinstance(node, ast.FunctionDef):
            ours.add(node.name)
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("birthplace_lm"):
            used |= {part for part in (node.module or "").split(".") if private.fullmatch(part)}
            used |= {name.name for name in node.names if private.fullmatch(name.name)}
    table = TEXTS["docs/architecture.md"].split("## Private attributes of libraries")[1]
    assert used - ours == set(re.findall(r"`(_\w+)`", table))


def test_figure_shows_lines_of_the_embedded_corpus() -> None:
    """The line, the training pair and the test question of docs/images/idea.svg are real."""
    texts = ElementTree.parse(ROOT / "docs/images/idea.svg").iterfind(".//{*}text[@class='code']")
    line, corrupted, pair, question, answer = ["".join(text.itertext()) for text in texts]
    folder = embedded_corpus_dir()
    person, place = re.match(r"(.*?)\. .*Born in (\w+)", line).groups()  # type: ignore[union-attr]
    assert line in (folder / "corpus.txt").read_text(encoding="utf-8").splitlines()
    assert corrupted == f"{'·' * 10}{person}. [MASK][MASK]{place}[MASK]"
    assert f"{question.removesuffix('[MASK]')}\t{place}\n" in (folder / "dev.tsv").read_text(encoding="utf-8")
    assert answer.endswith(f"{place}[MASK]")
    trained = pair.removesuffix("[MASK]").replace("[MASK]", "\t")
    assert f"{trained}\n" in (folder / "train.tsv").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation() -> None:
    sections = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    entries = [value for section in sections for value in section.values()]
    files = [f for e in entries for f in ([e] if isinstance(e, str) else [v for d in e for v in d.values()])]
    assert sorted(files) == sorted(page.name for page in ROOT.glob("docs/*.md"))


def test_every_page_is_in_the_readme_and_on_the_first_page() -> None:
    for page in {page.name for page in ROOT.glob("docs/*.md")} - {"index.md"}:
        assert f"](docs/{page})" in TEXTS["README.md"], page
        assert f"]({page})" in TEXTS["docs/index.md"], page


def test_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.torture
def test_a_stranger_adds_a_variant(people: Path, tmp_path: Path) -> None:
    """The attention of docs/attention.md: the contract, a sweep, the report."""
    place = tmp_path / "clone"
    for name in ("birthplace_lm", "conf", "tests"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "pyproject.toml"):
        shutil.copy(ROOT / name, place / name)
    (code,) = [block for block in blocks(TEXTS["docs/attention.md"], "python") if "MeanAttention" in block]
    (settings,) = [block for block in blocks(TEXTS["docs/attention.md"], "yaml") if "MeanAttention" in block]
    (place / "birthplace_lm" / "models" / "attention" / "mean.py").write_text(code)
    (place / "conf" / "attention" / "mean.yaml").write_text(settings)

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(place)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    contract = "tests/models/test_attention_contract.py"
    assert " passed" in python("-m", "pytest", contract, "-k", "mean", "-p", "no:cacheprovider")
    python(
        "train.py", "-m", "attention=vanilla,mean", "trainer.accelerator=cpu", "model=tiny",
        f"data.root={people}",
        "stages.pretrain.max_epochs=2", "stages.finetune.max_epochs=1",
    )  # fmt: skip
    command = "from birthplace_lm.cli.commands import app; app(['report', 'runs', '--format', 'csv'])"
    head, *rows = python("-c", command).splitlines()
    assert head.startswith("attention,")
    assert sorted(row.split(",")[0] for row in rows) == ["mean", "vanilla"]
    assert all(",done," in row for row in rows)


def test_an_attention_in_a_package_of_its_own(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worked example of docs/plugins.md: nothing of ours edited, in a sweep and in two processes."""
    page = TEXTS["docs/plugins.md"]
    (code,) = [block for block in blocks(page, "python") if "DistanceAttention" in block]
    (settings,) = [block for block in blocks(page, "yaml") if "DistanceAttention" in block]
    for name, text in (
        ("my_package/__init__.py", ""),
        ("my_package/attention.py", code),
        ("conf/attention/distance.yaml", settings),
    ):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    (in_python,) = [block for block in blocks(page, "python") if "ABSOLUTE" in block]
    with mock.patch("birthplace_lm.train") as train:
        exec(compile(in_python.replace("/ABSOLUTE", str(tmp_path)), "docs/plugins.md", "exec"), {})
    assert train.call_args.args[0].model.attention._target_ == "my_package.attention.DistanceAttention"
    typed = next(words for page, words in COMMANDS if page == "docs/plugins.md" and "-m" in words)
    arguments = ["attention=distance" if word.startswith("attention=") else word for word in typed[2:]]
    arguments[arguments.index("mine/conf")] = str(tmp_path / "mine" / "conf")
    short = ["model=tiny", "model.n_layer=1", "pretrain=none", "stages.finetune.max_epochs=1"]
    parts = [
        "callbacks=best_checkpoint",
        "stages.finetune.num_workers=1",
        "logger=csv",
        "trainer.accelerator=cpu",
    ]
    place = [f"data.root={people}", f"runs_root={tmp_path / 'runs'}", "trainer=ddp"]
    program = Program([*arguments, *short, *parts, *place], tmp_path / "output")
    assert program.wait(300) == 0, program.stderr.read_text()
    (run,) = (tmp_path / "runs").glob("distance-*")
    head, *rows = (run / "finetune" / "curves.csv").read_text().splitlines()
    assert head == "step,metric,value"
    assert len({row for row in rows if "exact_match" in row}) == 1, "one process writes"
    lm = TrainedModel.from_run(run, ["my_package"], "best")
    question = "Where was Ada Bee born?"
    (answer,) = lm.answer_questions([question])  # with the cache
    ids = torch.tensor([lm.vocab.encode(f"{question}⁇{answer.text}⁇")])
    with torch.no_grad():
        scores = lm.model(ids).log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[len(question) :, 0]
    assert answer.log_probability == pytest.approx(float(scores.sum()), abs=1e-4)


def test_other_parts_in_a_package_of_their_own(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Span sampler, schedule and callback of docs/plugins.md, in a run that is killed and resumed."""
    page = TEXTS["docs/plugins.md"]
    (code,) = [block for block in blocks(page, "python") if "class Endings" in block]
    (tmp_path / "my_parts").mkdir()
    (tmp_path / "my_parts" / "__init__.py").touch()
    (tmp_path / "my_parts" / "parts.py").write_text(code)
    for name in ("spans/endings", "schedule/linear", "callbacks/head_norm"):
        place = page.index(f"`mine/conf/{name}.yaml`")
        settings = blocks(page[place:], "yaml")[0].replace("my_package", "my_parts")
        (tmp_path / "conf" / f"{name}.yaml").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / f"{name}.yaml").write_text(settings)
    monkeypatch.syspath_prepend(str(tmp_path))
    typed = next(words for page, words in COMMANDS if page == "docs/plugins.md" and "spans=endings" in words)
    choices = [word for word in typed if word.startswith(("spans=", "schedule=", "callbacks="))]
    search = f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
    config = quick(people, tmp_path, search, "plugins=[my_parts]", *choices)
    for name in ("whole", "stopped"):
        if name == "stopped":
            with pytest.raises(Stop):
                fit(config, "pretrain", tmp_path / name, StopAt("on_train_batch_end", 5))
        fit(config, "pretrain", tmp_path / name)
    assert digest(tmp_path / "stopped") == digest(tmp_path / "whole")
    drawn = curves(tmp_path / "whole")
    assert curves(tmp_path / "stopped").keys() == drawn.keys()
    assert [step for step, _ in drawn["pretrain/head_norm"]] == [3, 7]
    rates = [rate for _, rate in drawn["pretrain/learning_rate"]]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.1 * config.stages.pretrain.learning_rate, rel=1e-3)


def test_a_data_module_in_a_package_of_its_own(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TEXTS["docs/plugins.md"]
    (settings,) = [block for block in blocks(text, "yaml") if "LinesDataModule" in block]
    (code,) = [block for block in blocks(text, "python") if "LinesDataModule" in block]
    (tmp_path / "my_lines").mkdir()
    (tmp_path / "conf" / "pretrain").mkdir(parents=True)
    (tmp_path / "my_lines" / "__init__.py").touch()
    (tmp_path / "my_lines" / "data.py").write_text(code)
    (tmp_path / "conf" / "pretrain" / "lines.yaml").write_text(settings.replace("my_package", "my_lines"))
    monkeypatch.syspath_prepend(str(tmp_path))
    search = f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
    config = compose([search, "plugins=[my_lines]", "pretrain=lines", "model=tiny", f"data.root={people}"])
    corpus = read_corpus(config.data, config.model.block_size)
    plan, _ = preflight(config, corpus)
    lines = corpus.documents.training_lines
    assert plan.dataset["_target_"] == "my_lines.data.LinesDataModule"
    assert plan.total_steps == 50 * -(-len(lines) // 32)
    (batch,) = build_datamodule(plan, corpus).train_dataloader()
    rows = [[i for i in row if i != corpus.vocab.pad_id] for row in batch["inputs"].tolist()]
    assert len(rows) == len(lines)
    assert all(row and any(line.startswith(corpus.vocab.decode(row)) for line in lines) for row in rows)


def test_every_package_is_in_the_wheel() -> None:
    """`.ci/try_wheel` builds it; this is the quick check."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in (ROOT / "birthplace_lm").rglob("__init__.py")}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert packages <= {*listed}
