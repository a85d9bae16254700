"""Read the texts that papers score as their code does: WikiText-2 and the validation split of C4.

The text comes from local files in the original format, or from the hub at a pinned revision. How it is cut
into sequences is `paper_protocols.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np

from harness import endings
from harness.engine.data import documents
from harness.errors import UserError, one_line
from harness.files import sha256

#: The hub's copy of WikiText-2 raw, used when no file is given.
WIKITEXT_HUB = ("Salesforce/wikitext", "wikitext-2-raw-v1", "b08601e04326c79dfdd32d625aee71d232d685c3")
#: The hash of LLaMA's 32,000 pieces by id, one per line, and the tokens of WikiText-2 raw test with them.
LLAMA_PIECES = 32_000
LLAMA_PIECES_SHA256 = "0f97b4337921e6e7e9b4620fc73338ee570aecd3c16038bc23870a887e995045"
WIKITEXT_LLAMA_TOKENS = 341_469

#: The hub's copy of C4 at the revision that public code pins; not reachable where this was written.
C4_HUB = ("allenai/c4", "1588ec454efa1a09f29cd18ddd04fe05fc8653a2")
C4_FILE = "en/c4-validation.{:05d}-of-00008.json.gz"
C4_FILES = 8
#: GaLore's code (arXiv 2403.03507) reads the documents in the order of `shuffle(seed=42)` of a stream.
SHUFFLE_SEED = 42
SHUFFLE_BUFFER = 1000


def wikitext_text(paths: Sequence[str] | None) -> str:
    """Join the rows of the raw test split by blank lines; a row keeps its line end, an empty row is empty.

    A raw file has one row per line; joined this way its rows give the text that papers score.
    """
    if paths is None:
        identifier, name, revision = WIKITEXT_HUB
        import datasets

        try:
            rows = datasets.load_dataset(identifier, name, split="test", revision=revision)["text"]
        except Exception as error:  # the library raises many kinds; without a network each means the same
            raise UserError(
                f"WikiText-2 cannot be loaded from the hub ({one_line(error)}); "
                "give the protocol the file: {protocol: wikitext2-2048, paths: [wiki.test.raw]}"
            ) from error
        return "\n\n".join(rows)
    files = [documents.read_text(documents.existing_file(path)) for path in paths]
    lines = [line for text in files for line in text.removesuffix("\n").split("\n")]
    return "\n\n".join(line + "\n" if line.strip() else "" for line in lines)


def check_wikitext_tokens(count: int, tokenizer: Any) -> None:
    """Raise UserError when LLaMA's tokenizer gives another number of tokens, `<s>` included, than in papers.

    The tokenizer is identified by its first 32,000 pieces: one with added tokens is checked as well, and one
    that has the same pieces but splits otherwise is detected. Others are not checked.
    """
    if pieces_sha256(tokenizer) != LLAMA_PIECES_SHA256 or count == WIKITEXT_LLAMA_TOKENS:
        return
    raise UserError(
        f"WikiText-2 has {count:,} tokens with LLaMA's tokenizer, {WIKITEXT_LLAMA_TOKENS:,} are expected: "
        "give the raw test split as it is (wiki.test.raw, not the version with <unk>, not joined already)"
    )


def pieces_sha256(tokenizer: Any) -> str | None:
    """Return a hash of the first 32,000 pieces of a vocabulary by id; None for a tokenizer without one."""
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)[:LLAMA_PIECES]
    return hashlib.sha256("\n".join(pieces).encode()).hexdigest() if pieces else None


# ------------------------------------------------------------------------------------------------- C4
def check_files(paths: Sequence[str] | None, wanted: endings.Kind, text: str) -> None:
    """Raise UserError for a file that does not exist or whose name says that it is in another format."""
    for path in paths or ():
        file = documents.existing_file(path)
        if documents.kind(file) != wanted:
            known = endings.JSON_LINES if wanted == "JSON lines" else endings.PLAIN_TEXT
            raise UserError(
                f"{path}: {text} comes as {wanted}; give a file that ends with {', '.join(known)}, "
                f"or {endings.COMPRESSED} of these"
            )


def c4_name(paths: Sequence[str] | None) -> str:
    """Return the name of the text for the record."""
    return ", ".join(Path(path).name for path in paths) if paths else f"{C4_HUB[0]} en validation"


def c4_sha256(paths: Sequence[str] | None) -> str:
    """Return a hash of the text; a hub text is not read, as its revision is a hash of its content."""
    local = [sha256(documents.existing_file(path)) for path in paths or ()]
    text = " ".join(local) if local else f"{C4_HUB} {C4_FILE} {C4_FILES}"
    return hashlib.sha256(text.encode()).hexdigest()


def c4_documents(paths: Sequence[str] | None) -> Iterator[str]:
    """Yield the documents unchanged in the order of the files, white space and empty ones included."""
    return chain.from_iterable(_shards(paths))


def c4_documents_shuffled(paths: Sequence[str] | None, rank: int, ranks: int) -> Iterator[str]:
    """Yield the documents in the order in which one of several processes of GaLore's code reads them.

    Files are shuffled, then documents by a buffer. Where the processes divide the files evenly each reads its
    own, else every `ranks`-th document. `datasets` did so when the published values were measured; later
    releases shuffle otherwise under the same seed. Source: arXiv 2403.03507, code.
    """
    shards = _shards(paths)
    order = list(range(len(shards)))
    np.random.default_rng(SHUFFLE_SEED).shuffle(order)
    own_files = len(order) % ranks == 0
    chosen = order[rank::ranks] if own_files else order
    found = buffer_shuffle(chain.from_iterable(shards[number] for number in chosen))
    return found if own_files else islice(found, rank, None, ranks)


def buffer_shuffle(
    items: Iterator[str], size: int = SHUFFLE_BUFFER, seed: int = SHUFFLE_SEED
) -> Iterator[str]:
    """Draw from a buffer that each next item refills; shuffle what is left at the end."""
    rng = np.random.default_rng(seed)
    buffer = list(islice(items, size))
    draws = chain.from_iterable(rng.integers(0, size, size=1000).tolist() for _ in repeat(None))
    for item, place in zip(items, draws, strict=False):
        yield buffer[place]
        buffer[place] = item
    rng.shuffle(buffer)
    yield from buffer


def _shards(paths: Sequence[str] | None) -> list[Iterator[str]]:
    """Return the documents of each file in order; a file is read when its first document is."""
    if paths:
        return [documents.texts_of_json_lines(documents.existing_file(path), "text") for path in paths]
    return [_hub_shard(number) for number in range(C4_FILES)]


def _hub_shard(number: int) -> Iterator[str]:
    import datasets

    identifier, revision = C4_HUB
    files = {"validation": C4_FILE.format(number)}
    try:
        rows = datasets.load_dataset(
            identifier, data_files=files, split="validation", revision=revision, streaming=True
        )
        for row in rows:
            yield row["text"]
    except Exception as error:  # the library raises many kinds; without a network each means the same
        raise UserError(
            f"C4 cannot be loaded from the hub ({one_line(error)}); give the protocol its files with "
            f"paths: [{Path(C4_FILE).name.format(number)}]"
        ) from error
