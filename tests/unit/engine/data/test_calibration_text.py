"""Text that methods look at before training: which windows, which others, and whether they are scored
later."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.config import CalibrationConfig
from harness.engine.data.calibration import CalibrationText, repeated, sha256_of
from harness.engine.data.tokens import Tokens
from harness.errors import UserError

CPU = torch.device("cpu")
WINDOWS = np.arange(20 * 4).reshape(20, 4)


def text(seed: int = 0, batch: int = 3, **wanted: int) -> CalibrationText:
    return CalibrationText(Tokens(WINDOWS, "numbers", "0"), CalibrationConfig(**wanted), batch, seed, CPU)


def rows(batches: object) -> list[int]:
    """The number of each window, in order."""
    return [int(row[0]) // 4 for ids, _ in batches for row in ids]  # type: ignore[attr-defined]


def test_statistics_and_choices_never_share_a_window_and_are_the_same_each_time() -> None:
    found = text(sequences=12, validation=8)
    first, others = rows(found.batches()), rows(found.validation())
    assert (len(first), len(others)) == (12, 8)
    assert sorted(first + others) == list(range(20))
    assert (first, others) == (rows(found.batches()), rows(found.validation()))
    assert first != rows(text(seed=1, sequences=12).batches())


def test_the_first_sequences_do_not_depend_on_how_many_nor_on_the_batch() -> None:
    assert rows(text(batch=5).batches(7)) == rows(text(batch=2).batches(12))[:7]


def test_the_order_is_that_of_the_first_epoch_of_training() -> None:
    trained = Tokens(WINDOWS, "numbers", "0").batches(5, seed=3)
    first = [int(row[0]) // 4 for _ in range(2) for row in next(trained)]
    assert rows(text(seed=3).batches(10)) == first


def test_too_little_text_is_refused_with_what_to_do() -> None:
    said = r"^calibration: the text numbers has 20 sequences of 4 tokens, fewer than 21; ask for fewer "
    with pytest.raises(UserError, match=said):
        text(sequences=21).batches()
    with pytest.raises(UserError, match=r"fewer than 15 and 6 for validation"):
        text(sequences=15, validation=6).validation()


def test_what_was_read_is_told_with_a_hash_of_its_tokens() -> None:
    found = text(sequences=12, validation=5)
    assert found.windows() == {}
    read = rows(found.batches(4))
    assert [int(row[0]) // 4 for row in found.windows()["sequences"]] == read
    assert sha256_of(found.windows()["sequences"]) == sha256_of(WINDOWS[read]) != sha256_of(WINDOWS[:4])
    others = rows(found.validation())
    assert [int(row[0]) // 4 for row in found.windows()["validation"]] == others


def test_windows_that_occur_in_a_scored_text_are_counted() -> None:
    scored = [np.arange(2, 30), np.array([7, 7, 7])]
    assert repeated(WINDOWS, {"other": [np.arange(500, 600)], "same": scored}) == {"same": 6}
    long = np.arange(1000, 1256).reshape(1, 256)  # four pieces, the first two of them in the scored text
    assert repeated(long, {"half": [np.arange(1000, 1128)]}) == {}
    assert repeated(long, {"most": [np.arange(1000, 1192)]}) == {"most": 1}


def test_windows_are_found_as_by_a_loop_over_all_places() -> None:
    rng = np.random.default_rng(0)
    scored = [rng.integers(0, 3, 300), rng.integers(0, 3, 200)]  # three words, so that some occur by chance
    short = rng.integers(0, 3, (40, 5))
    lists = [text.tolist() for text in scored]
    by_hand = sum(
        any(window == text[at : at + 5] for text in lists for at in range(len(text) - 4))
        for window in short.tolist()
    )
    assert repeated(short, {"scored": scored}) == {"scored": by_hand}
    assert 0 < by_hand < 40
