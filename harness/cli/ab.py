"""The command `lorebench ab`: run a suite on two revisions of the code, interleaved, and compare them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_args

import typer

from harness.ab import session
from harness.cli import options, output
from harness.cli.gate import Format, FormOption, publish
from harness.errors import UserError
from harness.files import cache_folder

#: Runs of a side that a verdict about throughput needs, and the default.
REPEATS = 5
MOST_REPEATS = 1000
#: Settings that leave out what changes neither memory nor speed.
COST_ONLY = ("evaluate.perplexity=[]", "evaluate.tasks=[]", "save_weights=false")

Control = Annotated[
    str | None,
    typer.Option(
        metavar="LABEL",
        help="The row whose throughput must be stable before another's is judged; runs even when --only "
        "leaves it out. [default: the suite's baseline]",
    ),
]
Apart = Annotated[
    bool,
    typer.Option(
        "--apart",
        help="Run one after the other, as on a GPU and with --quality. On a CPU both revisions run at once, "
        "and their updates alternate.",
    ),
]


@options.selects
def ab(
    first: Annotated[str, typer.Argument(metavar="REV_A", help="A commit, branch or tag: the base.")],
    second: Annotated[str, typer.Argument(metavar="REV_B", help="Against it; `.` is the working tree.")],
    selection: options.Selection,
    repeats: Annotated[
        int, typer.Option(metavar="N", help="Runs of each row and side; a verdict needs 5.")
    ] = REPEATS,
    control: Control = None,
    quality: Annotated[
        bool, typer.Option("--quality", help="Also score perplexity and accuracy, and compare them.")
    ] = False,
    device: options.Device = "auto",
    deadline: options.Deadline = None,
    results: options.Results = Path("runs/ab"),
    repository: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="A clone of lorebench or of a plug-in. [default: that of this folder]"
        ),
    ] = None,
    apart: Apart = False,
    python_a: Annotated[
        str | None, typer.Option(metavar="FILE", help="An interpreter that runs REV_A.")
    ] = None,
    python_b: Annotated[
        str | None, typer.Option(metavar="FILE", help="An interpreter that runs REV_B.")
    ] = None,
    form: FormOption = "text",
    out: output.Out = None,
) -> None:
    """Run two revisions interleaved and show what changed; exit codes as for gate. Their code runs as you."""
    from harness.ab import schedule
    from harness.engine.sweep import resolution

    if not 1 <= repeats <= MOST_REPEATS:
        raise UserError(f"--repeats {repeats}: give a number from 1 to {MOST_REPEATS}")
    options.deadline_s(deadline)
    to = output.destinations(out, get_args(Format))
    session.check_settings(selection.settings or ())
    changed = replace(selection, settings=_settings(selection.settings or (), quality), only=None)
    everything = options.use_threads(changed.everything())
    control = session.control_row(everything, control)
    chosen = session.rows(everything, selection.only, control, quality, bool(selection.seed))
    # Before a checkout, refuse what cannot be read.
    plan = resolution.resolve(chosen.runs, device, cache=cache_folder())
    sides = session.sides_of(repository, (first, second), (python_a, python_b), chosen.runs)
    given = [*([f"--deadline={deadline}"] if deadline else []), *changed.forwarded(plan.device)]
    request = session.request_for(selection.suite, chosen, given, results, sides, plan, apart or quality)
    schedule.carry_out(schedule.interleave(chosen.runs, repeats), sides, request, plan)
    publish(session.compare(request, chosen.runs, repeats, control), form, to)


def _settings(given: Sequence[str], quality: bool) -> list[str]:
    """Return the settings of the command line with those that leave out what is not compared, which win."""
    added = () if quality else COST_ONLY
    keys = {text.partition("=")[0] for text in added}
    return [*(text for text in given if text.partition("=")[0].strip() not in keys), *added]
