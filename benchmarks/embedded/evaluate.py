"""Evaluate a model on the embedded worlds: perplexity, floor, accuracy, chance and remaining ranks.

Source of the ranks: Jaiswal et al. 2024, "WeLore" (arXiv 2407.11239), Algorithm 1. For every matrix the
singular values are scaled to [0, 1] by their minimum and maximum; at a threshold `tau` the rank that can go
is the number of scaled values below it. A matrix counts only if that is more than half of its rank. The
effective rank reduction (err) is the sum of the spared ranks of the counted matrices over the sum of all full
ranks.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.embedded.tokenizer import encode_documents
from benchmarks.embedded.world import Document, Question

# Half, minus rounding: the constant of the authors' code.
_COUNTED_ABOVE = 0.4999
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@torch.no_grad()
def _token_losses(model: PreTrainedModel, sequences: Sequence[list[int]], batch: int) -> list[torch.Tensor]:
    """Return for each sequence the loss (nats, float64) of every token after the first."""
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    losses: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
    device = next(model.parameters()).device
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        rows = [torch.tensor(sequences[index]) for index in chosen]
        # Padding on the right needs no mask: the model is causal, so padding cannot change a token before it.
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        logits = model(tokens[:, :-1]).logits.double().flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none").view(
            len(rows), -1
        )
        for index, row, values in zip(chosen, rows, loss.cpu(), strict=True):
            losses[index] = values[: len(row) - 1]
    return losses


def perplexity_and_floor(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[Document], batch: int = 64
) -> tuple[float, float]:
    """Return the model's perplexity and the generator's own, both per token of text and `</s>`.

    Each document is scored alone, as `<s>` text `</s>`; sums are in float64. Both divide by the same
    number of tokens, so the floor is exact for these documents and this tokenizer.
    """
    sequences = encode_documents(tokenizer, [document.text for document in texts])
    losses = _token_losses(model, sequences, batch)
    count = sum(len(values) for values in losses)
    total = sum(values.sum().item() for values in losses)
    floor = math.exp(-math.fsum(document.log_prob for document in texts) / count)
    return math.exp(total / count), floor


def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, asked: Sequence[Question], batch: int = 64
) -> float:
    """Return the share of questions whose right choice is the likeliest after the prompt."""
    sequences, starts = [], []
    for question in asked:
        start = len(tokenizer(question.prompt)["input_ids"])
        for choice in question.choices:
            sequences.append(tokenizer(f"{question.prompt} {choice}")["input_ids"])
            starts.append(start)
    losses = _token_losses(model, sequences, batch)
    scores = iter(-values[start - 1 :].sum().item() for values, start in zip(losses, starts, strict=True))
    right = 0
    for question in asked:
        of_choices = [next(scores) for _ in question.choices]
        right += of_choices.index(max(of_choices)) == question.answer
    return right / len(asked)


def chance(asked: Sequence[Question]) -> float:
    """Return the expected accuracy of guessing among the choices."""
    return math.fsum(1 / len(question.choices) for question in asked) / len(asked)


def kept_ranks(model: PreTrainedModel, err: float) -> dict[str, list[int]]:
    """Return for each kind of matrix the rank that every layer keeps when the reduction is `err` (0 to 1).

    The threshold is found by bisection. A matrix that does not count keeps its full rank.
    """
    scaled = {
        name: _scaled_singular_values(weight) for name, weight in model.named_parameters() if _kind(name)
    }
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _reduction(list(scaled.values()), middle) < err:
            low = middle
        else:
            high = middle
    ranks = defaultdict(list)
    for name, values in scaled.items():
        ranks[_kind(name)].append(len(values) - _spared(values, high))
    return dict(ranks)


def _kind(name: str) -> str:
    return next((kind for kind in KINDS if f".{kind}." in name), "")


@torch.no_grad()
def _scaled_singular_values(weight: torch.Tensor) -> torch.Tensor:
    values = torch.linalg.svdvals(weight.double())
    return (values - values.min()) / (values.max() - values.min())


def _spared(values: torch.Tensor, tau: float) -> int:
    spared = int((values < tau).sum())
    return spared if spared / len(values) > _COUNTED_ABOVE else 0


def _reduction(matrices: list[torch.Tensor], tau: float) -> float:
    return sum(_spared(values, tau) for values in matrices) / sum(len(values) for values in matrices)
