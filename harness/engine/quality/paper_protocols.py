"""Cut published texts as papers do: windows of WikiText-2 and C4, documents of C4 cut to 256 tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from harness.config import PerplexityConfig
from harness.engine.data.documents import texts_of_json_lines
from harness.engine.data.token_cache import Blocks, TokenCache, cached, text_sha256
from harness.engine.data.windows import pack
from harness.engine.quality import corpora
from harness.engine.quality.scored_text import ScoredText
from harness.errors import UserError

WIKITEXT = {"wikitext2-2048": 2048, "wikitext2-4096": 4096, "wikitext2-128": 128}
#: The C4 column of the WeLore paper (arXiv 2407.11239, code): documents, window, most windows.
JOINED_DOCUMENTS, JOINED_CONTEXT, JOINED_WINDOWS = 1100, 4096, 256
#: Evaluation of GaLore and its successors (arXiv 2403.03507, code): tokens/document, tokens in all, rows.
CUT_LENGTH, CUT_TOKENS, CUT_BATCH = 256, 10_000_000, 256
CHUNK = 1000  # documents tokenised at a time, so that a limit ends the work soon after it is reached


def wikitext(config: PerplexityConfig, tokenizer: Any, cache: TokenCache | None) -> ScoredText:
    """Cut the raw test split, joined by blank lines after one `<s>`, into windows that do not overlap."""
    context = WIKITEXT[config.protocol]
    stream = _one_stream(corpora.wikitext_text(config.paths), tokenizer, cache)
    corpora.check_wikitext_tokens(len(stream), tokenizer)
    windows, dropped = _windows(stream, context, "WikiText-2")
    return ScoredText(f"WikiText-2 raw test, {len(stream)} tokens", list(windows), dropped, context)


def joined(config: PerplexityConfig, tokenizer: Any, cache: TokenCache | None) -> ScoredText:
    """Cut the first documents, joined by a space after one `<s>`, into windows that do not overlap."""
    context, name = config.context or JOINED_CONTEXT, corpora.c4_name(config.paths)
    documents = list(islice(corpora.c4_documents(config.paths), JOINED_DOCUMENTS))
    stream = _one_stream(" ".join(documents), tokenizer, cache)
    windows, _ = _windows(stream[: JOINED_WINDOWS * context], context, name)
    text = f"{name}: first {len(documents)} documents joined, {len(stream)} tokens"
    short = f"{config.name}: {name} has {len(documents)} documents, the protocol takes {JOINED_DOCUMENTS}"
    warnings = (short,) if len(documents) < JOINED_DOCUMENTS else ()
    return ScoredText(text, list(windows), len(stream) - windows.size, context, warnings=warnings)


def _one_stream(text: str, tokenizer: Any, cache: TokenCache | None) -> np.ndarray:
    """Return a text as one int64 stream that begins with `<s>`, where the tokenizer has that mark."""

    def make() -> Blocks:
        encoded = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        return Blocks.of([np.asarray([*first, *encoded], dtype=np.int64)])

    recipe = {"layout": "one stream", "marks": (tokenizer.bos_token_id,), "length": None, "limits": ()}
    return cached(cache, make, tokenizer, [_one_stream], text=text_sha256([text]), **recipe).tokens


def _windows(stream: np.ndarray, context: int, name: str) -> tuple[np.ndarray, int]:
    if len(stream) < context:
        raise UserError(
            f"{name}: {len(stream)} tokens are fewer than one window of {context}; "
            "give the whole text, or a protocol or context with shorter windows"
        )
    return pack(stream, context, name)


# ------------------------------------------------------------------------------ one document, one sequence
def cut(config: PerplexityConfig, tokenizer: Any, cache: TokenCache | None) -> ScoredText:
    """Cut documents in order to 256 tokens each, scored alone, until the limit of tokens is reached."""
    limit = config.tokens or CUT_TOKENS

    def make() -> Blocks:
        found, count = [], 0
        for sequence in _each_cut(corpora.c4_documents(config.paths), tokenizer):
            found.append(sequence)
            count += len(sequence)
            if count >= limit:
                break
        return Blocks.of(found)

    return _cut_text(config, _cached_cut(cache, make, tokenizer, config, (limit,)), limit)


def cut_in_batches(config: PerplexityConfig, tokenizer: Any, cache: TokenCache | None) -> ScoredText:
    """Cut the documents that each process of GaLore's code reads, in its batches.

    A process ends before the batch at whose start it has seen more than its share of the tokens, `<s>` and
    `</s>` included; a last batch may be smaller. Source: arXiv 2403.03507, code.
    """
    limit, batch, ranks = config.tokens or CUT_TOKENS, config.batch or CUT_BATCH, config.ranks or 1

    def make() -> Blocks:
        found: list[np.ndarray] = []
        parts = []
        for rank in range(ranks):
            documents = corpora.c4_documents_shuffled(config.paths, rank, ranks)
            rows = _rows_of_process(_each_cut(documents, tokenizer), batch, limit / ranks)
            if not rows:
                raise UserError(
                    f"{config.name}: process {rank + 1} gets no document; give all files or fewer ranks"
                )
            found += rows
            parts.append(len(rows))
        return Blocks.of(found, parts)

    blocks = _cached_cut(cache, make, tokenizer, config, (limit, batch, ranks))
    sizes = [divmod(int(rows), batch) for rows in blocks.parts]
    batches = tuple((batch,) * full + (rest,) * (rest > 0) for full, rest in sizes)
    return _cut_text(config, blocks, limit, batches)


def _rows_of_process(sequences: Iterator[np.ndarray], batch: int, limit: float) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    seen = 0
    while seen <= limit and (rows := list(islice(sequences, batch))):
        found += rows
        seen += sum(map(len, rows))
    return found


def _each_cut(documents: Iterator[str], tokenizer: Any) -> Iterator[np.ndarray]:
    """Yield each document as the tokenizer encodes it, with its own marks, 256 tokens at most.

    A document that is cut keeps its end mark, where the tokenizer sets one (T5 does, LLaMA sets `<s>`).
    """
    while chunk := list(islice(documents, CHUNK)):
        encoded = tokenizer(chunk, truncation=True, max_length=CUT_LENGTH, verbose=False)["input_ids"]
        yield from (np.asarray(ids, dtype=np.int64) for ids in encoded)


def _cached_cut(
    cache: TokenCache | None,
    make: Callable[[], Blocks],
    tokenizer: Any,
    config: PerplexityConfig,
    limits: tuple[int, ...],
) -> Blocks:
    code: list[Callable[..., Any]] = [_each_cut, corpora.c4_documents, texts_of_json_lines]
    text = corpora.c4_sha256(config.paths)
    recipe = {"layout": config.protocol, "marks": (), "length": CUT_LENGTH, "limits": limits}
    return cached(cache, make, tokenizer, code, text=text, **recipe)


def _cut_text(
    config: PerplexityConfig, blocks: Blocks, limit: int, batches: tuple[tuple[int, ...], ...] = ()
) -> ScoredText:
    name, count = corpora.c4_name(config.paths), len(blocks.tokens)
    text = f"{name}: {len(blocks.lengths)} documents cut to {CUT_LENGTH} tokens, {count} tokens"
    short = f"{config.name}: {name} has {count} tokens in all, the protocol takes {limit}"
    warnings = (short,) if count < limit else ()
    return ScoredText(text, blocks.sequences, batches=batches, warnings=warnings)
