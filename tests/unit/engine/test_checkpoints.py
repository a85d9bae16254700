"""Checkpoints on disk: whole or not there, rotated, and passed over where they are broken or another's."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from harness.config import CheckpointConfig
from harness.engine.resume import names, stored, tree
from harness.engine.resume.checkpoints import Checkpoints
from harness.errors import UserError
from tests.support.small_disk import small_disk

ABOUT = {"torch": "2.13.0", "threads": 1, "inputs": {"weights": "ab"}}
Make = Callable[..., Checkpoints]


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path: Path, warnings: list[str]) -> Make:
    def made(about: dict[str, Any] = ABOUT, every: int | str = 2, keep: int = 2, **more: Any) -> Checkpoints:
        config = CheckpointConfig(every=every, keep=keep)
        return Checkpoints(tmp_path / "kept", config, about, warnings.append, **more)

    return made


def state(step: int) -> dict[str, Any]:
    return {"model": {"w": torch.full((3, 2), float(step))}, "step": step}


def content(found: stored.Stored | None) -> Any:
    assert found is not None
    return tree.join(found.plain, found.tensors(torch.device("cpu"), {}))


# -------------------------------------------------------------------------------------------- settings
@pytest.mark.parametrize("every", [1, 1000, "90s", "1.5m", "2h"])
def test_updates_and_times_are_intervals(every: int | str) -> None:
    CheckpointConfig(every=every)


@pytest.mark.parametrize("every", [0, -1, True, 1.5, None, "", "0s", "30", "30 m", "half an hour", "m"])
def test_what_is_no_interval_is_refused(every: Any) -> None:
    with pytest.raises(ValidationError, match="give a number of updates, or a time such as 90s, 30m or 2h"):
        CheckpointConfig(every=every)


def test_by_updates_each_multiple_is_due(make: Make) -> None:
    found = make(every=3)
    assert [step for step in range(1, 10) if found.due(step)] == [3, 6, 9]


def test_by_time_one_is_due_so_long_after_the_last(make: Make) -> None:
    clock = Clock()
    found = make(every="2m", now=clock)
    clock.now = 119.0
    assert not found.due(1)
    clock.now = 120.0
    assert found.due(2)
    found.save(2, state(2))
    clock.now = 239.0
    assert not found.due(3)
    clock.now = 240.0
    assert found.due(4)


# -------------------------------------------------------------------------------------- whole or not there
def test_the_newest_is_read_and_older_ones_are_removed(make: Make, warnings: list[str]) -> None:
    said: list[int] = []
    found = make(saved=said.append)
    assert found.newest() is None
    for step in (2, 4, 6):
        found.save(step, state(step))
    assert [names.step_of(path) for path in names.below(found.folder)] == [6, 4]
    assert said == [2, 4, 6]
    assert content(found.newest())["step"] == 6
    assert content(found.newest())["model"]["w"].tolist() == [[6.0, 6.0]] * 3
    assert warnings == []


def test_tensors_of_the_model_are_filled_in_place(make: Make) -> None:
    found = make()
    found.save(2, state(2))
    newest, own = found.newest(), torch.zeros(3, 2)
    assert newest is not None
    read = newest.tensors(torch.device("cpu"), {"model.w": own})
    assert read["model.w"] is own
    assert own.tolist() == [[2.0, 2.0]] * 3


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [("model.w", (2, 3), r"model.w as \(3, 2\), but .* \(2, 3\)"), ("model.v", (1,), "model.v as nothing")],
)
def test_another_model_is_refused(make: Make, name: str, shape: tuple[int, ...], said: str) -> None:
    found = make()
    found.save(2, state(2))
    newest = found.newest()
    assert newest is not None
    with pytest.raises(UserError, match=said):
        newest.tensors(torch.device("cpu"), {name: torch.zeros(shape)})


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("file", ["checkpoint.json", "model-00001-of-00001.safetensors"])
@pytest.mark.parametrize("harm", [flip, truncate, Path.unlink])
def test_a_broken_one_falls_back_to_the_one_before(
    file: str, harm: Callable[[Path], None], make: Make, warnings: list[str]
) -> None:
    found = make()
    for step in (2, 4):
        found.save(step, state(step))
    harm(names.below(found.folder)[0] / file)
    assert content(found.newest())["step"] == 2
    assert len(warnings) == 1
    assert "passed over a broken checkpoint" in warnings[0]


def test_a_broken_one_does_not_count_among_those_that_stay(make: Make) -> None:
    found = make(keep=1)
    found.save(8, state(8))
    truncate(names.below(found.folder)[0] / names.MANIFEST)
    assert found.newest() is None
    assert names.newest_step(found.folder) == 8  # it may be the disk that could not be read
    for step in (2, 4):
        found.save(step, state(step))
        assert [names.step_of(path) for path in names.below(found.folder)] == [step]
        assert content(found.newest())["step"] == step


def test_a_checkpoint_of_another_format_is_refused_and_stays(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make().save(2, state(2))
    monkeypatch.setattr(stored, "FORMAT", 2)
    with pytest.raises(UserError, match="with format 1, here is 2"):
        make().newest()
    assert names.newest_step(make().folder) == 2


def test_a_full_disk_is_a_warning_that_says_so(tmp_path: Path, make: Make, warnings: list[str]) -> None:
    with small_disk(tmp_path / "kept", "size=256k"):
        found = make()
        found.save(2, state(2))
        found.save(4, {"model": torch.zeros(200_000)})
        assert content(found.newest())["step"] == 2
        assert not list(found.folder.glob(".*"))
    (said,) = warnings
    assert said.startswith("the checkpoint at update 4 could not be saved: ")
    assert "No space left on device" in said
    assert "Traceback" not in said


def test_a_slow_disk_is_no_warning_and_the_next_interval_begins_when_it_is_done(
    make: Make, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, write = Clock(), stored.write

    def slowly(*values: Any) -> Path:
        clock.now += 100
        return write(*values)

    monkeypatch.setattr(stored, "write", slowly)
    found = make(every="60s", now=clock)
    clock.now = 60
    assert found.due(1)
    found.save(1, state(1))
    for now, due in ((160, False), (219, False), (220, True)):
        clock.now = now
        assert found.due(2) is due
    assert content(found.newest())["step"] == 1
    assert warnings == []


def test_a_manifest_that_was_edited_is_broken(make: Make) -> None:
    found = make()
    found.save(2, state(2))
    path = names.below(found.folder)[0] / names.MANIFEST
    edited = json.loads(path.read_text())
    path.write_text(json.dumps({**edited, "about": {}}))
    assert found.newest() is None


def test_a_process_that_dies_while_it_writes_leaves_the_one_before(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = make()
    found.save(2, state(2))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", die)
        patched.setattr(stored, "remove", lambda path: None)
        with pytest.raises(KeyboardInterrupt):
            found.save(4, state(4))
    assert (found.folder / names.half(4)).is_dir()
    assert content(make().newest())["step"] == 2
    again = make()
    again.save(4, state(4))
    assert content(again.newest())["step"] == 4
    assert not list(found.folder.glob(".*"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_disk_that_refuses_is_a_warning(
    number: int, make: Make, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = make()
    found.save(2, state(2))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(stored.files, "replace", refuse)
        found.save(4, state(4))
    assert content(found.newest())["step"] == 2
    assert len(warnings) == 1
    assert warnings[0].startswith("the checkpoint at update 4 could not be saved: ")
    assert os.strerror(number) in warnings[0]
    found.save(6, state(6))
    assert content(found.newest())["step"] == 6


def test_large_states_are_written_to_several_files(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "FILE_BYTES", 100)
    found, tensors = make(), [torch.randn(10), torch.randn(20), torch.randn(30), torch.randn(1)]
    found.save(2, tensors)
    path = names.below(found.folder)[0]
    assert len(list(path.glob("*.safetensors"))) == 4
    assert all(map(torch.equal, content(found.newest()), tensors))


# -------------------------------------------------------------------------------------------- another's
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"torch": "2.11.0"}, r"update 2 was written with torch 2.13.0, here is 2.11.0; .*--from-scratch"),
        ({"threads": 2}, "with threads 1, here is 2"),
        ({"code": "ef"}, "by other code of lorebench"),
        (
            {"inputs": {"weights": "cd", "text t": "e"}},
            "another content of text t, weights; .*--from-scratch",
        ),
    ],
)
def test_what_another_process_wrote_is_refused_in_one_line(
    change: dict[str, Any], said: str, make: Make
) -> None:
    make().save(2, state(2))
    with pytest.raises(UserError, match=said) as caught:
        make(about=ABOUT | change).newest()
    assert "\n" not in str(caught.value)
