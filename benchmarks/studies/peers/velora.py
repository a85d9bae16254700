"""VeLoRA beside its official arithmetic and beside peft's port of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from peft import LoraConfig, VeloraConfig, inject_adapter_in_model
from torch import Tensor, nn

from benchmarks.studies.peers.bench import Case, Duel, peak_bytes
from harness.method import Context
from harness.plugins import build
from methods.parts.layers.subtoken import project, weight_gradient

#: Width of the output, of the input and the number of groups of a down projection: 60M with the groups of
#: the paper's script; 1B, whose 5461 = 43 * 127 has no divisor nearer to 32; 7B with those of the code.
SHAPES = {"60M": (512, 1376, 86), "1B": (2048, 5461, 43), "7B": (4096, 11008, 32)}
TINY = {"tiny": (8, 24, 6)}
TARGET = 0.33
RANK = 32


def cases(quick: bool) -> Iterator[Case]:
    """Yield the weight gradient of a down projection, and an adapter's forward and backward pass."""
    sequences, tokens = (2, 4) if quick else (4, 256)
    for name, (out, width, groups) in (TINY if quick else SHAPES).items():
        size = {"out": out, "width": width, "groups": groups, "sequences": sequences, "tokens": tokens}
        shape = f"{name}: {out} x {width}, {groups} groups, {sequences} x {tokens} tokens"
        heavy = out * width > 2**24
        official = "official arithmetic, in float32"
        yield Case("velora", "weight gradient", shape, official, partial(_gradient, **size), TARGET, heavy)
        yield Case(
            "velora", "LoRA forward and backward", shape, "peft", partial(_adapter, **size), heavy=heavy
        )


def official_gradient(grad_output: Tensor, projected: Tensor, v: Tensor) -> Tensor:
    """Compute the official weight gradient: (out, D) from (B, N, out), (B, N, G) and (M).

    It builds the input from its coordinates and multiplies sequence by sequence; autograd then adds the B
    gradients up. Left out in its favour: casts to float16, and emptying the allocator's cache each time.
    """
    rebuilt = (projected[..., None] * v).flatten(2)
    return (grad_output.transpose(1, 2) @ rebuilt).sum(0)


def _gradient(out: int, width: int, groups: int, sequences: int, tokens: int) -> Duel:
    generator = torch.Generator().manual_seed(0)
    v = nn.functional.normalize(torch.randn(width // groups, generator=generator), dim=0)
    projected = project(torch.randn(sequences, tokens, width, generator=generator), v)
    grad_output = torch.randn(sequences, tokens, out, generator=generator)

    def ours() -> Tensor:
        return weight_gradient(grad_output.flatten(0, 1), projected.flatten(0, 1), v)

    def peer() -> Tensor:
        return official_gradient(grad_output, projected, v)

    facts = {
        "largest relative difference": f"{_difference(ours(), peer()):.1e}",
        "peak bytes, result included, ours": str(peak_bytes(ours)),
        "peak bytes, result included, peer": str(peak_bytes(peer)),
        "bytes of the result": str(4 * out * width),
        "bytes of the input": str(4 * sequences * tokens * width),
    }
    return Duel(ours, peer, facts)


def _adapter(out: int, width: int, groups: int, sequences: int, tokens: int) -> Duel:
    """Compare adapters with equal weights and one fixed direction, that of the same first batch."""
    rank = min(RANK, out, width)
    models = [_adapted(out, width, rank, groups if theirs else None) for theirs in (False, True)]
    build("velora", {"num_groups": groups, "targets": ["down_proj"]}).prepare(models[0], Context())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sequences, tokens, width, generator=generator).add_(0.1).requires_grad_()
    grad_output = torch.randn(sequences, tokens, out, generator=generator)

    def work(model: nn.ModuleDict) -> list[Tensor]:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return list(torch.autograd.grad(model["down_proj"](x), [x, *trained], grad_output))

    ours, peer = (partial(work, model) for model in models)
    facts = {
        "largest relative difference": f"{max(map(_difference, ours(), peer())):.1e}",
        "peak bytes, ours": str(peak_bytes(ours)),
        "peak bytes, peer": str(peak_bytes(peer)),
    }
    return Duel(ours, peer, facts)


def _adapted(out: int, width: int, rank: int, groups: int | None) -> nn.ModuleDict:
    """Return a layer with an adapter whose B is not zero, compressed by peft where `groups` is given."""
    velora = None if groups is None else VeloraConfig(num_groups=groups, init_type="batch_average_once")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.ModuleDict({"down_proj": nn.Linear(width, out, bias=False)})
        config = LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=["down_proj"],
            init_lora_weights=False,
            velora_config=velora,
        )
        inject_adapter_in_model(config, model)
    return model


def _difference(ours: Tensor, peer: Tensor) -> float:
    """Return the largest difference of two results over the largest entry."""
    return ((ours - peer).abs().max() / peer.abs().max()).item()
