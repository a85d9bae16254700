"""The records of one side of a comparison; what is no sound record is set aside, never compared.

Reading is as strict as `record.read`. Beyond its types, numbers are held to what they can be, since a figure
that is impossible would make a verdict that is wrong.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import record
from harness.errors import UserError
from harness.record import Record
from harness.tables.cells import plain
from harness.tables.compare.memory import components

#: A record of ten thousand updates has less than 1 MB.
LARGEST_RECORD = 64 << 20
#: results/<machine>/<suite>/<run>.json is the deepest place of a record below a folder that is given.
DEEPEST = 3
LARGEST_COUNT = 1 << 60
NOTE_LENGTH = 240


@dataclass(frozen=True)
class Loaded:
    """A record and where it was read."""

    record: Record
    path: Path

    @property
    def folder(self) -> Path:
        """Where the run left its samples."""
        return self.path.with_suffix("")


@dataclass(frozen=True)
class Side:
    """The sound records of a folder or file, and a line for each other file."""

    records: tuple[Loaded, ...]
    set_aside: tuple[str, ...]


def load(path: Path) -> Side:
    """All records of a file, a folder, or a folder above; UserError where there is none of these."""
    if not there(path):
        raise UserError(f"{path}: no such file or folder; give a record or a folder of records")
    root = path if path.is_dir() else path.parent
    found: list[Loaded] = []
    aside: list[str] = []
    known: dict[tuple[str, ...], Path] = {}
    for file in files(path) if path.is_dir() else [path]:
        try:
            read = sound(file)
        except UserError as error:
            aside.append(_note(file, root, str(error).removeprefix(f"{file}: ")))
            continue
        twin = known.setdefault(_identity(read), file)
        if twin is file:
            found.append(Loaded(read, file))
        else:
            aside.append(_note(file, root, f"the same run as {twin.relative_to(root)}"))
    return Side(tuple(found), tuple(aside))


def there(path: Path) -> bool:
    """Whether a path leads to a file or folder; UserError for one that cannot be, or may not be read."""
    try:
        if path.is_dir():
            os.scandir(path).close()  # a walk would pass over a folder that may not be read
        return path.exists()
    except OSError as error:
        raise UserError(f"{plain(str(path), NOTE_LENGTH)}: cannot be read: {error.strerror}") from error


def files(folder: Path, deepest: int = DEEPEST) -> Iterator[Path]:
    """JSON files in the order of their paths, without what a run leaves in its own folder."""
    for place, folders, found in os.walk(folder):
        inside = Path(place)
        depth = len(inside.relative_to(folder).parts)
        owned = {name for name in folders if f"{name}.json" in found or (inside / name / "job.json").exists()}
        folders[:] = sorted(set(folders) - owned) if depth < deepest - 1 else []
        yield from (inside / name for name in sorted(found) if name.endswith(".json") and name[0] != ".")


def sound(file: Path) -> Record:
    """The record of a file, held to what can be; UserError says in one line why it is none."""
    if not file.is_file():
        raise UserError("not a regular file")
    if file.stat().st_size > LARGEST_RECORD:
        raise UserError(f"larger than {LARGEST_RECORD >> 20} MiB")
    return believed(record.read(file))


def believed(read: Record) -> Record:
    """The same record, unless its numbers cannot be."""
    wrong = next(_impossible(read), None)
    if wrong:
        raise UserError(f"not a sound record: {wrong}")
    return read


def _note(file: Path, root: Path, reason: str) -> str:
    return plain(f"{file.relative_to(root)}: {reason}", NOTE_LENGTH)


def machine(read: Record) -> tuple[str, ...]:
    """The machine of a run and its meter; with other threads it is another machine."""
    here, meter = read.environment, read.memory.meter if read.memory else ""
    return (here.device, str(here.cpu_threads), meter) if here else ("", "", meter)


def _identity(read: Record) -> tuple[str, ...]:
    """What one side may have once: a run on a machine by a meter."""
    return read.suite, read.run_id, *machine(read)


# ------------------------------------------------------------------------------- what cannot be
def _impossible(read: Record) -> Iterator[str]:
    """What is wrong with the numbers of a record, in words."""
    if read.run_id != f"{read.config_id}-s{read.seed}-r{read.repeat}" or min(read.seed, read.repeat) < 0:
        yield "run_id does not follow from config_id, seed and repeat"
    train = read.memory.train if read.memory else None
    if train is not None:
        parts = components(train)
        if not _counts(train.peak_allocated_bytes) or not all(map(_counts, list(parts.values()))):
            yield "memory.train holds an impossible number of bytes"
        elif sum(parts.values()) != train.peak_allocated_bytes:
            yield "the components of memory.train do not add up to its peak"
    speed = read.time.tokens_per_s if read.time else None
    if speed is not None and not (math.isfinite(speed) and speed > 0):
        yield "time.tokens_per_s is no speed"
    if read.quality is not None:
        yield from _impossible_quality(read)


def _impossible_quality(read: Record) -> Iterator[str]:
    assert read.quality is not None
    for name, scored in read.quality.perplexity.items():
        if not (_counts(scored.tokens, 1) and _counts(scored.windows, 1)) or scored.nll_nats < 0:
            yield f"quality.perplexity.{name} has an impossible count"
    for name, task in read.quality.tasks.items():
        if not (_counts(task.documents, 1) and 0 <= task.correct <= task.documents):
            yield f"quality.tasks.{name} has an impossible count"
        elif not abs(task.accuracy - task.correct / task.documents) < 1e-9:
            yield f"quality.tasks.{name}: the accuracy does not follow from its counts"


def _counts(value: int, least: int = 0) -> bool:
    return least <= value <= LARGEST_COUNT
