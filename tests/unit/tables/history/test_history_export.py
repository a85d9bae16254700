"""The points of a history as a table: what it holds, and that it comes back as it was."""

from __future__ import annotations

import random
from pathlib import Path

import pandas as pd
import pytest

from harness.cli import output
from harness.errors import UserError
from harness.tables.history import export
from harness.tables.history.series import History
from tests.support.gate_records import made, memory, put
from tests.support.history_records import Repository, load, scored
from tests.support.mutations import put_mutated

SUFFIXES = (".csv", ".parquet")
LABEL = 'a "row", with = and \\, é'


def read(path: Path) -> pd.DataFrame:
    """What another program reads, once it knows which columns are text."""
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    names = pd.read_csv(path, nrows=0).columns
    types = {name: export.TYPES.get(name, "string") for name in names}
    return pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])


def write(history: History, path: Path) -> None:
    """Write the points as `lorebench history --out` does."""
    output.publish(history, path.suffix[1:], {path: path.suffix[1:]}, export.FORMATS)


@pytest.fixture
def history(tmp_path: Path) -> History:
    repository = Repository.at(tmp_path / "code")
    for number in range(4):
        repository.commit()
        more = memory(optimizer_bytes=(800 << 20) + number // 2)
        stand = {"git_dirty_sha256": "ab" * 32} if number == 3 else {}
        time = {"tokens_per_s": 1000 / 3 + number, "wall_s": 0.1}
        repository.record(label=LABEL, memory=more, stand=stand, time=time, quality=scored(10 / 3))
    repository.record(label="NA", folder="failed", outcome={"status": "oom"}, memory=None, started_at=None)
    return load([repository.results], "demo")


def test_each_point_is_a_row_with_its_commit_and_stand(history: History) -> None:
    table = export.frame(history)
    assert len(table) == sum(len(series.points) for series in history.series)
    peaks = table[table["quantity"] == "peak_allocated_bytes"]
    assert list(peaks["commit_order"]) == [0, 1, 2, 4]  # the clean tree of the last commit has a row alone
    assert list(peaks["step_before"]) == [False, False, True, False]
    assert list(peaks["dirty"]) == [False, False, False, True]
    assert set(peaks["unit"]) == {"bytes"}
    assert set(peaks["stand_device"]) == {"a CPU"}
    assert peaks["series"].nunique() == 1
    commits = {commit.name: commit.sha for commit in history.commits}
    assert all(commits[name] == sha for name, sha in zip(table["commit"], table["commit_sha"], strict=True))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_value_that_is_infinite_is_a_point_as_well(tmp_path: Path, suffix: str) -> None:
    repository = Repository.at(tmp_path / "code")
    for value in (8.0, float("inf"), 8.0):
        repository.commit()
        quality = scored(8.0)
        quality["perplexity"]["text"]["perplexity"] = value
        repository.record(quality=quality)
    path = tmp_path / f"points{suffix}"
    write(load([repository.results], "demo"), path)
    table = read(path).query("quantity == 'perplexity_text'")
    assert list(table["value"]) == [8.0, float("inf"), 8.0]
    assert list(table["step_before"]) == [False, True, True]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_written_table_comes_back_value_for_value(history: History, tmp_path: Path, suffix: str) -> None:
    """Also a label that reads like a missing value, quotes, and figures with all of their digits."""
    path = tmp_path / f"points{suffix}"
    write(history, path)
    pd.testing.assert_frame_equal(read(path), export.frame(history))
    assert set(read(path)["row"]) == {LABEL, "NA"}


def test_a_place_that_cannot_be_written_is_one_line(history: History, tmp_path: Path) -> None:
    (tmp_path / "taken.csv").mkdir()
    for name in ("taken.csv", "no/folder.parquet", "points.xlsx", "points"):
        with pytest.raises(UserError, match="--out"):
            output.destinations([tmp_path / name], export.FORMATS)
    with pytest.raises(UserError, match=r"taken\.csv: cannot be written: Is a directory; choose another"):
        write(history, tmp_path / "taken.csv")


def test_mutated_records_make_a_table(tmp_path: Path) -> None:
    dice = random.Random(1)
    put(tmp_path, made("sound"))
    for number in range(300):
        put_mutated(tmp_path, made(seed=number, quality=scored(3.0), started_at=None), dice)
    found = load([tmp_path], "demo")
    assert found.runs > 10
    for suffix in SUFFIXES:
        write(found, tmp_path / f"points{suffix}")
