"""What each attention variant costs: parameters, operations, speed and memory, relative to vanilla."""

import multiprocessing
import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from birthplace_lm.cli.bench import ANSWER_LENGTH, silent_model, with_measured_choices
from birthplace_lm.cli.timing import interleave, seconds
from birthplace_lm.cli.training_speed import BareLoop, training_batches
from birthplace_lm.config.compose import compose
from birthplace_lm.config.groups import options
from birthplace_lm.data.corpora.corpus import Corpus, read_corpus
from birthplace_lm.errors import InputError
from birthplace_lm.inference.decoding import answer_questions
from birthplace_lm.models.float32_products import float32_products
from birthplace_lm.models.gpt import GPT
from birthplace_lm.training.allocator import disable_malloc_trim
from birthplace_lm.training.preflight import preflight

BASELINE = "vanilla"
COUNTED_LENGTH = 64  # characters of the rows whose operations are counted
CANON = "+canon"  # after the name of a variant: with the convolutions


def attention_costs(names: str, overrides: Sequence[str], rounds: int, steps: int) -> str:
    """A table in Markdown; each variant and vanilla take turns.

    Args:
        names: of variants, separated by commas, each also with "+canon"; or "all".
        overrides: of the configuration whose pretraining is measured.
        rounds: measurements of each variant, interleaved.
        steps: optimizer steps of one measurement.

    Raises:
        InputError: there is no such variant, one does not take these sizes, or this system does not tell the
            memory of a process.
    """
    _resident("VmRSS")
    disable_malloc_trim()
    variants = options()["attention"]
    chosen = [*variants, BASELINE + CANON] if names == "all" else names.split(",")
    for name in chosen:
        if name.removesuffix(CANON) not in variants:
            raise InputError(f"--attention {name}: no such variant; they are {', '.join(variants)}, all")
    chosen = list(dict.fromkeys([BASELINE, *chosen]))
    common = with_measured_choices(overrides)
    arguments = {name: [*common, *_overrides_of(name)] for name in chosen}
    config = compose(arguments[BASELINE])
    corpus = read_corpus(config.data, config.model.block_size)
    for own in arguments.values():
        preflight(compose(own), corpus)
    batches = training_batches(config, corpus, steps)
    loops = {name: BareLoop(compose(own), corpus, batches) for name, own in arguments.items()}
    answers = {
        name: partial(_names_per_second, silent_model(compose(own), len(corpus.vocab)), corpus)
        for name, own in arguments.items()
    }
    parameters = {name: loop.model.num_parameters for name, loop in loops.items()}
    length = min(COUNTED_LENGTH, config.model.block_size)
    flops = {name: _flops_per_character(loop.model, length) / 1e6 for name, loop in loops.items()}
    with float32_products(config.float32_products):
        training, answering = interleave(loops, rounds), interleave(answers, rounds)
    memory = {name: _peak_memory(own) / 1e6 for name, own in arguments.items()}

    lines = [
        f"Batches of {config.stages.pretrain.batch_size} rows, {config.trainer.precision}, float32 products"
        f" by {config.float32_products}, {torch.get_num_threads()} threads, {rounds} rounds of {steps} steps;"
        f" operations of rows of {length} characters; in brackets: relative to {BASELINE}",
        "",
        "| attention | parameters | MFLOP/character | training, characters/s | answering, names/s | MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in loops:
        cells = [
            f"{parameters[name]:,} ({parameters[name] / parameters[BASELINE]:.2f})",
            f"{flops[name]:.1f} ({flops[name] / flops[BASELINE]:.2f})",
            _rate(training, name),
            _rate(answering, name),
            f"{memory[name]:.0f} ({memory[name] / memory[BASELINE]:.2f})",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _overrides_of(name: str) -> list[str]:
    attention = name.removesuffix(CANON)
    return [f"attention={attention}", f"model.canon={name != attention}"]


def _rate(rates: Mapping[str, Sequence[float]], name: str) -> str:
    """The median and, in brackets, the median of the ratios to the baseline within a round."""
    ratio = median(a / b for a, b in zip(rates[name], rates[BASELINE], strict=True))
    return f"{median(rates[name]):,.0f} ({ratio:.2f})"


def _names_per_second(model: GPT, corpus: Corpus) -> float:
    questions = [*islice(cycle([row.question for row in corpus.dev.rows]), 500)]
    elapsed = seconds(
        lambda: answer_questions(model, corpus.vocab, questions, max_answer_length=ANSWER_LENGTH)
    )
    return len(questions) / elapsed


def _flops_per_character(model: GPT, length: int) -> float:
    """Operations of the matrix products of one training step, per character, of rows of `length`.

    All pairs of positions count, also those that the mask hides; elementwise functions do not.
    """
    ids = torch.ones(2, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(ids).sum().backward()
    model.zero_grad()
    return float(counter.get_total_flops()) / ids.numel()


def _peak_memory(arguments: Sequence[str]) -> int:
    """Bytes that a few training steps add at their peak to the memory of a process of its own.

    Raises:
        InputError: the process ended without a result, as one that the system kills for its memory.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_train_briefly, args=(list(arguments), sender))
    process.start()
    sender.close()
    try:
        return int(receiver.recv())
    except EOFError:
        process.join()
        raise InputError(
            f"--attention: the process that measures the memory of {' '.join(arguments)} ended with code"
            f" {process.exitcode}"
        ) from None
    finally:
        process.join()


def _train_briefly(arguments: list[str], sender: Connection) -> None:
    config = compose(arguments)
    corpus = read_corpus(config.data, config.model.block_size)
    batches = training_batches(config, corpus, 3)
    before = _resident("VmRSS")
    with float32_products(config.float32_products):
        BareLoop(config, corpus, batches)()
    sender.send(_resident("VmHWM") - before)


def _resident(field: str) -> int:
    """A number of bytes from /proc: VmRSS now, VmHWM at the peak.

    Raises:
        InputError: the system has no /proc.
    """
    status = Path("/proc/self/status")
    content = status.read_text() if status.is_file() else ""
    match = re.search(rf"^{field}:\s+(\d+) kB", content, re.MULTILINE)
    if match is None:
        raise InputError("--attention: this system does not tell the memory of a process; needs Linux")
    return int(match[1]) * 1024
