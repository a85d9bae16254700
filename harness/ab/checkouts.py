"""Revisions of the project checked out side by side, each with an interpreter that can run it.

A checkout is a clone of its own that shares the objects of the repository: nothing there is changed, not
even its list of work trees. Two revisions that ask for the same dependencies run in the environment that this
program runs in, so that the environment is no difference between them; otherwise each gets one of its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

import harness
from harness.errors import UserError
from harness.git import changed, copy_changes, digest, git

#: The working tree as it is, uncommitted changes included.
WORKING_TREE = "."
#: What a checkout must hold to be one of this project.
#: What `python -m harness.cli` runs: today's place, and the place before the command line was a folder.
ENTRIES = (Path("harness", "cli", "__main__.py"), Path("harness", "cli.py"))
PINS = "constraints.txt"
SHORT = 9
#: Checkouts that are kept, those that were used last.
KEPT = 20
#: Names of checkouts beside them, that used last at the end.
USED = ".used"
#: Where a checkout says what it was made as.
STATE = Path(".git", "made-as")


@dataclass(frozen=True)
class Revision:
    """A checkout: what was asked for, its commit, its folder and the interpreter that runs it.

    `changes` names uncommitted changes that are part of it, None where there are none.
    """

    asked: str
    sha: str
    tree: Path
    python: str = sys.executable
    changes: str | None = None

    @property
    def name(self) -> str:
        """A short name that is good for a folder, too."""
        return self.sha[:SHORT] + (f"+{self.changes[:SHORT]}" if self.changes else "")

    def environment(self, cache: Path) -> dict[str, str]:
        """The variables of a process that runs this revision from any folder, with a cache of its own."""
        known = [self.tree, Path.cwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        path = os.pathsep.join(map(str, known))
        # Without PYTHONSAFEPATH `-m` would put the current folder first, often another checkout.
        own = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "LOREBENCH_CACHE": str(cache.absolute())}
        return {**os.environ, **own}


def repository(start: Path | None = None) -> Path:
    """The repository of this project around a folder, else the one this program was loaded from."""
    for place in (start or Path.cwd(), Path(harness.__file__).resolve().parent):
        top = git(place, "rev-parse", "--show-toplevel", allowed=(0, 128))
        if top and _has_entry(Path(top)):
            return Path(top)
    raise UserError(
        "no git repository of lorebench here: change into a clone of it, or give one by --repository DIR"
    )


def _has_entry(tree: Path) -> bool:
    return any((tree / entry).is_file() for entry in ENTRIES)


def checkout(source: Path, asked: str, folder: Path) -> Revision:
    """A revision of a repository as a folder below `folder`, made once; `.` is the working tree."""
    commit = "HEAD" if asked == WORKING_TREE else asked
    sha = git(source, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}", allowed=(0, 1, 128))
    if not sha:
        raise UserError(
            f"{asked}: no revision of {source}; give a commit, branch or tag, or {WORKING_TREE} for the "
            "working tree"
        )
    names = changed(source) if asked == WORKING_TREE else {}
    changes = digest(source, names) if names else None
    name = sha + (f"+{changes[:SHORT]}" if changes else "")
    made = Revision(asked, sha, (folder / name).absolute(), changes=changes)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not _is_whole(made):
            _make(source, made, names)
        _keep(made.tree)
    if not _has_entry(made.tree):
        raise UserError(f"{asked}: this revision has no {ENTRIES[0].as_posix()}, so nothing in it can be run")
    return made


def _make(source: Path, made: Revision, names: Mapping[str, bool]) -> None:
    """Clone beside the place and move there, so that what has the name is complete."""
    shutil.rmtree(made.tree, ignore_errors=True)
    with _scratch(made.tree.parent) as scratch:
        git(source, "clone", "--quiet", "--shared", "--no-checkout", str(source), str(scratch / "tree"))
        git(scratch / "tree", "checkout", "--quiet", "--detach", made.sha)
        copy_changes(source, scratch / "tree", names)
        (scratch / "tree" / STATE).write_text(_state(scratch / "tree"), encoding="utf-8")
        (scratch / "tree").replace(made.tree)


def _is_whole(made: Revision) -> bool:
    """Whether a checkout is there and still what it was made as."""
    try:
        return (made.tree / STATE).read_text(encoding="utf-8") == _state(made.tree)
    except (OSError, UnicodeDecodeError, UserError):
        return False


def _state(tree: Path) -> str:
    """The commit of a checkout and a digest of what differs from it."""
    return f"{git(tree, 'rev-parse', 'HEAD')} {digest(tree, changed(tree))}\n"


def _keep(tree: Path) -> None:
    """Note a checkout as the one used last, and remove those that were not used for longest.

    The order is written down: clocks of machines are set back, and times of folders may be coarse.
    """
    noted = tree.parent / USED
    there = {path.name for path in tree.parent.iterdir() if path.is_dir()}
    listed = noted.read_text(encoding="utf-8", errors="replace").split() if noted.is_file() else []
    used = [name for name in dict.fromkeys(listed) if name in there and name != tree.name]
    order = [*sorted(there.difference(used, [tree.name])), *used, tree.name]
    for name in order[:-KEPT]:
        shutil.rmtree(tree.parent / name, ignore_errors=True)
    noted.write_text("".join(f"{name}\n" for name in order[-KEPT:]), encoding="utf-8")


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as scratch:
        yield Path(scratch)


# ----------------------------------------------------------------------------------- environments
def dependencies(tree: Path) -> str:
    """All that a revision asks to be installed, as text: its requirements and its pins."""
    try:
        project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        asked = "".join(f"{item}\n" for item in sorted(project.get("dependencies", ())))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{tree}: its pyproject.toml cannot be read: {error}") from error
    pins = tree / PINS
    return asked + "# pins\n" + (pins.read_text(encoding="utf-8") if pins.is_file() else "")


def environment(wanted: str, folder: Path) -> str:
    """The interpreter of an environment with these dependencies, made once by uv, or by pip without it."""
    place = (folder / hashlib.sha256(f"{sys.version}\0{wanted}".encode()).hexdigest()[:12]).absolute()
    python, stamp = place / "bin" / "python", place / "complete"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not stamp.exists():
            shutil.rmtree(place, ignore_errors=True)
            _install(wanted, place, python)
            stamp.touch()
    return str(python)


def _install(wanted: str, place: Path, python: Path) -> None:
    asked, _, pins = wanted.partition("# pins\n")
    place.mkdir()
    files = place / "requirements.txt", place / PINS
    for file, text in zip(files, (asked, pins), strict=True):
        file.write_text(text, encoding="utf-8")
    given = ["--quiet", "--requirement", str(files[0]), "--constraint", str(files[1])]
    uv = shutil.which("uv")
    if uv:
        steps = [[uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(place)]]
        steps += [[uv, "pip", "install", "--compile-bytecode", "--python", str(python), *given]]
    else:
        steps = [[sys.executable, "-m", "venv", str(place)], [str(python), "-m", "pip", "install", *given]]
    for step in steps:
        answer = subprocess.run(step, capture_output=True, stdin=subprocess.DEVNULL, text=True)
        if answer.returncode:
            said = (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]
            raise UserError(
                f"the dependencies could not be installed into {place}: {said}; or give an interpreter that "
                "has them by --python-a and --python-b"
            )
