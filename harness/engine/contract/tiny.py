"""A LLaMA that trains in milliseconds, its batches and its loop: what methods are checked on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from harness.engine.contract import members
from harness.method import Batch, Stepper

#: Tokens in a sequence.
LENGTH = 12


def tiny_llama(
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int | None = None,
    vocab: int = 64,
    tie: bool = False,
    seed: int = 0,
) -> LlamaForCausalLM:
    """A LLaMA with random float32 weights, feed-forward width 2.5 times the hidden width, 128 positions."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 5 // 2,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        vocab_size=vocab,
        max_position_embeddings=128,
        tie_word_embeddings=tie,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.1,  # so large that the logits of an untrained model depend on its linears
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def tiny_batch(step: int = 0, batch: int = 2, length: int = LENGTH, vocab: int = 64) -> Tensor:
    """Token ids (batch, length) that depend on the step alone."""
    return torch.randint(vocab, (batch, length), generator=torch.Generator().manual_seed(step))


def train(model: nn.Module, stepper: Stepper, first: int, last: int, lr: float = 1e-2) -> list[float]:
    """Do the updates `first` up to and without `last` and return their losses."""
    losses = []
    for step in range(first, last):
        stepper.set_lr(lr)
        ids = tiny_batch(step)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        members.step(stepper)
        stepper.zero_grad()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """Logits (batch, length, vocab) in evaluation mode, as float32."""
    return model.eval()(input_ids=tiny_batch()).logits.float()


class TinyText:
    """Calibration text of random tokens; implements `harness.method.Calibration`."""

    source, count, length, seed, validation_count = "random tokens", 8, LENGTH, 0, 8

    def batches(self, count: int | None = None) -> Iterator[Batch]:
        """Yield `count` sequences, two at a time."""
        return self._from(0, self.count if count is None else count)

    def validation(self) -> Iterator[Batch]:
        """Yield others."""
        return self._from(1000, self.validation_count)

    def _from(self, step: int, left: int) -> Iterator[Batch]:
        while left > 0:
            ids = tiny_batch(step)[:left]
            yield Batch(ids, ids)
            step, left = step + 1, left - len(ids)
