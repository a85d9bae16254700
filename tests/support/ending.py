"""How a command ended."""

from __future__ import annotations

from collections.abc import Callable


def ended(command: Callable[[], object]) -> int:
    """Return the exit code of a command that is called within this process."""
    try:
        command()
    except SystemExit as end:
        return int(end.code or 0)
    return 0
