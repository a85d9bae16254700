"""Perplexity protocols: which text is scored, how it is cut, and the floor where it is known.

A protocol is named in every table. Scoring itself is harness.engine.quality.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.config import DataConfig, DatasetsData, FilesData, PerplexityConfig
from harness.engine import data, texts
from harness.errors import UserError, nearest, one_line

WORLD_DOCUMENTS = 600
#: The hub's copy of WikiText-2 raw, for those who give no file.
WIKITEXT_HUB = ("Salesforce/wikitext", "wikitext-2-raw-v1", "b08601e04326c79dfdd32d625aee71d232d685c3")
NAMES = ("world-a", "world-b", "world-a-validation", "world-b-validation", "heldout")
WIKITEXT = {"wikitext2-2048": 2048, "wikitext2-4096": 4096}


@dataclass(frozen=True)
class ScoredText:
    """Sequences to score alone: the first token of each is context only.

    `floor` is the perplexity of the generator itself on the same tokens; `context` the window length,
    None where each document is scored whole.
    """

    text: str
    sequences: Sequence[np.ndarray]
    dropped_tokens: int = 0
    context: int | None = None
    floor: float | None = None


def check(config: PerplexityConfig, source: DataConfig) -> None:
    """UserError for a protocol that does not exist or cannot be had with this data."""
    name = config.protocol
    if name not in NAMES and name not in WIKITEXT:
        raise UserError(f"no perplexity protocol {name!r}; {nearest(name, [*NAMES, *WIKITEXT])}")
    if name == "heldout" and not isinstance(source, (FilesData, DatasetsData)):
        raise UserError("perplexity protocol 'heldout' needs data.source files or datasets")
    if config.paths is not None and name not in WIKITEXT:
        raise UserError(f"perplexity protocol {name!r} takes no paths; only {', '.join(WIKITEXT)} do")
    for path in config.paths or ():
        texts.existing_file(path)


def build(config: PerplexityConfig, source: DataConfig, tokenizer: Any) -> ScoredText:
    """Read, tokenise and cut the text of a protocol."""
    check(config, source)
    if tokenizer is None:
        raise UserError(f"perplexity {config.protocol!r} needs a tokenizer: set model.tokenizer")
    if world := re.fullmatch(r"world-([ab])(-validation)?", config.protocol):
        return _world(world[1], "validation" if world[2] else "test", tokenizer)
    if config.protocol in WIKITEXT:
        return _wikitext(config, tokenizer)
    assert isinstance(source, (FilesData, DatasetsData))
    return _heldout(source, tokenizer)


def _world(name: str, split: str, tokenizer: Any) -> ScoredText:
    """Each document is scored whole, from `<s>` to `</s>`, as the generator's probability counts it."""
    from benchmarks.embedded import world

    documents = world.documents(name, split, WORLD_DOCUMENTS)
    sequences = [data.encode([document.text], tokenizer) for document in documents]
    tokens = sum(len(sequence) - 1 for sequence in sequences)
    floor = math.exp(-math.fsum(document.log_prob for document in documents) / tokens)
    return ScoredText(f"world {name}, {split}, {len(documents)} documents", sequences, floor=floor)


def _heldout(source: FilesData | DatasetsData, tokenizer: Any) -> ScoredText:
    documents, name, _ = data.documents_of(source)
    held = data.split_documents(documents, source.holdout)[1]
    stream = data.encode(held, tokenizer, end=source.end_token)
    windows, dropped = data.pack(stream, source.seq_len, f"the held-out part of {name}")
    return ScoredText(f"last {source.holdout:.0%} of {name}", list(windows), dropped, source.seq_len)


def _wikitext(config: PerplexityConfig, tokenizer: Any) -> ScoredText:
    """The raw test split joined by blank lines, one `<s>` at the very start, windows that do not overlap."""
    context = WIKITEXT[config.protocol]
    text = wikitext_text(config.paths)
    encoded = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    stream = np.asarray([*first, *encoded], dtype=np.int64)
    windows, dropped = data.pack(stream, context, "WikiText-2")
    return ScoredText(f"WikiText-2 raw test, {len(stream)} tokens", list(windows), dropped, context)


def wikitext_text(paths: Sequence[str] | None) -> str:
    """The rows of the raw test split, joined by blank lines; a row keeps its line end, an empty row is empty.

    A raw file has one row a line; joining its rows this way gives the text that papers score.
    """
    if paths is None:
        identifier, name, revision = WIKITEXT_HUB
        import datasets

        try:
            rows = datasets.load_dataset(identifier, name, split="test", revision=revision)["text"]
        except Exception as error:  # the library raises many kinds; without a network each means the same
            raise UserError(
                f"WikiText-2 cannot be had from the hub ({one_line(error)}); "
                "give the protocol the file: {protocol: wikitext2-2048, paths: [wiki.test.raw]}"
            ) from error
        return "\n\n".join(rows)
    files = [texts.read_text(texts.existing_file(path)) for path in paths]
    lines = [line for text in files for line in text.removesuffix("\n").split("\n")]
    return "\n\n".join(line + "\n" if line.strip() else "" for line in lines)
