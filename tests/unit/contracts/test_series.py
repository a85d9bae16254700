"""The series beside a record: right values for any reader, small records, and files that do not belong."""

from __future__ import annotations

import json
import math
import shutil
import statistics
import threading
from pathlib import Path
from typing import Any

import pandas
import pytest
from pyarrow import parquet

from harness import record, series
from harness.engine.process.job import Job
from harness.engine.run import record_writer
from harness.engine.run.record_writer import RecordWriter
from harness.errors import UserError
from harness.record import Record, Time, Training
from harness.series import Series
from tests.support.gate_records import made

#: Updates without a time: warm-up and those under the meter.
UNTIMED = 5


def course(updates: int, period: int = 7, offset: float = 0.0) -> Series:
    """A training whose values follow from the number of the update, with a refresh in each period."""
    timed = [step > UNTIMED for step in range(1, updates + 1)]
    fresh = [step % period == 0 for step in range(1, updates + 1)]
    return Series(
        loss=[offset + 5 + math.cos(step) for step in range(updates)],
        lr=[1e-3 * step / updates for step in range(updates)],
        grad_norm=[None if new else step / 3 for step, new in enumerate(fresh)],
        step_s=[0.5 + 0.001 * (step % 11) if on else None for step, on in enumerate(timed)],
        refresh_step=[new if on else None for new, on in zip(fresh, timed, strict=True)],
        ranks=[{"layers.0.q": step, "layers.1.v": 3} if new else None for step, new in enumerate(fresh)],
    )


def inline(given: Series) -> dict[str, Any]:
    """The parts of an older record that hold the same course."""
    timed = [(s, new) for s, new in zip(given.step_s, given.refresh_step, strict=True) if s is not None]
    moves = [{"step": step, "ranks": ranks} for step, ranks in enumerate(given.ranks, 1) if ranks]
    training = {"steps": len(given), "tokens": 8 * len(given), "loss": given.loss, "lr": given.lr}
    training |= {"grad_norm": [norm for norm in given.grad_norm if norm is not None], "rank_moves": moves}
    return {
        "training": training,
        "time": {"step_s": [s for s, _ in timed], "refresh_step": [n for _, n in timed]},
    }


def put(folder: Path, given: Series, seed: int = 0) -> Path:
    """Write a record with a series beside it; the path of the record."""
    item = made(seed=seed)
    path = folder / f"{item.run_id}.json"
    item.series = series.write(given, path, item.run_id)
    timed = [(s, new) for s, new in zip(given.step_s, given.refresh_step, strict=True) if s is not None]
    columns = [s for s, _ in timed], [bool(new) for _, new in timed]
    item.time = Time(
        plain_steps=series.step_times(*columns, refreshed=False),
        refresh_steps=series.step_times(*columns, refreshed=True),
    )
    moved = sum(each is not None for each in given.ranks)
    summary = series.loss_summary(given.loss)
    item.training = Training(steps=len(given), tokens=8 * len(given), rank_updates=moved or None, **summary)
    record.write(item, path)
    return path


def beside(path: Path) -> Path:
    (found,) = path.parent.glob(f"{path.stem}.series.*.parquet")
    return found


# ------------------------------------------------------------------------------------------- the values
@pytest.mark.parametrize("updates", [1, 30, 400])
def test_pandas_reads_every_column_in_one_line(tmp_path: Path, updates: int) -> None:
    given = course(updates)
    table = pandas.read_parquet(beside(put(tmp_path, given)))
    assert list(table["step"]) == list(range(1, updates + 1))
    assert list(table["loss"]) == list(given.loss)
    assert list(table["lr"]) == list(given.lr)
    for name in ("grad_norm", "step_s"):
        expected = [None if value is None else value for value in getattr(given, name)]
        assert [None if math.isnan(value) else value for value in table[name].astype(float)] == expected
    assert [
        None if pandas.isna(value) else bool(value) for value in table["refresh_step"]
    ] == given.refresh_step
    assert [None if each is None else dict(each) for each in table["ranks"]] == given.ranks


def test_what_is_read_back_is_what_was_written(tmp_path: Path) -> None:
    given = course(30)
    item = record.read(put(tmp_path, given))
    assert series.read(item) == given
    assert series.losses(item) == given.loss
    assert [(move.step, move.ranks) for move in series.rank_moves(item)] == [
        (step, ranks) for step, ranks in enumerate(given.ranks, 1) if ranks
    ]


