"""Keep what grows with the number of updates in one Parquet file beside the record.

`<run_id>.series.<beginning of its hash>.parquet` has a row per update and opens with `pandas.read_parquet`.
The record names the file and holds its hash, so that a file that is missing, torn or of another run is
noticed: then what needs it says so, and everything else works. Records of before hold the values themselves.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import files
from harness.errors import UserError, one_line
from harness.record import SERIES_SUFFIX, RankMove, Record, SeriesFile, StepTimes, Time

if TYPE_CHECKING:
    import pyarrow

#: Version of the columns, stored in the file.
FORMAT = "1"
#: Columns with several values by name.
_BY_NAME = ("ranks", "perplexity")
#: Rows in one group of the file.
GROUP = 1 << 17
#: Bytes of a series, also unpacked: ten million updates with all columns have less.
LARGEST = 1 << 30


@dataclass(frozen=True)
class Series:
    """The course of a training, by update; None where an update has no such value.

    `loss` in nats per token, `lr` the learning rate, `grad_norm` before clipping, `step_s` the seconds of
    timed updates and `refresh_step` whether one of those held a refresh, `ranks` the ranks by matrix that a
    method chose anew. `perplexity` by protocol is what the model scored in training, and `trained_s` the
    seconds of training until then, and to the end. A column is as long as `loss`, or empty where no update
    has a value.
    """

    loss: Sequence[float]
    lr: Sequence[float]
    grad_norm: Sequence[float | None] = ()
    step_s: Sequence[float | None] = ()
    refresh_step: Sequence[bool | None] = ()
    ranks: Sequence[Mapping[str, int] | None] = ()
    trained_s: Sequence[float | None] = ()
    perplexity: Sequence[Mapping[str, float] | None] = ()

    def __len__(self) -> int:
        return len(self.loss)


# ----------------------------------------------------------------------------------------- summaries
def loss_summary(loss: Sequence[float]) -> dict[str, Any]:
    """Return the first, last and lowest finite loss as fields of `Training`; empty without an update."""
    if not loss:
        return {}
    finite = [value for value in loss if math.isfinite(value)]
    return {"first_loss": loss[0], "last_loss": loss[-1]} | ({"lowest_loss": min(finite)} if finite else {})


def step_times(step_s: Sequence[float], refresh_step: Sequence[bool], refreshed: bool) -> StepTimes | None:
    """Summarise the seconds of timed updates with, or without, a refresh; None without any."""
    chosen = sorted(s for s, fresh in zip(step_s, refresh_step, strict=True) if fresh == refreshed)
    if not chosen:
        return None
    last = len(chosen) - 1
    return StepTimes(
        count=len(chosen),
        median_s=statistics.median(chosen),
        p05_s=chosen[round(0.05 * last)],
        p95_s=chosen[round(0.95 * last)],
    )


def times(time: Time, refreshed: bool) -> StepTimes | None:
    """Return the summary of timed updates of a record, whichever form it has."""
    if time.step_s:
        return step_times(time.step_s, time.refresh_step, refreshed)
    return time.refresh_steps if refreshed else time.plain_steps


def first_loss(record: Record) -> float | None:
    """Return the loss of the first update of a record, whichever form it has; None without an update."""
    training = record.training
    if training is None:
        return None
    return training.first_loss if training.first_loss is not None else next(iter(training.loss), None)


def timed(time: Time) -> int:
    """Return how many updates of a record were timed."""
    return len(time.step_s) + sum(part.count for part in (time.plain_steps, time.refresh_steps) if part)


# ------------------------------------------------------------------------------------------- writing
def write(series: Series, record: Path, run_id: str) -> SeriesFile:
    """Write a series beside the path of a record, atomically, and return what the record says of it.

    The name holds the hash: a series never replaces that of another record. OSError where it cannot be
    written.
    """
    content = _encoded(series, run_id)
    digest = hashlib.sha256(content).hexdigest()
    name = f"{record.stem}.series.{digest[:8]}{SERIES_SUFFIX}"
    files.replace(record.with_name(name), content)
    return SeriesFile(file=name, sha256=digest, updates=len(series))


def _encoded(series: Series, run_id: str) -> bytes:
    """Return the bytes of a Parquet file; the same series makes the same bytes."""
    import pyarrow as arrow
    from pyarrow import parquet

    columns: dict[str, Any] = {"step": arrow.array(range(1, len(series) + 1), arrow.int64())}
    for name, kind in _kinds().items():
        values = getattr(series, name)
        if len(values):
            columns[name] = arrow.array(_pairs(values) if name in _BY_NAME else values, kind)
    table = arrow.table(columns).replace_schema_metadata({"lorebench": FORMAT, "run_id": run_id})
    sink = arrow.BufferOutputStream()
    parquet.write_table(
        table,
        sink,
        row_group_size=GROUP,
        compression="zstd",
        use_dictionary=["lr", "ranks.key_value.key", "ranks.key_value.value", "perplexity.key_value.key"],
        column_encoding={"step": "DELTA_BINARY_PACKED"},
        write_statistics=False,
        store_schema=False,
    )
    return bytes(sink.getvalue())


def _pairs(values: Sequence[Mapping[str, float] | None]) -> list[list[tuple[str, float]] | None]:
    return [None if each is None else list(each.items()) for each in values]


def _kinds() -> dict[str, pyarrow.DataType]:
    """Return the type of each column but the number of the update."""
    import pyarrow as arrow

    number = arrow.float64()
    return {
        "loss": number,
        "lr": number,
        "grad_norm": number,
        "step_s": number,
        "refresh_step": arrow.bool_(),
        "ranks": arrow.map_(arrow.string(), arrow.int64()),
        "trained_s": number,
        "perplexity": arrow.map_(arrow.string(), number),
    }


def others(record: Path, keep: str | None = None) -> Iterator[Path]:
    """Yield the files of series beside a record's path, but the one to keep."""
    for path in record.parent.glob(f"{_literal(record.stem)}.series.*{SERIES_SUFFIX}"):
        if path.name != keep:
            yield path


