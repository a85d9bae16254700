"""The command line: its commands, each from a file of its own.

No command imports torch at its top: what needs it runs in another process, or is imported inside its command.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from harness import __version__
from harness.cli import (
    ab,
    check,
    devices,
    export,
    gate,
    history,
    methods,
    paper,
    plan,
    report,
    run,
    status,
    suites,
    tune,
)
from harness.credentials import refuse_secrets
from harness.errors import UserError

#: The mistake in a command line that typer raises: an unknown option, a value of another type.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise UserError for an argument that is no text, or that holds a password, which is not repeated.

    Arguments become part of records, commands and messages. The address of an MLflow server does not.
    """
    for number, (before, text) in enumerate(zip(["", *arguments], arguments, strict=False), start=1):
        option, given = text.partition("=")[::2] if text.startswith("--") else ("", text)
        name = option or (before if before.startswith("--") else f"argument {number}")
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{name}: not UTF-8 text without the character \\0; rename what it names")
        if name != "--mlflow":
            refuse_secrets(given, name)


@contextmanager
def _in_one_line(group: Any = None) -> Iterator[None]:
    """Turn a mistake in the command line into a UserError that names the help of its command.

    `group` is the context that a command is invoked in: an option without its value names no command itself.
    """
    try:
        yield
    except UsageError as error:
        said: Any = error
        if type(error).__name__ == "NoArgsIsHelpError":  # help is no mistake
            raise
        if said.ctx is not None:
            words = said.ctx.command_path.split()[said.ctx.find_root().command_path.count(" ") + 1 :]
        else:
            words = [group.invoked_subcommand] if group is not None and group.invoked_subcommand else []
        message = re.sub(r"Input should be a valid integer.*", "give a whole number", said.format_message())
        message = message.replace("Value error, ", "").rstrip(".")
        raise UserError(f"{message}; see {' '.join(['lorebench', *words, '--help'])}") from error


class _Commands(TyperGroup):
    """The commands, where a mistake in the command line is one line."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _in_one_line():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _in_one_line(ctx):
            return super().invoke(ctx)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lorebench {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    name="lorebench",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def lorebench(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Benchmark memory-efficient LLM training: perplexity, accuracy, peak memory, throughput."""


for _command in (
    suites.suites,
    methods.methods,
    check.check,
    run.run,
    status.status,
    plan.plan,
    tune.tune,
    devices.devices,
    export.export,
    report.report,
    paper.paper,
    gate.gate,
    ab.ab,
    history.history,
):
    app.command()(_command)
