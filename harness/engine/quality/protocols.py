"""Perplexity protocols by name: which text is scored, with which options, and the floor where it is known.

Every table names the protocol. Scoring is `perplexity.py`; how the protocols of papers cut their text is
`paper_protocols.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness import registry
from harness.config import DataConfig, DatasetsData, FilesData, PerplexityConfig, TaskData
from harness.engine.data import doubts
from harness.engine.data.encoding import encode, stored
from harness.engine.data.parts import parts_of
from harness.engine.data.token_cache import TokenCache
from harness.engine.data.tokens import ends_in_mark
from harness.engine.data.windows import packed
from harness.engine.quality import corpora, paper_protocols
from harness.engine.quality.scored_text import ScoredText
from harness.errors import UserError


@dataclass(frozen=True)
class Protocol:
    """A function that cuts a published text, and the options it takes; other protocols have neither.

    A published text comes from `paths`, else from the hub.
    """

    make: Callable[[PerplexityConfig, Any, TokenCache | None], ScoredText] | None = None
    options: tuple[str, ...] = ()


KNOWN = {
    **dict.fromkeys(
        ("world-a", "world-b", "world-a-validation", "world-b-validation", "heldout", "validation"),
        Protocol(),
    ),
    **dict.fromkeys(paper_protocols.WIKITEXT, Protocol(paper_protocols.wikitext)),
    "c4-256": Protocol(paper_protocols.cut, ("tokens",)),
    "c4-256-legacy": Protocol(paper_protocols.cut_in_batches, ("tokens", "batch", "ranks")),
    "c4-joined": Protocol(paper_protocols.joined, ("context",)),
}


def reads_the_hub(config: PerplexityConfig) -> bool:
    """Return whether the text of a protocol comes over the network."""
    known = KNOWN.get(config.protocol)
    return known is not None and known.make is not None and not config.paths


def check(config: PerplexityConfig, source: DataConfig) -> None:
    """Raise UserError for a protocol that does not fit the data or its options."""
    name = config.protocol
    if name == "heldout" and not isinstance(source, (FilesData, DatasetsData)):
        raise UserError("perplexity protocol 'heldout' needs data.source files or datasets")
    if name == "validation" and getattr(source, "validation", None) is None:
        raise UserError(
            "perplexity protocol 'validation' needs data.validation, a share of the documents to train on "
            "such as 0.1; the bundled worlds have the protocols world-a-validation and world-b-validation"
        )
    if config.paths is not None and KNOWN[name].make is None:
        able = ", ".join(other for other, protocol in KNOWN.items() if protocol.make)
        raise UserError(f"perplexity protocol {name!r} takes no paths; only {able} do")
    if config.paths == ():
        raise UserError(
            f"perplexity protocol {name!r}: paths is empty; name a file, or leave it out for the hub"
        )
    allowed = KNOWN[name].options
    for option in sorted(config.options.keys() - set(allowed)):
        takes = f"it takes {', '.join(allowed)}" if allowed else "it takes none"
        raise UserError(f"perplexity protocol {name!r} has no option {option!r}; {takes}")
    if name.startswith("c4-"):
        corpora.check_files(config.paths, "JSON lines", "C4 (text under 'text')")
    else:
        corpora.check_files(config.paths, "plain text", "WikiText-2")


def build(
    config: PerplexityConfig, source: DataConfig, tokenizer: Any, cache: TokenCache | None = None
) -> ScoredText:
    """Read, tokenise and cut the text of a protocol; its warnings say what makes the value doubtful."""
    check(config, source)
    if tokenizer is None:
        raise UserError(f"perplexity {config.protocol!r} needs a tokenizer: set model.tokenizer")
    text = _build(config, source, tokenizer, cache)
    found = [*text.warnings, *_trained_on(config, source)]
    found += doubts.of_scored(text.sequences, tokenizer, config.name)
    return replace(text, warnings=tuple(found))


def _trained_on(config: PerplexityConfig, source: DataConfig) -> list[str]:
    """Return a warning for files of a protocol that are also trained on."""
    trained = {Path(path).resolve() for path in source.paths} if isinstance(source, FilesData) else set()
    both = [path for path in config.paths or () if Path(path).resolve() in trained]
    return [f"{config.name}: {', '.join(both)} is also trained on"] if both else []


def _build(
    config: PerplexityConfig, source: DataConfig, tokenizer: Any, cache: TokenCache | None
) -> ScoredText:
    if world := re.fullmatch(r"world-([ab])(-validation)?", config.protocol):
        return _world(world[1], "validation" if world[2] else "test", tokenizer)
    if (make := KNOWN[config.protocol].make) is not None:
        return make(config, tokenizer, cache)
    assert isinstance(source, (FilesData, DatasetsData, TaskData))
    return _set_aside(config, source, tokenizer, cache)


def _world(name: str, split: str, tokenizer: Any) -> ScoredText:
    """Score each document whole, from `<s>` to `</s>`, as the generator's probability counts it."""
    world = registry.embedded_world()
    documents = world.documents(name, split, world.SCORED_DOCUMENTS)
    sequences = [encode([document.text], tokenizer) for document in documents]
    tokens = sum(len(sequence) - 1 for sequence in sequences)
    floor = math.exp(-math.fsum(document.log_prob for document in documents) / tokens)
    return ScoredText(f"world {name}, {split}, {len(documents)} documents", sequences, floor=floor)


def _set_aside(
    config: PerplexityConfig,
    source: FilesData | DatasetsData | TaskData,
    tokenizer: Any,
    cache: TokenCache | None,
) -> ScoredText:
    """Score documents of the user's text that are not trained on: those held out, or the validation share."""
    parts, what, end = parts_of(source, cache), config.protocol, ends_in_mark(source)
    kept = stored(parts.heldout if what == "heldout" else parts.validation, tokenizer, end, cache)
    part = {"heldout": "held-out part", "validation": "validation part"}[what]
    windows, dropped = packed(kept, source.seq_len, f"the {part} of {parts.name}")
    trained = stored(parts.trained, tokenizer, end, cache)
    found = doubts.of_repeats(trained.hashes(), np.concatenate(list(kept.hashes())), what)
    found += doubts.of_letters(kept.letters, kept.lost, what)
    last = getattr(source, "holdout", 0.0)
    text = f"last {last:.0%} of {parts.name}"
    if what == "validation":
        text = f"last {source.validation:.0%} of {parts.name}" + (
            f" before its last {last:.0%}" if last else ""
        )
    return ScoredText(text, windows, dropped, source.seq_len, warnings=tuple(found))
