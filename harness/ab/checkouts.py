"""Revisions of the project checked out side by side, each with an interpreter that can run it.

A checkout is a clone that shares the objects of the repository: nothing there is changed, not even its list
of work trees. Two revisions with the same dependencies run in the environment of this program, so that the
environment is no difference between them; otherwise each gets its own.
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import harness
from harness import imports
from harness.engine.process.lock import Lock
from harness.errors import UserError
from harness.files import ROOT, replace
from harness.git import LOCAL, changed, copy_changes, digest, git

#: The working tree as it is, uncommitted changes included.
WORKING_TREE = "."
#: The file that `python -m harness.cli` runs: now, and before the command line was a folder.
ENTRIES = (Path("harness", "cli", "__main__.py"), Path("harness", "cli.py"))
PINS = "constraints.txt"
SHORT = 9
#: How many checkouts stay in the folder, those used last.
MOST_CHECKOUTS = 20
#: The file with the names of checkouts in the order of use, the last one at the end.
USED = ".used"
#: The file of a checkout with its `_state` when it was made.
STATE = Path(".git", "made-as")


@dataclass(frozen=True)
class Revision:
    """A checkout: the revision as given, its commit, its folder and the interpreter that runs it.

    `changes` is the digest of uncommitted changes in it, None without any. `plugins` is the folder of
    plug-ins in a checkout of their repository, which then runs with the code of this program.
    """

    spec: str
    sha: str
    tree: Path
    python: str = sys.executable
    changes: str | None = None
    plugins: Path | None = None

    @property
    def code(self) -> Path:
        """Return the folder of the harness that runs this revision."""
        return self.tree if self.plugins is None else ROOT

    @property
    def command(self) -> tuple[str, ...]:
        """Return the start of a command of its command line."""
        if self.plugins is None:
            return (self.python, "-m", "harness.cli")
        return (self.python, *imports.command("harness.cli")[1:])

    @property
    def name(self) -> str:
        """Return a short name that is also valid for a folder."""
        return self.sha[:SHORT] + (f"+{self.changes[:SHORT]}" if self.changes else "")

    def environment(self, cache: Path) -> dict[str, str]:
        """Return the variables of a process that runs this revision from any folder, with its own cache."""
        # Without PYTHONSAFEPATH, `-m` would put the current folder first, often another checkout.
        own = imports.environment() | {"LOREBENCH_CACHE": str(cache.absolute())}
        if self.plugins is not None:
            return own | {imports.PLUGINS: str(self.plugins)}
        return own | {"PYTHONPATH": os.pathsep.join([str(self.tree), *imports.named_folders()])}


def repository(start: Path | None = None) -> Path:
    """Return the repository around a folder, else the one of this program, else UserError."""
    here, program = start or Path.cwd(), Path(harness.__file__).resolve().parent
    for place in (here, program):
        top = git(place, "rev-parse", "--show-toplevel", allowed=(0, 128))
        if top and (place is here or is_ours(Path(top))):
            return Path(top)
    raise UserError(
        "no git repository here: change into a clone of lorebench or of a plug-in, or give --repository"
    )


def is_ours(tree: Path) -> bool:
    """Return whether a folder holds the command line of lorebench."""
    return any((tree / entry).is_file() for entry in ENTRIES)


def checkout(source: Path, spec: str, folder: Path) -> Revision:
    """Check out a revision of a repository below `folder`, once; `.` is the working tree.

    UserError for what is no revision, or lacks the command line that the repository's working tree has.
    """
    commit = "HEAD" if spec == WORKING_TREE else spec
    sha = git(source, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}", allowed=(0, 1, 128))
    if not sha:
        raise UserError(
            f"{spec}: no revision of {source}; give a commit, branch or tag, or {WORKING_TREE} for the "
            "working tree"
        )
    names = changed(source) if spec == WORKING_TREE else {}
    changes = digest(source, names) if names else None
    name = sha + (f"+{changes[:SHORT]}" if changes else "")
    made = Revision(spec, sha, (folder / name).absolute(), changes=changes)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if not _is_whole(made):
            _make(source, made, names)
        _note_use(made.tree)
    if is_ours(source) and not is_ours(made.tree):
        raise UserError(f"{spec}: this revision has no {ENTRIES[0].as_posix()}, so nothing in it can be run")
    return made


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process makes anything in a folder, and keep others out meanwhile."""
    lock = Lock(folder / ".lock")
    with suppress(OSError):  # what cannot be written to is told by what is made there
        lock.wait(lambda: None)
    try:
        yield
    finally:
        lock.give()


