"""The file that tells how far a run is: it goes on after a resume, stays small and is never in the way."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from harness.engine.process import progress_file

ABOUT = {"row": "full", "seed": 0, "repeat": 0, "steps": 900}
REPORT = {"phase": "train", "step": 400, "steps": 900, "loss": 3.25, "tokens_per_s": 512.5}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / f"0a-s0-r0{progress_file.SUFFIX}"


def without_time(path: Path) -> list[dict[str, object]]:
    return [{key: value for key, value in line.items() if key != "time"} for line in progress_file.read(path)]


def test_it_has_a_line_for_each_report_and_only_its_owner_reads_it(path: Path) -> None:
    progress_file.begin(path, ABOUT, goes_on=False)
    progress_file.note(path, {"phase": "load"})
    progress_file.note(path, REPORT)
    progress_file.append(path, {"status": "interrupted"})
    assert without_time(path) == [ABOUT, {"phase": "load"}, REPORT, {"status": "interrupted"}]
    assert all(progress_file.seconds(line) is not None for line in progress_file.read(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_goes_on_after_a_resume_and_begins_anew_otherwise(path: Path) -> None:
    first = progress_file.begin(path, ABOUT, goes_on=False)
    progress_file.note(path, REPORT)
    again = progress_file.begin(path, ABOUT, goes_on=True)
    assert again == first
    assert without_time(path) == [ABOUT, REPORT, ABOUT]
    progress_file.begin(path, ABOUT, goes_on=False)
    assert without_time(path) == [ABOUT]


def test_a_message_is_not_written_nor_a_number_that_is_none(path: Path) -> None:
    progress_file.begin(path, ABOUT, goes_on=False)
    told = {"phase": "load", "error": "home: no such file", "input": "data", "loss": float("nan"), "lr": None}
    progress_file.note(path, {**told, "task": "t" * 5000})
    (_, line) = without_time(path)
    assert line == {"phase": "load", "task": "t" * progress_file.LONGEST_NAME}


def test_where_no_parent_has_begun_it_a_worker_makes_none(path: Path) -> None:
    progress_file.note(path, REPORT)
    assert not path.exists()


def test_after_half_a_line_the_next_one_is_whole(path: Path) -> None:
    progress_file.begin(path, ABOUT, goes_on=False)
    with path.open("a") as file:
        file.write('{"phase": "tra')
    progress_file.note(path, REPORT)
    assert without_time(path) == [ABOUT, REPORT]


def test_days_of_reports_stay_small_with_the_first_line_and_the_newest(path: Path) -> None:
    progress_file.begin(path, ABOUT, goes_on=False)
    for step in range(12_000):
        progress_file.note(path, {**REPORT, "step": step})
        assert step % 500 or path.stat().st_size <= progress_file.MOST_BYTES
    lines = without_time(path)
    steps = [line["step"] for line in lines[1:]]
    assert lines[0] == ABOUT
    assert steps == sorted(steps)
    assert steps[-progress_file.NEWEST :] == list(range(12_000 - progress_file.NEWEST, 12_000))
    assert path.stat().st_size > progress_file.MOST_BYTES / 4
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_no_error_and_later_lines_are_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress_file.begin(path, ABOUT, goes_on=False)
    with monkeypatch.context() as full:

        def write(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        full.setattr(os, "write", write)
        progress_file.note(path, REPORT)
    assert without_time(path) == [ABOUT]
    progress_file.note(path, REPORT)
    assert without_time(path) == [ABOUT, REPORT]


def test_what_is_no_file_or_no_progress_is_passed_over(tmp_path: Path, path: Path) -> None:
    path.mkdir()
    progress_file.begin(path, ABOUT, goes_on=True)
    progress_file.note(path, REPORT)
    assert progress_file.read(path) == []
    other = tmp_path / "other"
    other.write_bytes(b"\xff\xfe\n[1]\n" + b"[" * 100_000 + b"\n" + json.dumps(ABOUT).encode())
    assert progress_file.read(other) == [ABOUT]
    assert progress_file.seconds({"time": 7}) is None
    assert progress_file.seconds({"time": "yesterday"}) is None
