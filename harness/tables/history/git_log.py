"""Read the log of a repository: the order of its commits, and earlier versions of files.

Git only reads here. No text of a record is ever part of a command.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from harness import git
from harness.errors import UserError

#: Git hands over a blob that is read or passed over in pieces of so many bytes.
PIECE = 1 << 20
COMMIT = "\x01"


@dataclass(frozen=True)
class Version:
    """A file as one commit left it: its path below the folder, the commit, and the id of its content."""

    path: str
    commit: str
    blob: str

    @property
    def name(self) -> str:
        """The name of the file."""
        return PurePosixPath(self.path).name


def order(repository: Path) -> dict[str, tuple[int, str]]:
    """Return the place of each commit, oldest first (`--topo-order`), and the first line of its message."""
    answer = git.ask(repository, "log", "--all", "HEAD", "--topo-order", "--reverse", "-z", "--format=%H %s")
    found: dict[str, tuple[int, str]] = {}
    for entry in (answer or "").split("\0"):
        sha, _, subject = entry.strip().partition(" ")
        if sha:
            found[sha] = len(found), subject.encode(errors="surrogateescape").decode(errors="replace")
    return found


def versions(folder: Path) -> list[Version]:
    """Return every version of the JSON files below a folder that a commit added or changed, newest first.

    Includes branches that a merge dropped, which git omits from a path's history by default. Files in the
    folder of a run are left out. UserError where the folder is in no repository.
    """
    if not git.ask(folder, "rev-parse", "--show-toplevel"):
        raise UserError(f"--committed: {folder} is in no git repository, or git is missing; drop --committed")
    answer = git.ask(
        folder, "log", "--root", "-z", "--raw", "--no-abbrev", "--no-renames", "--relative",
        "--full-history", "--diff-filter=AMT", "--format=%x01%H", "HEAD", "--", ".",
    )  # fmt: skip
    if answer is None:
        raise UserError(f"--committed: git cannot read the history of {folder}; has it any commit?")
    found, commit = [], ""
    tokens = iter(answer.split("\0"))
    for token in tokens:
        if token.startswith(COMMIT):
            commit = token[1:].strip()
        elif token.lstrip("\n").startswith(":"):
            _, mode, _, blob, _ = token.strip().split(" ")
            path = next(tokens, "")
            if (
                path.endswith(".json")
                and not PurePosixPath(path).name.startswith(".")
                and mode.startswith("100")
            ):
                found.append(Version(path, commit, blob))
    known = {version.path for version in found}
    return [version for version in found if not _owned(version.path, known)]


def _owned(path: str, known: set[str]) -> bool:
    """Return whether a file is hidden or inside the folder of a run, beside its record."""
    inside = PurePosixPath(path)
    return inside.name.startswith(".") or any(f"{place}.json" in known for place in inside.parents)


def beside(folder: Path, version: Version, name: str, largest: int) -> bytes:
    """Return a file beside a version, as its commit has it; UserError where it is missing or too large."""
    path = str(PurePosixPath(version.path).with_name(name))
    asked = [] if "\n" in path else [f"{version.commit}:./{path}"]
    content = next(contents(folder, asked, largest), None)
    if content is None:
        raise UserError(f"{name}: not in commit {version.commit[:7]}, or larger than {largest >> 20} MiB")
    return content


def contents(folder: Path, blobs: list[str], largest: int) -> Iterator[bytes | None]:
    """Yield contents by their ids, in order, from one process; None above `largest` bytes."""
    command = git.command(folder, "cat-file", "--batch", "--buffer")
    with tempfile.TemporaryFile() as given:  # a pipe would fill while the answers wait to be read
        given.write("".join(f"{blob}\n" for blob in blobs).encode())
        given.seek(0)
        with subprocess.Popen(
            command,
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=git.environment(),
        ) as cat:
            assert cat.stdout is not None
            for _ in blobs:
                yield _content(cat.stdout, largest)


def _content(stream: IO[bytes], largest: int) -> bytes | None:
    """Read one answer of `cat-file --batch`: `<id> <type> <size>`, the content, an end of line."""
    head = stream.readline().split()
    if len(head) != 3:  # `<id> missing`, as in a shallow clone
        return None
    size, parts = int(head[2]), []
    for first in range(0, size + 1, PIECE):
        piece = stream.read(min(PIECE, size + 1 - first))
        if size <= largest:
            parts.append(piece)
    return b"".join(parts)[:size] if size <= largest else None
