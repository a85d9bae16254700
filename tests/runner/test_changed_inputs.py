"""A run whose inputs have changed since its record is another run; with a stub for the worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sweeping import Remember, starts, stub_run

from harness import record as records
from harness.engine.runner import Settings, Sweep
from harness.tables.aggregate import rows

Go = Callable[..., Sweep]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "d.jsonl"
    path.write_text("one")
    return path


def change_all(text: Path) -> None:
    text.write_text("two")


def test_hashes_reach_the_record(carry_out: Go, text: Path) -> None:
    (record,) = carry_out(stub_run(reads=[str(text)])).records.values()
    assert record.inputs is not None
    assert list(record.inputs) == ["text d.jsonl"]
    assert record.config["method"][0]["options"]["reads"] == [str(text)]


@pytest.mark.parametrize(
    ("before", "after", "again"), [("one", "one", 0), ("one", "two", 1), ("one", "one ", 1)]
)
def test_only_changed_content_is_measured_again(
    before: str, after: str, again: int, carry_out: Go, text: Path, settings: Settings, display: Remember
) -> None:
    run = stub_run(reads=[str(text)])
    text.write_text(before)
    first = carry_out(run)
    text.write_text(after)
    display.notes.clear()
    second = carry_out(run)
    assert len(starts(settings)) == 1 + again
    assert len(second.done_now) == again
    assert (second.records[run_id(first)].inputs != first.records[run_id(first)].inputs) == bool(again)
    said = [note for note in display.notes if "changed" in note]
    assert said == ["changed since this run: text d.jsonl: measured again"] * again


def test_a_new_attempt_that_fails_keeps_the_earlier_record_and_says_that_it_is_made_again(
    carry_out: Go, text: Path, settings: Settings, display: Remember
) -> None:
    run = stub_run("as read", reads=[str(text)])
    text.write_text("ok")
    first = carry_out(run)
    text.write_text("exit")
    for attempts in (2, 3):
        display.notes.clear()
        assert [record.outcome.status for record in carry_out(run).records.values()] == ["error"]
        assert len(starts(settings)) == attempts
        kept = records.read(first.folder / f"{run_id(first)}.json")
        assert kept.outcome.status == "ok"
        assert [note for note in display.notes if "attempt" in note] == [
            "1 new attempt failed without replacing a record: the same command tries again, --keep-old does "
            "not"
        ]
    carry_out(run, keep_old=True)
    assert len(starts(settings)) == 3


def run_id(result: Sweep) -> str:
    (found,) = result.records
    return found


def test_runs_that_read_something_else_stay_as_they_are(
    carry_out: Go, text: Path, settings: Settings
) -> None:
    both = (stub_run(label="a", reads=[str(text)]), stub_run(label="b", size=2))
    carry_out(*both)
    change_all(text)
    result = carry_out(*both)
    assert [result.records[key].label for key in result.done_now] == ["a"]


def test_old_runs_are_kept_where_that_is_asked_for(
    carry_out: Go, text: Path, settings: Settings, display: Remember
) -> None:
    carry_out(*(stub_run(seed=seed, reads=[str(text)]) for seed in (0, 1)))
    change_all(text)
    result = carry_out(*(stub_run(seed=seed, reads=[str(text)]) for seed in (0, 1, 2)), keep_old=True)
    assert len(starts(settings)) == 3
    assert "changed since these 2 runs: text d.jsonl: kept, for --keep-old" in display.notes
    # Two contents of one text are two rows, whatever the seeds.
    assert sorted(row.seeds for row in rows(result.records.values())) == [[0, 1], [2]]


def test_a_record_without_hashes_is_not_contradicted(carry_out: Go, text: Path, settings: Settings) -> None:
    run = stub_run(reads=[str(text)])
    first = carry_out(run)
    path = first.folder / f"{run_id(first)}.json"
    records.write(first.records[run_id(first)].model_copy(update={"inputs": None}), path)
    change_all(text)
    carry_out(run)
    assert len(starts(settings)) == 1


def test_the_weights_of_an_older_record_are_compared(carry_out: Go, text: Path, settings: Settings) -> None:
    """They were stored with the data, as the hash of the same files."""
    run = stub_run(reads=[str(text)], name_of_input="weights")
    first = carry_out(run)
    record = first.records[run_id(first)]
    assert record.inputs is not None
    path = first.folder / f"{run_id(first)}.json"
    for weights, again in ((record.inputs["weights"], 0), ("0" * 64, 1)):
        data = records.Data(name="d", sha256="a", tokens=1, model="m", model_sha256=weights)
        records.write(record.model_copy(update={"inputs": None, "data": data}), path)
        before = len(starts(settings))
        carry_out(run)
        assert len(starts(settings)) == before + again
