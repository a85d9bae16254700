"""Git: one way to call it, what a working tree changed since its commit, and a copy of that. No torch.

A repository may be a stranger's, and its configuration may name programs: a file watcher, hooks, filters of
contents, an ssh command for objects that a partial clone lacks. Git reads here, and starts none of them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from harness import files
from harness.errors import UserError

TIMEOUT_S = 300
#: Changes in compiled Python do not count.
COMPILED = ":(exclude,glob)**/__pycache__/**"
#: Settings that win over those of a repository: no watcher, hook, pager, signature program or template.
SETTINGS = (
    "core.fsmonitor=false",
    f"core.hooksPath={os.devnull}",
    "core.sshCommand=false",
    "core.pager=cat",
    "log.showSignature=false",
    "commit.gpgSign=false",
    "init.templateDir=",
)
#: Options that keep a subcommand from starting programs that attributes or submodules name.
PLAIN = {
    "diff": ("--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty"),
    "log": ("--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty"),
}
#: Subcommands that read or write files of the working tree, which filters change on their way.
FILTERED = ("diff", "checkout")
#: Variables of git that stay: they say where a person's own settings are and how far to search. All others,
#: such as GIT_DIR in a hook, would lead to another repository or name programs.
KEPT = re.compile(
    r"GIT_(CONFIG_(GLOBAL|SYSTEM|NOSYSTEM|COUNT|(KEY|VALUE)_\d+)"
    r"|CEILING_DIRECTORIES|DISCOVERY_ACROSS_FILESYSTEM)"
)
#: Lets git clone a folder of this machine.
LOCAL = {"GIT_ALLOW_PROTOCOL": "file"}
#: What git says of a folder that belongs to somebody else.
DUBIOUS = "detected dubious ownership"


def git(
    place: Path, *arguments: str, allowed: Sequence[int] = (0,), variables: Mapping[str, str] | None = None
) -> str:
    """Return the output of git without newlines at its ends; "" for an exit code in `allowed` other than 0.

    UserError where git is missing, too slow, or fails otherwise, and always for a repository that belongs to
    somebody else. `variables` are added to `environment`.
    """
    try:
        answer = subprocess.run(
            command(place, *arguments),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            env=environment() | dict(variables or {}),
        )
    except OSError as error:
        raise UserError(f"git cannot be run: {error.strerror}; install it") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"git {arguments[0]} in {place}: no answer within {TIMEOUT_S} s") from error
    output, errors = (part.decode("utf-8", "surrogateescape") for part in (answer.stdout, answer.stderr))
    if answer.returncode and DUBIOUS in errors:
        raise UserError(
            f"git {arguments[0]} in {place}: the repository belongs to another user, so git leaves it; "
            f"if you trust it: {errors.strip().splitlines()[-1].strip()}"
        )
    if answer.returncode not in allowed:
        last = (errors.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]
        raise UserError(f"git {arguments[0]} in {place}: {last}")
    return output.strip("\n") if answer.returncode == 0 else ""


def command(place: Path, *arguments: str) -> list[str]:
    """Return the command of a call of git that starts no program but git."""
    subcommand, *rest = arguments
    settings = [*SETTINGS, *(_without_filters(place) if subcommand in FILTERED else ())]
    given = [word for setting in settings for word in ("-c", setting)]
    start = ["git", "--no-optional-locks", "--no-pager", *given, "-C", str(place)]
    return [*start, subcommand, *PLAIN.get(subcommand, ()), *rest]


def environment() -> dict[str, str]:
    """Return the variables for git: none that lead elsewhere, and no transport, so nothing is fetched."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    kept = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
    fixed = {"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}
    return {**own, **kept, **fixed, "LC_ALL": "C"}  # messages are read, so they are English


def _without_filters(place: Path) -> list[str]:
    """Return settings that replace every filter of contents by nothing, the person's own included.

    A file that a filter would have changed then counts as changed, and a checkout has what is committed.
    """
    listed = ask(place, "config", "--name-only", "-z", "--get-regexp", r"^filter\..*\.")
    drivers = {name.removeprefix("filter.").rpartition(".")[0] for name in (listed or "").split("\0") if name}
    kinds = ("clean=", "smudge=", "process=", "required=false")
    return [f"filter.{driver}.{kind}" for driver in sorted(drivers) for kind in kinds]


def ask(place: Path, *arguments: str) -> str | None:
    """Return the output of git, or None where `git` would raise."""
    with suppress(UserError):
        return git(place, *arguments)
    return None


def state(root: Path, folders: Sequence[str]) -> tuple[str | None, str | None]:
    """Return the commit of `root` and the digest of changed files in its folders, None without changes.

    (None, None) when `root` is not the top of a repository: a package installed below some other repository
    says nothing about that one. Ignored files do not count.
    """
    top = ask(root, "rev-parse", "--show-toplevel")
    commit = ask(root, "rev-parse", "HEAD")
    if top is None or commit is None or Path(top).resolve() != root.resolve():
        return None, None
    with suppress(UserError):
        names = changed(root, folders)
        return commit, digest(root, names) if names else None
    return commit, None


def changed(root: Path, folders: Sequence[str] = (".",)) -> dict[str, bool]:
    """Return the files that differ from the commit or are new, by name, and whether each still exists."""
    paths = ("-z", "--", *folders, COMPILED)
    listed = git(root, "diff", "--name-only", "--no-renames", "HEAD", *paths)
    listed += git(root, "ls-files", "--others", "--exclude-standard", *paths)
    return {name: _exists(root, name) for name in sorted(set(listed.split("\0"))) if name}


def _exists(root: Path, name: str) -> bool:
    """Return whether a name is a file or link; what a linked folder leads to is outside the tree."""
    path = root / name
    linked = any((root / folder).is_symlink() for folder in Path(name).parents)
    return not linked and (path.is_symlink() or path.is_file())


def digest(root: Path, names: Mapping[str, bool]) -> str:
    """Return the SHA-256 over names, kinds and contents of files, by whether each still exists."""
    found = hashlib.sha256()
    for name, exists in names.items():
        content = _content(root / name) if exists else "gone"
        found.update(f"{name}\0{content}\0".encode(errors="surrogateescape"))
    return found.hexdigest()


def _content(file: Path) -> str:
    """Return what git tracks of a file: the target of a link, else the executable bit and the bytes."""
    if file.is_symlink():
        return f"link {file.readlink()}"
    kind = "program" if file.stat().st_mode & stat.S_IXUSR else "file"
    return f"{kind} {files.sha256(file)}"


def copy_changes(root: Path, tree: Path, names: Mapping[str, bool]) -> None:
    """Make these `changed` files of the working tree `root` the same in another checkout, `tree`."""
    for name in sorted(names, key=names.__getitem__):  # deletions first: an old file may block a new folder
        target = tree / name
        if target.is_symlink() or target.is_file():
            target.unlink()
        if names[name]:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target, follow_symlinks=False)
        else:
            with suppress(OSError):  # like git, delete folders that become empty
                for folder in Path(name).parents:
                    (tree / folder).rmdir()
