"""Pre-train the embedded base model by a plain AdamW loop, on purpose independent of the harness.

The checkpoint is an input of the benchmark. If the harness trained it, a change of the harness could change
what the harness is measured on.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.embedded.recipe import Recipe
from benchmarks.embedded.tokenizer import encode_documents
from benchmarks.embedded.world import Document

#: What stands before an answer, and how many tokens are between ("At the end Mara has milk.").
ANSWER_CUES = ((" Answer:", 0), (" At the end", 2))
_CHUNK = 512  # documents encoded at once: enough for speed, little for memory


def windows(
    stream: Iterable[Document], tokenizer: PreTrainedTokenizerFast, length: int
) -> Iterator[list[int]]:
    """Yield windows of `length` tokens, filled with whole documents; the last document of a window is cut.

    A window always starts with a document, because documents are scored alone: the model must have seen `<s>`
    at position zero.
    """
    source, window = iter(stream), list[int]()
    while texts := [document.text for document in islice(source, _CHUNK)]:
        for ids in encode_documents(tokenizer, texts):
            window.extend(ids)
            if len(window) >= length:
                yield window[:length]
                window = []


def batches(
    stream: Iterable[Document], tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> Iterator[torch.Tensor]:
    """Yield the tokens of each step, `(windows, length)`."""
    for (count, length), steps in groupby(range(recipe.steps), recipe.shape_at):
        source = windows(stream, tokenizer, length)
        for _ in steps:
            yield torch.tensor(list(islice(source, count)))


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a freshly initialised model; the recipe's seed decides its weights.

    Its head is untied, and it has as many key/value heads as query heads.
    """
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        initializer_range=recipe.initial_std,
        max_position_embeddings=recipe.max_length,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def answers(tokens: torch.Tensor, cue: Sequence[int], between: int = 0) -> torch.Tensor:
    """Return a mask, `(batch, length)`, of the tokens that follow the tokens `cue` after some `between`."""
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    first = len(cue) + between
    found = torch.ones_like(tokens[:, first:], dtype=torch.bool)
    for position, piece in enumerate(cue):
        found &= tokens[:, position : position - first] == piece
    mask[:, first:] = found
    return mask


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    batches: Iterable[torch.Tensor],
    report: Callable[[int, float], None],
) -> None:
    """Train `model` in place; `report` gets each step and its loss (nats per token, unweighted)."""
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    kept = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), foreach=False
    )
    cues = [
        (tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)), between) for text, between in ANSWER_CUES
    ]
    model.train()
    for step, tokens in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        logits = model(tokens[:, :-1]).logits.flatten(0, 1)
        losses = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none")
        asked = torch.stack([answers(tokens, *cue) for cue in cues]).any(0)
        weights = torch.where(asked[:, 1:].flatten(), recipe.answer_weight_at(step), 1.0)
        loss = (weights * losses).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        report(step, losses.mean().item())
    model.eval()
