"""Token ids of documents in shards: how a shard is stored, checked and read without holding it in memory.

A shard is one safetensors file with the ids of whole documents end to end, written atomically. Its name ends
in its SHA-256, so what is there under a name is whole or recognised as damaged, and processes that make the
same shard at once write the same file. It is mapped into memory, and its pages are let go of again and again:
a process that reads all of a text never has more than a few of them.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from harness.digests import Digests
from harness.files import private, replacing

FORMAT = "lorebench shard 1"
#: Tokens after which a shard ends, with the documents that are tokenised together.
SHARD_TOKENS = 1 << 23
#: What is mapped before it is let go, and the most that Linux maps around a place that is read (a huge page).
MAPPED_BYTES, AROUND_BYTES = 64 << 20, 2 << 20
DTYPES = {"U16": "<u2", "U32": "<u4", "U64": "<u8"}


@dataclass(frozen=True)
class Shard:
    """Token ids (tokens,) of documents end to end, where each ends (documents,), and a hash of each.

    `text` is the hash of all documents of the text's part up to the end of the shard.
    """

    tokens: np.ndarray
    ends: np.ndarray
    hashes: np.ndarray
    text: str = ""
    path: Path | None = None
    mapped: mmap.mmap | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, documents: Sequence[np.ndarray], hashes: Sequence[int] = (), text: str = "") -> Shard:
        """Return documents, each its ids, as a shard in memory: two bytes an id where that is enough."""
        largest = max((int(document.max(initial=0)) for document in documents), default=0)
        kind = np.uint16 if largest < 1 << 16 else np.uint32
        whole = np.concatenate([*documents, np.empty(0, kind)], dtype=kind, casting="unsafe")  # no copy more
        ends = np.cumsum([len(document) for document in documents], dtype=np.int64).astype(np.uint32)
        return cls(whole, ends, np.asarray(hashes, dtype=np.uint64), text)

    def written(self, folder: Path, number: int, key: str) -> Shard:
        """Return the shard as a file of an entry; OSError where it cannot be written."""
        arrays = {"tokens": self.tokens, "ends": self.ends, "hashes": self.hashes}
        content = save(arrays, metadata={"format": FORMAT, "key": key, "text": self.text})
        path = folder / f"{number:05}-{hashlib.sha256(content).hexdigest()}.safetensors"
        with replacing(path) as temporary, open(temporary, "wb", opener=private) as file:
            file.write(content)
        return mapped(path, key)


def mapped(path: Path, key: str) -> Shard:
    """Return the shard in a file, mapped into memory; ValueError where it is none of that entry."""
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    about = header["__metadata__"]
    if (about["format"], about["key"]) != (FORMAT, key):
        raise ValueError("the file holds something else")
    arrays = {}
    for name in ("tokens", "ends", "hashes"):
        first, end = header[name]["data_offsets"]
        kind = np.dtype(DTYPES[header[name]["dtype"]])
        arrays[name] = np.frombuffer(content, kind, (end - first) // kind.itemsize, begin + first)
    return Shard(**arrays, text=about["text"], path=path, mapped=content)


def sound(path: Path, digests: Digests) -> bool:
    """Return whether a file holds what its name says; UserError where it cannot be read."""
    return path.stem.partition("-")[2] == digests.of(path)


@dataclass
class Stored:
    """Token ids of documents in order, in shards; `folder` is where they are stored, if they are.

    `letters` is the number of letters in a sample of the documents, `lost` of those that got no token.
    """

    shards: Sequence[Shard]
    letters: int = 0
    lost: int = 0
    folder: Path | None = None
    _mapped_bytes: int = field(default=0, repr=False)
    _touched: set[int] = field(default_factory=set, repr=False)

    @classmethod
    def of(cls, documents: Sequence[np.ndarray]) -> Stored:
        """Return documents, each its ids, in memory."""
        return cls([Shard.of(documents)])

    @cached_property
    def starts(self) -> np.ndarray:
        """Return the number of tokens before each shard, and of all (shards + 1,)."""
        return _before([len(shard.tokens) for shard in self.shards])

    @property
    def tokens(self) -> int:
        """Return the number of tokens."""
        return int(self.starts[-1])

    @property
    def documents(self) -> int:
        """Return the number of documents."""
        return sum(len(shard.ends) for shard in self.shards)

    def hashes(self) -> Iterator[np.ndarray]:
        """Yield 64-bit hashes of the documents of each shard."""
        for number, shard in enumerate(self.shards):
            yield shard.hashes
            self.note(number, shard.hashes.nbytes)

    def lengths(self) -> Iterator[np.ndarray]:
        """Yield the lengths (documents,) int64 of each shard."""
        for number, shard in enumerate(self.shards):
            yield np.diff(shard.ends.astype(np.int64), prepend=0)
            self.note(number, shard.ends.nbytes)

    def fill(self, row: np.ndarray, first: int, number: int) -> None:
        """Copy as many tokens as the row has from place `first`, which is in shard `number`."""
        done = 0
        while done < len(row):
            place = first + done - int(self.starts[number])
            piece = self.shards[number].tokens[place : place + len(row) - done]
            row[done : done + len(piece)] = piece
            self.note(number, piece.nbytes)
            done, number = done + len(piece), number + 1

    def note(self, number: int, size: int) -> None:
        """Take note that so many bytes of a shard were read; let go of what is mapped where that is much."""
        self._touched.add(number)
        self._mapped_bytes += size + AROUND_BYTES
        if self._mapped_bytes < MAPPED_BYTES:
            return
        for touched in self._touched:
            content = self.shards[touched].mapped
            if content is not None and hasattr(mmap, "MADV_DONTNEED"):
                content.madvise(mmap.MADV_DONTNEED)
        self._touched, self._mapped_bytes = set(), 0


def _before(counts: Sequence[int]) -> np.ndarray:
    """Return the sum of the counts before each, and of all."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
