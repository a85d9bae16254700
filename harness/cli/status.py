"""The command `lorebench status`: what runs, what is stopped or failed and can go on, and what waits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.cli import output, show
from harness.errors import UserError, counted
from harness.plain_text import plain

if TYPE_CHECKING:
    from harness.engine.sweep.status import Status

Format = Literal["text", "json"]
#: Runs that wait, in the table.
MOST_WAITING = 20
HEAD = (
    *("state", "suite", "row", "seed", "phase", "update", "loss", "tokens/s"),
    *("left", "checkpoint", "last report"),
)
#: What to do about runs that nobody is at work on, by their state.
GO_ON = {
    "stopped": "the same command goes on from the checkpoint, or begins anew where there is none",
    "failed": "the same command with --retry goes on from the checkpoint",
}


def status(
    results: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RESULTS]...", help="Folders of records, searched recursively.", show_default="runs"
        ),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="Format of what is printed.")] = "text",
) -> None:
    """Show which runs are at work and how far they are; it changes nothing and exits with 0."""
    from harness.engine.sweep.status import survey

    for folder in results or ():
        if not folder.is_dir():
            what = "no folder" if folder.exists() else "no such folder"
            raise UserError(f"{folder}: {what}; give folders of records, as run and tune write them")
    folders = results or [Path("runs")]
    found = survey(folders)
    place = ", ".join(map(str, folders))
    output.publish(found, form, {}, {"json": as_json}, lambda shown: _show(shown, place))


def as_json(found: Sequence[Status]) -> str:
    """Return a list of runs; what is not known is left out."""
    from harness import strict_json

    rows = [{key: value for key, value in vars(each).items() if value is not None} for each in found]
    return strict_json.text({"runs": rows}, indent=1, ensure_ascii=False)


def _show(found: Sequence[Status], place: str) -> None:
    if not found:
        typer.echo(plain(f"nothing runs, is stopped or waits in {place}"))
        return
    several = len({each.machine for each in found}) > 1
    waiting = [each for each in found if each.state == "waiting"]
    shown = [each for each in found if each.state != "waiting"] + waiting[:MOST_WAITING]
    show.table(HEAD, [_row(each, several) for each in shown])
    if (left := len(waiting) - MOST_WAITING) > 0:
        typer.echo(f"and {counted(left, 'more run')} that wait")
    for state, how in GO_ON.items():
        if any(each.state == state for each in found):
            typer.echo(f"{state}: {how}")


def _row(each: Status, several: bool) -> tuple[str, ...]:
    """Return the cells of a run; its machine is named where there are several."""
    from harness.engine.process.progress import duration
    from harness.tables.format import DASH

    def age(seconds: float | None) -> str:
        return DASH if seconds is None else f"{duration(seconds)} ago"

    repeat = f" r{each.repeat}" if each.repeat else ""
    saved = DASH if each.checkpoint is None else f"{each.checkpoint:,}, {age(each.checkpoint_s)}"
    return (
        each.state,
        plain(f"{each.machine}/{each.suite}" if several else each.suite),
        plain(each.row),
        DASH if each.seed is None else f"{each.seed}{repeat}",
        plain(each.phase or DASH),
        DASH if each.steps is None else f"{each.step or 0:,}/{each.steps:,}",
        DASH if each.loss is None else f"{each.loss:.3f}",
        DASH if each.tokens_per_s is None else f"{each.tokens_per_s:,.0f}",
        DASH if each.left_s is None else duration(each.left_s),
        saved,
        age(each.told_s),
    )
