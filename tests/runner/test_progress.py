"""What a person sees during a sweep, on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from sweeping import stub_run

from harness.engine.process.job import Job
from harness.engine.process.progress import Display, Live, Plain, choose, duration, summary, verdict
from harness.record import Outcome, Record


def ended(status: str, message: str = "") -> Record:
    from pathlib import Path

    record = Job(stub_run(), "s", Path("x"), "cpu", Path("c"), "").blank()
    record.outcome = Outcome.model_validate({"status": status, "phase": "train", "message": message})
    return record


def one_run(display: Display, steps: int, record: Record) -> None:
    run = stub_run(label="[red]rank[/]", seed=4)
    with display:
        display.begin(total=3, done=1)
        display.note("a note")
        display.start(run, eta_s=75.0)
        display.event({"phase": "load"})
        for step in range(steps):
            display.event(
                {"phase": "train", "step": step, "steps": steps, "loss": 2.5, "tokens_per_s": 5120.0}
            )
        display.end(run, record, 12.34)


def test_plain_lines_say_each_start_phase_and_end_once_however_many_steps() -> None:
    output = io.StringIO()
    one_run(Plain(Console(file=output, width=40)), 500, ended("oom", "CUDA out of memory\nmore"))
    assert output.getvalue().splitlines() == [
        "3 runs, 1 already finished",
        "a note",
        "[2/3] [red]rank[/] seed 4: started, about 1 min 15 s left",
        "[2/3] load",
        "[2/3] train",
        "[2/3] [red]rank[/] seed 4: oom after 12.3 s, in train: CUDA out of memory",
    ]


def test_a_terminal_shows_step_loss_and_speed_of_the_run_and_the_sweep() -> None:
    output = io.StringIO()
    live = Live(Console(file=output, force_terminal=True, width=160, height=20))
    with live:
        live.begin(total=3, done=1)
        live.start(stub_run(label="[red]rank[/]"), eta_s=75.0)
        live.event({"phase": "train", "step": 7, "steps": 50, "loss": 2.5, "tokens_per_s": 5120.0})
        live._bars.refresh()
    shown = output.getvalue()
    for part in (
        "sweep",
        "1/3",
        "about 1 min 15 s left",
        "[red]rank[/] seed 0",
        "7/50",
        "loss 2.500",
        "5,120 tokens/s",
    ):
        assert part in shown, part


def test_a_terminal_keeps_how_each_run_ended_above_the_bars() -> None:
    output = io.StringIO()
    one_run(Live(Console(file=output, force_terminal=True, width=160, height=20)), 500, ended("ok"))
    assert "[red]rank[/] seed 4: ok after 12.3 s\n" in output.getvalue()
    assert "a note\n" in output.getvalue()
    assert len(output.getvalue()) < 20_000  # 500 steps draw few frames


def test_bars_are_for_terminals_alone() -> None:
    assert isinstance(choose(Console(file=io.StringIO(), force_terminal=True)), Live)
    assert isinstance(choose(Console(file=io.StringIO())), Plain)


def test_events_before_the_first_run_and_with_odd_values_do_no_harm() -> None:
    live = Live(Console(file=io.StringIO(), force_terminal=True))
    with live:
        live.event({"phase": "train"})
        live.begin(total=1, done=0)
        live.start(stub_run(), eta_s=None)
        live.event({"phase": "evaluate", "loss": None, "task": "arc"})
        live.end(stub_run(), ended("timeout"), 1.0)
    assert summary({"phase": "evaluate", "loss": None}) == "evaluate"


def test_a_failure_without_a_message_still_names_its_phase() -> None:
    assert verdict("a seed 0", ended("timeout"), 3.0) == "a seed 0: timeout after 3.0 s, in train"
    repeated = Display().title(stub_run(label="a", repeat=2))
    assert verdict(repeated, ended("ok"), 3.0) == "a seed 0 repeat 2: ok after 3.0 s"


def test_what_a_worker_refused_is_not_called_interrupted_and_what_was_killed_is() -> None:
    refused, killed = ended("interrupted"), ended("interrupted")
    refused.outcome.message, killed.outcome.attempts = "d.txt: no such file", 1
    assert verdict("a seed 0", refused, 3.0).startswith("a seed 0: refused after 3.0 s, in")
    assert verdict("a seed 0", refused, 3.0).endswith(": d.txt: no such file")
    assert verdict("a seed 0", killed, 3.0).startswith("a seed 0: interrupted after 3.0 s")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.21, "4.2 s"), (59.94, "59.9 s"), (60, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_runs_of_one_label_are_told_apart() -> None:
    """As the trials of `tune` are, which differ in their rate."""
    console = Console(file=io.StringIO(), width=200)
    display = Plain(console)
    run = stub_run(label="a")
    display.names = {("a", run.config_id): "a train.lr=0.01"}
    display.start(run, None)
    assert "a train.lr=0.01 seed 0: started" in console.file.getvalue()  # type: ignore[attr-defined]
