"""What a working tree has changed since its commit, as a record and `lorebench ab` see it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from harness import git
from harness.errors import UserError

FOLDERS = ("harness", "methods")
GIT = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one committed file of code and one page."""
    root = tmp_path / "repository"
    (root / "harness").mkdir(parents=True)
    (root / "harness" / "code.py").write_text("x = 1\n")
    (root / "README.md").write_text("read me\n")
    (root / ".gitignore").write_text("*.log\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*GIT, *command], cwd=root, check=True)
    return root


def dirty(root: Path) -> str | None:
    return git.state(root, FOLDERS)[1]


def test_a_clean_repository_has_a_commit_and_no_changes(repository: Path) -> None:
    commit, changes = git.state(repository, FOLDERS)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True)
    assert (commit, changes) == (head.stdout.strip(), None)


def test_changed_new_and_deleted_code_is_dirty_each_in_its_own_way(repository: Path) -> None:
    code, new = repository / "harness" / "code.py", repository / "harness" / "new.py"
    code.write_text("x = 2\n")
    changed = dirty(repository)
    new.write_text("y = 1\n")
    added = dirty(repository)
    new.write_text("y = 2\n")
    edited = dirty(repository)
    new.unlink()
    assert dirty(repository) == changed
    code.unlink()
    gone = dirty(repository)
    assert len({changed, added, edited, gone, None}) == 5
    code.write_text("x = 1\n")
    assert dirty(repository) is None


def test_staged_changes_are_dirty_as_well(repository: Path) -> None:
    (repository / "harness" / "code.py").write_text("x = 3\n")
    unstaged = dirty(repository)
    subprocess.run([*GIT, "add", "."], cwd=repository, check=True)
    assert dirty(repository) == unstaged is not None


def test_pages_results_and_ignored_files_do_not_make_code_dirty(repository: Path) -> None:
    (repository / "README.md").write_text("another page\n")
    (repository / "results").mkdir()
    (repository / "results" / "run.json").write_text("{}")
    (repository / "harness" / "run.log").write_text("")
    assert dirty(repository) is None


def test_outside_git_and_below_a_foreign_repository_nothing_is_said(tmp_path: Path, repository: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    assert git.state(outside, FOLDERS) == (None, None)
    assert git.state(repository / "harness", FOLDERS) == (None, None)


def test_without_git_nothing_is_said(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PATH", "")
    assert git.state(repository, FOLDERS) == (None, None)


def test_a_link_and_a_program_differ_from_a_file_of_the_same_content(repository: Path) -> None:
    new, other = repository / "harness" / "new.py", repository / "other.py"
    other.write_text("x = 1\n")
    new.write_text("x = 1\n")
    file = dirty(repository)
    new.chmod(0o755)
    program = dirty(repository)
    new.unlink()
    new.symlink_to(other)
    assert len({file, program, dirty(repository), None}) == 4


def test_a_failure_is_one_line_with_the_command_and_none_for_a_question(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^git rev-parse in .*: fatal: not a git repository"):
        git.git(tmp_path, "rev-parse", "HEAD")
    assert git.ask(tmp_path, "rev-parse", "HEAD") is None
    assert git.git(tmp_path, "rev-parse", "HEAD", allowed=(0, 128)) == ""
