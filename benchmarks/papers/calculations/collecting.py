"""Find all calls in the files of published tables and evaluate them into results/calculations.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.papers.calculations.calling import evaluate
from harness import strict_json
from harness.errors import UserError
from harness.suite import read_yaml
from harness.tables.papers import published


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


def pages(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield results/calculations.json: each call with value, unit and how. UserError for a wrong call."""
    found = [_entry(call) for call in calls(root / "benchmarks" / "papers")]
    yield root / "results" / "calculations.json", strict_json.text(found, indent=1, ensure_ascii=False)


def calls(folder: Path) -> list[Call]:
    """Return every different call in the YAML files of a folder, sorted; UserError for a malformed one."""
    found: dict[str, Call] = {}
    for path in sorted(folder.glob("*.yaml")):
        for mapping in _asked(path):
            call = _call(mapping, path.name)
            found.setdefault(call.key, call)
    return [found[key] for key in sorted(found)]


def _entry(call: Call) -> dict[str, Any]:
    try:
        found = evaluate(call.calculation, call.arguments)
    except UserError as error:
        raise UserError(f"{call.place}: {error}; asked with {json.dumps(call.arguments)}") from error
    return {"calculation": call.calculation, "with": call.arguments, **asdict(found)}


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
