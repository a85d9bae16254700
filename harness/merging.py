"""Merge what a suite's file and the command line say into the settings of each run.

Sections are merged key by key, in the order base, matrix, row, options; keys may be dotted. Nothing is
validated here but what merging needs.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness import config
from harness.credentials import shown
from harness.errors import UserError
from harness.strict_yaml import Written

#: Runs of a suite; commands are made for 10,000 records.
MOST_RUNS = 20_000


def combinations(content: Written) -> Iterator[Written]:
    """Yield the settings of every run: the base with one entry of each axis, then the row."""
    empty = Written({}, content.where)
    base = together(empty, content.value.get("base", empty))
    matrix, rows = content.value.get("matrix", empty), content.value.get("rows")
    axes = {axis: list(_entries(matrix, axis)) for axis in matrix.value}
    _check_axes(matrix, axes)
    sections = [empty] if rows is None else _each_once("row", rows)
    count = math.prod(map(len, axes.values())) * len(sections)
    if count > MOST_RUNS:
        raise UserError(f"{matrix.where}: {count:,} runs in one suite; at most {MOST_RUNS:,}")
    for row in sections:
        for chosen in itertools.product(*axes.values()):
            yield together(base, *chosen, row)


def _check_axes(matrix: Written, axes: dict[str, list[Written]]) -> None:
    """Raise UserError for a setting that two axes vary, in whichever of their entries."""
    refuse_twice(
        (matrix.keys[axis], f"{key} of matrix {axis!r}", [entry.value[key] for entry in entries], key)
        for axis, entries in axes.items()
        for key in settings_of(axis)
    )


def _entries(matrix: Written, axis: str) -> Iterator[Written]:
    """Yield the settings of each entry of an axis; entries of an axis `a + b` are lists of two values."""
    keys, where = settings_of(axis), matrix.keys[axis]
    for entry in _each_once(f"matrix {axis!r}", matrix.value[axis]):
        several = entry.value if len(keys) > 1 else [entry]
        if not isinstance(several, list) or len(several) != len(keys):
            raise UserError(
                f"{entry.where}: matrix {axis!r}: {shown(entry.plain())} is not a list of {len(keys)} "
                "values, one per setting"
            )
        yield Written(dict(zip(keys, several, strict=True)), where, dict.fromkeys(keys, where))


def _each_once(what: str, several: Written) -> list[Written]:
    """Return the entries of a list; UserError for one that stands in it twice."""
    known: dict[str, Written] = {}
    for entry in several.value:
        first = known.setdefault(json.dumps(entry.plain(), sort_keys=True), entry)
        if first is not entry:
            held = shown(entry.plain()) if not isinstance(entry.value, dict | list) else "the same"
            raise UserError(
                f"{entry.where}: {what}: {held} is given twice, first at {first.where}; "
                "change one or leave it out"
            )
    return list(several.value)


def settings_of(axis: str) -> list[str]:
    """Return the settings that an axis varies together."""
    return [key.strip() for key in axis.split("+")]


def together(settings: Written, *sections: Written) -> Written:
    """Return settings with those of sections, whose keys may be dotted, merged into them in order."""
    items, keys = dict(settings.value), dict(settings.keys)
    for section in sections:
        _check_each_leaf(section)
        for key, value in sorted(section.value.items(), key=lambda item: not names_source(*item)):
            name, where = key.partition(".")[0], section.keys[key]
            items[name], keys[name] = _changed(items.get(name), key, value, where), where
    return Written(items, settings.where, keys, settings.replaces)


def names_source(key: str, value: Written) -> bool:
    """Return whether a dotted key sets the source of a section, which goes before the rest of it."""
    return key.endswith(".source") or (isinstance(value.value, dict) and "source" in value.value)


@functools.lru_cache(maxsize=MOST_RUNS)
def _check_each_leaf(section: Written) -> None:
    """Raise UserError for a setting that a section gives twice."""
    refuse_twice((section.keys[key], key, [value], key) for key, value in section.value.items())


def refuse_twice(given: Iterable[tuple[str, str, Sequence[Written], str]]) -> None:
    """Raise UserError for a setting given twice, or given beside a whole section that would replace it.

    Each item is a place and a name for messages, with the values of a dotted key, of which a run has one.
    """
    seen: dict[tuple[str, ...], str] = {}
    within: dict[tuple[str, ...], tuple[tuple[str, ...], str]] = {}
    for where, name, values, key in given:
        own = {leaf for value in values for leaf in _leaves(tuple(key.split(".")), value)}
        for leaf in sorted(own):
            if leaf in seen:
                raise UserError(
                    f"{where}: {'.'.join(leaf)} is given twice, first by {seen[leaf]}; give it once"
                )
            whole = next((part for part in _around(leaf) if part in seen), leaf)
            inner, first = (leaf, seen[whole]) if whole in seen else within.get(leaf, (leaf, ""))
            if first:
                raise UserError(
                    f"{where}: {'.'.join(inner)} is given beside the whole of {'.'.join(whole)}, first by "
                    f"{first}; write one section with both"
                )
        seen |= dict.fromkeys(own, name)
        within |= {part: (leaf, name) for leaf in own for part in _around(leaf)}


def _around(path: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the sections that a setting lies in."""
    return [path[:depth] for depth in range(1, len(path))]


