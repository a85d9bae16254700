"""The command `lorebench check`: hold a method to the contract, each check in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from harness.cli.options import method_options
from harness.errors import UserError

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
    from harness.engine.process import child

    options = method_options(settings)
    counts = dict.fromkeys(("ok", "failed", "not tried"), 0)
    done: list[Mapping[str, Any]] = []

    def on_event(event: Mapping[str, Any]) -> None:
        if "error" in event:
            raise UserError(str(event["error"]))
        if "stopped" in event:
            typer.echo(f"stopped: {event['stopped']}")
        elif "note" in event:
            typer.echo(f"note: {event['note']}")
        elif "done" in event:
            done.append(event)
        else:
            counts[event["outcome"]] += 1
            typer.echo(f"{event['outcome']:<10}{event['check']}: {event['said']}")

    said = child.ask("check", {"method": method, "options": options}, on_event)
    if not done:
        on_event({"check": "process", "outcome": "failed", "said": said})
    typer.echo(f"{method}: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))
    raise typer.Exit(1 if counts["failed"] else 0)
