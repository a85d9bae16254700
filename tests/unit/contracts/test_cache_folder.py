"""Where caches are, and that nobody else can put anything there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.files import cache_folder, private


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("LOREBENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("own", "base", "place"),
    [
        (None, None, ".cache/lorebench"),
        ("", "", ".cache/lorebench"),
        ("", None, ".cache/lorebench"),
        (None, "relative", ".cache/lorebench"),
        (None, "{home}/xdg", "xdg/lorebench"),
        ("", "{home}/xdg", "xdg/lorebench"),
        ("{home}/mine", "{home}/xdg", "mine"),
        ("~/mine", None, "mine"),
        ("mine", None, "mine"),
        ("a b/../c", None, "a b/../c"),
    ],
)
def test_an_empty_variable_is_none_and_every_other_spelling_is_one_absolute_folder(
    own: str | None, base: str | None, place: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "a b").mkdir()
    for name, value in (("LOREBENCH_CACHE", own), ("XDG_CACHE_HOME", base)):
        if value is not None:
            monkeypatch.setenv(name, value.format(home=home))
    found = cache_folder()
    assert found == home / place
    assert found.is_dir()


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022])
def test_a_new_folder_is_for_its_owner_alone_whatever_the_umask(umask: int, home: Path) -> None:
    before = os.umask(umask)
    try:
        assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_a_folder_into_which_others_may_write_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode, refused in ((0o700, False), (0o755, False), (0o775, False), (0o777, True)):
        cache_folder().chmod(mode)
        if refused:
            with pytest.raises(UserError, match=r"others may write there, and lorebench reads .* code"):
                cache_folder()
        else:
            cache_folder()


def test_a_folder_of_somebody_else_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = cache_folder().stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:  # what belongs to root is safe
        os.chown(cache_folder(), 12345, -1)
        owner = 12345
        monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(UserError, match="it belongs to somebody else"):
        cache_folder()
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    cache_folder()


@pytest.mark.parametrize("name", ["~nosuchuser/x", "a\0b"])
def test_a_folder_that_cannot_be_is_one_line(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "LOREBENCH_CACHE": name})
    with pytest.raises(UserError):
        cache_folder()


def test_where_none_can_be_made_the_place_is_named_all_the_same(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").touch()
    monkeypatch.setenv("LOREBENCH_CACHE", str(home / "file" / "below"))
    assert cache_folder() == home / "file" / "below"


def test_a_private_file_is_for_its_owner_alone_though_an_open_one_was_there(tmp_path: Path) -> None:
    for name, old in (("new", None), ("old", b"longer than the new")):
        path = tmp_path / name
        if old is not None:
            path.write_bytes(old)
            path.chmod(0o666)
        with open(path, "wb", opener=private) as file:
            file.write(b"text")
        assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"text", 0o600)
    null = Path("/dev/null")
    before = null.stat().st_mode
    open(null, "wb", opener=private).close()
    assert null.stat().st_mode == before
