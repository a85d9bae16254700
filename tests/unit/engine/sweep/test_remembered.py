"""What was found out about runs is asked for again as soon as anything that it follows from may differ."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.config import Run
from harness.engine.sweep import remembered, resolution
from harness.engine.sweep.remembered import Remembered

ANSWER = {"runs": [], "device": "cpu"}
LONG = 3600
SHIPPED = "lora"


def old(path: Path, text: str) -> Path:
    """A file that was last changed an hour ago, as far as its own time says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    then = time.time() - LONG
    os.utime(path, (then, then))
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with code and a text of its own, where nothing is too new and no GPU is seen."""
    monkeypatch.setenv("LOREBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(remembered, "SETTLED_NS", -1)
    monkeypatch.setattr(remembered, "GPU_SIGNS", ())
    monkeypatch.setattr(remembered, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    (tmp_path / "packages" / "torch-1.0.dist-info").mkdir(parents=True)
    old(tmp_path / "harness" / "code.py", "a = 1")
    old(tmp_path / "texts" / "a.txt", "text")
    old(tmp_path / "texts" / "link.txt", "other")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def request(method: str = SHIPPED, options: Any = None, **changes: Any) -> dict[str, Any]:
    data = {"source": "files", "paths": ["texts/a.txt"]}
    evaluate = {"perplexity": [{"protocol": "heldout", "paths": ["texts"]}]}
    run = {"method": [{"name": method, "options": options or {}}], "data": data, "evaluate": evaluate}
    return {"runs": [run], "device": "cpu", **changes}


def test_an_answer_is_given_again_while_nothing_has_changed(place: Path) -> None:
    assert Remembered(request()).answer() is None
    Remembered(request()).keep(ANSWER)
    assert Remembered(request()).answer() == ANSWER
    assert Remembered(request(device="auto")).answer() is None


def rewritten(place: Path) -> None:
    before = (place / "texts" / "a.txt").stat()
    (place / "texts" / "a.txt").write_text("tixt", encoding="utf-8")
    os.utime(place / "texts" / "a.txt", ns=(before.st_atime_ns, before.st_mtime_ns))


def upgraded(place: Path) -> None:
    (place / "packages" / "torch-1.0.dist-info").rename(place / "packages" / "torch-1.1.dist-info")


def moved(place: Path) -> None:
    (place / "here").mkdir()
    (place / "here" / "texts").symlink_to(place / "texts")
    os.chdir(place / "here")


def damaged(place: Path) -> None:
    (kept,) = (place / "cache" / "resolved").iterdir()
    kept.write_text(kept.read_text().replace('"device": "cpu"', '"device": "gpu"'))


@pytest.mark.parametrize(
    "change",
    [
        rewritten,
        upgraded,
        moved,
        damaged,
        lambda place: (place / "texts" / "a.txt").unlink(),
        lambda place: old(place / "texts" / "new.txt", "text"),
        lambda place: old(place / "harness" / "code.py", "a = 2"),
        lambda place: old(place / "methods" / "new.py", "a = 2"),
        lambda place: os.environ.update(OMP_NUM_THREADS="77"),
        lambda place: os.environ.update(PYTHONPATH=f"{place}{os.pathsep}{place}/other"),
    ],
)
def test_anything_that_it_follows_from_makes_it_void(
    place: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Remembered(request()).keep(ANSWER)
    assert Remembered(request()).answer() == ANSWER
    change(place)
    assert Remembered(request()).answer() is None


def test_what_cannot_be_known_to_be_the_same_is_not_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(**changes: Any) -> bool:
        Remembered(request(**changes)).keep(ANSWER)
        return Remembered(request(**changes)).answer() is not None

    assert kept()
    assert not kept(method="mine:Method")
    assert kept(options={"type": "mine"})
    assert not kept(options={"type": "mine:Class"})
    monkeypatch.setattr(remembered, "GPU_SIGNS", ("null",))
    assert not kept()
    monkeypatch.setattr(remembered, "GPU_SIGNS", ())
    monkeypatch.setattr(remembered, "SETTLED_NS", LONG * 2 * 10**9)
    assert not kept()


def test_nothing_is_kept_of_tasks_whose_files_may_include_others(place: Path) -> None:
    """`include: ../shared.yaml` is hashed for the record, but lies below no path that the run names."""
    asked = request()
    asked["runs"][0]["evaluate"]["task_paths"] = ["texts"]
    Remembered(asked).keep(ANSWER)
    assert Remembered(asked).answer() is None


def test_what_changes_during_the_check_is_not_kept(place: Path) -> None:
    asked = Remembered(request())
    old(place / "texts" / "a.txt", "another text")
    asked.keep(ANSWER)
    assert Remembered(request()).answer() is None


def test_only_the_newest_answers_stay(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST", 2)
    seen: set[Path] = set()
    for number in range(4):
        Remembered(request(number=number)).keep(ANSWER)
        (newest,) = {*(place / "cache" / "resolved").iterdir()} - seen
        os.utime(newest, (number, number))
        seen = {*(place / "cache" / "resolved").iterdir()}
    assert Remembered(request(number=3)).answer() == ANSWER
    assert len(seen) == 2


@pytest.mark.parametrize("local", [True, False])
def test_a_second_request_starts_no_worker_unless_something_is_not_on_this_machine(
    place: Path, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    run = Run(method=({"name": SHIPPED, "options": {"rank": 3}},))
    content = {"runs": [run.model_dump(mode="json")], "device": "cpu", "machine": "cpu-2t", "local": local}
    started = []

    def answered(command: list[str], request: bytes) -> subprocess.CompletedProcess[bytes]:
        started.append(json.loads(request)["runs"])
        return subprocess.CompletedProcess(command, 0, f"{json.dumps(content)}\n".encode(), b"")

    monkeypatch.setattr(resolution, "_answered", answered)
    asked = [Run(method=SHIPPED, seed=seed) for seed in range(3)]
    first = resolution.resolve(asked)
    assert [(each.seed, each.method[0].options) for each in first.runs] == [
        (s, {"rank": 3}) for s in range(3)
    ]
    assert resolution.resolve(asked) == first
    assert len(started) == (1 if local else 2)
    resolution.resolve(asked, command=["another"])
    assert len(started) == (2 if local else 3)
