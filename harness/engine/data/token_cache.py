"""Cache tokens on disk under a hash of everything that decides them, so that a text is tokenised once.

An entry of a published text is one safetensors file, `<key>.safetensors`, written atomically, so that two
processes may write at once; that of a user's text is a folder of shards (`shards.py`). It holds its key and
the hash of its content: on a mismatch the text is tokenised again, with a warning. The key covers text,
tokenizer, recipe, code and libraries, so no entry is ever stale; entries may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from harness.digests import Digests
from harness.errors import one_line
from harness.files import installed, private, private_folder, replacing, sha256

FORMAT = "lorebench tokens 1"
#: Libraries that turn text into tokens or draw the order of documents.
PACKAGES = ("tokenizers", "transformers", "numpy")
#: What decides the tokens of a tokenizer beside its pipeline.
SETTINGS = (
    *(f"{mark}_token_id" for mark in ("bos", "eos", "unk", "pad")),
    *("special_tokens_map", "split_special_tokens", "truncation_side"),
)


@dataclass(frozen=True)
class Blocks:
    """Sequences of tokens end to end: `tokens` int64 (sum of lengths), `lengths` of the sequences.

    `parts` holds the number of sequences of each part of a text that is scored in parts, else one number.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    parts: np.ndarray

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray], parts: Sequence[int] | None = None) -> Blocks:
        """Concatenate sequences."""
        whole = np.concatenate([*sequences, np.empty(0, dtype=np.int64)]).astype(np.int64)
        lengths = np.asarray([len(sequence) for sequence in sequences], dtype=np.int64)
        return cls(whole, lengths, np.asarray(parts or [len(sequences)], dtype=np.int64))

    @property
    def sequences(self) -> list[np.ndarray]:
        """Return the sequences as views."""
        return np.split(self.tokens, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the tokens; each field is part of the key.

    `text` and `tokenizer` are hashes of their content, `layout` says how documents become sequences and
    `length` how long these are at most (None: cut later, so it decides nothing), `marks` are the ids
    set by hand, `limits` what ends the text early, and `code` is the version of what does all this.
    """

    text: str
    tokenizer: str
    layout: str
    marks: tuple[int | None, ...]
    length: int | None
    limits: tuple[int | None, ...]
    code: str

    @property
    def key(self) -> str:
        """64 hex digits."""
        return hashlib.sha256(json.dumps([FORMAT, asdict(self)], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class TokenCache:
    """The folder of cached tokens; `warn` reports what is wrong with it, `report` how far the work is.

    `digests` hashes files of texts and of tokens.
    """

    folder: Path
    warn: Callable[[str], None]
    digests: Digests = field(default_factory=Digests)
    report: Callable[[str], None] = lambda text: None

    def get(self, recipe: Recipe, make: Callable[[], Blocks]) -> Blocks:
        """Return the entry of a recipe, made and written when missing; a folder not writable only warns."""
        path = self.folder / f"{recipe.key}.safetensors"
        try:
            return _read(path, recipe.key)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            self.warn(f"cached tokens {path.name} are not usable and rebuilt: {one_line(error)}")
        blocks = make()
        try:
            _write(path, recipe.key, blocks)
        except (OSError, SafetensorError) as error:
            self.warn(f"tokens could not be cached in {self.folder}: {one_line(error)}")
        return blocks


def cached(
    cache: TokenCache | None,
    make: Callable[[], Blocks],
    tokenizer: Any,
    code: Sequence[Callable[..., Any]],
    **recipe: Any,
) -> Blocks:
    """Return the result of `make`, from the cache when it is certain to be the same.

    `code` are functions whose files decide the tokens; `recipe` are the other fields of `Recipe`. Without
    a cache, and for a tokenizer without a serialised form, `make` is always called.
    """
    identity = None if cache is None else tokenizer_sha256(tokenizer)
    if cache is None or identity is None:
        return make()
    return cache.get(Recipe(tokenizer=identity, code=code_version(code), **recipe), make)


class TextHash:
    """A hash of documents in order, their boundaries included, which are added one by one."""

    def __init__(self) -> None:
        self.documents, self._digest = 0, hashlib.sha256()

    def add(self, document: str) -> None:
        """Add the next document."""
        content = document.encode()
        self._digest.update(f"{len(content)}\n".encode())
        self._digest.update(content)
        self.documents += 1

    def hexdigest(self) -> str:
        """Return the hash of all so far, 64 hex digits."""
        return self._digest.hexdigest()


def text_sha256(documents: Iterable[str]) -> str:
    """Return the hash of documents in order."""
    text = TextHash()
    for document in documents:
        text.add(document)
    return text.hexdigest()


def tokenizer_sha256(tokenizer: Any) -> str | None:
    """Return a hash of class, pipeline and marks of a fast tokenizer; None for one that is not serialisable.

    It covers neither the path nor the truncation and padding of the last call.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    pipeline = {
        key: value
        for key, value in json.loads(backend.to_str()).items()
        if key not in ("truncation", "padding")
    }
    settings = {name: getattr(tokenizer, name, None) for name in SETTINGS}
    kind = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
    content = json.dumps([kind, pipeline, settings], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def code_version(code: Iterable[Callable[..., Any]]) -> str:
    """Return a hash of the source files of these functions and of the versions of the libraries."""
    files = sorted({Path(inspect.getfile(function)) for function in code})
    content = [*map(sha256, files), *(f"{name} {installed(name)}" for name in PACKAGES)]
    return hashlib.sha256(" ".join(content).encode()).hexdigest()


def _read(path: Path, key: str) -> Blocks:
    """Load an entry; raise ValueError when its format, key or content is not as written."""
    with path.open("rb"):  # to safetensors a missing file is like a broken one
        pass
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        tokens, lengths, parts = (file.get_tensor(name) for name in ("tokens", "lengths", "parts"))
    if (metadata.get("format"), metadata.get("key")) != (FORMAT, key):
        raise ValueError("the file holds something else")
    if metadata.get("sha256") != _content_sha256(tokens, lengths, parts):
        raise ValueError("it has changed since it was written")
    return Blocks(*(array.astype(np.int64) for array in (tokens, lengths, parts)))


def _write(path: Path, key: str, blocks: Blocks) -> None:
    widest = int(blocks.tokens.max(initial=0))
    kind = np.uint16 if widest < 1 << 16 else np.uint32  # the vocabularies of today: half the bytes
    arrays = {
        "tokens": blocks.tokens.astype(kind),
        "lengths": blocks.lengths.astype(np.uint32),
        "parts": blocks.parts.astype(np.uint32),
    }
    metadata = {"format": FORMAT, "key": key, "sha256": _content_sha256(*arrays.values())}
    private_folder(path.parent)
    with replacing(path) as temporary:
        with open(temporary, "wb", opener=private):
            pass  # from its first byte on only its owner may read it
        save_file(arrays, temporary, metadata=metadata)


def _content_sha256(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
