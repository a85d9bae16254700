"""Measures of a model on the embedded worlds: perplexity, its floor, accuracy and chance."""

import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.embedded.tokenizer import encode_documents
from benchmarks.embedded.world import Document, Question


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

    Each document is scored alone, as `<s>` text `</s>`; sums are in float64. Both figures divide by the same
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
