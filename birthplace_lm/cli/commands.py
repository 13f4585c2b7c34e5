"""The program `birthplace-lm`: its commands; imports that need torch happen inside them."""

import sys
from importlib import metadata
from typing import Annotated, Any

import typer

from birthplace_lm.cli import analysis_commands, asking_commands, tool_commands
from birthplace_lm.cli.streams import protect_standard_streams
from birthplace_lm.errors import BirthplaceError, CheckpointError, InputError
from birthplace_lm.runs import signals

UsageError: Any = typer.BadParameter.__bases__[0]  # typer has no public name for it

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train models on facts about people, ask them, and compare runs.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(metadata.version("birthplace-lm"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options without a command."""


@app.command(
    add_help_option=False,  # Hydra's parser reads all arguments, --help too
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train(context: typer.Context) -> None:
    """Pretrain, finetune and evaluate. Every setting is KEY=VALUE; see birthplace-lm train --help.

    Example: birthplace-lm train -m attention=vanilla,synthesizer seed=0,1,2
    """
    signals.install()  # before the imports, which take a moment
    from birthplace_lm.cli.app import main as train_main

    raise typer.Exit(train_main(context.args))


for module in (asking_commands, analysis_commands, tool_commands):
    app.add_typer(module.app)


def main() -> None:
    """Run the command; an error is one line and its exit code."""
    protect_standard_streams(tolerated=BrokenPipeError)  # what a command prints is its result
    try:
        try:
            sys.exit(app(prog_name="birthplace-lm", standalone_mode=False))
        finally:
            sys.stdout.flush()
    except typer.Abort:
        sys.exit(1)
    except BirthplaceError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        sys.exit(CheckpointError.exit_code)
    except UsageError as error:
        if message := error.format_message().strip():  # none without a command, which prints the help
            where = error.ctx.command_path if error.ctx else "birthplace-lm"
            message = message.replace("Value error, ", "").rstrip(".")
            print(f"error: {message}; see {where} --help", file=sys.stderr)
        sys.exit(InputError.exit_code)
