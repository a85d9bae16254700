"""A stranger's repository names programs at every place that git knows; reading it starts none of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import git
from harness.ab import checkouts
from harness.errors import UserError
from harness.tables.history import git_log

GIT = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
#: Settings of the repository that name a program, by the name that it writes when it is started.
SETTINGS = {
    "watcher": "core.fsmonitor",
    "ssh": "core.sshCommand",
    "pager": "core.pager",
    "clean": "filter.trap.clean",
    "smudge": "filter.trap.smudge",
    "process": "filter.other.process",
    "command": "diff.trap.command",
    "textconv": "diff.words.textconv",
    "external": "diff.external",
    "signature": "gpg.program",
}
SIGNED = "-----BEGIN PGP SIGNATURE-----\n \n x\n -----END PGP SIGNATURE-----"
Reading = Callable[[Path], object]


class Trap:
    """A repository with traps, and the names of those that were sprung."""

    def __init__(self, place: Path) -> None:
        self.place, self.programs, self.marks = place / "repository", place / "programs", place / "marks"
        self.programs.mkdir(parents=True)
        self.marks.mkdir()

    def program(self, name: str) -> Path:
        file = self.programs / name
        then = "exit 1" if name in ("ssh", "process", "watcher") else "exec cat"  # those would wait for git
        file.write_text(f"#!/bin/sh\ntouch {self.marks}/{name}\n{then}\n")
        file.chmod(0o755)
        return file

    def sprung(self) -> set[str]:
        found = {mark.name for mark in self.marks.iterdir()}
        for mark in self.marks.iterdir():
            mark.unlink()
        return found

    def raw(self, *arguments: str) -> None:
        """Git as anybody would call it."""
        subprocess.run(
            [*GIT, *arguments], cwd=self.place, capture_output=True, stdin=subprocess.DEVNULL, timeout=60
        )


def plain(root: Path, *arguments: str, given: str | None = None) -> str:
    answer = subprocess.run(
        [*GIT, *arguments], cwd=root, check=True, capture_output=True, text=True, input=given
    )
    return answer.stdout.strip()


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Trap:
    """A partial clone of two commits, one signed, whose blobs are elsewhere; then the traps are set."""
    found = Trap(tmp_path_factory.mktemp("traps"))
    origin = found.place.with_name("origin")
    (origin / "harness").mkdir(parents=True)
    (origin / "harness" / "cli.py").touch()
    plain(origin, "init", "-q", "-b", "main")
    plain(origin, "config", "uploadpack.allowFilter", "true")
    for text in ("1", "2"):
        (origin / "run.json").write_text(text)
        (origin / "code.py").write_text(text)
        (origin / "notes.txt").write_text(text)
        (origin / "lfs.bin").write_text(text)
        (origin / ".gitattributes").write_text(
            "*.json filter=trap diff=trap\n*.txt diff=words\n*.bin filter=other\n"
        )
        plain(origin, "add", ".")
        plain(origin, "commit", "-q", "-m", text)
    head, *lines = plain(origin, "cat-file", "commit", "HEAD").split("\n\n")
    signed = plain(
        origin, "hash-object", "-t", "commit", "-w", "--stdin",
        given=f"{head}\ngpgsig {SIGNED}\n\n" + "\n\n".join(lines),
    )  # fmt: skip
    plain(origin, "reset", "-q", "--hard", signed)
    plain(origin.parent, "clone", "-q", "--filter=blob:none", f"file://{origin}", str(found.place))
    for name, setting in SETTINGS.items():
        plain(found.place, "config", setting, str(found.program(name)))
    plain(found.place, "config", "remote.origin.url", "ssh://stranger.example/x")
    plain(found.place, "config", "core.hooksPath", str(found.programs))
    plain(found.place, "config", "log.showSignature", "true")
    for hook in ("post-checkout", "post-index-change", "pre-commit", "reference-transaction"):
        found.program(hook)
    for name in ("run.json", "notes.txt", "lfs.bin"):
        (found.place / name).write_text("3")  # as long as before: only the content says that it is changed
    found.sprung()
    return found


#: What anybody would start, to see that the traps can be sprung; a pager needs a terminal.
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("status",), {"watcher"}),
        (("diff", "HEAD", "--name-only"), {"watcher"}),
        (("log", "-1"), {"signature"}),
        (("add", "run.json"), {"clean"}),
        (("add", "lfs.bin"), {"process"}),
        (("diff", "HEAD", "--", "run.json"), {"command"}),
        (("diff", "HEAD", "--", "notes.txt"), {"external"}),
        (("log", "-p", "HEAD", "--", "notes.txt"), {"ssh"}),
    ],
)
def test_the_traps_are_set(trap: Trap, arguments: tuple[str, ...], expected: set[str]) -> None:
    trap.raw(*arguments)
    assert expected <= trap.sprung()
    trap.raw("-c", f"core.hooksPath={os.devnull}", "-c", "core.fsmonitor=false", "reset", "-q")
    trap.sprung()


def read_versions(place: Path) -> object:
    found = git_log.versions(place)
    assert [version.path for version in found] == ["run.json"] * 2
    old = [version.blob for version in found if version.blob]
    return list(git_log.contents(place, old, 1000))


@pytest.mark.parametrize(
    "read",
    [
        lambda place: git.state(place, ["."]),
        lambda place: git.changed(place),
        git_log.order,
        read_versions,
        lambda place: git.git(place, "diff", "HEAD~1", "HEAD", allowed=(0, 128)),
        lambda place: git.git(place, "log", "-p", allowed=(0, 128)),
        lambda place: checkouts.repository(place),
    ],
    ids=["state", "changed", "order", "versions", "diff", "log", "repository"],
)
def test_reading_springs_none(trap: Trap, read: Reading) -> None:
    read(trap.place)
    assert trap.sprung() == set()


def test_what_a_partial_clone_lacks_is_absent_and_the_rest_is_read(trap: Trap) -> None:
    blobs = [version.blob for version in git_log.versions(trap.place)]
    newest, oldest = git_log.contents(trap.place, blobs, 1000)
    assert (newest, oldest) == (b"2", None)
    assert trap.sprung() == set()


def test_a_checkout_springs_none_and_has_the_working_tree(tmp_path: Path, trap: Trap) -> None:
    made = checkouts.checkout(trap.place, ".", tmp_path / "revisions")
    assert (made.tree / "run.json").read_text() == "3"
    assert (made.tree / "code.py").read_text() == "2"
    assert trap.sprung() == set()


def test_a_filter_of_ones_own_is_not_started_either(
    tmp_path: Path, trap: Trap, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("[core]", f"hooksPath = {trap.programs}", '[filter "trap"]')
    settings += (f"smudge = {trap.program('smudge')}", "required = true")
    (tmp_path / "config").write_text("\n".join(settings))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    made = checkouts.checkout(trap.place, "HEAD", tmp_path / "revisions")
    assert (made.tree / "run.json").read_text() == "2"
    assert trap.sprung() == set()


@pytest.mark.parametrize(
    "name", ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR"]
)
def test_variables_of_a_hook_lead_to_no_other_repository(
    trap: Trap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = git.state(trap.place, ["."])
    monkeypatch.setenv(name, str(tmp_path))
    assert git.state(trap.place, ["."]) == before
    assert before[0]


@pytest.mark.parametrize("name", ["GIT_EXTERNAL_DIFF", "GIT_SSH_COMMAND", "GIT_PAGER", "GIT_PROXY_COMMAND"])
def test_variables_that_name_programs_start_none(
    trap: Trap, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, str(trap.program("variable")))
    git.git(trap.place, "diff", "HEAD", "--", "notes.txt")
    read_versions(trap.place)
    assert trap.sprung() == set()


def test_a_repository_of_somebody_else_is_one_line_that_says_what_to_do(
    trap: Trap, monkeypatch: pytest.MonkeyPatch
) -> None:
    safe = git.environment()
    monkeypatch.setattr(git, "environment", lambda: {**safe, "GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"})
    with pytest.raises(
        UserError, match=r"belongs to another user.*git config --global --add safe\.dir"
    ) as said:
        git.git(trap.place, "rev-parse", "HEAD", allowed=(0, 128))
    assert "\n" not in str(said.value)
