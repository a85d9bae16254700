"""Files: the folder of caches, writing a file in one go, hashes of contents."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path


def cache_folder() -> Path:
    """Where costly results that depend on weights alone are kept: LOREBENCH_CACHE, else the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lorebench"
    return Path(os.environ.get("LOREBENCH_CACHE", default))


@functools.cache
def installed(package: str) -> str:
    """The version of a package, "absent" where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def sha256_of_files(files: list[Path]) -> str:
    """One hash over the contents of several files in the given order."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def files_sha256(paths: Iterable[Path]) -> str:
    """A hash of the content of files in order, whatever they are called."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
