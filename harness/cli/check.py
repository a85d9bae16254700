"""The command `lorebench check`: hold a method to the contract, each check in one line."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from harness import imports
from harness import suite as suites
from harness.errors import EXIT_BAD_INPUT, UserError

Options = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="OPTION=VALUE", help="An option of the method; repeatable."),
]


def check(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="module:Class, or the name of a method.")],
    settings: Options = None,
) -> None:
    """Check that a method keeps the contract: train a tiny model with it and look, in seconds.

    Exit code 0 when all is well, 1 when a check failed. A plug-in is code: it runs as you.
    """
    given = [suites.parse_override(text) for text in settings or ()]
    suites.check_each_once(given)
    options = {override.key: override.value.plain() for override in given}
    counts = dict.fromkeys(("ok", "failed", "not tried"), 0)
    for event in _answers({"method": method, "options": options}):
        if "error" in event:
            raise UserError(str(event["error"]))
        if "stopped" in event:
            typer.echo(f"stopped: {event['stopped']}")
        else:
            counts[event["outcome"]] += 1
            typer.echo(f"{event['outcome']:<10}{event['check']}: {event['said']}")
    typer.echo(f"{method}: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))
    raise typer.Exit(1 if counts["failed"] else 0)


def _answers(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what a worker says about a request; an end before it is done is the last failed check."""
    done = False
    command = [*imports.command("harness.engine.worker"), "check"]
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=imports.environment()
        ) as worker:
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write(json.dumps(request).encode() + b"\n")
            worker.stdin.flush()
            for line in worker.stdout:
                event = json.loads(line)
                if not (done := "done" in event):
                    yield event
            worker.wait()  # it ends at once, and badly, when its input closes
        if not done and worker.returncode != EXIT_BAD_INPUT:
            log.seek(0)
            last = (log.read().decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            said = f"the process of the method ended with exit code {worker.returncode}: {last}"
            yield {"check": "process", "outcome": "failed", "said": said}