def test_losses_that_are_no_numbers_survive_and_columns_without_values_are_absent(tmp_path: Path) -> None:
    path = put(tmp_path, Series(loss=[2.0, math.inf, math.nan], lr=[0.1] * 3))
    assert parquet.read_schema(beside(path)).names == ["step", "loss", "lr"]
    found = series.losses(record.read(path))
    assert found[:2] == [2.0, math.inf]
    assert math.isnan(found[2])
    training = record.read(path).training
    assert training is not None
    assert (training.first_loss, training.lowest_loss) == (2.0, 2.0)
    assert training.last_loss is not None
    assert math.isnan(training.last_loss)
    assert series.rank_moves(record.read(path)) == []


def test_summaries_of_steps_are_those_of_each_kind(tmp_path: Path) -> None:
    given = course(300)
    time = record.read(put(tmp_path, given)).time
    table = pandas.read_parquet(next(tmp_path.glob("*.parquet")))
    assert time is not None
    for fresh in (False, True):
        seconds = table[table["refresh_step"] == fresh]["step_s"]
        found = series.times(time, fresh)
        assert found is not None
        assert found.count == len(seconds)
        assert found.median_s == seconds.median()
        for share, value in ((0.05, found.p05_s), (0.95, found.p95_s)):
            assert value == seconds.quantile(share, interpolation="nearest")
    assert series.timed(time) == 300 - UNTIMED


@pytest.mark.parametrize("updates", [30, 100_000, 1_000_000])
def test_a_record_is_small_however_long_the_training(tmp_path: Path, updates: int) -> None:
    few = course(1000)
    times = updates // 1000 or 1
    given = Series(**{name: list(values[:updates]) * times for name, values in vars(few).items()})
    path = put(tmp_path, given)
    assert len(series.losses(record.read(path))) == updates
    assert path.stat().st_size < 5_000


# -------------------------------------------------------------------------------------- older records
def test_an_older_record_gives_the_same_values_as_one_with_a_series(tmp_path: Path) -> None:
    given = course(60)
    new = record.read(put(tmp_path, given))
    old = Record.model_validate_json(made(**inline(given)).model_dump_json())
    assert series.losses(old) == series.losses(new)
    assert series.rank_moves(old) == series.rank_moves(new)
    assert series.updates(old) == series.updates(new) == 60
    assert old.time is not None
    assert new.time is not None
    assert series.timed(old.time) == series.timed(new.time)
    assert [series.times(old.time, fresh) for fresh in (False, True)] == [
        series.times(new.time, fresh) for fresh in (False, True)
    ]
    middle = statistics.median(s for s, f in zip(old.time.step_s, old.time.refresh_step, strict=True) if f)
    assert new.time.refresh_steps is not None
    assert new.time.refresh_steps.median_s == middle


# ------------------------------------------------------------------------- files that do not belong
def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def foreign(path: Path) -> None:
    other = put(path.parent / "other", course(30, offset=1.0))
    shutil.copy(beside(other), path)


def locked(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (Path.unlink, "cannot be read: No such file"),
        (torn, "its hash differs"),
        (foreign, "its hash differs"),
        (locked, "cannot be read: Is a directory"),
    ],
)
def test_a_series_that_does_not_belong_is_named_and_the_record_still_reads(
    tmp_path: Path, harm: Any, said: str
) -> None:
    path = put(tmp_path, course(30))
    name = beside(path).name
    harm(beside(path))
    item = record.read(path)
    for need in (series.losses, series.rank_moves, series.read):
        with pytest.raises(UserError, match=said) as refused:
            need(item)
        assert str(refused.value).startswith(name)
        assert "\n" not in str(refused.value)
    assert item.time is not None
    assert series.timed(item.time) == 30 - UNTIMED


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 40 + b"PAR1"])
def test_bytes_with_the_right_hash_that_are_no_series_are_refused(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path, course(30))
    item = record.read(path)
    beside(path).write_bytes(content)
    assert item.series is not None
    item.series.sha256 = series.hashlib.sha256(content).hexdigest()
    with pytest.raises(UserError, match="not a series"):
        series.losses(item)


