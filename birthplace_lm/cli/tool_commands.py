"""The commands around training: export, import, corpora of invented people, benchmarks."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from birthplace_lm.cli.options import Checkpoint, NewFolder, Plugins, Run, Which
from birthplace_lm.errors import InputError

app = typer.Typer()


@app.command()
def export(run: Run, out: NewFolder, plugin: Plugins = None, checkpoint: Checkpoint = Which.last) -> None:
    """Export a trained model: safetensors, configuration, vocabulary and model card.

    Example: birthplace-lm export runs/vanilla-... model && birthplace-lm ask model "Ada Lovelace"
    """
    from birthplace_lm.analysis.model_card import model_card
    from birthplace_lm.config.compose import load_config
    from birthplace_lm.inference.asking import unfinished_warnings
    from birthplace_lm.inference.export import export_model
    from birthplace_lm.inference.language_model import TrainedModel
    from birthplace_lm.runs.directory import RunDirectory

    trained = TrainedModel.from_run(run, plugin or (), checkpoint)
    for warning in unfinished_warnings(run):
        print(f"warning: {warning}", file=sys.stderr)
    config = load_config(run, plugin or ())
    metrics = RunDirectory(run, config).metrics
    card = model_card(config, trained.model.num_parameters, metrics, "Trained with birthplace_lm.")
    export_model(trained, config, out, card)
    print(f"{out}: exported; load it in Python with birthplace_lm.load({str(out)!r})")


@app.command()
def import_course(
    file: Annotated[Path, typer.Argument(metavar="FILE.params", help="A state_dict saved in the course.")],
    out: NewFolder,
    corpus: Annotated[Path, typer.Option(help="The wiki.txt of its pretraining.")],
    attention: Annotated[str, typer.Option(help="vanilla or synthesizer.")] = "vanilla",
    n_head: Annotated[
        int | None,
        typer.Option(min=1, help="Number of heads; default: 8, or that of the synthesizer's weights."),
    ] = None,
) -> None:
    """Import a student's saved model as an export for ask, predict and birthplace_lm.load.

    Example: birthplace-lm import-course vanilla.finetune.params model --attention vanilla --corpus wiki.txt
    """
    from birthplace_lm.analysis.model_card import model_card
    from birthplace_lm.inference.export import export_model
    from birthplace_lm.inference.import_course import read_course_model

    trained, config = read_course_model(file, attention, corpus, n_head)
    origin = f"Imported from {file.name}, saved in Stanford's CS224N (2021)."
    export_model(trained, config, out, model_card(config, trained.model.num_parameters, None, origin))
    print(f"{out}: {trained.model.num_parameters:,} parameters; ask it with birthplace-lm ask {out} NAME")


@app.command()
def make_biographies(
    out: NewFolder,
    people: Annotated[int, typer.Option(help="Number of people.")] = 420,
    seed: Annotated[int, typer.Option(min=0, help="Seed; another seed gives other people.")] = 0,
    exposures: Annotated[
        str, typer.Option(metavar="N,N,...", help="How often lines are repeated; people take turns.")
    ] = "1",
    attributes: Annotated[
        bool, typer.Option("--attributes", help="Five facts about everybody, as in bioS, not only one.")
    ] = False,
    biographies: Annotated[
        int, typer.Option(min=1, help="With --attributes: lines about each person, in other wordings.")
    ] = 1,
    permute: Annotated[
        bool, typer.Option("--permute", help="With --attributes: every line has its own order of facts.")
    ] = False,
    full_names: Annotated[
        bool, typer.Option("--full-names", help="With --attributes: the name for He and She.")
    ] = False,
    short: Annotated[
        bool, typer.Option("--short", help="With --attributes: bare values, no sentences.")
    ] = False,
) -> None:
    """Generate a synthetic corpus about invented people, with questions in the course's format.

    Example: birthplace-lm make-biographies /tmp/people --people 2000 --seed 1

    Example: birthplace-lm make-biographies /tmp/bios --attributes --biographies 5 --permute
    """
    from birthplace_lm.data.corpora import attributes as bios
    from birthplace_lm.data.corpora.synthetic import write_biographies

    try:
        counts = [int(count) for count in exposures.split(",")]
    except ValueError:
        raise InputError(
            f"--exposures {exposures}: must be whole numbers with commas, such as 1,10"
        ) from None
    if attributes:
        wording = bios.Wording(biographies, permute, full_names, short, counts)
        bios.write_attribute_biographies(out, people, seed, wording)
        print(f"{people} people in {out}; train with data=bios_university data.root={out}")
        return
    for option, chosen in (
        ("--biographies", biographies > 1),
        ("--permute", permute),
        ("--full-names", full_names),
        ("--short", short),
    ):
        if chosen:
            raise InputError(f"{option}: needs --attributes")
    write_biographies(out, people, seed, counts)
    print(f"{people} people in {out}; train with data=biographies data.root={out}")


@app.command()
def bench(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE...]", help="Overrides, as for train.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each benchmark, interleaved.")] = 5,
    steps: Annotated[int, typer.Option(min=8, help="Optimizer steps per measurement.")] = 12,
    attention: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Compare attention variants instead: names with commas, or all."),
    ] = None,
) -> None:
    """Benchmark training, answering and start-up on this machine. Run nothing else meanwhile.

    Example: birthplace-lm bench data=cs224n data.root=DIR

    Example: birthplace-lm bench --attention all
    """
    from birthplace_lm.cli.attention_costs import attention_costs
    from birthplace_lm.cli.bench import bench as measure

    logging.getLogger("birthplace_lm").setLevel(logging.ERROR)  # no progress of the stages
    if attention is None:
        print(measure(overrides or [], rounds, steps))
    else:
        print(attention_costs(attention, overrides or [], rounds, steps))
