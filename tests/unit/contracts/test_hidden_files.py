"""Files whose names begin with a dot, left by a system, an editor or a stopped copy, are nobody's input."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import record_index, suite
from harness.ab import schedule
from harness.ab.schedule import SideRun
from harness.cli import export
from harness.engine.data import tasks
from harness.engine.models import weights
from harness.tables import records
from harness.tables.compare import pairing
from harness.tables.papers import lookup, published
from tests.support.gate_records import made, put
from tests.support.history_records import load as history

#: What macOS puts beside a file on a disk of another system, and half of a record.
CONTENTS = [b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \xff\xfe", b'{"run_id": "']


def of_ab(folder: Path) -> Any:
    """Read the record of one run as `ab` finds it."""
    wanted: Any = SimpleNamespace(name="row", seed=0, repeat=0)
    request: Any = SimpleNamespace(name="demo", place=lambda side, run: folder)
    return list(schedule._records(SideRun(0, wanted), request))


def of_papers(folder: Path) -> Any:
    """Read the rows of a suite as the tables of papers do."""
    return lookup.Sources(folder, folder, (folder,))._of_suite("demo")


READERS: dict[str, Callable[[Path], Any]] = {
    "run": lambda folder: record_index.read_all(folder / "machine" / "demo"),
    "report": lambda folder: records.load(folder / "machine" / "demo"),
    "find": lambda folder: list(records.find(folder)),
    "gate": pairing.load,
    "history": lambda folder: history([folder], "demo"),
    "export": lambda folder: [
        export._find_record(name, folder) for name in (made().run_id[:6], made().run_id)
    ],
    "ab": of_ab,
    "papers": of_papers,
    "names of papers": lambda folder: published.available(folder / "machine" / "demo"),
    "tasks": lambda folder: tasks._task_files(folder),
    "weights": lambda folder: weights.weight_files(folder / "machine" / "demo"),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("reader", READERS)
def test_hidden_files_change_nothing(reader: str, content: bytes, tmp_path: Path) -> None:
    place = put(tmp_path, made())
    (place.parent / "a.yaml").write_text("task: a\n")
    shutil.copy(_weights(tmp_path.parent), place.parent / "model.safetensors")
    before = READERS[reader](tmp_path)
    assert before
    for file in list(tmp_path.rglob("*")):
        if file.is_file():
            file.with_name(f"._{file.name}").write_bytes(content)
            file.with_name(f".{file.name}").write_bytes(file.read_bytes())
    for name in (".half.json", "._a.yaml", "._other.safetensors", f".{place.stem}.json"):
        (place.parent / name).write_bytes(content)
    shutil.copytree(tmp_path / "machine", tmp_path / "._machine")
    assert READERS[reader](tmp_path) == before


def _weights(folder: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    path = folder / "weights.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata={"format": "pt"})
    return path


def test_hidden_files_are_no_suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nano.yaml", "._nano.yaml", ".old.yaml"):
        (tmp_path / name).write_text("suite: nano\n")
    monkeypatch.setattr(suite, "suites_folder", lambda: tmp_path)
    assert list(suite.shipped_suites()) == ["nano"]


def test_a_hidden_copy_of_a_task_does_not_replace_it(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    shutil.copytree(tasks.EMBEDDED_TASKS, folder)
    file = folder / "embedded_a_facts.yaml"
    file.with_name(f".{file.name}").write_text(file.read_text() + "repeats: 7\n")
    file.with_name(f"._{file.name}").write_bytes(CONTENTS[0])
    (task,) = tasks.load_tasks(["embedded_a_facts"], [folder]).values()
    assert task.config.repeats == 1
