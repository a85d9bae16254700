"""Compare peak memory with stored baselines, byte for byte: the file of baselines, and the verdicts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness import files
from harness.errors import UserError
from harness.forecast import MemoryReport
from harness.record import COMPONENTS, Phase, TrainMemory
from harness.tables.compare import memory
from harness.tables.compare.comparison import Cell, Comparison, Verdict

SUITE = "baselines"
EXACT = "simulated"
#: Packages whose code decides which tensors exist.
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
WRITE = "nox -s gate -- --write"
#: Phases with a peak of their own beside that of training.
PHASES: tuple[Phase, ...] = ("load", "prepare")


class Peaks(BaseModel):
    """Peaks by phase and the bytes of training by component, by one meter."""

    model_config = ConfigDict(extra="forbid")

    phase_peak_bytes: dict[str, int] = {}
    train: TrainMemory


class Row(BaseModel):
    """The memory of one row by each meter; `failed` gives the reason in one line where there is none."""

    model_config = ConfigDict(extra="forbid")

    config_id: str
    simulated: Peaks | None = None
    live: Peaks | None = None
    failed: str | None = None

    @classmethod
    def of(cls, config_id: str, reports: Mapping[str, MemoryReport | str]) -> Row:
        """Build a row from the report of each meter, or from why there is none."""
        failed = [report for report in reports.values() if isinstance(report, str)]
        if failed:
            return cls(config_id=config_id, failed=failed[0])
        peaks = {}
        for meter, report in reports.items():
            assert isinstance(report, MemoryReport)
            phases = {phase: report.phase_peak_allocated_bytes.get(phase) for phase in PHASES}
            own = {phase: size for phase, size in phases.items() if size is not None}
            peaks[meter] = {"phase_peak_bytes": own, "train": report.train}
        return cls.model_validate({"config_id": config_id, **peaks})


class Baselines(BaseModel):
    """The file: peaks by the label of their row, and the versions of the packages that made them."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    versions: dict[str, str]
    rows: dict[str, Row]


def versions() -> dict[str, str]:
    """Return the installed versions of PACKAGES, without the name of a build (`+cpu`): it decides no byte."""
    return {name: files.installed(name).partition("+")[0] for name in PACKAGES}


def read(path: Path) -> dict[str, Row]:
    """Read the rows of a file; UserError without a valid file, or for one of other package versions."""
    try:
        found = Baselines.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: no baselines ({error.strerror}); write them: {WRITE}") from error
    except (ValidationError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path}: not a file of baselines ({first}); write it again: {WRITE}") from error
    here = versions()
    other = [f"{n} {old} (here {here.get(n)})" for n, old in found.versions.items() if here.get(n) != old]
    if other or set(found.versions) != set(here):
        made_with = "; ".join(other) or "another set of packages"
        raise UserError(
            f"{path}: made with {made_with}, so its bytes do not compare; install what constraints.txt pins, "
            f"or check with the old versions and then write the baselines again: {WRITE}"
        )
    return found.rows


def check_writable(path: Path) -> None:
    """Raise UserError where no file can be written."""
    try:
        if path.is_dir():
            raise UserError(f"{path}: cannot be written: it is a folder; name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; choose another") from error


def write(path: Path, rows: Mapping[str, Row]) -> None:
    """Replace the file atomically; UserError when a row failed, or where it cannot be written."""
    failed = [f"{label}: {row.failed}" for label, row in rows.items() if row.failed]
    if failed:
        raise UserError(f"{path} is left as it was, since rows failed: {'; '.join(failed)}")
    content = Baselines(versions=versions(), rows=dict(rows))
    try:
        files.replace(path, content.model_dump_json(indent=1, exclude_none=True) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; choose another") from error


def compare(base: Mapping[str, Row], today: Mapping[str, Row]) -> Comparison:
    """Compare each peak of each row by each meter."""
    cells = [cell for label in base if label in today for cell in _row(label, base[label], today[label])]
    cells += [_cell(label, "run", "missing", "no such row any more") for label in base if label not in today]
    cells += [_cell(label, "run", "new", "no baseline yet") for label in today if label not in base]
    return Comparison(tuple(cells))


def exit_code(found: Comparison) -> int:
    """Return 1 with a regression, 2 when a row cannot be compared, else 0."""
    if "regression" in found.counts:
        return 1
    return 2 if {"x", "missing", "new"} & set(found.counts) else 0


def _row(label: str, base: Row, today: Row) -> Iterator[Cell]:
    if today.failed is not None:
        yield _cell(label, "run", "regression", f"failed: {today.failed}")
        return
    if base.config_id != today.config_id:
        ids = f"{base.config_id} -> {today.config_id}"
        yield _cell(label, "run", "x", f"not comparable: the configuration of the row changed ({ids})")
        return
    for meter in ("simulated", "live"):
        before, after = getattr(base, meter), getattr(today, meter)
        if before is not None and after is not None:
            yield from _peaks(label, meter, before, after)
        elif before is not after:
            yield _cell(label, "run", "x", "not comparable: measured on one side only", meter)


def _peaks(label: str, meter: str, before: Peaks, after: Peaks) -> Iterator[Cell]:
    first, second = before.train, after.train
    peaks = first.peak_allocated_bytes, second.peak_allocated_bytes
    verdict = memory.judge(EXACT, *peaks)
    lasting = (name for name in COMPONENTS if name != "transient_bytes")
    if verdict == "ok" and any(getattr(second, name) > getattr(first, name) for name in lasting):
        verdict = "regression"  # what persists between updates has grown, hidden by smaller temporaries
    yield _cell(label, "peak memory", verdict, memory.cause(*peaks, first, second), meter)
    for phase in sorted({*before.phase_peak_bytes, *after.phase_peak_bytes}):
        pair = before.phase_peak_bytes.get(phase, 0), after.phase_peak_bytes.get(phase, 0)
        cause = f"{phase} {memory.cause(*pair)}"
        yield _cell(label, f"peak of {phase}", memory.judge(EXACT, *pair), cause, meter)


def _cell(label: str, quantity: str, verdict: Verdict, cause: str, meter: str = "all meters") -> Cell:
    return Cell(SUITE, label, meter, quantity, verdict, cause)
