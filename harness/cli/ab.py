"""The command `lorebench ab`: run a suite with two interleaved revisions and compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.ab import rows, session
from harness.cli import options
from harness.cli.gate import FormOption, OutOption, publish
from harness.errors import UserError

#: Runs of a side that a verdict about throughput needs, and what is asked for unless a person says otherwise.
REPEATS = 5
MOST_REPEATS = 1000
#: Settings without which a run costs less and is as large and as fast.
COST_ALONE = ("evaluate.perplexity=[]", "evaluate.tasks=[]", "save_weights=false")


Repeats = Annotated[int, typer.Option(help="Runs of each row and side; a verdict needs 5.")]
Control = Annotated[
    str | None,
    typer.Option(
        metavar="LABEL",
        help="The row whose throughput must be stable before another's is judged; runs even when --only "
        "leaves it out. [default: the suite's baseline]",
    ),
]
Quality = Annotated[
    bool, typer.Option("--quality", help="Also score perplexity and accuracy, and compare them.")
]
Repository = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A clone of lorebench. [default: the one around here]")
]
Apart = Annotated[
    bool,
    typer.Option(
        "--apart",
        help="One run after the other, as on a GPU and with --quality. On a CPU both revisions are there at "
        "once, and their updates take turns.",
    ),
]
PythonA = Annotated[
    str | None, typer.Option("--python-a", metavar="FILE", help="An interpreter that runs REV_A.")
]
PythonB = Annotated[
    str | None, typer.Option("--python-b", metavar="FILE", help="An interpreter that runs REV_B.")
]


def ab(
    first: Annotated[str, typer.Argument(metavar="REV_A", help="A commit, branch or tag: the base.")],
    second: Annotated[str, typer.Argument(metavar="REV_B", help="Against it; `.` is the working tree.")],
    suite: options.SuiteName,
    repeats: Repeats = REPEATS,
    control: Control = None,
    quality: Quality = False,
    model: options.ModelOption = None,
    data: options.DataOption = None,
    settings: options.SetOption = None,
    only: options.OnlyOption = None,
    seed: options.Seeds = None,
    device: options.Device = "auto",
    deadline: Annotated[str, typer.Option(help="Longest time for one run.")] = "6h",
    results: options.Results = Path("runs/ab"),
    repository: Repository = None,
    apart: Apart = False,
    python_a: PythonA = None,
    python_b: PythonB = None,
    form: FormOption = "text",
    out: OutOption = None,
) -> None:
    """Run two revisions interleaved on this machine and compare them; exit codes as of gate."""
    from harness.engine import runner

    if not 1 <= repeats <= MOST_REPEATS:
        raise UserError(f"--repeats {repeats}: give a number from 1 to {MOST_REPEATS}")
    options.seconds(deadline)
    rows.check_settings(settings or ())
    changed = [*(settings or ()), *(() if quality else COST_ALONE)]
    everything = options.load(suite, model, data, changed, None, seed)
    control = rows.control_row(everything, control)
    chosen = rows.rows(everything, only, control, quality, bool(seed))
    plan = runner.resolve(chosen.runs, device)  # refuses what cannot be read before anything is checked out
    sides = session.sides_of(repository, (first, second), (python_a, python_b))
    given = [f"--device={plan.device}", f"--deadline={deadline}", *(f"--set={item}" for item in changed)]
    given += [f"--model={model}"] if model else []
    given += [f"--data={item}" for item in data or ()]
    request = session.request_for(suite, chosen, given, results, sides, plan, apart or quality)
    session.take(request, chosen, repeats, sides, plan.device)
    publish(session.compared(request, chosen.runs, repeats, control), form, out)
