"""Load two sides of a comparison, pair their runs, and find the differences that make them incomparable.

A file that is no valid record (`harness.tables.records`) is skipped, never compared.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.inputs import PLUG_IN, TOKENS, WEIGHTS, known_inputs
from harness.record import Record
from harness.tables.aggregate import environment_of, grouped
from harness.tables.compare.comparison import Difference
from harness.tables.format import plain
from harness.tables.records import NOTE_LENGTH, read_below

SHOWN = 60
#: Packages that can change a value, beside those of a row's environment.
PACKAGES = ("peft", "tokenizers", "bitsandbytes")
#: The packages irrelevant to a quantity.
FOREIGN = {
    "memory": ("lm-eval", "tokenizers"),
    "perplexity": ("lm-eval",),
    "accuracy": (),
    "time": ("lm-eval",),
}


# ------------------------------------------------------------------------------------------- sides
@dataclass(frozen=True)
class Loaded:
    """A record and its file."""

    record: Record
    path: Path

    @cached_property
    def folder(self) -> Path:
        """The folder of the run, with its samples."""
        return self.path.with_suffix("")


@dataclass(frozen=True)
class Side:
    """The valid records of a folder or file, and a line for each skipped file."""

    records: tuple[Loaded, ...]
    skipped: tuple[str, ...]


def load(path: Path) -> Side:
    """Load the records of a file or of a folder and those below; UserError where neither exists.

    One run on one machine by one meter is loaded once.
    """
    root = path if path.is_dir() else path.parent
    found: list[Loaded] = []
    skipped: list[str] = []
    known: dict[tuple[str, ...], Path] = {}
    for file, read, reason in read_below(path):
        if read is None:
            skipped.append(_note(file, root, reason))
            continue
        twin = known.setdefault((read.suite, read.run_id, *machine(read)), file)
        if twin is file:
            found.append(Loaded(read, file))
        else:
            skipped.append(_note(file, root, f"the same run as {twin.relative_to(root)}"))
    return Side(tuple(found), tuple(skipped))


def machine(read: Record) -> tuple[str, ...]:
    """Return the machine of a run and its meter; with other threads it is another machine."""
    here, meter = read.environment, read.memory.meter if read.memory else ""
    return (here.device, str(here.cpu_threads), meter) if here else ("", "", meter)


def _note(file: Path, root: Path, reason: str) -> str:
    return plain(f"{file.relative_to(root)}: {reason}", NOTE_LENGTH)


# ------------------------------------------------------------------------------------------- pairs
@dataclass(frozen=True)
class Pair:
    """A run on both sides, or on one alone."""

    base: Loaded | None
    candidate: Loaded | None

    @property
    def some(self) -> Record:
        """A record to name the pair by."""
        either = self.base or self.candidate
        assert either is not None
        return either.record


def pair(base: Iterable[Loaded], candidate: Iterable[Loaded]) -> list[Pair]:
    """Return pairs in the order of the base, then the runs of the candidate alone.

    Match equal work on an equal device first; then equal work, then runs with one label, seed and repeat, so
    that a run whose setting or device changed is one cell that says so, not one missing and one new.
    """
    left, right = list(base), list(candidate)
    found: dict[int, Loaded] = {}
    for key in (_same_place, _same_work, _same_name):
        waiting = grouped(right, key)
        for place, item in enumerate(left):
            if place not in found and (others := waiting.get(key(item))):
                found[place] = others.pop(0)
        taken = {id(item) for item in found.values()}
        right = [item for item in right if id(item) not in taken]
    pairs = [Pair(item, found.get(place)) for place, item in enumerate(left)]
    return [*pairs, *(Pair(None, item) for item in right)]


def _same_place(item: Loaded) -> Hashable:
    return _same_work(item), machine(item.record)


def _same_work(item: Loaded) -> Hashable:
    return item.record.suite, item.record.config_id, item.record.seed, item.record.repeat


def _same_name(item: Loaded) -> Hashable:
    return item.record.suite, item.record.label, item.record.seed, item.record.repeat


def differences(base: Record, candidate: Record, quantity: str) -> tuple[Difference, ...]:
    """Return the fields that differ and must be equal for a quantity to be comparable.

    `quantity` is memory, perplexity, accuracy or time. A field unknown to one side contradicts nothing. Where
    many runs are alike, ask `same_conditions` first.
    """
    if base.config_id != candidate.config_id:
        ids = Difference("config_id", base.config_id, candidate.config_id)
        try:
            return (ids, *_differ(_settings(base.config), _settings(candidate.config), absent="not set"))
        except RecursionError:  # no config of ours is nested a thousand times
            return (ids,)
    first, second = (decides(record, quantity) for record in (base, candidate))
    return tuple(_differ(first, second)) if first != second else ()


def same_conditions(base: Record, candidate: Record) -> bool:
    """Return whether two runs have one config and all that `decides` reads but the seed; fast."""
    return base.config_id == candidate.config_id and standing(base) == standing(candidate)


def standing(record: Record) -> Hashable:
    """Return all that `decides` reads beside config and seed, as it is; made faster than what it returns."""
    here, data, inputs = record.environment, record.data, record.inputs or {}
    machine = here and (
        *(here.device, here.cpu, here.cpu_threads, here.driver),
        *(tuple(here.packages.items()), tuple(here.flags.items())),
    )
    text = data and (data.sha256, data.tokens, data.model_sha256)
    content = tuple(item for item in inputs.items() if not item[0].startswith(PLUG_IN))
    meter = record.memory and record.memory.meter
    return record.tier, meter, tuple(record.protocols.items()), machine, text, content


def _differ(
    first: Mapping[str, str], second: Mapping[str, str], absent: str | None = None
) -> Iterable[Difference]:
    keys = dict.fromkeys((*first, *second))
    for key in keys:
        before, after = first.get(key, absent), second.get(key, absent)
        if before is not None and after is not None and before != after:
            yield Difference(plain(key, SHOWN), plain(before, SHOWN), plain(after, SHOWN))


def decides(record: Record, quantity: str) -> dict[str, str]:
    """Return every condition of a quantity beside the config, as text; no protocol of another quantity.

    The source of a plug-in is none, as the commit is none: its changes are what is compared.
    """
    known = {"seed": str(record.seed), **environment_of(record)}
    if record.environment:
        here = record.environment
        known |= {name: here.packages[name] for name in PACKAGES if name in here.packages}
        known |= {name: str(value) for name, value in here.flags.items()}
    if record.data:
        known |= {"data": record.data.sha256, "data tokens": str(record.data.tokens)}
    inputs = known_inputs(record)
    known |= {"model": inputs[WEIGHTS]} if WEIGHTS in inputs else {}
    read = {name: value for name, value in inputs.items() if name not in (WEIGHTS, TOKENS)}
    known |= {plain(name): value for name, value in read.items() if not name.startswith(PLUG_IN)}
    return {key: known[key] for key in _deciding(tuple(known), quantity)}


@functools.lru_cache(maxsize=1 << 10)
def _deciding(keys: tuple[str, ...], quantity: str) -> tuple[str, ...]:
    """Return the conditions of a quantity among all: no package and no protocol of another."""
    foreign = FOREIGN[quantity]
    return tuple(
        key for key in keys if key not in foreign and key.removesuffix(" protocol") in (key, quantity)
    )


def _settings(config: Any, prefix: str = "") -> dict[str, str]:
    """Flatten a nested config to dotted keys and text; a list is one value, or one part per dict."""
    if isinstance(config, dict):
        items = [(str(key), value) for key, value in config.items() if key not in ("seed", "repeat", "label")]
    elif isinstance(config, list) and any(isinstance(value, dict) for value in config):
        items = [(str(place), value) for place, value in enumerate(config)]
    else:
        return {} if config is None else {prefix: str(config)}
    found: dict[str, str] = {}
    for key, value in items:
        found |= _settings(value, f"{prefix}.{key}" if prefix else key)
    return found
