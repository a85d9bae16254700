"""The negative log-likelihood of each scored sequence, kept beside a record: it pairs two runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from harness.engine.quality import Scored
    from harness.engine.scored_text import ScoredText


def write(path: Path, text: ScoredText, scored: Scored) -> None:
    """One line per sequence: a hash of its tokens, how many were predicted, and their sum in nats.

    The hash tells that two runs scored the same tokens, without telling which.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for sequence, nats in zip(text.sequences, scored.sequence_nll_nats, strict=True):
            tokens = np.ascontiguousarray(sequence, dtype="<i8")
            line = {
                "sha256": hashlib.sha256(tokens.tobytes()).hexdigest()[:16],
                "tokens": max(len(tokens) - 1, 0),
                "nll_nats": nats,
            }
            file.write(json.dumps(line) + "\n")
