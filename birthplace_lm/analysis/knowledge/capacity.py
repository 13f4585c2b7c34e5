"""Capacity: how many bits about invented people a model holds for each of its parameters.

The corpus is one of `make-biographies --attributes`, whose values are drawn uniformly and independently, so
what there is to know is counted exactly.

Source: "Physics of Language Models: Part 3.3", arXiv:2404.05405; here only the values count, not the names.
"""

import math
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig

from birthplace_lm.analysis.html_page import escape, html_table, inline_svg, new_figure, write_html
from birthplace_lm.analysis.report.axes import set_log_axis
from birthplace_lm.analysis.report.collect import short_name
from birthplace_lm.analysis.report.tables import Table
from birthplace_lm.config.compose import load_config
from birthplace_lm.data.batch_datamodule import questions_per_epoch
from birthplace_lm.data.corpora.attributes import ATTRIBUTES, PEOPLE_FILE, read_people
from birthplace_lm.data.corpora.corpus import Corpus, data_root
from birthplace_lm.data.prompt_format import LinePrompt
from birthplace_lm.errors import InputError
from birthplace_lm.inference.knowledge import recall
from birthplace_lm.inference.language_model import TrainedModel
from birthplace_lm.inference.run_corpus import corpus_of_run
from birthplace_lm.runs.directory import RunDirectory
from birthplace_lm.runs.metrics import RunMetrics

MAX_PEOPLE = 2000  # who are asked about; the rest is taken to be like them
BITS_PER_PERSON = sum(attribute.bits for attribute in ATTRIBUTES)


@dataclass(frozen=True)
class Capacity:
    """What a model holds about the people of its corpus.

    Attributes:
        run: hash at the end of its directory's name, or the whole name.
        parameters: trainable weights.
        table_parameters: those of them in the embeddings of characters and positions, and in the head.
        people: of the corpus.
        exposures: how often pretraining read each fact, by the steps that it took.
        bits_by_attribute: mean bits per person over the uniform prior, at most `Attribute.bits`. Negative
            where the model is worse than the prior.
        right: share of the values that greedy decoding completes in the person's own line.
    """

    run: str
    parameters: int
    table_parameters: int
    people: int
    exposures: float
    bits_by_attribute: dict[str, float]
    right: float

    @property
    def bits(self) -> float:
        """Of all people; clipped at 0 at the end, not for each person."""
        return max(0.0, self.people * sum(self.bits_by_attribute.values()))

    @property
    def possible_bits(self) -> float:
        """What there is to know."""
        return self.people * BITS_PER_PERSON

    @property
    def bits_per_parameter(self) -> float:
        return self.bits / self.parameters

    @property
    def bits_per_block_parameter(self) -> float:
        """Per parameter outside the tables, which are a large part of a tiny model."""
        return self.bits / (self.parameters - self.table_parameters)


def measure_capacity(run: Path, plugins: Collection[str] = ()) -> Capacity:
    """Measure a finished run that was pretrained with language modeling on people with attributes.

    Raises:
        CheckpointError: the files of the corpus have changed since.
        InputError: the run is unfinished, an export, or not pretrained with language modeling; or its corpus
            has no `people.tsv`, or does not state every fact within the block.
    """
    config = load_config(run, plugins)
    corpus = corpus_of_run(run, config)
    pretrain = config.stages.pretrain
    data_module: Any = get_class(pretrain.dataset._target_) if pretrain.enabled else None
    form = data_module and data_module.prompt_format_of(pretrain.dataset, corpus)
    if not isinstance(form, LinePrompt):  # another format does not say which fact is asked for
        raise InputError(f"{run}: not pretrained on whole lines; capacity needs pretrain=language_modeling")
    metrics = RunDirectory(run, config).metrics
    if metrics is None:
        raise InputError(f"{run}: not finished, or an export; capacity counts the steps of a finished run")
    people = read_people(data_root(config.data) / PEOPLE_FILE)
    trained = TrainedModel.from_run(run, plugins, stage="pretrain")
    count = min(len(people), MAX_PEOPLE)
    chosen = random.Random(0).sample(people, count)  # not every n-th: --exposures takes turns
    names = [person.name for person in chosen]
    bits, right = {}, 0.0
    for index, attribute in enumerate(ATTRIBUTES):
        values = [person.values[index] for person in chosen]
        recalls = recall(trained.model, trained.vocab, form, names, values)
        missing = next((n for n, one in zip(names, recalls, strict=True) if one.log_p is None), None)
        if missing is not None:
            raise InputError(
                f"{run}: the corpus does not tell {attribute.name} of {missing} within the block"
            )
        mean = sum(one.log_p or 0.0 for one in recalls) / count / math.log(2)
        bits[attribute.name] = mean + attribute.bits
        right += sum(one.right or 0.0 for one in recalls) / count / len(ATTRIBUTES)
    exposures = _epochs(config, corpus, metrics) * len(corpus.documents.lines) / len(people)
    return Capacity(
        short_name(run.resolve().name),
        trained.model.num_parameters,
        trained.model.num_table_parameters,
        len(people),
        exposures,
        bits,
        right,
    )


