"""Invariants 32 and 33: perplexity against closed forms, its token count, its independence of the batch."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.embedded import world
from harness.config import DataConfig, EmbeddedData, FilesData, PerplexityConfig
from harness.engine.quality import protocols
from harness.engine.quality.perplexity import Scored, score
from harness.engine.quality.scored_text import ScoredText, mean_of_batch_means
from harness.errors import UserError

VOCABULARY = 96
CPU = torch.device("cpu")


class Bigram(nn.Module):
    """Logits that depend on the last token alone, from a table (vocabulary, vocabulary)."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        self.shapes.append(tuple(input_ids.shape))
        return SimpleNamespace(logits=self.table[input_ids])


def ragged(count: int = 11, vocabulary: int = 64, seed: int = 0) -> list[list[int]]:
    """Documents of different lengths."""
    draw = np.random.default_rng(seed)
    return [draw.integers(0, vocabulary, size=int(n)).tolist() for n in draw.integers(2, 40, size=count)]


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, initializer_range=0.3, **shape))
    return model.eval()


class Uniform(nn.Module):
    """The same logits everywhere."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=torch.full((*input_ids.shape, self.vocabulary), 3.0))


@pytest.mark.parametrize("vocabulary", [2, 17, 32_000])
def test_invariant_32_a_uniform_model_has_the_vocabulary_as_its_perplexity(vocabulary: int) -> None:
    windows = [[0, 1, 1, 0, 1]] * 4
    assert score(Uniform(vocabulary), windows, 3, CPU).perplexity == pytest.approx(vocabulary, rel=1e-6)


def test_invariant_32_a_bigram_model_has_the_perplexity_of_its_table() -> None:
    torch.manual_seed(0)
    table = torch.randn(5, 5)
    probabilities = torch.softmax(table.double(), dim=-1)
    documents = ragged(vocabulary=5)
    expected = -sum(math.log(probabilities[a, b]) for d in documents for a, b in pairwise(d))
    scored = score(Bigram(table), documents, 4, CPU)
    assert scored.nll_nats == pytest.approx(expected, rel=1e-6)
    assert scored.perplexity == pytest.approx(
        math.exp(expected / sum(len(d) - 1 for d in documents)), rel=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_invariant_32_perplexity_does_not_depend_on_the_batch_size(dtype: torch.dtype) -> None:
    model, documents = llama().to(dtype), ragged()
    one, three, eight = (score(model, documents, batch, CPU) for batch in (1, 3, 8))
    for other in (three, eight):
        assert other.nll_nats == pytest.approx(one.nll_nats, rel=1e-6)
        assert other.sequence_nll_nats == pytest.approx(one.sequence_nll_nats, rel=1e-5)
        assert other.tokens == one.tokens


def test_invariant_32_a_mean_of_batch_means_would_fail_this() -> None:
    table = torch.tensor([[8.0, 0.0], [0.0, 0.0]])  # token 0 predicts itself, token 1 nothing
    documents = [[0] * 9, [1, 1]]
    easy, hard = 8 * math.log1p(math.exp(-8)), math.log(2)
    scored = score(Bigram(table), documents, 1, CPU)
    assert scored.nll_nats / scored.tokens == pytest.approx((easy + hard) / 9, rel=1e-6)


def test_a_padded_llama_without_mask_agrees_with_each_sequence_scored_alone() -> None:
    model, documents = llama(), ragged()
    scored = score(model, documents, 8, CPU)
    for document, nll in zip(documents, scored.sequence_nll_nats, strict=True):
        ids = torch.tensor([document])
        with torch.no_grad():
            mean = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        assert nll == pytest.approx(float(mean) * (len(document) - 1), rel=1e-5)


def test_invariant_33_tokens_are_windows_times_length_minus_one() -> None:
    windows = [np.zeros(16, dtype=np.uint16) for _ in range(7)]
    scored = score(Bigram(torch.zeros(3, 3)), windows, 4, CPU)
    assert scored.tokens == 7 * (16 - 1)
    assert scored.nll_nats == pytest.approx(7 * 15 * math.log(3), rel=1e-6)


def test_invariant_33_tokens_of_documents_are_their_lengths_minus_one() -> None:
    scored = score(Bigram(torch.zeros(3, 3)), [[0, 1, 2], [1], [2, 2]], 2, CPU)
    assert scored.tokens == 2 + 0 + 1
    assert scored.sequence_nll_nats == pytest.approx([2 * math.log(3), 0.0, math.log(3)], rel=1e-6)


def test_batches_hold_sequences_of_like_length_the_longest_first() -> None:
    model = Bigram(torch.zeros(3, 3))
    score(model, [[0] * n for n in (2, 9, 3, 8)], 2, CPU)
    assert model.shapes == [(2, 8), (2, 2)]


def test_scoring_evaluates_and_leaves_each_module_in_the_mode_it_had() -> None:
    torch.manual_seed(0)

    class Noisy(Bigram):
        def __init__(self) -> None:
            super().__init__(torch.randn(5, 5))
            self.dropout = nn.Dropout(0.5)
            self.frozen = nn.Dropout(0.5)

        def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
            assert not torch.is_grad_enabled()
            return SimpleNamespace(logits=self.dropout(self.table[input_ids]))

    model = Noisy().train()
    model.frozen.eval()
    first, second = (score(model, ragged(vocabulary=5), 4, CPU) for _ in "ab")
    assert first == second
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)


def test_low_precision_logits_are_summed_in_high_precision() -> None:
    table = torch.zeros(4, 4, dtype=torch.bfloat16)
    scored = score(Bigram(table), [[0, 1, 2, 3] * 500], 1, CPU)
    assert scored.nll_nats == pytest.approx(1999 * math.log(4), rel=1e-6)


def test_there_must_be_something_to_predict() -> None:
    for nothing in ([], [[1]], [[], [2]]):
        with pytest.raises(UserError, match="nothing to score"):
            score(Bigram(torch.zeros(3, 3)), nothing, 2, CPU)


def test_a_perplexity_beyond_all_numbers_is_infinite() -> None:
    assert Scored(1e6, 1, [1e6]).perplexity == math.inf
    assert math.isnan(Scored(math.nan, 1, [math.nan]).perplexity)


# ------------------------------------------------------------------------------------ every protocol
class Letters:
    """A tokenizer of single letters with an end mark of its own, as that of T5 has."""

    bos_token_id, eos_token_id = 1, 2

    def __call__(self, texts: str | list[str], **options: Any) -> dict[str, Any]:
        if not isinstance(texts, str):
            return {"input_ids": [self(text, **options)["input_ids"] for text in texts]}
        ids = [3 + ord(letter) % (VOCABULARY - 3) for letter in texts]
        if not options.get("add_special_tokens", True):
            return {"input_ids": ids}
        room = options["max_length"] - 1 if options.get("truncation") else len(ids)
        return {"input_ids": [*ids[:room], self.eos_token_id]}


def text_of(name: str, folder: Path, **options: int) -> ScoredText:
    """The text of a protocol from a file of documents of many lengths."""
    draw = np.random.default_rng(7)
    documents = ["".join(map(chr, draw.integers(97, 120, size=int(n)))) for n in draw.integers(0, 500, 60)]
    raw, rows = folder / "wiki.test.raw", folder / "c4.jsonl"
    raw.write_text("\n".join(documents) + "\n")
    rows.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    paths = (str(raw),) if name.startswith("wikitext") else (str(rows),) if name.startswith("c4") else None
    source: DataConfig = EmbeddedData()
    if name in ("heldout", "validation"):
        share = 0.3 if name == "validation" else None
        source = FilesData(source="files", paths=(str(rows),), holdout=0.3, validation=share, seq_len=64)
    return protocols.build(PerplexityConfig(protocol=name, paths=paths, **options), source, Letters())


@pytest.mark.parametrize("name", sorted(protocols.KNOWN))
def test_invariant_32_a_uniform_model_has_its_vocabulary_as_perplexity_under_every_protocol(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "SCORED_DOCUMENTS", 20)
    text = text_of(name, tmp_path)
    found = text.perplexity(score(Uniform(VOCABULARY), text.sequences, 4, CPU))
    if name == "c4-256-legacy":
        assert text.batches == ((60,),)
        assert found == pytest.approx(VOCABULARY ** (1 / 2), rel=1e-6)
    else:
        assert found == pytest.approx(VOCABULARY, rel=1e-6)


@pytest.mark.parametrize("name", sorted(set(protocols.KNOWN)))
def test_invariant_32_no_protocol_depends_on_how_many_sequences_are_scored_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither does the legacy figure: the batches that it repeats are an option of its own."""
    monkeypatch.setattr(world, "SCORED_DOCUMENTS", 20)
    torch.manual_seed(0)
    model, text = Bigram(torch.randn(VOCABULARY, VOCABULARY)), text_of(name, tmp_path)
    one, three, eight = (text.perplexity(score(model, text.sequences, batch, CPU)) for batch in (1, 3, 8))
    assert three == pytest.approx(one, rel=1e-6)
    assert eight == pytest.approx(one, rel=1e-6)


