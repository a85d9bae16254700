"""What wrote a checkpoint, and whether another process may go on from it. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.engine.resume import names

#: What goes on where another process may not: that of the run itself, or of a shorter run.
OWN, SHORTER = "begin anew with --from-scratch", "leave out --extend"


def read(path: Path) -> Mapping[str, Any] | None:
    """Return what wrote a checkpoint, None where it does not say; nothing is compared with its hash."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return dict(json.loads((path / names.MANIFEST).read_bytes())["about"])
    return None


def refusal(path: Path, wrote: Mapping[str, Any], mine: Mapping[str, Any], instead: str) -> str | None:
    """Return why a process cannot go on from a checkpoint and what to do, None where it can.

    `mine` is what the process must have in common with the one that wrote it, as far as it is known.
    """
    for what, own in mine.items():
        if (other := wrote.get(what)) != own:
            difference = _difference(what, other, own)
            return (
                f"the checkpoint at update {names.step_of(path)} was written {difference}; "
                f"go on from it with the same, or {instead} ({path})"
            )
    return None


def _difference(what: str, wrote: Any, mine: Any) -> str:
    """Return in words how what wrote a checkpoint differs from this process."""
    if isinstance(wrote, Mapping) and isinstance(mine, Mapping):
        changed = sorted(name for name in {*wrote, *mine} if wrote.get(name) != mine.get(name))
        return f"with another content of {', '.join(changed)}"
    if what == "code":  # of hashes nobody learns anything
        return "by other code of lorebench"
    return f"with {what} {wrote}, here is {mine}"
