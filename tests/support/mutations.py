"""Records that mean harm: the text of a sound one, cut, overwritten, or with other values in it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from harness.record import Record

_VALUES: tuple[Any, ...] = (
    *(None, True, "", "\x00", "text", "x" * 9999, -1, 0, 1, 2**63, 10**400, -0.5, 1e308, float("inf")),
    *(float("nan"), "NaN", "Infinity", "-inf", [], {}, [[]], {"a": {}}, "../../etc", "\ud800"),
    *([1e308] * 9, [10**400] * 2),
)
#: As text, so that each use is a value of its own. The last is deeper than a program may follow by calling
#: itself, and shallower than where the reader of JSON gives up.
VALUES = (*map(json.dumps, _VALUES), "[" * 500 + "]" * 500)
KEYS = ("", "\x00", "layers." + "9" * 5000 + ".q", "layers.1.\ud800", "x" * 9999)


def places(content: Any, found: list[tuple[Any, Any]], depth: int = 0) -> list[tuple[Any, Any]]:
    """Every container with each of its keys or indices, down to a depth that no record has."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        found.append((content, key))
        if isinstance(value, (dict, list)) and depth < 20:
            places(value, found, depth + 1)
    return found


def mutated(text: str, dice: random.Random) -> str:
    """A record that is cut, overwritten, or whose values or keys are something else."""
    kind = dice.randrange(4)
    if kind == 0:
        return text[: dice.randrange(len(text))]
    if kind == 1:
        at = dice.randrange(len(text))
        return text[:at] + chr(dice.choice((0, 34, 44, 57, 91, 123, 125, 0x202E))) + text[at + 1 :]
    content = json.loads(text)
    for _ in range(dice.choice((1, 1, 3))):
        place, key = dice.choice(places(content, []))
        if dice.random() < 0.2 and isinstance(place, dict):
            value = place.pop(key)
            if dice.random() < 0.3:
                place[dice.choice(KEYS)] = value
        else:
            place[key] = json.loads(dice.choice(VALUES))
    return json.dumps(content)


def put_mutated(folder: Path, item: Record, dice: random.Random) -> None:
    """Write what becomes of a record into a file that is named after its run."""
    folder.mkdir(parents=True, exist_ok=True)
    text = mutated(item.model_dump_json(exclude_none=True), dice)
    (folder / f"{item.run_id}.json").write_text(text, encoding="utf-8", errors="surrogatepass")
