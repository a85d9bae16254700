"""Invariants 32 and 33: perplexity against closed forms, its token count, its independence of the batch."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from harness.engine.quality import Scored, score
from harness.errors import UserError

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


@pytest.mark.parametrize("vocabulary", [2, 17, 32_000])
def test_invariant_32_a_uniform_model_has_the_vocabulary_as_its_perplexity(vocabulary: int) -> None:
    class Uniform(nn.Module):
        def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
            return SimpleNamespace(logits=torch.full((*input_ids.shape, vocabulary), 3.0))

    windows = [[0, 1, 1, 0, 1]] * 4
    assert score(Uniform(), windows, 3, CPU).perplexity == pytest.approx(vocabulary, rel=1e-6)


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


def test_progress_ends_with_all_sequences() -> None:
    told: list[tuple[int, int]] = []
    score(Bigram(torch.zeros(3, 3)), [[0, 1]] * 5, 2, CPU, on_progress=lambda *done: told.append(done))
    assert told == [(2, 5), (4, 5), (5, 5)]


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