def _epochs(config: DictConfig, corpus: Corpus, metrics: RunMetrics) -> float:
    """How often pretraining read the corpus: its epochs, the last one as far as its steps go."""
    pretrain, result = config.stages.pretrain, metrics.stages["pretrain"]
    questions = questions_per_epoch(pretrain.dataset.question_fraction, len(corpus.train.rows))
    rows = result.steps * pretrain.batch_size * config.trainer.accumulate_grad_batches
    return min(result.epochs, rows / (len(corpus.documents.lines) + questions))


def capacity_table(runs: Sequence[Capacity]) -> Table:
    """A row for each run, by parameters and people."""
    columns: list[tuple[str, Callable[[Capacity], str]]] = [
        ("parameters", lambda c: f"{c.parameters:,}"),
        ("people", lambda c: f"{c.people:,}"),
        ("exposures", lambda c: f"{c.exposures:,.0f}"),
        ("bits to know", lambda c: f"{c.possible_bits:,.0f}"),
        ("bits known", lambda c: f"{c.bits:,.0f}"),
        ("share", lambda c: f"{c.bits / c.possible_bits:.1%}"),
        ("bits/parameter", lambda c: f"{c.bits_per_parameter:.2f}"),
        ("without tables", lambda c: f"{c.bits_per_block_parameter:.2f}"),
        ("values right", lambda c: f"{c.right:.1%}"),
        ("run", lambda c: c.run),
    ]
    return [[name for name, _ in columns], *([value(run) for _, value in columns] for run in _ordered(runs))]


def _ordered(runs: Sequence[Capacity]) -> list[Capacity]:
    return sorted(runs, key=lambda c: (c.exposures, c.parameters, c.people))


def capacity_figure(runs: Sequence[Capacity]) -> Any:
    """Bits known against parameters, both logarithmic, with the lines of one and two bits per parameter."""
    figure = new_figure(7.5, 4.6)
    axes = figure.subplots()
    low, high = min(run.parameters for run in runs) / 1.5, max(run.parameters for run in runs) * 1.5
    for bits, style in ((2, "-"), (1, "--")):
        axes.plot([low, high], [bits * low, bits * high], style, color="0.6", linewidth=1)
        label = f"{bits} bit{'s' * (bits > 1)} per parameter"
        place = {"xytext": (-4, 2), "textcoords": "offset points", "ha": "right"}  # above its right end
        axes.annotate(label, (high, bits * high), fontsize=8, color="0.4", **place)
    for exposures in sorted({run.exposures for run in runs}):
        chosen = [run for run in runs if run.exposures == exposures]
        positive = [run for run in chosen if run.bits > 0]  # others have no place on the axis
        drawn = axes.scatter(
            [run.parameters for run in positive],
            [run.bits for run in positive],
            label=f"{exposures:,.0f} exposures",
            zorder=3,
        )
        axes.scatter(  # what there was to know
            [run.parameters for run in chosen],
            [run.possible_bits for run in chosen],
            marker="_",
            color=drawn.get_facecolor(),
            s=80,
        )
    for axis in (axes.xaxis, axes.yaxis):
        set_log_axis(axes, axis.axis_name)
        axis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("parameters")
    axes.set_ylabel("bits known (no dot: none); a dash: bits to know")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    return figure


_ABOUT = (
    "People with five facts, drawn uniformly and independently. A fact is known as far as the model gives its"
    " value more probability than the uniform draw does, in the person's own line behind the name and the"
    " facts before it. Only values count, not the names. All trainable weights count as"
    " parameters; without tables: all but those of the embeddings and of the head."
)


def write_page(runs: Sequence[Capacity], out: Path) -> None:
    """Write the table, the figure and the bits of every attribute as one HTML page.

    Raises:
        InputError: matplotlib is not installed.
        CheckpointError: the file cannot be written.
    """
    head = ["parameters", "people", "exposures", *(f"{a.name} (of {a.bits:.2f})" for a in ATTRIBUTES), "run"]
    rows = [
        [
            f"{run.parameters:,}",
            f"{run.people:,}",
            f"{run.exposures:,.0f}",
            *(f"{bits:.2f}" for bits in run.bits_by_attribute.values()),
            run.run,
        ]
        for run in _ordered(runs)
    ]
    body = (
        f"<h1>Capacity</h1><p>{escape(_ABOUT)}</p>{inline_svg(capacity_figure(runs))}"
        f"{html_table(capacity_table(runs))}<h2>Bits per person, by attribute</h2>{html_table([head, *rows])}"
    )
    write_html(out, "Capacity", body)
