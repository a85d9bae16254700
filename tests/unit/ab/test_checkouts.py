"""Revisions checked out side by side: what is in them, what they leave alone, and what runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.ab import checkouts
from harness.errors import UserError

GIT = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
PROJECT = '[project]\nname = "x"\ndependencies = ["b>=1", "a"]\n'


def git(root: Path, *arguments: str) -> str:
    answer = subprocess.run([*GIT, *arguments], cwd=root, check=True, capture_output=True, text=True)
    return answer.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits of a project, the first one tagged."""
    root = tmp_path / "repository"
    (root / "harness").mkdir(parents=True)
    (root / "harness" / "__init__.py").touch()
    (root / "harness" / "cli.py").write_text("x = 1\n")
    (root / "old.py").write_text("old\n")
    (root / "inner").mkdir()
    (root / "inner" / "deep.py").touch()
    (root / "pyproject.toml").write_text(PROJECT)
    (root / ".gitignore").write_text("*.log\n")
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    git(root, "tag", "first")
    (root / "harness" / "cli.py").write_text("x = 2\n")
    git(root, "commit", "-q", "-am", "second")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "revisions"


# -------------------------------------------------------------------------------------- checkouts
def test_two_revisions_lie_side_by_side_and_the_repository_is_left_alone(
    repository: Path, folder: Path
) -> None:
    before = git(repository, "status", "--porcelain"), git(repository, "worktree", "list")
    first, second = (checkouts.checkout(repository, name, folder) for name in ("first", "main"))
    assert (first.tree / "harness" / "cli.py").read_text() == "x = 1\n"
    assert (second.tree / "harness" / "cli.py").read_text() == "x = 2\n"
    assert (first.sha, second.sha) == (
        git(repository, "rev-parse", "first"),
        git(repository, "rev-parse", "main"),
    )
    assert (git(repository, "status", "--porcelain"), git(repository, "worktree", "list")) == before


@pytest.mark.parametrize("name", ["main", "HEAD", "HEAD~0", ""])
def test_a_revision_is_known_by_any_of_its_names(repository: Path, folder: Path, name: str) -> None:
    name = name or git(repository, "rev-parse", "--short", "HEAD")
    made = checkouts.checkout(repository, name, folder)
    assert (made.sha, made.changes) == (git(repository, "rev-parse", "HEAD"), None)
    assert made.name == made.sha[:9]


def test_a_checkout_is_made_once(repository: Path, folder: Path) -> None:
    made = checkouts.checkout(repository, "main", folder)
    (made.tree / "mark.log").touch()
    compiled = made.tree / "harness" / "__pycache__" / "cli.pyc"
    compiled.parent.mkdir()
    compiled.touch()
    assert checkouts.checkout(repository, "HEAD", folder).tree == made.tree
    assert (made.tree / "mark.log").exists()
    assert compiled.exists()


def test_a_checkout_of_the_working_tree_is_made_once(repository: Path, folder: Path) -> None:
    (repository / "harness" / "cli.py").write_text("x = 3\n")
    (repository / "new.py").touch()
    git(repository, "rm", "-q", "old.py")
    (repository / "forced.log").touch()
    git(repository, "add", "-f", "forced.log")
    made = checkouts.checkout(repository, ".", folder)
    (made.tree / "mark.log").touch()
    checkouts.checkout(repository, ".", folder)
    assert (made.tree / "mark.log").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda tree: (tree / "harness" / "cli.py").write_text("x = 9\n"),
        lambda tree: (tree / "old.py").unlink(),
        lambda tree: (tree / "harness" / "new.py").touch(),
        lambda tree: (tree / ".git" / "index").unlink(),
        lambda tree: git(tree, "checkout", "-q", "-f", "first"),
        lambda tree: shutil.rmtree(tree / ".git"),
    ],
)
@pytest.mark.parametrize("changed", [False, True])
def test_a_checkout_that_was_changed_is_made_again(
    repository: Path, folder: Path, damage: Callable[[Path], None], changed: bool
) -> None:
    if changed:
        (repository / "harness" / "cli.py").write_text("x = 3\n")
    made = checkouts.checkout(repository, ".", folder)
    damage(made.tree)
    assert checkouts.checkout(repository, ".", folder).tree == made.tree
    assert (made.tree / "harness" / "cli.py").read_text() == ("x = 3\n" if changed else "x = 2\n")
    assert (made.tree / "old.py").is_file()
    assert not (made.tree / "harness" / "new.py").exists()


