"""Say which runs are the same work: the id of a config, and configs that differ in their paths alone.

A config is given as plain values, as a record holds it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

#: The sections that an id hashes: not seed and repeat, which stand beside it, nor what changes no figure.
SECTIONS = ("data", "evaluate", "method", "model", "train")
#: A section that an id hashes where there is one.
CALIBRATION = "calibration"


def text_of(part: Any) -> str:
    """Return a part of a config as ids hash it: JSON with sorted keys and no blanks."""
    return json.dumps(part, sort_keys=True, separators=(",", ":"))


def of_text(text: str) -> str:
    """Return the id of a config, given the text of its sections: twelve hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def config_id(config: Mapping[str, Any]) -> str:
    """Return the id of a config."""
    found = {name: config.get(name) for name in SECTIONS}
    if config.get(CALIBRATION) is not None:
        found[CALIBRATION] = config[CALIBRATION]
    return of_text(text_of(found))


def run_id(config: Mapping[str, Any]) -> str:
    """Return the id of a run: that of its config with seed and repeat."""
    return f"{config_id(config)}-s{config.get('seed')}-r{config.get('repeat')}"


#: Keys of the config that hold paths.
PATHS = ("path", "paths", "tokenizer", "folder", "task_paths", "task_data")


def place_free_id(config: Mapping[str, Any]) -> str:
    """Return a hash of a config as plain values without its paths, seed and repeat included.

    Two runs that have it in common differ at most in how, or from where, their files are named.
    """

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: _count(item) if key in PATHS else without(item) for key, item in value.items()}
        return [without(item) for item in value] if isinstance(value, list) else value

    own = {key: item for key, item in config.items() if key not in ("label", "save_weights", "tuning")}
    content = {key: item if key == "method" else without(item) for key, item in own.items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _count(paths: Any) -> int:
    return len(paths) if isinstance(paths, list) else int(bool(paths))


def paths_of(config: Mapping[str, Any], keys: Sequence[str] = PATHS) -> list[str]:
    """Return the paths under some keys of a config as plain values, in order, by default all of them.

    What looks like a path among the options of a method is none.
    """
    found: list[str] = []
    for section in ("model", "data", "evaluate", CALIBRATION):
        _collect(config.get(section), keys, found)
    return found


def _collect(value: Any, keys: Sequence[str], found: list[str]) -> None:
    if isinstance(value, list):
        for item in value:
            _collect(item, keys, found)
    if isinstance(value, dict):
        for key in sorted(value):
            given = value[key]
            if key in keys and given:
                found += given if isinstance(given, list) else [given]
            elif key not in PATHS:
                _collect(given, keys, found)
