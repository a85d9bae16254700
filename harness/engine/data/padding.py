"""One document a row: padded on the right, and cut or dropped where it is longer than a row.

Padding is written as `PAD`, so that an array of rows holds both what a model reads and what it is asked: the
loss ignores `PAD`, and under causal attention no token sees what is to its right, so that no mask is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.config import DataConfig, TaskData
from harness.errors import UserError

PAD = -100  # what torch.nn.functional.cross_entropy ignores unless told otherwise
#: What a model reads where there is padding: `<unk>` of LLaMA's tokenizer, `<pad>` of T5's, as in the papers.
PAD_TOKEN = 0
LEAST = 2  # the first token is only context, so a shorter row asks nothing


@dataclass(frozen=True)
class PaddedRows:
    """Windows (count, seq_len) int64 and what found no place in them; the rest is known of rows alone.

    Rows have `PAD` after each text; `real_tokens` counts the others, `dropped_rows` the texts left out.
    """

    windows: np.ndarray
    dropped_tokens: int
    real_tokens: int | None = None
    dropped_rows: int | None = None


def padded(config: DataConfig) -> bool:
    """Whether batches of this data may hold padding; packed windows never do."""
    return isinstance(config, TaskData) or getattr(config, "layout", "packed") == "rows"


def lay(
    encoded: Sequence[Sequence[int] | np.ndarray],
    seq_len: int,
    name: str,
    *,
    drop: bool = False,
    keep_last: bool = False,
) -> PaddedRows:
    """Lay each document into a row; `drop` leaves out those of `seq_len` tokens and more instead of cutting.

    With `keep_last` a row that is cut still ends in its document's last token, the end mark, as where a
    tokenizer cuts by itself. UserError when no row is left.
    """
    kept = [ids for ids in encoded if len(ids) >= LEAST and not (drop and len(ids) >= seq_len)]
    if not kept or seq_len < LEAST:
        raise UserError(
            f"{name}: none of {len(encoded)} texts has at least {LEAST} tokens and fits a row of {seq_len}; "
            "give other texts or a larger data.seq_len"
        )
    windows = np.full((len(kept), seq_len), PAD, dtype=np.int64)
    for row, ids in zip(windows, kept, strict=True):
        row[: len(ids)] = ids[:seq_len]
        if keep_last and len(ids) > seq_len:
            row[-1] = ids[-1]
    real = int((windows != PAD).sum())
    return PaddedRows(windows, sum(map(len, encoded)) - real, real, len(encoded) - len(kept))


def token_ids(batch: np.ndarray) -> np.ndarray:
    """What a model reads of a batch: token ids, with `PAD_TOKEN` where there is padding."""
    return np.where(batch == PAD, PAD_TOKEN, batch)
