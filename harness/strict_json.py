"""Read JSON that people write, or that a run wrote for them: a key given twice is an error. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.credentials import shown


def parse(text: str, constant: Callable[[str], float] = float) -> Any:
    """Return what a text of JSON holds; ValueError for a key given twice, of which only one would be read.

    `constant` makes a number of `NaN`, `Infinity` and `-Infinity`. RecursionError for one that is too deep.
    """
    return json.loads(text, object_pairs_hook=_each_once, parse_constant=constant)


def read(path: Path, constant: Callable[[str], float] = float) -> Any:
    """Return what a file of JSON holds, as `parse` does; OSError and UnicodeDecodeError as they come."""
    return parse(path.read_text(encoding="utf-8"), constant)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} is given twice")
    return found
