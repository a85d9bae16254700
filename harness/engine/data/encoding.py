"""Turn documents into token ids, once for each text, tokenizer and part of the text.

Every document becomes `<s> tokens </s>` (each mark where the tokenizer has it). With a cache the ids go into
shards on disk as they are made, and what is kept in memory does not grow with the text. A process that ends
before the last shard is followed by one that goes on after the last whole shard. Of several that want the
same tokens one makes them while the others wait.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from harness import strict_json
from harness.digests import Digests
from harness.engine.data import doubts, shards
from harness.engine.data.parts import REPORTED, Documents
from harness.engine.data.shards import Shard, Stored
from harness.engine.data.token_cache import Recipe, TextHash, TokenCache, code_version, tokenizer_sha256
from harness.engine.data.windows import counts_of
from harness.errors import UserError, one_line
from harness.files import private, private_folder, replacing

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

#: Documents, and about so many characters, that are tokenised together: a tokenizer returns Python integers,
#: which take five times the bytes of an array's.
TOKENISED_AT_ONCE, CHARACTERS_AT_ONCE = 1000, 1 << 21
#: Seconds between two looks at a lock that another process holds.
POLL_S = 1.0


def encode(documents: Iterable[str], tokenizer: Any, end: bool = True) -> np.ndarray:
    """Return one int64 stream of all documents with their marks."""
    return np.concatenate([*encode_each(documents, tokenizer, end), np.empty(0, dtype=np.int64)])


def encode_each(documents: Iterable[str], tokenizer: Any, end: bool = True) -> Iterator[np.ndarray]:
    """Yield the int64 token ids of each document with its marks; UserError without a tokenizer."""
    for some in _together(documents):
        yield from encode_some(some, tokenizer, end)


def encode_some(documents: Sequence[str], tokenizer: Any, end: bool) -> Iterator[np.ndarray]:
    """Yield the ids of documents that are tokenised in one call."""
    if tokenizer is None:
        raise UserError(
            "this model has no tokenizer: put its files into the model's folder, set model.tokenizer "
            "of a shape, or data.source to random"
        )
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    last = [tokenizer.eos_token_id] if end and tokenizer.eos_token_id is not None else []
    for ids in tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]:
        yield np.asarray([*first, *ids, *last], dtype=np.int64)


def _together(documents: Iterable[str]) -> Iterator[list[str]]:
    """Yield documents in order, so many at a time as are tokenised together; none is read ahead."""
    some: list[str] = []
    characters = 0
    for document in documents:
        some.append(document)
        characters += len(document)
        if len(some) >= TOKENISED_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield some
            some, characters = [], 0
    if some:
        yield some


def stored(documents: Documents, tokenizer: Any, end: bool, cache: TokenCache | None = None) -> Stored:
    """Return the token ids of documents, from the cache where possible.

    Without a cache, for a tokenizer without a serialised form, and where the disk takes no more, they are in
    memory. UserError where the text changes while it is read.
    """
    identity = None if cache is None or tokenizer is None else tokenizer_sha256(tokenizer)
    if cache is None or identity is None:
        return _Maker(documents, tokenizer, end, None).make()
    recipe = Recipe(
        text=documents.sha256,
        tokenizer=identity,
        layout=f"documents {documents.first} to {documents.stop} {list(documents.cuts)}",
        marks=(tokenizer.bos_token_id, tokenizer.eos_token_id if end else None),
        length=None,
        limits=(shards.SHARD_TOKENS, TOKENISED_AT_ONCE, CHARACTERS_AT_ONCE),
        code=code_version([encode_each, Shard, Documents, counts_of, doubts.lost_letters]),
    )
    entry = Entry(cache.folder / recipe.key, recipe.key, cache)
    if (known := entry.read()) is not None:
        return known
    with entry.alone():
        return entry.read(quiet=True) or _Maker(documents, tokenizer, end, entry).make()


@dataclass(frozen=True)
class Entry:
    """The folder of the shards of a part of a text, and of what was computed of them."""

    folder: Path
    key: str
    cache: TokenCache

    def read(self, quiet: bool = False) -> Stored | None:
        """Return what is stored, None where that is not all, or not as it was written, which is said."""
        digests = Digests(self.cache.digests.folder)
        try:
            content = json.loads((self.folder / "index.json").read_bytes())
            if content.pop("check") != _check(self.key, content):
                raise ValueError("it has changed since it was written")
            paths = [self.folder / name for name in content["shards"]]
            if broken := next((path for path in paths if not shards.sound(path, digests)), None):
                raise ValueError(f"{broken.name} has changed since it was written")
            found = [shards.mapped(path, self.key) for path in paths]
            return Stored(found, content["letters"], content["lost"], self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UserError, ValueError, KeyError, TypeError, AttributeError) as error:
            if not quiet:
                name = self.folder.name
                self.cache.warn(f"cached tokens {name} are not usable and rebuilt: {one_line(error)}")
            return None

    def whole(self) -> Iterator[Shard]:
        """Yield the shards from the first that are as they were written; those that are not are removed."""
        digests = Digests(self.cache.digests.folder)
        for number in itertools.count():
            found = None
            for path in sorted(self.folder.glob(f"{number:05}-*.safetensors")):
                with suppress(OSError, UserError, ValueError, KeyError, TypeError):
                    if shards.sound(path, digests):
                        found = shards.mapped(path, self.key)
                        break
                with suppress(OSError):
                    path.unlink()
            if found is None:
                return
            yield found

    def write(self, content: dict[str, Any], name: str = "index.json") -> None:
        """Write results in such a way that it shows whether they are whole; OSError where that fails."""
        with replacing(self.folder / name) as temporary, open(temporary, "wb", opener=private) as file:
            file.write(strict_json.text({**content, "check": _check(self.key, content)}).encode())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process makes this entry; where there are no locks, each makes it."""
        try:
            private_folder(self.folder.parent)
            private_folder(self.folder)
            file = open(self.folder / ".lock", "ab", opener=private)  # noqa: SIM115
        except OSError:  # said when a shard cannot be written
            yield
            return
        with file:
            while fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._tidy()
                    break
                except BlockingIOError:
                    self.cache.report("waiting for tokens that another process makes")
                    time.sleep(POLL_S)
                except OSError:  # a file system without locks
                    break
            yield

    def _tidy(self) -> None:
        """Remove what killed processes left half written."""
        with suppress(OSError):
            for path in self.folder.glob(".*.tmp"):
                path.unlink()


