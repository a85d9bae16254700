"""Put one document into each row: padded on the right, cut or dropped when it is longer than a row.

Padding is written as `PAD`, so that one array of rows serves as input and as labels: the loss ignores `PAD`,
and under causal attention no token sees what is to its right, so no mask is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.config import DataConfig, TaskData
from harness.errors import UserError

PAD = -100  # the default ignore_index of torch.nn.functional.cross_entropy
#: The input id in place of padding: `<unk>` of LLaMA's tokenizer, `<pad>` of T5's, as in the papers.
PAD_TOKEN = 0
LEAST = 2  # the first token is only context, so a shorter row predicts nothing


@dataclass(frozen=True)
class PaddedRows:
    """Rows (count, seq_len) int64 with `PAD` after each document.

    `dropped_tokens` counts the tokens that fit no row, `real_tokens` those that are no padding, and
    `dropped_rows` the documents left out.
    """

    windows: np.ndarray
    dropped_tokens: int
    real_tokens: int
    dropped_rows: int


def padded(config: DataConfig) -> bool:
    """Return whether batches of this data may hold padding; packed windows never do."""
    return isinstance(config, TaskData) or getattr(config, "layout", "packed") == "rows"


def pad(
    encoded: Sequence[Sequence[int] | np.ndarray],
    seq_len: int,
    name: str,
    *,
    drop: bool = False,
    keep_last: bool = False,
) -> PaddedRows:
    """Put each document into a row; `drop` leaves out those of `seq_len` tokens and more instead of cutting.

    With `keep_last` a row that is cut still ends in its document's last token, the end mark, as when a
    tokenizer truncates. UserError when no row is left.
    """
    fitting = [ids for ids in encoded if len(ids) >= LEAST and not (drop and len(ids) >= seq_len)]
    if not fitting or seq_len < LEAST:
        raise UserError(
            f"{name}: none of {len(encoded)} texts has at least {LEAST} tokens and fits a row of {seq_len}; "
            "give other texts or a larger data.seq_len"
        )
    windows = np.full((len(fitting), seq_len), PAD, dtype=np.int64)
    for row, ids in zip(windows, fitting, strict=True):
        row[: len(ids)] = ids[:seq_len]
        if keep_last and len(ids) > seq_len:
            row[-1] = ids[-1]
    real = int((windows != PAD).sum())
    return PaddedRows(windows, sum(map(len, encoded)) - real, real, len(encoded) - len(fitting))


def token_ids(batch: np.ndarray) -> np.ndarray:
    """Return the input ids of a batch, with `PAD_TOKEN` in place of padding."""
    return np.where(batch == PAD, PAD_TOKEN, batch)
