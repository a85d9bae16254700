"""Find and evaluate all calls in the files of published tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.papers.calculations.calling import evaluate
from benchmarks.studies import jobs as processes
from harness.errors import UserError
from harness.files import ROOT
from harness.suite import read_yaml
from harness.tables.papers import published

PAPERS = ROOT / "benchmarks" / "papers"


@dataclass(frozen=True)
class Call:
    """A calculation with its arguments, and the first cell or file that uses it."""

    calculation: str
    arguments: dict[str, Any]
    place: str

    @property
    def key(self) -> str:
        """Return a key that is equal for equal calls, whatever the order of their arguments."""
        return json.dumps([self.calculation, self.arguments], sort_keys=True)


def calls(folder: Path = PAPERS) -> list[Call]:
    """Return the different calls in the YAML files of a folder, sorted; UserError for one that is no call."""
    found: dict[str, Call] = {}
    for path in sorted(folder.glob("*.yaml")):
        for mapping in _asked(path):
            call = _call(mapping, path.name)
            found.setdefault(call.key, call)
    return [found[key] for key in sorted(found)]


def entries(asked: Sequence[Call], jobs: int = 1) -> list[dict[str, Any]]:
    """Evaluate calls to their value, unit and how, in the order given; UserError names the file.

    Calls about one shape stay together, in one of `jobs` processes, since they share prepared models.
    """
    if jobs == 1:
        return [_entry(call) for call in asked]
    groups: dict[str, list[Call]] = {}
    for call in asked:
        groups.setdefault(str(call.arguments.get("shape", "")), []).append(call)
    with processes.pool(jobs) as pool:
        done = dict(chain.from_iterable(pool.map(_keyed, groups.values())))
    return [done[call.key] for call in asked]


def _keyed(asked: Sequence[Call]) -> list[tuple[str, dict[str, Any]]]:
    return [(call.key, _entry(call)) for call in asked]


def _entry(call: Call) -> dict[str, Any]:
    try:
        found = evaluate(call.calculation, call.arguments)
    except UserError as error:
        raise UserError(f"{call.place}: {error}; asked with {json.dumps(call.arguments)}") from error
    given = {"calculation": call.calculation, "with": call.arguments}
    return {**given, "value": found.value, "unit": found.unit, "how": found.how}


def text_of(found: Sequence[dict[str, Any]]) -> str:
    """Return the text of the file of evaluated calls."""
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def _asked(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the calls of one file; those of a paper are templates, filled for each of its cells."""
    content = read_yaml(path)
    if isinstance(content, dict) and "paper" in content:
        for call in published.calls(path.parent, path.stem):
            yield call.model_dump(by_alias=True)
    else:
        yield from _mappings(content)


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping with a key `calculation`, however deep."""
    if isinstance(value, dict):
        if "calculation" in value:
            yield value
        for part in value.values():
            yield from _mappings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _mappings(part)


def _call(mapping: dict[str, Any], place: str) -> Call:
    name, arguments = mapping["calculation"], mapping.get("with") or {}
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise UserError(f"{place}: a call is {{calculation: NAME, with: {{…}}}}, given {mapping!r}")
    return Call(name, arguments, place)
