"""What `lorebench status` says of the files that sweeps, living and dead, have in folders of results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main as cli
from harness.engine.process import attempt, progress_file
from harness.engine.process.lock import Lock, holder
from harness.engine.resume import names
from harness.engine.sweep.announced import Announced
from harness.engine.sweep.status import Status, survey

ROOT = Path(__file__).resolve().parents[4]
BEGAN = datetime(2026, 1, 2, 3, 0, tzinfo=UTC).timestamp()
HOLD = """
import sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from harness.engine.process.lock import Lock
assert Lock(Path({path!r})).take()
print("held", flush=True)
time.sleep(600)
"""


def suite(folder: Path, machine: str = "cpu-2t", name: str = "small") -> Path:
    place = folder / machine / name
    place.mkdir(parents=True)
    return place


def told(place: Path, run_id: str, *lines: Mapping[str, Any], row: str = "full") -> None:
    """Write progress: lines at the seconds after the beginning that their key `at` says."""
    about = {"at": 0, "row": row, "seed": 1, "repeat": 0, "steps": 1000}
    with (place / f"{run_id}{progress_file.SUFFIX}").open("w") as file:
        for line in (about, *lines):
            content = {key: value for key, value in line.items() if key != "at"}
            when = datetime.fromtimestamp(BEGAN + line["at"], UTC).isoformat(timespec="milliseconds")
            file.write(json.dumps({"time": when, **content}) + "\n")


def report(at: float, step: int, **more: Any) -> dict[str, Any]:
    return {"at": at, "phase": "train", "step": step, "steps": 1000, **more}


@contextmanager
def claimed(place: Path, run_id: str) -> Iterator[None]:
    lock = attempt.claim(place, run_id)
    assert lock.take()
    try:
        yield
    finally:
        lock.give()


def killed_holder(path: Path) -> None:
    """Leave the lock of a process that was killed."""
    script = HOLD.format(root=str(ROOT), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert holder(path) is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert path.exists()


def only(folder: Path, at: float = 500.0) -> Status:
    (found,) = survey([folder], BEGAN + at)
    return found


# ------------------------------------------------------------------------------------------ running
def test_a_run_whose_claim_is_held_runs_and_says_how_far_it_is(tmp_path: Path) -> None:
    place = suite(tmp_path)
    told(
        place,
        "0a-s1-r0",
        {"at": 1, "phase": "load"},
        {"at": 10, "phase": "train"},
        report(110, 100, loss=4.0, mean_loss=4.5, tokens_per_s=2000.0, peak_bytes=7),
        report(210, 200, loss=3.0, mean_loss=3.5, tokens_per_s=2100.0, peak_bytes=9),
    )
    with claimed(place, "0a-s1-r0"):
        found = only(tmp_path, 215)
    assert (found.state, found.machine, found.suite, found.row, found.seed) == (
        *("running", "cpu-2t", "small", "full", 1),
    )
    assert (found.phase, found.step, found.steps) == ("train", 200, 1000)
    assert (found.loss, found.mean_loss, found.tokens_per_s, found.peak_bytes) == (3.0, 3.5, 2100.0, 9)
    assert found.told_s == pytest.approx(5.0)
    assert found.left_s == pytest.approx(800 - 5), "an update a second, of which 5 s have passed"
    assert found.holder is not None
    assert str(os.getpid()) in found.holder


def test_the_time_left_follows_from_this_attempt_and_not_from_what_an_earlier_one_did(tmp_path: Path) -> None:
    place = suite(tmp_path)
    told(
        place,
        "0a-s1-r0",
        {"at": 1, "phase": "train"},
        report(2, 400),
        {"at": 50, "row": "full", "seed": 1, "repeat": 0, "steps": 1000},
        {"at": 60, "phase": "train"},
        report(70, 400, resumed=400),
        report(90, 410),
    )
    with claimed(place, "0a-s1-r0"):
        assert only(tmp_path, 90).left_s == pytest.approx(590 * 2)


def test_without_two_reports_or_after_the_training_no_time_is_promised(tmp_path: Path) -> None:
    place = suite(tmp_path)
    told(place, "0a-s1-r0", {"at": 1, "phase": "load"})
    with claimed(place, "0a-s1-r0"):
        assert only(tmp_path).left_s is None
        told(place, "0a-s1-r0", {"at": 1, "phase": "train"}, report(9, 500), {"at": 10, "phase": "evaluate"})
        assert (only(tmp_path).left_s, only(tmp_path).phase) == (None, "evaluate")


# ------------------------------------------------------------------------------------------ stopped
def test_a_run_whose_sweep_was_killed_is_stopped_and_says_from_where_it_would_go_on(tmp_path: Path) -> None:
    place = suite(tmp_path)
    told(place, "0a-s1-r0", {"at": 1, "phase": "train"}, report(100, 350, loss=2.5))
    saved = place / f"0a-s1-r0{names.SUFFIX}" / names.name(300, "0123456789")
    saved.mkdir(parents=True)
    (saved.parent / names.name(200, "0123456789")).mkdir()
    os.utime(saved, (BEGAN + 90, BEGAN + 90))
    killed_holder(attempt.claim(place, "0a-s1-r0").path)
    found = only(tmp_path, 1090)
    assert (found.state, found.step, found.loss, found.checkpoint) == ("stopped", 350, 2.5, 300)
    assert found.checkpoint_s == pytest.approx(1000)
    assert found.left_s is None
    told(place, "0a-s1-r0", {"at": 1, "phase": "load"})  # stopped again before its training went on
    assert only(tmp_path, 1090).step == 300


@pytest.mark.parametrize(
    ("status", "state", "with_checkpoint"),
    [
        ("interrupted", "stopped", "stopped"),
        *((status, None, "failed") for status in ("error", "oom", "timeout")),
        *((status, None, None) for status in ("ok", "diverged", "unsupported")),
    ],
)
def test_a_run_with_an_ending_is_shown_where_it_can_go_on_from_a_checkpoint(
    tmp_path: Path, status: str, state: str | None, with_checkpoint: str | None
) -> None:
    place = suite(tmp_path)
    told(place, "0a-s1-r0", report(9, 10), {"at": 10, "status": status})
    assert [each.state for each in survey([tmp_path])] == [state] * (state is not None)
    (place / f"0a-s1-r0{names.SUFFIX}" / names.name(7, "0123456789")).mkdir(parents=True)
    assert [each.state for each in survey([tmp_path])] == [with_checkpoint] * (with_checkpoint is not None)


# ------------------------------------------------------------------------------------------ waiting
def test_what_a_living_sweep_has_to_start_waits_and_that_of_a_killed_one_does_not(tmp_path: Path) -> None:
    place = suite(tmp_path)
    told(place, "0a-s1-r0")
    about = {"row": "full", "seed": 1, "repeat": 0, "steps": 1000}
    with Announced(place) as sweep:
        sweep.tell([{"run_id": "0a-s1-r0", **about}, {"run_id": "0b-s1-r0", **about, "row": "low rank"}])
        with claimed(place, "0a-s1-r0"):
            found = survey([tmp_path])
        assert [(each.state, each.row, each.steps) for each in found] == [
            ("running", "full", 1000),
            ("waiting", "low rank", 1000),
        ]
        written = {path.name: path.read_bytes() for path in place.glob(".sweep-*")}
        assert sorted(name.rpartition(".")[2] for name in written) == ["json", "lock"]
    assert [each.state for each in survey([tmp_path])] == ["stopped"]
    assert not list(place.glob(".*"))
    for name, content in written.items():
        (place / name).write_bytes(content)
    (lock,) = place.glob(".sweep-*.lock")
    lock.unlink()
    killed_holder(lock)
    assert [each.state for each in survey([tmp_path])] == ["stopped"]
    with Announced(place):
        assert len(list(place.glob(".sweep-*"))) == 1, "what the killed sweep left is gone"


def test_a_folder_that_takes_no_file_keeps_no_sweep_from_its_work(tmp_path: Path) -> None:
    with Announced(tmp_path / "nowhere") as sweep:
        sweep.tell([{"run_id": "0a-s1-r0"}])


# ------------------------------------------------------------------------------------------ all files
def test_it_asks_for_a_lock_without_being_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    killed_holder(path)
    before = path.read_bytes()
    assert holder(path) is None
    assert path.read_bytes() == before
    lock = Lock(path)
    assert lock.take()
    assert holder(path) is not None
    assert lock.held()
    lock.give()
    assert holder(path) is None


def test_another_machine_is_believed_as_long_as_it_touches_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    path.write_text(json.dumps({"process": 1, "host": "elsewhere", "machine": "other", "flock": True}))
    assert holder(path) == "process 1 on elsewhere"
    os.utime(path, (BEGAN, BEGAN))
    assert holder(path) is None


def test_several_suites_and_machines_are_found_and_other_files_passed_over(tmp_path: Path) -> None:
    for machine, name in (("cpu-2t", "small"), ("h200", "small"), ("h200", "large")):
        place = suite(tmp_path, machine, name)
        told(place, "0a-s1-r0")
        (place / "0a-s1-r0" / "weights").mkdir(parents=True)
        (place / ".hidden").mkdir()
        told(place / ".hidden", "0c-s1-r0")
    place = tmp_path / "h200" / "large"
    (place / f"notes{progress_file.SUFFIX}").write_text("{}\n")
    (place / f"0b-s1-r0{progress_file.SUFFIX}").write_bytes(b'\xff{"row"')
    (place / ".sweep-00000000.json").write_text("[")
    found = survey([tmp_path, tmp_path / "h200", place])
    assert sorted((each.machine, each.suite, each.run_id) for each in found) == [
        ("cpu-2t", "small", "0a-s1-r0"),
        ("h200", "large", "0a-s1-r0"),
        ("h200", "large", "0b-s1-r0"),
        ("h200", "small", "0a-s1-r0"),
    ]


# ------------------------------------------------------------------------------------------ the command
Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lorebench", "status", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return call


def test_where_nothing_runs_one_line_says_so(
    status: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert status(tmp_path) == (0, f"nothing runs, is stopped or waits in {tmp_path}\n", "")
    assert status(tmp_path, "--format", "json")[1] == '{\n "runs": []\n}\n'
    monkeypatch.chdir(tmp_path)
    assert status() == (0, "nothing runs, is stopped or waits in runs\n", "")
    Path("file").touch()
    assert status("file")[2].startswith("lorebench: file: no folder; give folders of records")
    code, out, err = status("nowhere")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("lorebench: nowhere: no such folder; give folders of records")


def test_it_prints_a_row_for_each_run(status: Say, tmp_path: Path) -> None:
    place = suite(tmp_path)
    told(place, "0a-s1-r0", {"at": 0, "phase": "train"}, report(60, 100, loss=3.25, tokens_per_s=2048.0))
    told(place, "0b-s1-r0", row="::error::\x1b[2J")
    told(place, "0c-s1-r0", {"at": 1, "status": "error"})
    (place / f"0c-s1-r0{names.SUFFIX}" / names.name(7, "0123456789")).mkdir(parents=True)
    with claimed(place, "0a-s1-r0"):
        code, out, _ = status(tmp_path)
        rows = json.loads(status(tmp_path, "--format", "json")[1])["runs"]
    words = " ".join(out.split())
    assert code == 0
    for part in (
        "running",
        "small",
        "full",
        "train",
        "100/1,000",
        "3.250",
        "2,048",
        "stopped: the same",
        "with --retry goes",
    ):
        assert part in words, part
    assert "\x1b" not in out
    assert "::error" not in out
    assert [row["state"] for row in rows] == ["running", "stopped", "failed"]
    assert [row.get("loss") for row in rows] == [3.25, None, None]
    assert "checkpoint" not in rows[0]


def test_many_runs_that_wait_are_counted(status: Say, tmp_path: Path) -> None:
    place = suite(tmp_path)
    with Announced(place) as sweep:
        sweep.tell([{"run_id": f"{number:02x}-s0-r0", "row": "full"} for number in range(25)])
        out = status(tmp_path)[1]
    assert out.count("waiting") == 20
    assert "and 5 more runs that wait" in out