def test_a_checkout_that_is_broken_is_made_again(repository: Path, folder: Path) -> None:
    made = checkouts.checkout(repository, "main", folder)
    (made.tree / ".git" / "HEAD").unlink()
    (made.tree / "harness" / "cli.py").unlink()
    assert (checkouts.checkout(repository, "main", folder).tree / "harness" / "cli.py").exists()


def test_checkouts_that_were_not_used_for_longest_are_removed(
    repository: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkouts, "MOST_CHECKOUTS", 2)
    first, second = (checkouts.checkout(repository, name, folder) for name in ("first", "main"))
    checkouts.checkout(repository, "first", folder)
    # A clock that was set back between the two.
    os.utime(first.tree, (0, 0))
    git(repository, "commit", "-q", "--allow-empty", "-m", "third")
    third = checkouts.checkout(repository, "main", folder)
    assert [made.tree.exists() for made in (first, second, third)] == [True, False, True]


def test_checkouts_of_which_no_use_is_noted_go_first(
    repository: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkouts, "MOST_CHECKOUTS", 2)
    left = folder / ".new-broken-off"
    left.mkdir(parents=True)
    (folder / checkouts.USED).write_bytes(b"gone\n\xff\xfe")
    made = [checkouts.checkout(repository, name, folder) for name in ("first", "main")]
    assert [left.exists(), *(each.tree.exists() for each in made)] == [False, True, True]


def test_the_working_tree_is_taken_with_what_is_changed_new_and_gone(repository: Path, folder: Path) -> None:
    (repository / "harness" / "cli.py").write_text("x = 3\n")
    (repository / "new folder").mkdir()
    (repository / "new folder" / "näw.py").write_text("new\n")
    (repository / "old.py").unlink()
    (repository / "noise.log").write_text("ignored\n")
    made = checkouts.checkout(repository, ".", folder)
    assert (made.tree / "harness" / "cli.py").read_text() == "x = 3\n"
    assert (made.tree / "new folder" / "näw.py").read_text() == "new\n"
    assert not (made.tree / "old.py").exists()
    assert not (made.tree / "noise.log").exists()
    assert made.changes is not None
    assert made.name == f"{made.sha[:9]}+{made.changes[:9]}"


def test_a_folder_that_became_a_file_and_a_file_that_became_a_folder_are_taken_as_they_are(
    repository: Path, folder: Path
) -> None:
    shutil.rmtree(repository / "inner")
    (repository / "inner").write_text("a file now\n")
    (repository / "old.py").unlink()
    (repository / "old.py").mkdir()
    (repository / "old.py" / "inside").touch()
    made = checkouts.checkout(repository, ".", folder)
    assert (made.tree / "inner").read_text() == "a file now\n"
    assert [path.name for path in (made.tree / "old.py").iterdir()] == ["inside"]


def test_links_and_permissions_are_taken_as_they_are(repository: Path, folder: Path) -> None:
    (repository / "old.py").write_text("changed\n")
    plain = checkouts.checkout(repository, ".", folder)
    (repository / "old.py").chmod(0o755)
    runnable = checkouts.checkout(repository, ".", folder)
    (repository / "harness" / "link").symlink_to("../inner")
    (repository / "harness" / "broken").symlink_to("nowhere")
    linked = checkouts.checkout(repository, ".", folder)
    (repository / "harness" / "broken").unlink()
    shutil.rmtree(repository / "inner")
    (repository / "inner").symlink_to("elsewhere")
    (repository / "elsewhere").mkdir()
    (repository / "elsewhere" / "deep.py").touch()
    replaced = checkouts.checkout(repository, ".", folder)
    assert len({made.tree for made in (plain, runnable, linked, replaced)}) == 4
    assert (runnable.tree / "old.py").stat().st_mode & 0o100
    links = linked.tree / "harness" / "link", linked.tree / "harness" / "broken", replaced.tree / "inner"
    assert [str(link.readlink()) for link in links] == ["../inner", "nowhere", "elsewhere"]
    assert (replaced.tree / "elsewhere" / "deep.py").is_file()


def test_each_state_of_the_working_tree_is_a_revision_of_its_own(repository: Path, folder: Path) -> None:
    clean = checkouts.checkout(repository, ".", folder)
    (repository / "harness" / "cli.py").write_text("x = 3\n")
    third = checkouts.checkout(repository, ".", folder)
    (repository / "harness" / "cli.py").write_text("x = 4\n")
    fourth = checkouts.checkout(repository, ".", folder)
    assert len({clean.tree, third.tree, fourth.tree}) == 3
    assert clean.changes is None
    assert (third.tree / "harness" / "cli.py").read_text() == "x = 3\n"


