"""Find and read records for tables; skip those that no run can have made."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from harness import record
from harness.errors import UserError
from harness.record import Part, Perplexity, Record, Time, TrainMemory
from harness.tables.aggregate import COMPONENTS
from harness.tables.format import plain

#: <row>/<machine>/<suite>/<run>.json below a side of `ab` is the deepest place of a record.
DEEPEST = 4


NOTE_LENGTH = 240


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


def machine(read: Record) -> tuple[str, ...]:
    """The machine of a run and its meter; with other threads it is another machine."""
    here, meter = read.environment, read.memory.meter if read.memory else ""
    return (here.device, str(here.cpu_threads), meter) if here else ("", "", meter)


#: So many files that are set aside are named, each in so many characters; all are counted.
_MOST_NOTES, _NOTE = 20, 300


def load(folder: Path) -> tuple[list[Record], list[str]]:
    """Read the sound records of one suite's folder; notes on the other files. UserError without a folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of records; run the suite first")
    records: list[Record] = []
    reasons: list[str] = []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(sound(path))
        except UserError as error:
            # A report is the same wherever the folder is.
            reasons.append(
                f"{path.name}: {str(error).removeprefix(f'{path}: ').replace(str(path), path.name)}"
            )
    notes = [plain(f"Set aside: {reason}", _NOTE) for reason in reasons[:_MOST_NOTES]]
    if reasons:
        total = len(records) + len(reasons)
        notes.append(f"{len(reasons)} of {total} files are no sound records and are set aside.")
    return records, notes


#: A record of ten thousand updates has less than 1 MB.
LARGEST_RECORD = 64 << 20


LARGEST_COUNT = 1 << 60


#: Levels of settings or facts; a stack of methods with their options has five.
DEEPEST_NESTING = 32


#: Fields that may hold any integer: tables show them as text, or what can be is decided for them alone.
_FREE = ("config", "facts", "flags", "seed", "repeat")


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


def _impossible(read: Record) -> Iterator[str]:
    """What is wrong with a record, in words."""
    if read.run_id != f"{read.config_id}-s{read.seed}-r{read.repeat}" or min(read.seed, read.repeat) < 0:
        yield "run_id does not follow from config_id, seed and repeat"
    facts = read.parameters.facts if read.parameters else {}
    for place, anything in (("config", read.config), ("parameters.facts", facts)):
        if _deep(anything):
            yield f"{place} is nested more than {DEEPEST_NESTING} levels deep"
            return  # nothing below can be looked at
    for place, value in _integers(read, ""):
        if not _counts(value):
            yield f"{place[1:]} is no count"
    if not all(_is_number(value) for value in _leaves(facts)):
        yield "parameters.facts holds an integer larger than any number"
    if read.memory and read.memory.train:
        yield from _impossible_memory(read.memory.train)
    if read.time:
        yield from _impossible_time(read.time)
    if read.quality is not None:
        yield from _impossible_quality(read)


def _impossible_memory(train: TrainMemory) -> Iterator[str]:
    if sum(getattr(train, name) for name in COMPONENTS) != train.peak_allocated_bytes:
        yield "the components of memory.train do not add up to its peak"


def _impossible_time(time: Time) -> Iterator[str]:
    if not all(
        _measures(seconds) for seconds in chain(time.phase_s.values(), time.step_s, [time.wall_s or 0])
    ):
        yield "time holds an impossible number of seconds"
    speed = time.tokens_per_s
    if speed is not None and not (_measures(speed) and speed > 0):
        yield "time.tokens_per_s is no speed"
    if time.mfu is not None and not _measures(time.mfu):
        yield "time.mfu is no share"


def _impossible_quality(read: Record) -> Iterator[str]:
    assert read.quality is not None
    for name, scored in read.quality.perplexity.items():
        if not (scored.tokens and scored.windows) or _negative(scored):
            yield f"quality.perplexity.{name} has an impossible figure"
    for name, task in read.quality.tasks.items():
        if not (task.documents and task.correct <= task.documents):
            yield f"quality.tasks.{name} has an impossible count"
        elif not abs(task.accuracy - task.correct / task.documents) < 1e-9:
            yield f"quality.tasks.{name}: the accuracy does not follow from its counts"
        elif task.chance is not None and not 0 <= task.chance <= 1:
            yield f"quality.tasks.{name}.chance is no share"


def _negative(scored: Perplexity) -> bool:
    """Whether any of its figures is below zero; one that is infinite or no number is not."""
    return any(
        value is not None and value < 0 for value in (scored.nll_nats, scored.perplexity, scored.floor)
    )


def _counts(value: int) -> bool:
    return 0 <= value <= LARGEST_COUNT


def _measures(value: float) -> bool:
    """Whether a clock could have given it; NaN and infinity could not."""
    return 0 <= value <= LARGEST_COUNT


def _is_number(value: object) -> bool:
    """Whether a sum can be made with it: an integer of hundreds of digits is larger than any float."""
    return not isinstance(value, int) or abs(value) <= sys.float_info.max


def _integers(value: object, place: str) -> Iterator[tuple[str, int]]:
    """Every count of a part of a record, with its dotted place behind a dot."""
    if isinstance(value, Part):
        for name in type(value).model_fields:
            if name not in _FREE:
                yield from _integers(getattr(value, name), f"{place}.{name}")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _integers(item, f"{place}.{key}")
    elif isinstance(value, list):
        for item in value:
            if not isinstance(item, (float, str)):  # thousands of them
                yield from _integers(item, place)
    elif isinstance(value, int):
        yield place, value


def _inside(value: object) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _deep(value: object) -> bool:
    """Whether containers lie in each other further than any setting or fact does."""
    level = [value]
    for _ in range(DEEPEST_NESTING):
        level = [item for outer in level for item in _inside(outer) if isinstance(item, (dict, list))]
    return bool(level)


def _leaves(value: object) -> Iterator[object]:
    """Every value that is no container."""
    if isinstance(value, (dict, list)):
        for item in _inside(value):
            yield from _leaves(item)
    else:
        yield value
