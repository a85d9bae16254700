"""Which runs of two sides belong together, and in what they differ that decides a number."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.record import Record
from harness.tables import aggregate
from harness.tables.compare.comparison import Difference
from harness.tables.compare.sides import Loaded, machine
from harness.tables.format import plain

SHOWN = 60
#: Packages that can move a number, beside those that a row's environment names.
PACKAGES = ("peft", "tokenizers", "bitsandbytes")
#: The protocol that a quantity is measured by, and the packages that have nothing to do with it.
PROTOCOL = re.compile(r"^(\w+) protocol$")
FOREIGN = {
    "memory": ("lm-eval", "tokenizers"),
    "perplexity": ("lm-eval",),
    "accuracy": (),
    "time": ("lm-eval",),
}


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
    """Pairs in the order of the base, what only the candidate has behind them.

    Equal work on an equal device comes first; then equal work, then runs with one label, seed and repeat,
    so that the cell of a run whose setting or device moved says so instead of being missing and new.
    """
    left, right = list(base), list(candidate)
    found: dict[int, tuple[int, Loaded]] = {}
    for key in (_same_place, _same_work, _same_name):
        open_base = [place for place in range(len(left)) if place not in found]
        for place, other in _matched(left, open_base, right, key):
            found[place] = (place, other)
            right.remove(other)
    pairs = [Pair(item, found[place][1] if place in found else None) for place, item in enumerate(left)]
    return pairs + [Pair(None, item) for item in right]


def _matched(
    left: Sequence[Loaded], places: Sequence[int], right: Sequence[Loaded], key: Callable[[Record], Hashable]
) -> list[tuple[int, Loaded]]:
    """Places of the left side with the one of the right that has the same key; each is given away once."""
    waiting: dict[Hashable, list[Loaded]] = {}
    for item in right:
        waiting.setdefault(key(item.record), []).append(item)
    found = []
    for place in places:
        others = waiting.get(key(left[place].record))
        if others:
            found.append((place, others.pop(0)))
    return found


def _same_place(record: Record) -> Hashable:
    return _same_work(record), machine(record)


def _same_work(record: Record) -> Hashable:
    return record.suite, record.config_id, record.seed, record.repeat


def _same_name(record: Record) -> Hashable:
    return record.suite, record.label, record.seed, record.repeat


def differences(base: Record, candidate: Record, quantity: str) -> tuple[Difference, ...]:
    """The fields that must be equal before a quantity can be compared, and are not.

    `quantity` is memory, perplexity, accuracy or time. What one side does not know contradicts nothing.
    """
    if base.config_id != candidate.config_id:
        ids = Difference("config_id", base.config_id, candidate.config_id)
        try:
            return (ids, *_differ(_settings(base.config), _settings(candidate.config), absent="not set"))
        except RecursionError:  # no config of ours is nested a thousand times
            return (ids,)
    first, second = (decides(record, quantity) for record in (base, candidate))
    return tuple(_differ(first, second))


def _differ(
    first: Mapping[str, str], second: Mapping[str, str], absent: str | None = None
) -> Iterable[Difference]:
    keys = dict.fromkeys((*first, *second))
    for key in keys:
        before, after = first.get(key, absent), second.get(key, absent)
        if before is not None and after is not None and before != after:
            yield Difference(plain(key, SHOWN), plain(before, SHOWN), plain(after, SHOWN))


def decides(record: Record, quantity: str) -> dict[str, str]:
    """All that decides a quantity beside the config, as text."""
    known = {"seed": str(record.seed), **aggregate.environment_of(record)}
    if record.environment:
        here = record.environment
        known |= {name: here.packages[name] for name in PACKAGES if name in here.packages}
        known |= {name: str(value) for name, value in here.flags.items()}
    if record.data:
        known |= {"data": record.data.sha256, "data tokens": str(record.data.tokens)}
        known |= {"model": record.data.model_sha256} if record.data.model_sha256 else {}
    foreign = FOREIGN[quantity]
    return {key: value for key, value in known.items() if key not in foreign and _is_of(key, quantity)}


def _is_of(key: str, quantity: str) -> bool:
    """Whether a field is of this quantity: the protocols of the others are not."""
    protocol = PROTOCOL.match(key)
    return protocol is None or protocol[1] == quantity


def _settings(config: Any, prefix: str = "") -> dict[str, str]:
    """Dotted keys of a nested config with their values as text; lists count as a whole or by their dicts."""
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
