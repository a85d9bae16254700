"""The linear layer of SLTrain: W = scale B A + S is trained by its parts, and never stored."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from methods.parts.layers import sparse_products
from methods.parts.layers.sparse_products import Weight

Execution = Literal["auto", "dense", "factored"]

#: Cost of a sparse multiply-add and of turning over one element, in dense multiply-adds. Fitted to forward
#: and backward in float32 on one and two cores with AVX2 and MKL: matrices from 256 x 256 to 2736 x 1024 and
#: 2048 x 2048, delta 0.03 and 0.1, 256 to 2048 tokens. The execution that is chosen is the faster one or
#: within 5 % of it with two threads, and within 10 % with one, where turning over costs less.
SPARSE_COST, TURNING_COST = 6.5, 160


def dense_is_cheaper(weight: Weight, tokens: int) -> bool:
    """Return the choice of `auto`, by the multiply-adds of forward and backward together.

    Always dense on an accelerator, where sparse products tend to be slow (which was not measured).
    """
    if not weight.readable:
        return True
    (outputs, inputs), rank = weight.shape, weight.b.shape[1]
    dense = (4 * rank + 3 * tokens) * outputs * inputs
    low_rank = tokens * rank * (3 * outputs + 4 * inputs)
    sparse = 3 * tokens * len(weight.support) * SPARSE_COST
    turning = tokens * (2 * outputs + 3 * inputs) * TURNING_COST
    return dense < low_rank + sparse + turning


class Product(torch.autograd.Function):
    """y = x W^T for x (tokens, in); x, B, A, the values and the support are all that is saved.

    The scale is a number, so no scaled copy of A is saved. Cannot be differentiated twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        b: Tensor,
        a: Tensor,
        values: Tensor,
        support: Tensor,
        scale: float,
        execution: Execution,
    ) -> Tensor:
        """Multiply by the chosen execution; backward will use the same."""
        ctx.save_for_backward(x, b, a, values, support)
        weight = Weight(b, a, values, support, scale)
        ctx.scale = scale
        ctx.dense = execution == "dense" or (execution == "auto" and dense_is_cheaper(weight, len(x)))
        return sparse_products.dense(x, weight) if ctx.dense else sparse_products.factored(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, where it needs one, and of B, A and the values."""
        x, b, a, values, support = ctx.saved_tensors
        gradients = sparse_products.dense_backward if ctx.dense else sparse_products.factored_backward
        weight = Weight(b, a, values, support, ctx.scale)
        return *gradients(x, dy, weight, ctx.needs_input_grad[0]), None, None, None


class SLTrainLinear(nn.Module):
    """y = x W^T + bias with W = scale * factor_b @ factor_a + S, where `values` are the entries of S.

    `factor_b` is (out, rank), `factor_a` (rank, in). `support` is a buffer, so it is saved, loaded and
    sent to replicas with the model. The bias is that of the layer replaced; weights begin as in the
    official code: B zero, A and S uniform within 1 / sqrt(in).
    """

    support: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        replaced: nn.Linear,
        support: Tensor,
        rank: int,
        scale: float,
        execution: Execution,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        like = replaced.weight
        self.out_features, self.in_features = like.shape
        self.scale, self.execution = scale, execution
        self.factor_b = nn.Parameter(like.new_zeros(self.out_features, rank))
        self.factor_a = nn.Parameter(like.new_empty(rank, self.in_features))
        self.values = nn.Parameter(like.new_empty(len(support)))
        self.register_parameter("bias", replaced.bias)
        self.register_buffer("support", support.to(like.device))
        if not like.is_meta:
            self._draw(generator)

    @torch.no_grad()
    def _draw(self, generator: torch.Generator) -> None:
        """Draw on the CPU and in float32, so that every device and dtype gets the same weights."""
        bound = self.in_features**-0.5
        for parameter in (self.factor_a, self.values):
            drawn = torch.rand(parameter.shape, generator=generator, device="cpu", dtype=torch.float32)
            parameter.copy_(drawn.mul_(2 * bound).sub_(bound))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to (..., out)."""
        flat = x.reshape(-1, self.in_features)
        parts = self.factor_b, self.factor_a, self.values, self.support
        y = Product.apply(flat, *parts, self.scale, self.execution).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    @torch.no_grad()
    def dense(self) -> Tensor:
        """Return W (out, in), in at least float32."""
        wide = torch.promote_types(self.values.dtype, torch.float32)
        b, a, values = (part.to(wide) for part in (self.factor_b, self.factor_a, self.values))
        weight = Weight(b, a, values, self.support, self.scale)
        return weight.dense(slice(None), slice(None), self.support)

    def merged(self) -> nn.Linear:
        """Return a plain layer with the same bias and this weight, rounded once to the dtype of the parts."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(self.dense().to(self.values.dtype))
        plain.register_parameter("bias", self.bias)
        return plain

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, rank={self.factor_a.shape[0]}, support={len(self.support)}"
