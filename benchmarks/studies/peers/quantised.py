"""Weights of few bits: QLoRA's training step beside peft on bitsandbytes, and an update of int8 weights.

QLoRA: both store NormalFloat with scales of 8 bits. Those of bitsandbytes are of a dynamic format, ours
equally spaced as in LQ-LoRA, so weights and losses differ a little.

int8: the update of Q-GaLore, which its official code (PyPI: q-galore-torch) does for one matrix after the
other too but which does not run with current versions of bitsandbytes; so the peer converts all matrices to
floats, updates them together, and rounds them, as an optimizer that knows nothing of int8 would.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from benchmarks.studies.peers.bench import Case, Duel, agreement, peak_bytes, peer_package
from benchmarks.studies.peers.plain import LORA_RANK, LR, duel, loop, new_model, our_step
from methods.parts.quantisation.gridded import gridded
from methods.parts.targets import LINEAR_KINDS, target_linears

PEER = "peft on bitsandbytes"
#: Relative difference of losses that other scales may make.
NEAR = 1e-2
FLOATS = "float copies of all matrices"
MATRICES = 4


def cases(quick: bool) -> Iterator[Case]:
    """Yield a training step."""
    shape, batch = ("nano", (1, 4)) if quick else ("9m", (4, 128))
    tokens = f"LLaMA {shape}, {batch[0]} x {batch[1]} tokens"
    yield Case("qlora", "training step", tokens, PEER, partial(qlora, shape, batch))
    out, inputs, group = (8, 16, 16) if quick else (4096, 4096, 256)
    matrices = f"{MATRICES} matrices of {out} x {inputs}, float32"
    yield Case("qgalore", "write-back", matrices, FLOATS, partial(write_back, out, inputs, group))


def qlora(shape: str, batch: tuple[int, int]) -> Duel:
    """Train adapters of the same weights, stored by either."""
    ours = our_step(shape, batch, "qlora", {"rank": LORA_RANK, "alpha": LORA_RANK})
    theirs = new_model(shape)
    layers = target_linears(theirs, LINEAR_KINDS)
    for name, layer in layers.items():
        theirs.set_submodule(name, four_bits(layer))
    config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=list(LINEAR_KINDS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wrapped = get_peft_model(theirs, config)
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0, fused=True)
    return duel(ours, loop(wrapped, optimizer, batch), NEAR)


def four_bits(layer: nn.Linear) -> Any:
    """Return a layer of bitsandbytes with the weight of a layer."""
    package = peer_package("bitsandbytes", "bitsandbytes")
    out, inputs = layer.weight.shape
    made = package.nn.Linear4bit(inputs, out, bias=False, compute_dtype=layer.weight.dtype, quant_type="nf4")
    weight = layer.weight.data.clone()
    made.weight = package.nn.Params4bit(
        weight, requires_grad=False, compress_statistics=True, quant_type="nf4"
    )
    return made.to("cpu")


def write_back(out: int, inputs: int, group: int) -> Duel:
    """Add updates to int8 matrices, and say how many bytes that needs beside the weights and the updates."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(out, inputs, generator=generator) for _ in range(MATRICES)]
    updates = [LR * torch.randn(out, inputs, generator=generator) for _ in range(MATRICES)]
    mine, theirs = ([gridded(each, group, 8) for each in values] for _ in range(2))

    def ours() -> None:
        for weight, update in zip(mine, updates, strict=True):
            weight.add_(update)

    def peer() -> None:
        floats = [weight.floats(weight.dtype) for weight in theirs]
        torch._foreach_add_(floats, updates)
        for weight, new in zip(theirs, floats, strict=True):
            weight.write(new)

    needed = peak_bytes(ours), peak_bytes(peer)
    after, expected = (torch.cat([weight.floats(weight.dtype) for weight in each]) for each in (mine, theirs))
    facts = {
        "weights differ by": agreement(after, expected, 1e-6),
        "bytes beside the weights, ours": str(needed[0]),
        "bytes beside the weights, peer": str(needed[1]),
        "bytes of one matrix in floats": str(updates[0].nbytes),
    }
    return Duel(ours, peer, facts)