def _make(source: Path, made: Revision, names: Mapping[str, bool]) -> None:
    """Clone into a temporary folder and rename it, so that a checkout under its name is complete."""
    shutil.rmtree(made.tree, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=made.tree.parent, prefix=".new-") as scratch:
        tree = Path(scratch, "tree")
        clone = ("clone", "--quiet", "--shared", "--no-checkout", str(source), str(tree))
        git(source, *clone, variables=LOCAL)
        git(tree, "checkout", "--quiet", "--detach", made.sha)
        copy_changes(source, tree, names)
        (tree / STATE).write_text(_state(tree), encoding="utf-8")
        tree.replace(made.tree)


def _is_whole(made: Revision) -> bool:
    """Return whether a checkout exists and is as it was made."""
    try:
        return (made.tree / STATE).read_text(encoding="utf-8") == _state(made.tree)
    except (OSError, UnicodeDecodeError, UserError):
        return False


def _state(tree: Path) -> str:
    """Return the commit of a checkout and the digest of what differs from it."""
    return f"{git(tree, 'rev-parse', 'HEAD')} {digest(tree, changed(tree))}\n"


def _note_use(tree: Path) -> None:
    """Note a checkout as the one used last, and delete those that were not used for longest.

    The order is in a file, because clocks may be set back and times of folders may be coarse.
    """
    noted = tree.parent / USED
    there = {path.name for path in tree.parent.iterdir() if path.is_dir()}
    listed = noted.read_text(encoding="utf-8", errors="replace").split() if noted.is_file() else []
    used = [name for name in dict.fromkeys(listed) if name in there and name != tree.name]
    order = [*sorted(there.difference(used, [tree.name])), *used, tree.name]
    for name in order[:-MOST_CHECKOUTS]:
        shutil.rmtree(tree.parent / name, ignore_errors=True)
    replace(noted, "".join(f"{name}\n" for name in order[-MOST_CHECKOUTS:]))


# ----------------------------------------------------------------------------------- environments
def dependencies(tree: Path) -> str:
    """Return the requirements and pins of a revision as text; UserError without a readable project file."""
    try:
        project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        requirements = "".join(f"{item}\n" for item in sorted(project.get("dependencies", ())))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{tree}: its pyproject.toml cannot be read: {error}") from error
    pins = tree / PINS
    return requirements + "# pins\n" + (pins.read_text(encoding="utf-8") if pins.is_file() else "")


def environment(wanted: str, folder: Path) -> str:
    """Return the interpreter of an environment with these dependencies, made once by uv, else by pip."""
    place = (folder / hashlib.sha256(f"{sys.version}\0{wanted}".encode()).hexdigest()[:12]).absolute()
    python, stamp = place / "bin" / "python", place / "complete"
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if not stamp.exists():
            shutil.rmtree(place, ignore_errors=True)
            _install(wanted, place, python)
            stamp.touch()
    return str(python)


def _install(wanted: str, place: Path, python: Path) -> None:
    requirements, _, pins = wanted.partition("# pins\n")
    place.mkdir()
    files = place / "requirements.txt", place / PINS
    for file, text in zip(files, (requirements, pins), strict=True):
        file.write_text(text, encoding="utf-8")
    given = ["--quiet", "--requirement", str(files[0]), "--constraint", str(files[1])]
    uv = shutil.which("uv")
    if uv:
        steps = [[uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(place)]]
        steps += [[uv, "pip", "install", "--compile-bytecode", "--python", str(python), *given]]
    else:
        apart = "-I"  # the current folder is not for pip
        steps = [[sys.executable, apart, "-m", "venv", str(place)]]
        steps += [[str(python), apart, "-m", "pip", "install", *given]]
    for step in steps:
        answer = subprocess.run(step, capture_output=True, stdin=subprocess.DEVNULL, text=True)
        if answer.returncode:
            last = (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]
            raise UserError(
                f"the dependencies could not be installed into {place}: {last}; or give an interpreter that "
                "has them by --python-a and --python-b"
            )
