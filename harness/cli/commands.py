"""The command line: `lorebench methods | check | plan | run | report | export | paper | gate | ab | history`.

No command imports torch at its top: what needs it runs in another process, or is imported inside its command.
"""

from __future__ import annotations

import typer

from harness.cli import ab, check, export, gate, history, methods, paper, plan, report, run

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
    check.check,
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
