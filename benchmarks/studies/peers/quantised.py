"""QLoRA beside peft on layers of bitsandbytes: a training step of adapters on weights of about 4 bits.

Both store NormalFloat with scales of 8 bits. Those of bitsandbytes are of a dynamic format, ours equally
spaced as in LQ-LoRA, so weights and losses differ a little.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from benchmarks.studies.peers.bench import Case, Duel, peer_package
from benchmarks.studies.peers.plain import LORA_RANK, LR, duel, loop, new_model, our_step
from methods.parts.targets import LINEAR_KINDS, target_linears

PEER = "peft on bitsandbytes"
#: Relative difference of losses that other scales may make.
NEAR = 1e-2


def cases(quick: bool) -> Iterator[Case]:
    """Yield a training step."""
    shape, batch = ("nano", (1, 4)) if quick else ("9m", (4, 128))
    tokens = f"LLaMA {shape}, {batch[0]} x {batch[1]} tokens"
    yield Case("qlora", "training step", tokens, PEER, partial(qlora, shape, batch))


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