def _literal(text: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


def remove(record: Path, keep: str | None = None) -> None:
    """Remove the series beside a record's path, but the one to keep."""
    for path in others(record, keep):
        path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------- reading
def updates(record: Record) -> int:
    """Return the number of updates with a loss."""
    if record.series is not None:
        return record.series.updates
    return len(record.training.loss) if record.training else 0


def losses(record: Record) -> Sequence[float]:
    """Return the loss of every update, empty without any; UserError where the series cannot be read."""
    if record.series is None:
        return record.training.loss if record.training else []
    return _column(record, "loss")


def rank_moves(record: Record) -> list[RankMove]:
    """Return the ranks that a method chose anew, by update; UserError where the series cannot be read."""
    if record.series is None:
        return record.training.rank_moves if record.training else []
    ranks = _column(record, "ranks") if record.training and record.training.rank_updates else []
    return [RankMove(step=step, ranks=dict(each)) for step, each in enumerate(ranks, 1) if each is not None]


@dataclass(frozen=True)
class Score:
    """Perplexity by protocol after so many updates and seconds of training; none where it was not scored."""

    step: int
    trained_s: float
    perplexity: Mapping[str, float]


def scores(record: Record) -> list[Score]:
    """Return what the model scored in training, and the end of the training, which was not scored there.

    Empty for a record without; UserError where the series cannot be read.
    """
    if record.series is None or not (record.training and record.training.scored):
        return []
    seconds, perplexity = _column(record, "trained_s"), _column(record, "perplexity")
    pairs = zip(seconds, perplexity, strict=False)
    return [
        Score(step, trained_s, dict(values or ()))
        for step, (trained_s, values) in enumerate(pairs, 1)
        if trained_s is not None
    ]


def read(record: Record) -> Series:
    """Return the whole series that a record names; UserError where it cannot be read, or there is none."""
    if record.series is None:
        raise UserError(f"run {record.run_id} has no series")
    columns = _table(record, None).to_pydict()
    for name in columns.keys() & set(_BY_NAME):
        columns[name] = [None if each is None else dict(each) for each in columns[name]]
    return Series(**{name: columns[name] for name in _kinds() if name in columns})


def _column(record: Record, name: str) -> list[Any]:
    table = _table(record, name)
    return table.column(name).to_pylist() if name in table.column_names else []


def _table(record: Record, column: str | None) -> pyarrow.Table:
    """Return one column of a series, or all, as far as it has them; UserError for any other file."""
    import pyarrow as arrow
    from pyarrow import parquet

    named = record.series
    assert named is not None
    content = record.beside.read(named.file, LARGEST)
    if hashlib.sha256(content).hexdigest() != named.sha256:
        raise UserError(f"{named.file}: not the series that run {record.run_id} wrote: its hash differs")
    try:
        file = parquet.ParquetFile(arrow.BufferReader(content))
        types = {field.name: field.type for field in file.schema_arrow}
        kinds = _kinds()
        unpacked = sum(file.metadata.row_group(n).total_byte_size for n in range(file.num_row_groups))
        if file.metadata.num_rows != named.updates or unpacked > LARGEST:
            raise UserError(f"{named.file}: not a series of {named.updates} updates")
        if any(kind != kinds[name] for name, kind in types.items() if name in kinds):
            raise UserError(f"{named.file}: not a series: its columns have other types")
        wanted = [name for name in kinds if name in types] if column is None else [column]
        return file.read(columns=[name for name in wanted if name in types])
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{named.file}: not a series: {one_line(error)}") from error
