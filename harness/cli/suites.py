"""The command `lorebench suites`: list the suites that ship."""

from __future__ import annotations

from harness import suite
from harness.cli import show


def suites() -> None:
    """List the suites that ship, with the number of their runs and the question that each answers."""
    loaded = {name: suite.load(file) for name, file in suite.shipped_suites().items()}
    rows = [(name, str(len(each.runs)), each.question) for name, each in loaded.items()]
    show.table(("suite", "runs", "question"), rows)
