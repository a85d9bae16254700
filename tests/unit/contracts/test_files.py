"""Files are replaced as a whole, and hashed by content alone."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest

from harness import files
from harness.errors import UserError
from tests.support.small_disk import small_disk


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


@pytest.mark.parametrize("number", sorted({*files.NO_SYNC}))
def test_a_file_system_without_fsync_is_written_to(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    files.replace(tmp_path / "file", "text")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("file", "text")]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_what_fsync_finds_wrong_is_told(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=os.strerror(number)):
        files.replace(tmp_path / "file", "text")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("full", ["write_bytes", "replace"])
def test_a_disk_that_fills_up_leaves_no_temporary_file(
    full: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path, *_: object, **__: object) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, full, half)
    with pytest.raises(OSError, match="No space"):
        files.replace(tmp_path / "file", "text")
    assert not list(tmp_path.iterdir())


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    files.replace(path, "text")
    assert os.read(reading, 10) == b"text"
    os.close(reading)
    assert path.is_fifo()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o377])
def test_what_is_private_is_so_under_every_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        folder = files.private_folder(tmp_path / "folder")
        with open(folder / "file", "w", opener=files.private) as file:
            file.write("text")
    finally:
        os.umask(before)
    assert (folder.stat().st_mode & 0o777, (folder / "file").stat().st_mode & 0o777) == (0o700, 0o600)
    folder.chmod(0o755)
    assert files.private_folder(folder).stat().st_mode & 0o777 == 0o755, "one's own folder stays as it is"
    with pytest.raises(FileExistsError):
        files.private_folder(folder / "file")


def test_hidden_files_are_not_ours(tmp_path: Path) -> None:
    place = tmp_path / ".mine"
    for name in ("b.json", "a.json", "._a.json", ".a.json.tmp", "in/c.json", ".in/c.json", "in/.c.json"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    assert files.visible(place, "*.json", "a*") == [place / "a.json", place / "b.json"]
    assert files.visible(place, "*/*.json") == [place / "in" / "c.json"]


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "full"), True),
        (OSError(errno.EDQUOT, "full"), True),
        (OSError(errno.EACCES, "denied"), False),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("no room in the model"), False),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error: Exception, full: bool) -> None:
    assert files.out_of_room(error) == full
    wrapped = ValueError("cannot be saved")
    wrapped.__cause__ = error
    assert files.out_of_room(wrapped) == full


@pytest.mark.parametrize(
    ("name", "possible"),
    [
        ("new.json", True),
        ("old.json", True),
        ("none/new.json", False),
        ("folder", False),
        ("old.json/new.json", False),
        ("x" * 5000, False),
        ("x" * 250, False),  # no room for the name of the temporary file
        ("a\0b", False),
        ("/proc/new.json", False),
        ("/dev/null", True),
    ],
)
def test_whether_a_file_can_be_replaced_is_known_before_and_agrees_with_trying(
    name: str, possible: bool, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "old.json").write_text("old")
    before = sorted(tmp_path.iterdir())
    assert files.can_be_replaced(tmp_path / name) == possible
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "old.json").read_text() == "old"
    if possible:
        files.replace(tmp_path / name, "new")
    elif "none" not in name:  # `replace` makes a missing folder
        with pytest.raises((OSError, ValueError)):
            files.replace(tmp_path / name, "new")


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


@pytest.mark.parametrize("options", ["nr_inodes=1", "size=1m,ro"])
def test_a_folder_that_cannot_be_written_to_is_one_line(options: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", options) as disk:
        with pytest.raises(UserError, match=r"disk: cannot be written to: .*; choose another folder"):
            files.writable_folder(disk)
        with pytest.raises(UserError, match=r"disk/in: cannot be made: .*; choose another folder"):
            files.writable_folder(disk / "in")
    assert list(files.writable_folder(tmp_path / "new" / "one").iterdir()) == []
