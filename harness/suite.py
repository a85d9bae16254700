"""Suites: a YAML file read, checked and expanded into runs. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from harness.config import Run, Strict, validate
from harness.errors import UserError, nearest

Override = tuple[str, Any]


class SuiteFile(Strict):
    """The YAML as written: rows are crossed with the matrix, and a row's own values win."""

    suite: str
    question: str = ""
    baseline: str | None = None
    base: dict[str, Any] = Field(default_factory=dict)
    matrix: dict[str, list[Any]] = Field(default_factory=dict)
    rows: list[dict[str, Any]] = Field(default_factory=lambda: [{}])


@dataclass(frozen=True)
class Suite:
    """A named list of runs with the question that they answer; `baseline` is the label all is relative to."""

    name: str
    question: str
    baseline: str | None
    runs: tuple[Run, ...]


def load(path: str | Path, overrides: Sequence[Override] = ()) -> Suite:
    """Read a suite; `overrides` are dotted keys that win over everything in the file."""
    file = _find(Path(path))
    written = validate(SuiteFile, read_yaml(file), where=str(file))
    runs: dict[str, Run] = {}
    for values in _combinations(written):
        content = _merge(written.base, [*values.items(), *overrides])
        run = validate(Run, content, where=str(file))
        runs.setdefault(run.run_id, run)
    if not runs:
        raise UserError(f"{file}: the suite has no runs; give `matrix` or `rows` at least one entry")
    return Suite(written.suite, written.question, written.baseline, tuple(runs.values()))


def suites_folder() -> Path:
    """Where the suites that ship with the project are."""
    return Path(__file__).resolve().parent.parent / "benchmarks"


def _find(path: Path) -> Path:
    """A path as given, or the name of a suite that ships."""
    if path.is_file():
        return path
    shipped = {file.stem: file for file in suites_folder().glob("*.yaml")}
    if path.name == str(path) and path.stem in shipped:
        return shipped[path.stem]
    known = nearest(path.stem, shipped)
    raise UserError(f"no suite {str(path)!r}: neither a file nor a suite that ships; {known}")


def read_yaml(path: Path) -> Any:
    """Parse YAML safely; UserError names file, line and column."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _combinations(written: SuiteFile) -> Iterable[dict[str, Any]]:
    axes = list(written.matrix)
    for row in written.rows:
        for values in itertools.product(*written.matrix.values()):
            yield {**dict(zip(axes, values, strict=True)), **row}


def _merge(base: Mapping[str, Any], overrides: Iterable[Override]) -> dict[str, Any]:
    """A deep copy of `base` with dotted keys set in order."""
    content = _copy(dict(base))
    for key, value in overrides:
        *parents, leaf = key.split(".")
        place = content
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UserError(f"cannot set {key!r}: {parent!r} is a value, not a section")
        place[leaf] = _copy(value)
    return content


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def parse_override(text: str) -> Override:
    """Read `key=value` from the command line; the value is YAML, so `3`, `1e-3` and `[a, b]` are values."""
    key, found, value = text.partition("=")
    if not found or not key.strip():
        raise UserError(f"--set {text!r}: write KEY=VALUE, for example train.steps=100")
    try:
        return key.strip(), _number(yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise UserError(f"--set {text!r}: the value is not valid YAML") from error


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as text because it lacks a dot; a person means the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
