"""The file of baselines, and the verdict on each figure of today beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.studies.baselines.measuring import Figures, Measured
from harness import files
from harness.errors import UserError
from harness.tables import format
from harness.tables.compare import memory
from harness.tables.compare.comparison import Cell, Comparison, Verdict

SUITE = "baselines"
EXACT = "simulated"
TRANSIENT = format.component("transient_bytes")
#: Packages whose code decides which tensors there are.
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
WRITE = "python -m benchmarks.studies.baselines --write"


class Baselines(BaseModel):
    """The file: figures by the label of their row, and the versions of the packages that made them."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    versions: dict[str, str]
    rows: dict[str, Measured]


def versions() -> dict[str, str]:
    """The packages of today; the part of a version that names a build (`+cpu`) decides no byte."""
    return {name: files.installed(name).partition("+")[0] for name in PACKAGES}


def read(path: Path) -> Baselines:
    """The baselines of a file; UserError where there is none, or one of other packages."""
    try:
        found = Baselines.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: no baselines there ({error.strerror}); write them: {WRITE}") from error
    except (ValidationError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path}: not a file of baselines ({first}); write it anew: {WRITE}") from error
    here = versions()
    other = [f"{n} {old} (here {here.get(n)})" for n, old in found.versions.items() if here.get(n) != old]
    if other or set(found.versions) != set(here):
        said = "; ".join(other) or "another set of packages"
        raise UserError(
            f"{path}: made with {said}, so its bytes do not compare; install what constraints.txt pins, or "
            f"check with the old versions and then write the baselines anew: {WRITE}"
        )
    return found


def check(path: Path) -> None:
    """UserError where no file can be written, before minutes go into what it would hold."""
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "there is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            path.stat()  # raises for a name that is too long
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise _unwritten(path, error) from error


def write(path: Path, rows: Mapping[str, Measured]) -> None:
    """Replace the file in one go; UserError when a row failed, or where no file can be written."""
    failed = [f"{label}: {row.failed}" for label, row in rows.items() if row.failed]
    if failed:
        raise UserError(f"{path} is left as it was, since rows failed: {'; '.join(failed)}")
    content = Baselines(versions=versions(), rows=dict(rows))
    text = content.model_dump_json(indent=1, exclude_none=True) + "\n"
    try:
        files.replace(path, text)
    except OSError as error:
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: OSError) -> UserError:
    return UserError(f"--file {path}: cannot be written: {error.strerror}; choose another")


def compare(base: Mapping[str, Measured], today: Mapping[str, Measured]) -> Comparison:
    """A cell for each peak of each row by each meter."""
    cells = [cell for label in base if label in today for cell in _row(label, base[label], today[label])]
    cells += [
        _cell(label, "", "run", "missing", "no such row any more") for label in base if label not in today
    ]
    cells += [_cell(label, "", "run", "new", "no baseline yet") for label in today if label not in base]
    return Comparison(tuple(cells))


def exit_code(found: Comparison) -> int:
    """1 with a regression, 2 when a row cannot be compared, else 0."""
    if "regression" in found.counts:
        return 1
    return 2 if {"x", "missing", "new"} & set(found.counts) else 0


def _row(label: str, base: Measured, today: Measured) -> Iterator[Cell]:
    if today.failed is not None:
        yield _cell(label, "", "run", "regression", f"failed: {today.failed}")
        return
    if base.config_id != today.config_id:
        ids = f"{base.config_id} -> {today.config_id}"
        yield _cell(label, "", "run", "x", f"not comparable: the configuration of the row changed ({ids})")
        return
    for meter in ("simulated", "live"):
        before, after = getattr(base, meter), getattr(today, meter)
        if before is not None and after is not None:
            yield from _figures(label, meter, before, after)
        elif before is not after:
            yield _cell(label, meter, "run", "x", "not comparable: measured on one side only")


def _figures(label: str, meter: str, before: Figures, after: Figures) -> Iterator[Cell]:
    first, second = before.train, after.train
    peaks = first.peak_allocated_bytes, second.peak_allocated_bytes
    parts = memory.components(first), memory.components(second)
    verdict = memory.judge(EXACT, *peaks)
    grew = any(parts[1][name] > parts[0][name] for name in parts[0] if name != TRANSIENT)
    if (
        verdict == "ok" and grew
    ):  # what stays between updates has grown under the cover of a smaller transient
        verdict = "regression"
    yield _cell(label, meter, "peak memory", verdict, memory.cause(*peaks, *parts))
    for phase in sorted({*before.phase_peak_bytes, *after.phase_peak_bytes}):
        pair = before.phase_peak_bytes.get(phase, 0), after.phase_peak_bytes.get(phase, 0)
        said = memory.cause(*pair, {}, {})
        yield _cell(label, meter, f"peak of {phase}", memory.judge(EXACT, *pair), f"{phase} {said}")


def _cell(label: str, meter: str, quantity: str, verdict: Verdict, cause: str) -> Cell:
    return Cell.of(SUITE, label, meter or "all meters", quantity, verdict, cause)