# ---------------------------------------------------------------------------------- the legacy figure
@pytest.mark.parametrize(("batch", "batches"), [(60, 1), (20, 3), (7, 9), (1, 60)])
def test_a_uniform_model_has_a_legacy_figure_lower_by_the_divisor(
    batch: int, batches: int, tmp_path: Path
) -> None:
    text = text_of("c4-256-legacy", tmp_path, batch=batch)
    empty = sum(len(sequence) < 2 for sequence in text.sequences)
    assert empty == 0, "a batch of one without a prediction would have no mean"
    found = text.perplexity(score(Uniform(VOCABULARY), text.sequences, 8, CPU))
    assert found == pytest.approx(VOCABULARY ** (batches / (batches + 1)), rel=1e-6)


def test_the_legacy_figure_is_that_of_padded_batches_summed_over_one_more_than_there_are(
    tmp_path: Path,
) -> None:
    """The published loop by hand: rows padded to 256, labels -100 at padding, a mean a batch, n + 1."""
    model, text = llama_of(VOCABULARY), text_of("c4-256-legacy", tmp_path, batch=16)
    total, count = 0.0, 1
    means = []
    for first in range(0, len(text.sequences), 16):
        rows = torch.zeros(len(text.sequences[first : first + 16]), 256, dtype=torch.long)
        for row, sequence in zip(rows, text.sequences[first : first + 16], strict=True):
            row[: len(sequence)] = torch.from_numpy(sequence)
        labels = rows.clone()
        labels[labels == 0] = -100
        with torch.no_grad():
            means.append(float(model(input_ids=rows, labels=labels).loss))
        total += means[-1]
        count += 1
    found = text.perplexity(score(model, text.sequences, 5, CPU))
    assert found == pytest.approx(math.exp(total / count), rel=1e-6)
    n = len(means)
    assert n == 4
    assert found == pytest.approx(math.exp(sum(means) / n * n / (n + 1)), rel=1e-6)


