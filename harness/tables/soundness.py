"""Which records can be: before anything is made of a file, it is held to what a run can have measured.

Reading is as strict as `record.read`. Beyond its types, counts, times and shares are held to their ranges,
since a figure that is impossible would make a table or a verdict that is wrong, or none at all. What is only
odd stays: a run that diverged has losses and perplexities of any size, infinite ones and NaN.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from harness import record
from harness.errors import UserError
from harness.record import Part, Perplexity, Record, Time, TrainMemory
from harness.tables.aggregate import COMPONENTS

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


# ------------------------------------------------------------------------------- what cannot be
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


# --------------------------------------------------------------------------------------- looking in
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
