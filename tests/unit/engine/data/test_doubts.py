"""Texts whose loss looks better than it is are said to be doubtful, with the share that makes them so."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harness.config import FilesData, PerplexityConfig
from harness.engine.data import doubts
from harness.engine.data.tokens import load_tokens
from harness.engine.quality import protocols
from harness.engine.quality.scored_text import ScoredText
from tests.support.tiny import sentence, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def rows(folder: Path, texts: list[str], **settings: Any) -> FilesData:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return FilesData(source="files", paths=(str(path),), **{"seq_len": 8, **settings})


def heldout(config: FilesData, tokenizer: PreTrainedTokenizerFast) -> ScoredText:
    return protocols.build(PerplexityConfig(protocol="heldout"), config, tokenizer)


def percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


# ------------------------------------------------------------------------------------------- <unk>
@pytest.mark.parametrize("foreign", [1, 40, 200])
def test_the_share_of_what_the_tokenizer_lacks_is_said(
    foreign: int, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The count by hand: one more `<unk>` for every document that ends in a letter that is not known."""
    texts = [sentence(number) + (" Ж" if number % 200 < foreign else "") for number in range(400)]
    config = rows(tmp_path, texts, holdout=0.5)
    found = load_tokens(config, tokenizer, 64, seed=0)
    counted = Counter(found.windows[:].reshape(-1).tolist())
    share = counted[tokenizer.unk_token_id] / found.count
    expected = [] if share < 0.01 else [f"training text rows.jsonl: {percent(share)} of the tokens are <unk>"]
    assert (share >= 0.01) == (foreign > 1)
    assert [warning.split(",")[0] for warning in found.warnings] == expected
    held = heldout(config, tokenizer)
    scored = [token for sequence in held.sequences for token in sequence.tolist()]
    share = scored.count(tokenizer.unk_token_id) / len(scored)
    unknown = [warning for warning in held.warnings if "<unk>" in warning]
    assert [warning.split(",")[0] for warning in unknown] == (
        [] if share < 0.01 else [f"heldout: {percent(share)} of the tokens are <unk>"]
    )


def test_a_mark_that_is_also_the_unknown_token_is_no_doubt() -> None:
    """GPT-2 has one token for all of them; its letters are bytes, so none is unknown."""
    same = tiny_tokenizer()
    same.bos_token = same.eos_token = "<unk>"
    assert not doubts.of_tokens(np.asarray([0, 5, 6, 7, 0, 8]), same, "text")


# ------------------------------------------------------------------------------------------- bytes
def byte_tokenizer() -> PreTrainedTokenizerFast:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"abc"]
    core = Tokenizer(
        models.BPE({piece: n for n, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize(
    ("text", "share"), [("abcabcabcЖ", None), ("abcabЖ", 2 / 7), ("aЖ", 2 / 3), ("ЖЖ", 1.0)]
)
def test_letters_that_fall_apart_into_bytes_are_said(text: str, share: float | None) -> None:
    tokenizer = byte_tokenizer()
    ids = np.asarray(tokenizer(text * 100, add_special_tokens=False)["input_ids"])
    assert len(ids) == 100 * len(text.encode()), "a token a letter, two for one that is not known"
    found = [warning for warning in doubts.of_tokens(ids, tokenizer, "text") if "single bytes" in warning]
    if share is None:
        assert not found
    else:
        assert f"text: {percent(share)} of the tokens" in found[0]


# ------------------------------------------------------------------------------------- letters that vanish
def test_letters_that_a_tokenizer_drops_without_a_token_are_said(tmp_path: Path) -> None:
    core = Tokenizer(models.BPE({"a": 0, "b": 1, "<s>": 2, "</s>": 3}, []))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    assert tokenizer("aЖb", add_special_tokens=False)["input_ids"] == [0, 1]
    said = load_tokens(rows(tmp_path, ["ab Ж abЖ"] * 40), tokenizer, 4, seed=0).warnings
    assert "training text rows.jsonl: the tokenizer drops 33% of the letters, which it lacks" in said
    assert doubts.lost_letters(["ab ab"] * 40, tokenizer) == (160, 0)
    assert not doubts.of_letters(160, 0, "text")


# ------------------------------------------------------------------------------------------- few, the same
def test_a_text_of_one_token_alone_is_said(tokenizer: PreTrainedTokenizerFast) -> None:
    letter = tokenizer("a")["input_ids"][-1]
    ids = np.asarray([1, *[letter] * 99, 2])
    assert doubts.of_tokens(ids, tokenizer, "text") == [
        f"text: 98% of the tokens are one and the same (id {letter})"
    ]
    assert not doubts.of_tokens(np.arange(3, 60), tokenizer, "text")
    assert not doubts.of_tokens(np.full(9, -100), tokenizer, "text"), "padding is no token"
    assert not doubts.of_tokens(np.empty(0, dtype=np.int64), tokenizer, "text")


@pytest.mark.parametrize(("predicted", "doubtful"), [(999, True), (1000, False)])
def test_a_perplexity_of_few_predictions_is_said(
    predicted: int, doubtful: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    sequences = [np.arange(3, 14)] * (predicted // 10) + [np.arange(3, 4 + predicted % 10)]
    assert sum(len(sequence) - 1 for sequence in sequences) == predicted
    assert bool(doubts.of_scored(sequences, tokenizer, "heldout")) == doubtful


# ---------------------------------------------------------------------------------------------- repeats
def test_documents_held_out_and_trained_on_are_counted(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = [sentence(number) for number in range(40)]
    clean = heldout(rows(tmp_path, texts, holdout=0.5), tokenizer)
    assert not [warning for warning in clean.warnings if "word for word" in warning]
    texts[30], texts[31] = texts[2], texts[3]
    said = heldout(rows(tmp_path, texts, holdout=0.5), tokenizer).warnings
    assert "heldout: 2 of 20 documents held out are also among those to train on, word for word" in said[0]


def test_a_file_of_a_protocol_that_is_also_trained_on_is_said(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = rows(tmp_path, [sentence(number) for number in range(40)])
    link = tmp_path / "c4.jsonl"
    link.symlink_to(config.paths[0])
    protocol = PerplexityConfig(protocol="c4-256", paths=(str(link),), tokens=100)
    assert (
        f"c4-256(tokens=100): {link} is also trained on"
        in protocols.build(protocol, config, tokenizer).warnings
    )


def test_tokens_that_are_left_out_are_said_where_they_are_many(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = rows(tmp_path, [sentence(number) for number in range(40)], layout="rows", seq_len=4)
    found = load_tokens(config, tokenizer, 64, seed=0)
    assert found.real_tokens is not None
    total = found.real_tokens + found.dropped_tokens
    assert found.dropped_tokens / total >= 0.1
    assert f"{found.dropped_tokens} of {total} tokens are left out" in found.warnings[-1]
    assert not load_tokens(rows(tmp_path, [sentence(n) for n in range(40)]), tokenizer, 64, seed=0).warnings
