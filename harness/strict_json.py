"""Read and write JSON as its standard has it. No torch.

What people write, or a run wrote for them, gives no key twice. What is written has no NaN and no infinity,
which Python would write as numbers that other programs refuse.
"""

from __future__ import annotations

import json
import math
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


def text(content: Any, indent: int | None = None, **options: Any) -> str:
    """Return the JSON of a value with a line break; `options` are those of `json.dumps`.

    Numbers that are not finite become the texts `NaN`, `Infinity` and `-Infinity`, as in a record.
    """
    return json.dumps(_finite(content), indent=indent, allow_nan=False, **options) + "\n"


def _finite(content: Any) -> Any:
    if isinstance(content, float) and not math.isfinite(content):
        return "NaN" if math.isnan(content) else "Infinity" if content > 0 else "-Infinity"
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, (list, tuple)) else content


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} is given twice")
    return found