def llama_of(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(1)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, initializer_range=0.5, **shape)).eval()


def test_the_legacy_loss_is_exactly_the_mean_batch_loss_times_n_over_n_plus_one() -> None:
    nll, predicted = [3.0, 5.0, 0.5, 7.25, 1.0], [2, 2, 1, 4, 1]
    means = [8.0 / 4, 7.75 / 5, 1.0]  # batches of two rows, the last of one
    assert mean_of_batch_means(nll, predicted, [(2, 2, 1)]) == sum(means) / 4
    loss = mean_of_batch_means(nll, predicted, [(2, 2, 1)])
    assert loss == pytest.approx(math.fsum(means) / 3 * 3 / 4, rel=1e-15)
    token_weighted = sum(nll) / sum(predicted)
    assert loss * 4 / 3 != pytest.approx(token_weighted, rel=0.05), "nor are its means weighted by tokens"


def test_the_legacy_loss_of_several_processes_is_the_mean_of_theirs() -> None:
    nll, predicted = [3.0, 5.0, 0.5, 7.25], [2, 2, 1, 4]
    apart = [mean_of_batch_means(nll[:1], predicted[:1], [(1,)]), 0.0]
    apart[1] = mean_of_batch_means(nll[1:], predicted[1:], [(2, 1)])
    assert mean_of_batch_means(nll, predicted, [(1,), (2, 1)]) == sum(apart) / 2


def test_a_legacy_batch_without_a_token_to_predict_is_not_a_number() -> None:
    assert math.isnan(mean_of_batch_means([1.0, 0.0], [1, 0], [(1, 1)]))


def test_a_legacy_figure_beyond_all_numbers_is_infinite() -> None:
    text = ScoredText("", [np.zeros(2)], batches=((1,),))
    assert text.perplexity(Scored(1e6, 1, [1e6])) == math.inf
