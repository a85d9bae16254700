"""Find what makes the loss on a text look better than it is, as warnings for the record.

A letter that the tokenizer lacks becomes `<unk>`, or bytes, or nothing: all three are easy to predict.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from harness.engine.data.windows import counts_of

#: Shares from which a warning is worth its line.
UNKNOWN, BYTES, ONE_TOKEN, LOST, REPEATED = 0.01, 0.25, 0.5, 0.01, 0.01
#: A mean over fewer predictions says little: at a standard deviation of 3 nats its error is above 0.1.
FEW_TOKENS = 1000
#: Letters are looked for in the beginnings of some documents, evenly spaced: more cost time.
SAMPLED, CHARACTERS = 100, 2000
#: How SentencePiece names a byte that it falls back to.
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def of_tokens(tokens: np.ndarray, tokenizer: Any, what: str) -> list[str]:
    """Return warnings about token ids (count,) of a text; negative ids are padding."""
    return of_counts(counts_of([tokens]), tokenizer, what)


def of_counts(counts: np.ndarray, tokenizer: Any, what: str) -> list[str]:
    """Return warnings about a text in which each token id occurs so often (ids,)."""
    total = int(counts.sum())
    if not total:
        return []
    unknown = _share(counts, _unknown(tokenizer), total)
    found = []
    if unknown >= UNKNOWN:
        found.append(
            f"{what}: {_percent(unknown)} of the tokens are {tokenizer.unk_token}, which stands for letters "
            "that the tokenizer lacks; a loss on them says nothing about the text"
        )
    if (raw := _share(counts, _bytes(tokenizer), total)) >= BYTES:
        found.append(
            f"{what}: {_percent(raw)} of the tokens are single bytes of letters that the tokenizer lacks; "
            "the perplexity of a token is lower than that of a text in its letters"
        )
    most = int(counts.argmax())
    if (share := counts[most] / total) >= ONE_TOKEN and most not in _unknown(tokenizer):
        found.append(f"{what}: {_percent(share)} of the tokens are one and the same (id {most})")
    return found


def step_of(documents: int) -> int:
    """Return that every so many documents one is in the sample for `lost_letters`."""
    return max(1, documents // SAMPLED)


def lost_letters(sample: Sequence[str], tokenizer: Any) -> tuple[int, int]:
    """Return the letters in a sample and those of them that get no token; 0 where a tokenizer cannot tell."""
    if not getattr(tokenizer, "is_fast", False) or not sample:
        return 0, 0
    sample = list(sample)
    encoded = tokenizer(sample, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    letters = lost = 0
    for text, spans in zip(sample, encoded["offset_mapping"], strict=True):
        covered = np.zeros(len(text), dtype=bool)
        for first, end in spans:
            covered[first:end] = True
        solid = np.array([not letter.isspace() for letter in text], dtype=bool)
        letters, lost = letters + int(solid.sum()), lost + int((solid & ~covered).sum())
    return letters, lost


def of_letters(letters: int, lost: int, what: str) -> list[str]:
    """Return a warning where so many letters get no token at all."""
    if not letters or lost / letters < LOST:
        return []
    return [f"{what}: the tokenizer drops {_percent(lost / letters)} of the letters, which it lacks"]


def of_scored(sequences: Sequence[np.ndarray], tokenizer: Any, what: str) -> list[str]:
    """Return warnings about sequences that are scored, each from its second token."""
    predicted = sum(max(len(sequence) - 1, 0) for sequence in sequences)
    few = f"{what}: only {predicted} tokens are predicted, so the perplexity says little"
    found = of_counts(counts_of(sequences), tokenizer, what)
    return [*([few] if predicted < FEW_TOKENS else []), *found]


def of_repeats(trained: Iterable[np.ndarray], held: np.ndarray, what: str) -> list[str]:
    """Return a warning where documents that are held out are trained on, too, word for word.

    Documents are given by their hashes, those to train on in several arrays, since they may be very many.
    """
    known = np.sort(held)
    repeated = np.zeros(len(known), dtype=bool)
    for some in trained:
        places = np.searchsorted(known, some).clip(max=len(known) - 1)
        repeated[places[known[places] == some]] = True
    again = int(np.isin(held, known[repeated]).sum())
    if again / len(held) < REPEATED:
        return []
    return [
        f"{what}: {again} of {len(held)} documents held out are also among those to train on, word for word; "
        "remove duplicates"
    ]


def _share(counts: np.ndarray, ids: Iterable[int], total: int) -> float:
    return float(sum(int(counts[number]) for number in ids if number < len(counts)) / total)


def _unknown(tokenizer: Any) -> set[int]:
    """Return the id for what a tokenizer lacks; none where that id marks the ends of documents, too."""
    marks = {getattr(tokenizer, f"{mark}_token_id", None) for mark in ("bos", "eos")}
    return {getattr(tokenizer, "unk_token_id", None)} - marks - {None}  # type: ignore[return-value]


def _bytes(tokenizer: Any) -> Iterator[int]:
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    return (number for piece, number in vocabulary.items() if BYTE.fullmatch(piece))


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"