def _leaves(path: tuple[str, ...], value: Written) -> Iterator[tuple[str, ...]]:
    """Yield the dotted settings that a value gives."""
    if path[0] == "method" or not isinstance(value.value, dict) or value.replaces:
        yield path
        return
    for key, item in value.value.items():
        yield from _leaves((*path, key), item)


def with_setting(settings: Written, dotted: str, value: Written, where: str) -> Written:
    """Return settings with the value of a dotted key set, merged where both are sections."""
    return together(settings, Written({dotted: value}, where, {dotted: where}))


@functools.lru_cache(maxsize=MOST_RUNS)
def _changed(section: Written | None, dotted: str, value: Written, where: str) -> Written:
    """Return a section with the value of a dotted key set in it; the same one for all runs that share it."""

    def within(old: Written, path: tuple[str, ...], rest: Sequence[str]) -> Written:
        if not rest:
            return _merge(old, value, path)
        if not isinstance(old.value, dict):
            raise UserError(f"{where}: cannot set {dotted!r}: {path[-1]!r} is a value, not a section")
        name, *deeper = rest
        inner = within(old.value.get(name, Written({}, where)), (*path, name), deeper)
        made = replace(old, value={**old.value, name: inner}, keys={**old.keys, name: where})
        return _without_other_source(path, old, made) if rest == ["source"] else made

    name, *rest = parts = dotted.split(".")
    if not all(part.strip() == part and part for part in parts):
        raise UserError(f"{where}: {shown(dotted)} is no setting; write for example train.steps")
    old = Written({}, where) if section is None else section
    return within(old, (name,), rest)


def _merge(old: Written, new: Written, path: tuple[str, ...]) -> Written:
    """Return a new value, merged into the old one where both are sections.

    The options of a method belong to its name, so an entry of `method` replaces the old one whole.
    """
    both = isinstance(old.value, dict) and isinstance(new.value, dict)
    if not both or new.replaces or path[0] == "method":
        return new
    merged = dict(old.value)
    for key, item in new.value.items():
        merged[key] = _merge(merged[key], item, (*path, key)) if key in merged else item
    together = Written(merged, new.where, old.keys | new.keys)
    return _without_other_source(path, old, together)


#: The sections of which a source says what else they hold.
_SOURCED: Mapping[tuple[str, ...], Mapping[str, Any]] = {
    ("model",): config.MODELS,
    ("data",): config.DATA,
    ("calibration", "data"): config.DATA,
}


def _without_other_source(path: tuple[str, ...], old: Written, merged: Written) -> Written:
    """Return a section without the old keys that a source of another kind does not have."""
    kinds = _SOURCED.get(path, {})

    def source(section: Written) -> Any:
        return section.value["source"].value if "source" in section.value else "embedded"

    kind = kinds.get(source(merged)) if isinstance(source(merged), str) else None
    if kind is None or source(old) == source(merged):
        return merged
    kept = {
        key: item
        for key, item in merged.value.items()
        if key in kind.model_fields or old.value.get(key) is not item
    }
    return replace(merged, value=kept)
