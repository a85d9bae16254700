"""Hashes of files: when a remembered one is trusted, and when the file is read again."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from harness import digests, files
from harness.digests import Digests
from harness.errors import UserError


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read, in order; every file counts as large."""
    found: list[str] = []
    real = files.sha256

    def listening(*paths: Path) -> str:
        found.extend(path.name for path in paths)
        return real(*paths)

    monkeypatch.setattr(files, "sha256", listening)
    monkeypatch.setattr(digests, "LARGE", 1)
    return found


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file whose last change lies further back than any clock's tick."""
    path = tmp_path / "weights.bin"
    path.write_bytes(b"one" * 1000)
    return path


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds have passed since every change: the times of a file cannot be set to the past."""
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 10 * 10**9)


@pytest.mark.usefixtures("settled")
def test_an_unchanged_large_file_is_read_once_over_processes(
    old: Path, tmp_path: Path, read: list[str]
) -> None:
    found = [Digests(tmp_path / "cache").of(old) for _ in range(3)]
    assert found == [sha(b"one" * 1000)] * 3
    assert read == ["weights.bin"]


def test_a_file_that_changed_just_now_is_not_remembered(old: Path, tmp_path: Path, read: list[str]) -> None:
    """A second change within the same tick of the clock would leave size and times as they are."""
    for _ in range(2):
        Digests(tmp_path / "cache").of(old)
    assert read == ["weights.bin"] * 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("settled", "read")
@pytest.mark.parametrize("keeps", ["size", "size and time of the content"])
def test_changed_content_of_the_same_size_is_seen_although_its_time_is_put_back(
    keeps: str, old: Path, tmp_path: Path
) -> None:
    first = Digests(tmp_path / "cache").of(old)
    times = old.stat().st_atime_ns, old.stat().st_mtime_ns
    time.sleep(0.01)  # the time of the last change of anything cannot be put back
    old.write_bytes(b"two" * 1000)
    if "time" in keeps:
        os.utime(old, ns=times)  # as `cp -p` and `rsync -t` leave it
        assert old.stat().st_mtime_ns == times[1]
    assert Digests(tmp_path / "cache").of(old) == sha(b"two" * 1000) != first


@pytest.mark.usefixtures("settled")
def test_a_file_replaced_by_another_is_read(old: Path, tmp_path: Path, read: list[str]) -> None:
    Digests(tmp_path / "cache").of(old)
    other = tmp_path / "other"
    other.write_bytes(b"two" * 1000)
    other.replace(old)
    assert Digests(tmp_path / "cache").of(old) == sha(b"two" * 1000)
    assert len(read) == 2


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", ["", "{", "[]", '{"files": 1}', "another hash"])
def test_a_damaged_entry_is_not_believed(damage: str, old: Path, tmp_path: Path, read: list[str]) -> None:
    Digests(tmp_path / "cache").of(old)
    (entry,) = (tmp_path / "cache" / "digests").iterdir()
    content = json.loads(entry.read_text())
    entry.write_text(damage if damage != "another hash" else json.dumps(content | {"sha256": "0" * 64}))
    assert Digests(tmp_path / "cache").of(old) == sha(b"one" * 1000)
    assert len(read) == 2


@pytest.mark.usefixtures("settled")
def test_a_cache_that_cannot_be_written_costs_time_alone(old: Path, tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "cache").write_text("a file")
    assert [Digests(tmp_path / "cache").of(old) for _ in range(2)] == [sha(b"one" * 1000)] * 2
    assert len(read) == 2


def test_small_files_are_always_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "config.json"
    small.write_text("{}")
    monkeypatch.setattr(digests, "SETTLED_NS", 0)
    Digests(tmp_path / "cache").of(small)
    assert not (tmp_path / "cache").exists()


def test_a_file_that_never_comes_to_rest_is_refused(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = files.sha256

    def while_writing(*paths: Path) -> str:
        found = real(*paths)
        with paths[0].open("ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(files, "sha256", while_writing)
    with pytest.raises(UserError, match=r"weights\.bin: changes while it is read"):
        Digests().of(old)


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        Digests().of(tmp_path / "nothing")


def test_several_files_have_one_hash_of_names_and_contents(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"1")
    b.write_bytes(b"2")
    assert Digests().of(a, b) == sha(b"12")
    wanted = sha(f"x\0{sha(b'1')}\ny\0{sha(b'2')}\n".encode())
    assert Digests().of_each([("y", b), ("x", a)]) == wanted
    assert Digests().of_each([("x", b), ("y", a)]) != wanted
    assert Digests().of_each([]) == sha(b"")
