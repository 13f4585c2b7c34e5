"""Benchmarks of training, answering and start-up: interleaved measurements, reported as medians."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import torch
from omegaconf import DictConfig
from torch import nn

from birthplace_lm.cli.timing import interleave, seconds
from birthplace_lm.cli.training_speed import training_table
from birthplace_lm.config.compose import compose
from birthplace_lm.data.corpora.corpus import Corpus, read_corpus
from birthplace_lm.errors import InputError, InternalError
from birthplace_lm.inference.decoding import answer_questions
from birthplace_lm.inference.export import export_model
from birthplace_lm.inference.language_model import TrainedModel
from birthplace_lm.models.build import build_model
from birthplace_lm.models.float32_products import float32_products
from birthplace_lm.models.gpt import GPT
from birthplace_lm.runs.auto_precision import CHOICES, faster_library, measured_precision
from birthplace_lm.training.allocator import disable_malloc_trim

ANSWER_LENGTH = 9  # characters, about those of a place


def bench(overrides: Sequence[str], rounds: int, steps: int) -> str:
    """Run all benchmarks. Returns tables in Markdown.

    Args:
        overrides: of the configuration whose pretraining is measured.
        rounds: measurements of each benchmark, interleaved.
        steps: optimizer steps of one measurement.
    """
    disable_malloc_trim()
    arguments = with_measured_choices(overrides)
    config = compose(arguments)
    corpus = read_corpus(config.data, config.model.block_size)
    library = config.float32_products
    with float32_products(library):
        parts = [
            training_table(arguments, config, corpus, rounds, steps),
            _answering(config, corpus, rounds),
            _starting(config, corpus, rounds),
        ]
    return "\n\n".join([f"Float32 products by {library}.", *parts])


def with_measured_choices(overrides: Sequence[str]) -> list[str]:
    """Complete the overrides of a benchmark: gpt_3m with batches of 128 rows by default, and no value "auto".

    The precision and the float32 library that are faster on this machine replace "auto".

    Raises:
        InputError: pretraining or TensorBoard is off, or the precision is neither "auto" nor one of CHOICES.
    """
    arguments = ["model=gpt_3m", "stages.pretrain.batch_size=128", *overrides]
    config = compose(arguments)
    if not config.stages.pretrain.enabled or "tensorboard" not in config.logger:
        raise InputError("bench measures pretraining by its curves in TensorBoard: leave both on")
    if config.trainer.precision == "auto":
        precision = measured_precision(config.trainer.accelerator, config.model.n_embd)
        arguments.append(f"trainer.precision={precision}")
    elif config.trainer.precision not in CHOICES:
        raise InputError(f"bench measures {' and '.join(CHOICES)}, not {config.trainer.precision}")
    if config.float32_products == "auto":
        arguments.append(f"float32_products={faster_library(config.model.n_embd)}")
    return arguments


def _answering(config: DictConfig, corpus: Corpus, rounds: int) -> str:
    names = [corpus.question.name_or_text(row.question).split() for row in corpus.dev.rows]
    mixed = (
        f"{a[0]} {b[-1]}" for shift in range(len(names)) for a, b in zip(names, names[shift:], strict=False)
    )
    questions = [*map(corpus.question.about, islice(cycle([*mixed]), 10_000))]
    vocab = corpus.vocab
    model = silent_model(config, len(vocab))

    def answering(count: int, bfloat16: bool = False) -> Callable[[], float]:
        def rate() -> float:
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                return count / seconds(
                    lambda: answer_questions(model, vocab, questions[:count], max_answer_length=ANSWER_LENGTH)
                )

        return rate

    benchmarks = {"500 names": answering(500), "10,000 names": answering(10_000)}
    if measured_precision("cpu", config.model.n_embd) == "bf16-mixed":
        benchmarks |= {
            "500 names in bfloat16": answering(500, bfloat16=True),
            "10,000 names in bfloat16": answering(10_000, bfloat16=True),
        }
    benchmarks["20 names, one at a time, without a cache"] = lambda: (
        20
        / seconds(lambda: [_uncached(model, vocab.encode_known(question)[0]) for question in questions[:20]])
    )
    medians = {name: median(rates) for name, rates in interleave(benchmarks, rounds).items()}
    lines = [
        f"Answering, {ANSWER_LENGTH} characters a name",
        "",
        "| | names/s | against one at a time, without a cache |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {rate:,.0f} | {rate / min(medians.values()):,.0f} x |"
            for name, rate in medians.items()
        ),
    ]
    return "\n".join(lines)


def silent_model(config: DictConfig, symbols: int) -> GPT:
    """A model with logits of 0: it never writes the MASK that ends an answer, so all have one length."""
    model = build_model(config.model, symbols).eval()
    nn.init.zeros_(model.head.weight)
    return model


@torch.inference_mode()
def _uncached(model: GPT, prompt: list[int]) -> None:
    """Decode as the 2021 code does: run the whole text again for each character."""
    ids = list(prompt)
    for _ in range(ANSWER_LENGTH):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))


def _starting(config: DictConfig, corpus: Corpus, rounds: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        untrained = TrainedModel(build_model(config.model, len(corpus.vocab)), corpus.vocab, corpus.question)
        export_model(untrained, config, model, card="")
        command = [sys.executable, "-c", "from birthplace_lm.cli.commands import main; main()"]
        commands = {
            "birthplace-lm train --help": [*command, "train", "--help"],
            "birthplace-lm train sed=1 (a mistake)": [*command, "train", "sed=1"],
            "birthplace-lm train dry_run=true": [*command, "train", "dry_run=true"],
            "birthplace-lm ask": [*command, "ask", str(model), "Ada Lovelace"],
        }
        benchmarks = {
            name: lambda run=run, name=name: seconds(lambda: _start(run, folder, "mistake" in name))
            for name, run in commands.items()
        }
        measured = interleave(benchmarks, rounds)
    lines = [f"| {name} | {median(seconds):.1f} |" for name, seconds in measured.items()]
    return "\n".join(["Starting", "", "| | seconds |", "| --- | --- |", *lines])


def _start(command: Sequence[str], folder: str, fails: bool) -> None:
    """Run a command that ends as expected.

    Raises:
        InternalError: it does not, so its time says nothing.
    """
    ended = subprocess.run(command, capture_output=True, cwd=folder, text=True)
    if (ended.returncode != 0) != fails:
        raise InternalError(f"{' '.join(command[3:])} ended with {ended.returncode}: {ended.stderr.strip()}")
