"""Texts broken in every way: read as a loop of one's own reads them, or refused in one line."""

from __future__ import annotations

import gzip
import json
import random
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from harness.config import FilesData
from harness.engine.data.documents import documents_of_files
from harness.engine.data.encoding import encode
from harness.errors import UserError
from harness.files import ROOT

COUNT = 300  # `python -m tests.unit.engine.data.test_mutated_texts 5000` tries more
PIECES = [
    "\ud83d",
    "é",
    "Ж",
    "\U0001d518",
    "\u2028",
    "\x00",
    "\x1f",
    "\\n",
    "\r\n",
    "\r",
    '"',
    "{",
    "[",
    "]",
    "}",
    ",",
    "1e999",
]
PIECES += [
    "\ufeff",
    "\u202e",
    "<unk>",
    "</s>",
    "<s>",
    "NaN",
    "9" * 5000,
    "[" * 3000,
    "a" * 60_000,
    '{"text": 1}',
    "null",
]
NAMES = ["a.txt", "a.jsonl", "a.md", "a.json", "a.ndjson.gz", "a.txt.gz", "a"]


@cache
def core() -> Tokenizer:
    return Tokenizer.from_file(str(ROOT / "benchmarks" / "embedded" / "base" / "tokenizer.json"))


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=core(), bos_token="<s>", eos_token="</s>")


def mutated(rng: random.Random) -> tuple[str, bytes]:
    """A name and the bytes of a text that was whole before some of it were flipped, cut or put in."""
    name = rng.choice(NAMES)
    texts = [
        f"ada gives ben {rng.randrange(99)} coins\n" * rng.randrange(1, 4) for _ in range(rng.randrange(1, 6))
    ]
    rows = [json.dumps({"text": text, "id": number}) for number, text in enumerate(texts)]
    if name.endswith(".json") and rng.random() < 0.5:
        raw = f"[{', '.join(rows)}]".encode()
    else:
        raw = "\n".join(rows if "json" in name else texts).encode()
    late = name.endswith(".gz") and rng.random() < 0.3
    raw = gzip.compress(raw) if late else raw
    for _ in range(rng.randrange(4)):
        place, data = rng.randrange(len(raw) + 1), bytearray(raw)
        kind = rng.randrange(4)
        if kind == 0 and place < len(raw):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[place : place + rng.randrange(1, 20)]
        elif kind == 2:
            data[place:place] = rng.choice(PIECES).encode(errors="surrogatepass")
        else:
            data[place:place] = data[: rng.randrange(1, 50)]
        raw = bytes(data)
    return name, raw if late or not name.endswith(".gz") else gzip.compress(raw)


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        assert key not in found
        found[key] = value
    return found


def plainly(name: str, raw: bytes) -> list[str]:
    """The documents, read in the simplest way; whatever this raises must be refused."""
    text = (gzip.decompress(raw) if name.endswith(".gz") else raw).decode("utf-8-sig").replace("\r\n", "\n")
    assert "\0" not in text
    if "json" not in name:
        return [text.strip()]
    whole = name.endswith(".json") and text.lstrip()[:1] == "["
    parse = partial(json.loads, object_pairs_hook=each_key_once)
    rows = parse(text) if whole else [parse(line) for line in text.split("\n") if line.strip()]
    for row in rows:
        row["text"].encode()
    return [row["text"].strip() for row in rows if row["text"].strip()]


def tried(seed: int, folder: Path) -> bool:
    """Return whether a mutated text was read; AssertionError where it was read wrongly or refused badly."""
    name, raw = mutated(random.Random(seed))
    path = folder / name
    path.write_bytes(raw)
    try:
        found = list(documents_of_files(FilesData(source="files", paths=(str(path),))))
    except UserError as error:
        line = str(error)
        assert "\n" not in line and len(line.encode()) < 1000, (seed, line)  # noqa: PT018
        if " is a JSON object" in line or "no text in" in line:
            return False
        with pytest.raises(Exception):  # noqa: B017, PT011  (what it is does not matter)
            plainly(name, raw)
        return False
    assert found == plainly(name, raw), seed
    begin, end = core().token_to_id("<s>"), core().token_to_id("</s>")
    alone = [[begin, *core().encode(text, add_special_tokens=False).ids, end] for text in found]
    assert np.array_equal(encode(found, tokenizer()), np.concatenate(alone)), seed
    return True


def test_mutated_texts_are_read_as_they_stand_or_refused_in_one_line(tmp_path: Path) -> None:
    read = sum(tried(seed, tmp_path) for seed in range(COUNT))
    assert 0.2 * COUNT < read < 0.9 * COUNT


if __name__ == "__main__":
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        number = int(sys.argv[1])
        print(sum(tried(seed, Path(place)) for seed in range(number)), "of", number, "read, the rest refused")
