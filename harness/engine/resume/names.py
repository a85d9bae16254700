"""Which checkpoints a run has, by the names of their folders. No torch."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

#: What the folder of a run's checkpoints is called after its id.
SUFFIX = ".checkpoints"
#: The file of a checkpoint that has what is no tensor: hashes of the others, plain values, what wrote it.
MANIFEST = "checkpoint.json"
#: The number of updates, and the start of the hash of what describes the checkpoint.
NAME = re.compile(r"(\d{8,})\.([0-9a-f]{8})")


def name(step: int, digest: str) -> str:
    """Return the name of the checkpoint after `step` updates."""
    return f"{step:08d}.{digest[:8]}"


def half(step: int) -> str:
    """Return the name of a checkpoint that is being written."""
    return f".{step:08d}.tmp"


def below(folder: Path) -> list[Path]:
    """Return the checkpoints below a folder, the newest first."""
    with suppress(OSError):
        found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: (step_of(path), path.name), reverse=True)
    return []


def step_of(path: Path) -> int:
    """Return the number of updates of a checkpoint."""
    return int(path.name.partition(".")[0])


def newest_step(folder: Path) -> int:
    """Return the number of updates of the newest checkpoint below a folder, 0 without any."""
    return max(map(step_of, below(folder)), default=0)