def test_a_series_with_another_number_of_updates_or_other_types_is_refused(tmp_path: Path) -> None:
    item = record.read(put(tmp_path, course(30)))
    assert item.series is not None
    item.series.updates = 31
    with pytest.raises(UserError, match="not a series of 31 updates"):
        series.losses(item)
    whole = pandas.DataFrame({"loss": ["a"] * 30})
    whole.to_parquet(tmp_path / item.series.file)
    item.series.updates = 30
    item.series.sha256 = series.hashlib.sha256((tmp_path / item.series.file).read_bytes()).hexdigest()
    with pytest.raises(UserError, match="other types"):
        series.losses(item)


@pytest.mark.parametrize(
    "name", ["../x.series.12345678.parquet", "/etc/passwd", "x.parquet", "a\n.series.12345678.parquet"]
)
def test_a_name_that_leads_elsewhere_is_no_record(tmp_path: Path, name: str) -> None:
    path = put(tmp_path, course(30))
    content = json.loads(path.read_text())
    content["series"]["file"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"not a record: series\.file"):
        record.read(path)


def test_only_the_series_of_one_record_are_removed(tmp_path: Path) -> None:
    kept, gone = put(tmp_path, course(30), seed=1), put(tmp_path, course(30), seed=11)
    series.write(course(30, offset=1.0), gone, "x")
    series.remove(gone)
    assert [path.name for path in tmp_path.glob("*.parquet")] == [beside(kept).name]
    series.remove(kept, keep=beside(kept).name)
    assert beside(kept)


# ------------------------------------------------------------------------------------- the worker's side
@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordWriter:
    monkeypatch.setattr(record_writer, "take_stdout", lambda: open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    item = made()
    job = Job.__new__(Job)
    object.__setattr__(job, "folder", tmp_path / item.run_id)
    monkeypatch.setattr(Job, "blank", lambda self: item)
    return RecordWriter(job, record_writer.time.perf_counter())


def test_the_series_is_on_disk_once_before_the_record_that_names_it(
    writer: RecordWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    replace = Path.replace

    def noted(source: Path, target: Path) -> Path:
        order.append(target.suffix)
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", noted)
    for phase in ("train", "evaluate", "export"):
        with writer.phase(phase):  # type: ignore[arg-type]
            if phase == "train":
                writer.keep(course(30))
    assert order == [".parquet", ".json", ".json", ".json"]
    assert len(series.losses(record.read(writer.path))) == 30


def test_no_phase_holds_the_time_of_writing_a_series(
    writer: RecordWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    writer.started = 0.0
    monkeypatch.setattr(record_writer.time, "perf_counter", lambda: now[0])
    written = series.write

    def slow(*given: Any) -> Any:
        now[0] += 100.0
        return written(*given)

    monkeypatch.setattr(series, "write", slow)
    for phase, seconds in (("train", 3.0), ("evaluate", 5.0)):
        with writer.phase(phase):  # type: ignore[arg-type]
            now[0] += seconds
            writer.keep(course(30) if phase == "train" else Series((), ()))
    time = record.read(writer.path).time
    assert time is not None
    assert (time.phase_s, time.wall_s) == ({"train": 3.0, "evaluate": 5.0}, 8.0)


def test_a_run_whose_series_cannot_be_written_is_recorded_with_a_warning(
    writer: RecordWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(series, "write", full)
    with writer.phase("train"):
        writer.keep(course(30))
    found = record.read(writer.path)
    assert found.series is None
    assert found.warnings == ["the series of updates could not be written: No space left on device"]


def test_two_writers_of_one_run_leave_a_record_with_its_own_series(tmp_path: Path) -> None:
    item = made()
    path = tmp_path / f"{item.run_id}.json"

    def write(offset: float) -> None:
        for turn in range(10):
            mine = item.model_copy()
            mine.series = series.write(course(30, offset=offset + turn), path, item.run_id)
            record.write(mine, path)
            series.losses(record.read(path))

    writers = [threading.Thread(target=write, args=(offset,)) for offset in (100.0, 200.0)]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    last = series.losses(record.read(path))
    assert last in (course(30, offset=109.0).loss, course(30, offset=209.0).loss)