@pytest.mark.parametrize("name", ["nothing", "--help", "first..main", "a b", "first:old.py"])
def test_what_is_no_revision_is_one_line(repository: Path, folder: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"no revision of .*give a commit, branch or tag"):
        checkouts.checkout(repository, name, folder)


def test_a_revision_without_a_command_line_is_refused(repository: Path, folder: Path) -> None:
    git(repository, "rm", "-q", "harness/cli.py")
    git(repository, "commit", "-q", "-m", "third")
    (repository / "harness" / "cli.py").touch()
    with pytest.raises(UserError, match="nothing in it can be run"):
        checkouts.checkout(repository, "main", folder)


def test_the_repository_is_the_one_around_a_folder(repository: Path) -> None:
    assert checkouts.repository(repository / "harness") == repository


def test_outside_of_every_repository_it_is_said_where_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.__file__", str(tmp_path / "harness" / "__init__.py"))
    (tmp_path / "harness").mkdir()
    with pytest.raises(UserError, match="no git repository here: change into a clone"):
        checkouts.repository(tmp_path)


# ----------------------------------------------------------------------------------- what runs it
def test_a_revision_runs_its_own_code_wherever_it_is_started(
    repository: Path, folder: Path, tmp_path: Path
) -> None:
    made = checkouts.checkout(repository, "first", folder)
    env = made.environment(tmp_path / "cache")
    said = subprocess.run(
        [made.python, "-c", "import harness.cli; print(harness.cli.x)"],
        cwd=repository,
        env=env,
        capture_output=True,
        text=True,
    )
    assert said.stdout == "1\n", said.stderr
    assert env["LOREBENCH_CACHE"] == str(tmp_path / "cache")


def test_dependencies_are_requirements_and_pins(repository: Path, folder: Path) -> None:
    first, second = (checkouts.checkout(repository, name, folder) for name in ("first", "main"))
    assert checkouts.dependencies(first.tree) == checkouts.dependencies(second.tree) == "a\nb>=1\n# pins\n"
    (repository / "constraints.txt").write_text("a==2\n")
    assert checkouts.dependencies(repository) == "a\nb>=1\n# pins\na==2\n"


def test_a_project_that_cannot_be_read_is_one_line(repository: Path) -> None:
    (repository / "pyproject.toml").write_text("[")
    with pytest.raises(UserError, match=r"pyproject\.toml cannot be read"):
        checkouts.dependencies(repository)


UV = """#!{python}
import pathlib, sys
log = pathlib.Path({log!r})
log.write_text((log.read_text() if log.exists() else "") + " ".join(sys.argv[1:]) + "\\n")
if {broken}:
    sys.exit("no matching distribution")
"""


def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool = False) -> Path:
    """A `uv` that writes down what it is asked."""
    tools, log = tmp_path / "tools", tmp_path / "log"
    tools.mkdir(exist_ok=True)
    (tools / "uv").write_text(UV.format(python=sys.executable, log=str(log), broken=broken))
    (tools / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return log


def test_an_environment_is_made_once_from_requirements_and_pins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = installer(tmp_path, monkeypatch)
    python = Path(checkouts.environment("a\nb>=1\n# pins\na==2\n", tmp_path / "environments"))
    place = python.parents[1]
    assert (place / "requirements.txt").read_text() == "a\nb>=1\n"
    assert (place / "constraints.txt").read_text() == "a==2\n"
    made = log.read_text()
    assert f"--requirement {place / 'requirements.txt'} --constraint {place / 'constraints.txt'}" in made
    assert checkouts.environment("a\nb>=1\n# pins\na==2\n", tmp_path / "environments") == str(python)
    assert log.read_text() == made
    assert checkouts.environment("a\n# pins\n", tmp_path / "environments") != str(python)


def test_an_environment_that_cannot_be_made_is_one_line_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installer(tmp_path, monkeypatch, broken=True)
    with pytest.raises(UserError, match=r"no matching distribution; or give an interpreter .*--python-a"):
        checkouts.environment("a\n# pins\n", tmp_path / "environments")
    installer(tmp_path, monkeypatch)
    assert checkouts.environment("a\n# pins\n", tmp_path / "environments")
