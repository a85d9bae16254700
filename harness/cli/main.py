"""The command line: `lorebench methods | plan | run | report | export | paper | gate | ab | history`.

Only the parent's light modules are imported at the top; whatever needs torch is a process of its
own or is imported inside its command.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from harness.cli import ab, export, gate, history, methods, paper, plan, report, run
from harness.errors import EXIT_BAD_INPUT, UserError

LONGEST_PATH = 200

app = typer.Typer(
    name="lorebench",
    help="Benchmark memory-efficient LLM training: perplexity, accuracy, peak memory, throughput.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


for _command in (
    methods.methods,
    run.run,
    plan.plan,
    export.export,
    report.report,
    paper.paper,
    gate.gate,
    ab.ab,
    history.history,
):
    app.command()(_command)


def _refuse(text: str) -> NoReturn:
    """End with a line, whatever files and records put into it."""
    from harness.tables.format import plain

    print(f"lorebench: {plain(text)}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


def main() -> None:
    """Run the command line; a user's mistake is one line and exit code 2, also a path that cannot be."""
    try:
        app()
    except UserError as error:
        _refuse(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _refuse(f"{str(error.filename)[:LONGEST_PATH]}: {error.strerror}")
    except KeyboardInterrupt:
        print("lorebench: stopped; the same command goes on where this one ended", file=sys.stderr)
        sys.exit(130)
