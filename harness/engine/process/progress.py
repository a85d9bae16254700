"""Display of a sweep: live bars on a terminal, one line per event elsewhere. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from harness.config import Run
from harness.errors import counted
from harness.plain_text import plain
from harness.record import Record


class Display:
    """Base class that shows no progress, and notes only on a console; a context manager around one sweep.

    `names` are those of the runs by label and config, where they are not the labels.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self.names: Mapping[tuple[str, str], str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def begin(self, total: int, done: int) -> None:
        """Start a sweep of `total` runs, of which `done` are finished already."""

    def note(self, text: str) -> None:
        """Show a message on one line, literally: it neither moves the cursor nor commands a build server."""
        if self._console is not None:
            self._console.print(plain(text), markup=False, highlight=False, soft_wrap=True)

    def start(self, run: Run, eta_s: float | None) -> None:
        """Start a run; `eta_s` estimates the seconds left for the sweep, None while unknown."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Show the progress of a worker: `phase`, and optionally `step`, `steps`, `loss`, `tokens_per_s`.

        `resumed` is the number of updates of the checkpoint that it goes on from.
        """

    def end(self, run: Run, record: Record, seconds: float) -> None:
        """End a run."""

    def adopt(self, run: Run, record: Record) -> None:
        """Count a run that another sweep has carried out meanwhile."""
        self.note(f"{self.title(run)}: {record.outcome.status}, by another sweep")

    def title(self, run: Run) -> str:
        """Return the name of a run with its seed and repeat."""
        name = self.names.get((run.name, run.config_id), run.name)
        return plain(f"{name} seed {run.seed}" + (f" repeat {run.repeat}" if run.repeat else ""))


class Plain(Display):
    """One line per start, phase, end and note, for logs and pipes; steps are not shown."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._total, self._number = 0, 0
        self._phase: str | None = None

    def begin(self, total: int, done: int) -> None:
        """Print how many runs are finished."""
        self._total, self._number = total, done
        self.note(f"{counted(total, 'run')}, {done} already finished")

    def start(self, run: Run, eta_s: float | None) -> None:
        """Print the run with its number."""
        self._number, self._phase = self._number + 1, None
        eta = "" if eta_s is None else f", about {duration(eta_s)} left"
        self.note(f"[{self._number}/{self._total}] {self.title(run)}: started{eta}")

    def event(self, event: Mapping[str, Any]) -> None:
        """Print a phase when it begins, but no score in the middle of a training."""
        phase = event.get("phase")
        in_training = phase == "evaluate" and "step" in event
        if phase is not None and phase != self._phase and not in_training:
            self._phase = str(phase)
            self.note(f"[{self._number}/{self._total}] {self._phase}")
        if "resumed" in event:
            self.note(f"[{self._number}/{self._total}] goes on from update {event['resumed']}")

    def end(self, run: Run, record: Record, seconds: float) -> None:
        """Print the outcome."""
        self.note(f"[{self._number}/{self._total}] {verdict(self.title(run), record, seconds)}")

    def adopt(self, run: Run, record: Record) -> None:
        """Print the outcome with the number of the run."""
        self._number += 1
        self.note(
            f"[{self._number}/{self._total}] {self.title(run)}: {record.outcome.status}, by another sweep"
        )


class Live(Display):
    """Two bars that stay in place, the sweep and the run; finished runs scroll above them."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=2)),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}", markup=False),
            TextColumn("{task.fields[status]}", markup=False, table_column=Column(no_wrap=True, ratio=3)),
            console=console,
            refresh_per_second=4,  # the display shares the processor with the work that is timed
            transient=True,
            expand=True,
        )
        self._sweep: TaskID | None = None
        self._run: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def begin(self, total: int, done: int) -> None:
        """Create the bar of the sweep."""
        self._sweep = self._bars.add_task("sweep", total=total, completed=done, status="")

    def start(self, run: Run, eta_s: float | None) -> None:
        """Create the bar of the run."""
        if self._sweep is not None:
            self._bars.update(self._sweep, status="" if eta_s is None else f"about {duration(eta_s)} left")
        self._run = self._bars.add_task(self.title(run), total=1, status="starts")

    def event(self, event: Mapping[str, Any]) -> None:
        """Move the bar of the run."""
        if self._run is not None:
            self._bars.update(
                self._run, completed=event.get("step", 0), total=event.get("steps", 1), status=summary(event)
            )

    def end(self, run: Run, record: Record, seconds: float) -> None:
        """Print the outcome above the bars and remove the bar of the run."""
        self.note(verdict(self.title(run), record, seconds))
        if self._run is not None:
            self._bars.remove_task(self._run)
            self._run = None
        if self._sweep is not None:
            self._bars.advance(self._sweep)

    def adopt(self, run: Run, record: Record) -> None:
        """Print the outcome above the bars."""
        super().adopt(run, record)
        if self._sweep is not None:
            self._bars.advance(self._sweep)


def choose(console: Console | None = None) -> Display:
    """Return live bars for a terminal, plain lines otherwise; on standard error, so results can be piped."""
    console = console or Console(stderr=True)
    return Live(console) if console.is_terminal else Plain(console)


def verdict(title: str, record: Record, seconds: float) -> str:
    """Describe the outcome of a run in one line; one that gave up by itself lacked an input or room."""
    outcome = record.outcome
    refused = outcome.status == "interrupted" and not outcome.attempts
    line = f"{title}: {'refused' if refused else outcome.status} after {duration(seconds)}"
    if outcome.status == "ok":
        return line
    reason = (outcome.message.splitlines() or [""])[0]
    return f"{line}, in {outcome.phase or 'no phase'}" + (f": {reason}" if reason else "")


def summary(event: Mapping[str, Any]) -> str:
    """Describe an event in a few words."""
    parts = [plain(str(event.get("phase", "")))]
    if isinstance(loss := event.get("loss"), (int, float)):
        parts.append(f"loss {loss:.3f}")
    if isinstance(speed := event.get("tokens_per_s"), (int, float)):
        parts.append(f"{speed:,.0f} tokens/s")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Format seconds: 4.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
