"""Files are replaced as a whole, and hashed by content alone."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from harness import files


def test_a_file_and_its_folders_are_made_and_replaced_with_line_ends_as_given(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    files.replace(path, "one\r\n")
    files.replace(path, "zw\u00f6lf\n")
    assert path.read_bytes() == b"zw\xc3\xb6lf\n"
    files.replace(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert [each.name for each in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "no space left on device")

    path = tmp_path / "file"
    files.replace(path, "old")
    monkeypatch.setattr(os if failing == "fsync" else Path, failing, full)
    with pytest.raises(OSError, match="no space"):
        files.replace(path, "new")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("file", "old")]


def test_threads_that_write_one_file_do_not_mix(tmp_path: Path) -> None:
    path, texts = tmp_path / "file", [str(number) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=files.replace, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_the_hash_of_files_is_that_of_their_contents_end_to_end(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"ab")
    second.write_bytes(b"c")
    assert files.sha256(first) == hashlib.sha256(b"ab").hexdigest()
    assert files.sha256(first, second) == hashlib.sha256(b"abc").hexdigest()
