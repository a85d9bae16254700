"""Say in what the records of a suite differ from the runs that were asked for, as options of a command."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.config import Run
from harness.record import Record
from harness.tables.format import plain

#: Kinds of differences that are named.
MOST_KINDS = 3
#: Options that are named of one kind.
MOST_OPTIONS = 4
WIDTH = 100
#: Pairs of a record's config and a wanted one that are compared: a second of work.
MOST_PAIRS = 50_000
#: Keys that do not change which run it is.
_FREE = ("label", "save_weights", "tuning", "repeat")

Settings = Mapping[str, Any]


def other_settings(wanted: Sequence[Run], found: Sequence[Record]) -> str:
    """Return what the records have that no wanted run has: `10 records have --model ./my-llama`.

    A record is compared with the wanted run that it differs least from. What differs in seeds alone is
    compared once; of very many configs, as many of the wanted ones as `MOST_PAIRS` allows.
    """
    records = _by_config(item.config for item in found)
    asked = list(_by_config(run.canonical for run in wanted).values())
    asked = asked[: max(1, MOST_PAIRS // max(1, len(records)))]
    least: dict[int, tuple[str, ...]] = {}
    for own in records.values():
        differ = [(_options(own.settings, other.settings), other.seeds) for other in asked]
        for seed, places in own.seeds.items():
            least |= dict.fromkeys(places, _least(seed, differ))
    kinds = Counter(least[place] for place in range(len(found)))
    parts = []
    for options, count in kinds.most_common(MOST_KINDS):
        more = f" and {len(options) - MOST_OPTIONS} more" if len(options) > MOST_OPTIONS else ""
        has = "1 record has" if count == 1 else f"{count} records have"
        parts.append(f"{has} {' '.join(options[:MOST_OPTIONS]) or 'the same settings'}{more}")
    rest = len(kinds) - MOST_KINDS
    return "; ".join([*parts, f"others differ in {rest} more ways"] if rest > 0 else parts)


@dataclass
class _Config:
    """Settings without their seed, and the places at which each seed stands among all."""

    settings: Settings
    seeds: dict[str, list[int]] = field(default_factory=dict)


def _by_config(configs: Iterable[Settings]) -> dict[str, _Config]:
    """Group configs that differ in their seeds alone, in order."""
    found: dict[str, _Config] = {}
    for place, config in enumerate(configs):
        settings = {key: value for key, value in config.items() if key not in (*_FREE, "seed")}
        own = found.setdefault(json.dumps(settings, sort_keys=True), _Config(settings))
        own.seeds.setdefault(_text(config.get("seed")), []).append(place)
    return found


def _least(seed: str, differ: Sequence[tuple[list[str], Mapping[str, list[int]]]]) -> tuple[str, ...]:
    """Return the fewest differences of a seed's runs to a wanted run, of several the first that is wanted."""
    candidates = []
    for options, seeds in differ:
        known = seed in seeds
        given = options if known else [*options, plain(f"--seed {seed}", WIDTH)]
        place = seeds[seed][0] if known else next(iter(seeds.values()))[0]
        candidates.append((len(given), place, tuple(given)))
    return min(candidates, default=(0, 0, ()))[2]


def _options(record: Settings, asked: Settings) -> list[str]:
    """Return how a command would ask for the settings of a record that differ from those asked for."""
    found: list[str] = []
    model, data = record.get("model"), record.get("data")
    if _place(model) != _place(asked["model"]):
        found.append(f"--model {_place(model)}" if _place(model) else "no --model")
    else:
        found += _keys("model", model, asked["model"])
    own_data = _place(data) != _place(asked["data"])
    if own_data:
        found.append(f"--data {_place(data)}" if _place(data) else "no --data")
    else:
        found += _keys("data", data, asked["data"])
    for key in ("train", "evaluate"):
        skipped = ("perplexity", "tasks") if own_data and key == "evaluate" else ()
        found += _keys(key, record.get(key), asked[key], skipped)
    stack, wanted = record.get("method"), asked["method"]
    if stack != wanted:
        same = _names(stack) == _names(wanted)
        found.append(f"{'other options of' if same else 'method'} {' + '.join(_names(stack))}")
    return [plain(option, WIDTH) for option in found]


def _place(section: Any) -> str:
    """Return what `--model` or `--data` names, empty for what ships, a shape or random tokens."""
    given = section if isinstance(section, dict) else {}
    if given.get("source") in ("hub", "datasets"):
        return f"{given.get('id')}@{given.get('revision')}"
    paths = given.get("paths")
    return str(given.get("path") or " --data ".join(map(str, paths if isinstance(paths, list) else ())))


def _keys(section: str, record: Any, asked: Settings, skipped: Sequence[str] = ()) -> list[str]:
    own = record if isinstance(record, dict) else {}
    keys = [key for key in dict.fromkeys((*own, *asked)) if key not in skipped]
    changed = [key for key in keys if own.get(key) != asked.get(key)]
    return [f"--set {section}.{key}={_text(own.get(key))}" for key in changed]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _names(stack: Any) -> list[str]:
    parts = stack if isinstance(stack, list) else ()
    return [str(part.get("name")) for part in parts if isinstance(part, dict)]
