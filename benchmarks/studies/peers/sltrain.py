"""A linear layer of SLTrain beside the arithmetic of the official code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.studies.peers import galore
from benchmarks.studies.peers.bench import Case, Duel
from methods.parts.layers.sparse_plus_lowrank import SLTrainLinear
from methods.sltrain import support

#: Output, input, rank and share of sparse entries of the same matrices as GaLore's, recipes of the code.
SHAPES = {name: (*shape, 0.05 if name.startswith("7B") else 0.03) for name, shape in galore.SHAPES.items()}
TINY = {"tiny": (24, 16, 4, 0.1)}
SCALE = 0.25
#: Four sequences of the papers' 256 tokens: what one micro-batch of the 7B recipe has per device is 2048, and
#: fewer tokens favour us, as rebuilding W (the same for any number) is then more of the peer's work.
TOKENS = 1024
TARGET = 0.8


def cases(quick: bool) -> Iterator[Case]:
    """Yield forward and backward of one layer, with gradients of the input and of all parameters."""
    tokens = 8 if quick else TOKENS
    for name, (outputs, inputs, rank, delta) in (TINY if quick else SHAPES).items():
        shape = f"{name}: {outputs} x {inputs}, rank {rank}, delta {delta}, {tokens} tokens"
        set_up = partial(_duel, outputs, inputs, rank, delta, tokens)
        heavy = outputs * inputs > 2**23
        yield Case("sltrain", "forward and backward", shape, "official arithmetic", set_up, TARGET, heavy)


class Official(torch.autograd.Function):
    """Compute what the official layer does: W and its gradient as a whole, int64 positions, s A kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, b: Tensor, scaled_a: Tensor, values: Tensor, support: Tensor) -> Tensor:
        """y = x W^T for x (tokens, in)."""
        ctx.save_for_backward(x, b, scaled_a, values, support)
        return x @ _rebuilt(b, scaled_a, values, support).t()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, B, s A and the values."""
        x, b, scaled_a, values, support = ctx.saved_tensors
        dx = dy @ _rebuilt(b, scaled_a, values, support)
        dw = dy.t() @ x
        return dx, dw @ scaled_a.t(), b.t() @ dw, dw.flatten()[support], None


def _rebuilt(b: Tensor, scaled_a: Tensor, values: Tensor, support: Tensor) -> Tensor:
    weight = b @ scaled_a
    weight.view(-1).scatter_add_(0, support, values)
    return weight


def _duel(outputs: int, inputs: int, rank: int, delta: float, tokens: int) -> Duel:
    generator = torch.Generator().manual_seed(0)
    replaced = nn.Linear(inputs, outputs, bias=False, device="meta").to_empty(device="cpu")
    positions = support((outputs, inputs), delta, seed=0, index=0)
    layer = SLTrainLinear(replaced, positions, rank, SCALE, "auto", generator)
    with torch.no_grad():  # zero would make the gradient of A zero
        layer.factor_b.copy_(torch.randn(outputs, rank, generator=generator) / rank)
    wide_positions = positions.long()
    x = torch.randn(tokens, inputs, generator=generator).requires_grad_()
    dy = torch.randn(tokens, outputs, generator=generator)
    wanted = [x, layer.factor_b, layer.factor_a, layer.values]

    def our_output() -> Tensor:
        return layer(x)

    def peer_output() -> Tensor:
        return Official.apply(x, layer.factor_b, layer.factor_a * SCALE, layer.values, wide_positions)

    def work(output: Callable[[], Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(output(), wanted, dy))

    ours, peer = partial(work, our_output), partial(work, peer_output)
    parameters = list(layer.parameters())
    facts = {
        "largest relative gradient difference": f"{max(map(_difference, ours(), peer())):.1e}",
        "saved bytes, ours": str(_saved_bytes(our_output, parameters)),
        "saved bytes, peer": str(_saved_bytes(peer_output, parameters)),
    }
    return Duel(ours, peer, facts)


def _difference(ours: Tensor, peer: Tensor) -> float:
    """Return |ours - peer| / |peer|."""
    return float((ours - peer).norm() / peer.norm())


def _saved_bytes(output: Callable[[], Tensor], parameters: Sequence[Tensor]) -> int:
    """Return the bytes that autograd keeps for the backward pass beside the parameters, each storage once."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        result = output()
    del result
    theirs = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    return sum(size for storage, size in kept.items() if storage not in theirs)