class _Maker:
    """Tokenises a part of a text shard by shard."""

    def __init__(self, documents: Documents, tokenizer: Any, end: bool, entry: Entry | None) -> None:
        self.documents, self.tokenizer, self.end, self.entry = documents, tokenizer, end, entry
        self.shards: list[Shard] = []
        self._text, self._part = TextHash(), TextHash()
        self._sample: list[str] = []
        self._hashes = array("Q")

    def make(self) -> Stored:
        """Return all tokens, after those that an earlier process has stored."""
        texts = self._noted()
        if self.entry is not None and not self._skip(texts, self.entry):
            return _Maker(self.documents, self.tokenizer, self.end, self.entry).make()
        found: list[np.ndarray] = []
        tokens = 0
        for some in _together(texts):
            for ids in encode_some(some, self.tokenizer, self.end):
                found.append(ids.astype(np.uint32))
                tokens += len(ids)
            if tokens >= shards.SHARD_TOKENS:
                self._add(found)
                found, tokens = [], 0
        if found:
            self._add(found)
        if self._text.hexdigest() != self.documents.sha256:
            raise UserError("the text changes while it is read; wait until it is complete")
        letters, lost = doubts.lost_letters(self._sample, self.tokenizer)
        if self.entry is not None:
            self._finish(self.entry, letters, lost)
        return Stored(self.shards, letters, lost, None if self.entry is None else self.entry.folder)

    def _noted(self) -> Iterator[str]:
        """Yield the documents of the part, hashed, some of them kept as a sample."""
        step = doubts.step_of(len(self.documents))
        for number, document in enumerate(self.documents.each(self._text.add)):
            if self.entry is not None and number % REPORTED == 0:
                self.entry.cache.report(f"tokens of {number:,} of {len(self.documents):,} documents")
            self._part.add(document)
            digest = hashlib.blake2b(document.encode(), digest_size=8).digest()
            self._hashes.append(int.from_bytes(digest, "little"))
            if number % step == 0:
                self._sample.append(document[: doubts.CHARACTERS])
            yield document

    def _skip(self, texts: Iterator[str], entry: Entry) -> bool:
        """Take over the shards that are there; return False where one is of another text, once it is gone."""
        for shard in entry.whole():
            for _ in range(len(shard.ends)):
                next(texts, None)
            if shard.text != self._part.hexdigest():
                for path in entry.folder.glob("*.safetensors"):
                    path.unlink(missing_ok=True)
                return False
            self.shards.append(shard)
            self._hashes = array("Q")
        return True

    def _add(self, found: list[np.ndarray]) -> None:
        """Store the documents since the last shard as the next one, in memory where the disk refuses."""
        shard = Shard.of(found, self._hashes, self._part.hexdigest())
        if self.entry is not None:
            try:
                shard = shard.written(self.entry.folder, len(self.shards), self.entry.key)
            except (OSError, SafetensorError) as error:
                self._give_up(error)
        self.shards.append(shard)
        self._hashes = array("Q")

    def _finish(self, entry: Entry, letters: int, lost: int) -> None:
        """Write what makes the entry complete."""
        names = [shard.path.name for shard in self.shards if shard.path is not None]
        try:
            entry.write({"shards": names, "letters": letters, "lost": lost})
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        assert self.entry is not None
        cache = self.entry.cache
        cache.warn(f"tokens could not be cached in {cache.folder}: {one_line(error)}")
        self.entry = None


def remembered(
    found: Stored, name: str, key: str, cache: TokenCache | None, make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return what `make` computes of stored tokens, from beside them where it was computed before."""
    if found.folder is None or cache is None:
        return make()
    entry = Entry(found.folder, found.folder.name, cache)
    name = f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        content: dict[str, Any] = json.loads((found.folder / name).read_bytes())
        if content.pop("check") == _check(entry.key, content) and content["about"] == key:
            return content
    made = {**make(), "about": key}
    with suppress(OSError):  # computed again by the next process
        entry.write(made, name)
    return made


def _check(key: str, content: dict[str, Any]) -> str:
    """Return what tells a damaged file of results, or one of another entry."""
    return hashlib.sha256(json.dumps([key, content], sort_keys=True).encode()).hexdigest()
