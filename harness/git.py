"""The working tree of a repository: what differs from its commit, and a copy of that elsewhere. No torch."""

from __future__ import annotations

import hashlib
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from harness.errors import UserError

#: What counts as a change, as arguments of git: not what Python compiles.
COUNTED = ("--", ".", ":(exclude,glob)**/__pycache__/**")


def changed(source: Path) -> dict[str, bool]:
    """Files that differ from the commit or are new, by name, and whether they are still there."""
    listed = git(source, "diff", "--name-only", "--no-renames", "-z", "HEAD", *COUNTED)
    listed += git(source, "ls-files", "--others", "--exclude-standard", "-z", *COUNTED)
    return {name: _is_there(source, name) for name in sorted(set(listed.split("\0"))) if name}


def _is_there(root: Path, name: str) -> bool:
    """Whether a name is a file or a link; what is found through a link to a folder is somewhere else."""
    path = root / name
    through = any((root / folder).is_symlink() for folder in Path(name).parents)
    return not through and (path.is_symlink() or path.is_file())


def digest(source: Path, names: Mapping[str, bool]) -> str:
    """A SHA-256 over names and contents of files, by whether they are still there."""
    found = hashlib.sha256()
    for name, there in names.items():
        content = _content(source / name) if there else "gone"
        found.update(f"{name}\0{content}\0".encode(errors="surrogateescape"))
    return found.hexdigest()


def _content(file: Path) -> str:
    """What git would say of a file: where a link leads, or whether it may be run, and its bytes."""
    if file.is_symlink():
        return f"link {file.readlink()}"
    kind = "program" if file.stat().st_mode & stat.S_IXUSR else "file"
    return f"{kind} {hashlib.sha256(file.read_bytes()).hexdigest()}"


def git(place: Path, *arguments: str, fine: Sequence[int] = (0,)) -> str:
    """What git answers, without the line's end; "" where it fails with a code that is fine."""
    command = ["git", "-C", str(place), *arguments]
    try:
        answer = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, encoding="utf-8", errors="surrogateescape"
        )
    except OSError as error:
        raise UserError(f"git cannot be run: {error.strerror}; install it") from error
    if answer.returncode not in fine:
        last = (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]
        raise UserError(f"git {arguments[0]} in {place}: {last}")
    return answer.stdout.strip("\n") if answer.returncode == 0 else ""


def put(source: Path, tree: Path, name: str, there: bool) -> None:
    """Make a file of a checkout what it is in the working tree; folders that become empty go, as in git."""
    target = tree / name
    if target.is_symlink() or target.is_file():
        target.unlink()
    if there:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target, follow_symlinks=False)
        return
    with suppress(OSError):
        for folder in target.relative_to(tree).parents:
            (tree / folder).rmdir()
