"""Read a suite from YAML, validate it and expand it into runs. No torch."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, TypeAdapter

from harness.config import Run, Strict
from harness.errors import UserError, nearest
from harness.files import ROOT
from harness.validation import validate

Override = tuple[str, Any]
#: The folder of suites that need weights or text that cannot ship.
WEIGHTS = "llama2"


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-3` is a number: YAML 1.1 wants a dot there, no person does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class SuiteFile(Strict):
    """The contents of a YAML file: rows are crossed with the matrix, and values of a row win.

    An axis of the matrix is a setting, or several that move together: `data.task + evaluate.tasks`.
    """

    suite: str
    question: str = ""
    baseline: str | None = None
    base: dict[str, Any] = Field(default_factory=dict)
    matrix: dict[str, list[Any]] = Field(default_factory=dict)
    rows: list[dict[str, Any]] = Field(default_factory=lambda: [dict[str, Any]()])


@dataclass(frozen=True)
class Suite:
    """A named list of runs with the question that they answer; ratios are relative to the label `baseline`.

    `axes` are the dotted settings that vary from run to run, beside label and seed.
    """

    name: str
    question: str
    baseline: str | None
    runs: tuple[Run, ...]
    axes: tuple[str, ...] = ()

    def with_seeds(self, seeds: Sequence[int]) -> Suite:
        """Return the same runs with other seeds; without any, the suite as it is."""
        if not seeds:
            return self
        wanted = [run.model_copy(update={"seed": seed}) for run in self.runs for seed in seeds]
        return replace(self, runs=tuple({run.run_id: run for run in wanted}.values()))

    def only(self, conditions: Sequence[str]) -> Suite:
        """Return the runs that match one of the conditions on each key; UserError where none does."""
        wanted: dict[str, list[Any]] = {}
        for text in conditions:
            key, value = parse_override(text, option="--only")
            if key == "label" and not isinstance(value, str):  # a name that happens to be YAML, as "7b: full"
                value = text.partition("=")[2].strip()
            wanted.setdefault(key, []).append(value)
        found = [r for r in self.runs if all(_matches(r, key, values) for key, values in wanted.items())]
        if not found:
            labels = ", ".join(sorted({run.name for run in self.runs}))
            raise UserError(f"--only {' '.join(conditions)}: no run matches; the labels are: {labels}")
        return replace(self, runs=tuple(found))

    def selector(self, run: Run) -> list[str]:
        """Return conditions for `only` that single out one run."""
        axes = [f"{key}={json.dumps(_value(run, key))}" for key in self.axes]
        return [f"label={json.dumps(run.name)}", f"seed={run.seed}", *axes]


def load(path: str | Path, overrides: Sequence[Override] = ()) -> Suite:
    """Read a suite; `overrides` of dotted keys win over the file. UserError for an invalid one."""
    file = find(Path(path))
    written = validate(SuiteFile, read_yaml(file), where=str(file))
    runs: dict[str, Run] = {}
    for values in _combinations(written):
        content = _merge(written.base, [*values.items(), *overrides])
        run = validate(Run, content, where=str(file))
        _check_rate(run, file)
        runs.setdefault(run.run_id, run)
    if not runs:
        raise UserError(f"{file}: the suite has no runs; give `matrix` or `rows` at least one entry")
    varied = [key for axis in written.matrix for key in _keys(axis)]
    varied += [key for row in written.rows for key in row]
    axes = tuple(key for key in dict.fromkeys(varied) if key not in ("label", "method", "seed"))
    return Suite(written.suite, written.question, written.baseline, tuple(runs.values()), axes)


def _check_rate(run: Run, file: Path) -> None:
    """Raise UserError for a learning rate that is not in the grid that it claims to be tuned on."""
    tuning = run.tuning
    if tuning is None or run.train.stage == "compress" or run.train.lr in tuning.grid:
        return
    tried = ", ".join(f"{rate:g}" for rate in tuning.grid)
    raise UserError(
        f"{file}: {run.name}: train.lr {run.train.lr:g} is none of those that suite {tuning.suite!r} tried "
        f"({tried}); choose one of them, or say that it was not tuned: --set tuning=null"
    )


def suites_folder() -> Path:
    """Return the folder of the suites that ship."""
    return ROOT / "benchmarks" / "suites"


def shipped_suites() -> dict[str, Path]:
    """Return the suites that ship by name, which is their path below the folder of suites."""
    place = suites_folder()
    files = sorted([*place.glob("*.yaml"), *place.glob(f"{WEIGHTS}/*.yaml")])
    return {file.relative_to(place).with_suffix("").as_posix(): file for file in files}


def find(path: Path) -> Path:
    """Return the file of a suite by its path or the name of one that ships; UserError for anything else."""
    if path.is_file():
        return path
    shipped = shipped_suites()
    name = str(path).removesuffix(".yaml")
    if name in shipped:
        return shipped[name]
    known = nearest(name, shipped)
    raise UserError(f"no suite {str(path)!r}: neither a file nor a suite that ships; {known}")


def read_yaml(path: Path) -> Any:
    """Parse YAML safely; UserError names file, line and column."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _combinations(written: SuiteFile) -> Iterable[dict[str, Any]]:
    axes = [list(_entries(axis, values)) for axis, values in written.matrix.items()]
    for row in written.rows:
        for chosen in itertools.product(*axes):
            yield {key: value for part in (*chosen, row) for key, value in part.items()}


def _entries(axis: str, values: Sequence[Any]) -> Iterable[dict[str, Any]]:
    """Yield the settings of each entry of an axis; entries of an axis `a + b` are lists of two values."""
    keys = _keys(axis)
    for value in values:
        several = value if len(keys) > 1 else [value]
        if not isinstance(several, list) or len(several) != len(keys):
            raise UserError(
                f"matrix {axis!r}: {value!r} is not a list of {len(keys)} values, one per setting"
            )
        yield dict(zip(keys, several, strict=True))


def _keys(axis: str) -> list[str]:
    return [key.strip() for key in axis.split("+")]


def _merge(base: Mapping[str, Any], overrides: Iterable[Override]) -> dict[str, Any]:
    """Return a deep copy of `base` with dotted keys set in order."""
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


def _matches(run: Run, key: str, values: list[Any]) -> bool:
    if key == "method":
        named = {choice.name for choice in run.method}
        return any(value in named or value == run.name for value in values)
    return _value(run, key) in values


def _value(run: Run, key: str) -> Any:
    """Return the value of a dotted setting, of `label` or of an id; UserError for an unknown key."""
    if key in ("label", "run_id", "config_id", "tier"):
        return run.name if key == "label" else getattr(run, key)
    value: Any = run
    for part in key.split("."):  # attributes, not a dump: that leaves out options that are off
        held = value if isinstance(value, dict) else dict(value) if isinstance(value, Strict) else {}
        if part not in held:
            raise UserError(f"no setting {key!r} to select by; try label, method, seed or e.g. train.lr")
        value = held[part]
    return TypeAdapter(Any).dump_python(value, mode="json")


def parse_override(text: str, option: str = "--set") -> Override:
    """Read `key=value` from the command line; the value is YAML, so `3`, `1e-3` and `[a, b]` are values."""
    key, found, value = text.partition("=")
    if not found or not key.strip():
        raise UserError(f"{option} {text!r}: write KEY=VALUE, for example train.steps=100")
    try:
        return key.strip(), yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{option} {text!r}: the value is not valid YAML") from error
