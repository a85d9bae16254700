"""The command line: `lorebench methods | plan | run | report | export | paper | gate | ab | history`.

No command imports torch at its top: what needs it runs in another process, or is imported inside its command.
"""

from __future__ import annotations

import signal
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
    """Print an error as one line, without control characters of files and records, and exit."""
    from harness.tables.format import plain

    print(f"lorebench: {plain(text)}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


def main() -> None:
    """Run the command line; bad input, also a path that cannot exist, is one line and `EXIT_BAD_INPUT`."""
    try:
        app()
    except UserError as error:
        _refuse(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _refuse(f"{str(error.filename)[:LONGEST_PATH]}: {error.strerror}")
    except KeyboardInterrupt as interrupt:
        print("lorebench: stopped; the same command continues", file=sys.stderr)
        sys.exit(128 + getattr(interrupt, "number", signal.SIGINT))
