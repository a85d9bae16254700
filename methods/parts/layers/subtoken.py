"""Linear layers that save one number per sub-token of their input for the backward pass, not the input.

The D features of a token are cut into G sub-tokens z of M = D / G consecutive features. A layer has one
unit vector v (M), saves p = z v, and uses p v for z in the gradient of its weight. That is the exact
gradient times the projector kron(I_G, v v^T), in closed form (gY^T p) (x) v.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from harness.errors import UnsupportedError

USUAL_GROUPS = 32  # the default of the paper's code
LEAST_SIZE = 8  # the smallest sub-token of the paper's scripts


def project(x: Tensor, v: Tensor) -> Tensor:
    """Return the coordinates (..., G) of the sub-tokens of x (..., D) along v (M), in the dtype of x."""
    return x.unflatten(-1, (-1, v.numel())) @ v.to(x.dtype)


def weight_gradient(grad_output: Tensor, projected: Tensor, direction: Tensor) -> Tensor:
    """Return the gradient (out, D) from (tokens, out), (tokens, G) and (M), in 2 tokens out G FLOPs."""
    by_group = grad_output.T @ projected
    return (by_group[:, :, None] * direction.to(by_group.dtype)).flatten(1)


def usual_size(divisors: Sequence[int]) -> int:
    """Return the default size of a sub-token, one of the divisors of a width."""
    large_enough = [size for size in divisors if size >= LEAST_SIZE] or divisors[-1:]
    return min(large_enough, key=lambda size: abs(divisors[-1] // size - USUAL_GROUPS))


class _Compressed(torch.autograd.Function):
    """F.linear that saves p, W and v for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, v: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(project(x, v), weight, v)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        projected, weight, v = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        flat, projected = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (grad_output, projected))
        grad_x = grad_output @ weight if needs_x else None
        grad_weight = weight_gradient(flat, projected, ctx.scale * v) if needs_weight else None
        return grad_x, grad_weight, flat.sum(0) if needs_bias else None, None, None


class VeLoRALinear(nn.Linear):
    """A layer with the same parameters as `linear`, whose weight gradient is `scale` times the projected one.

    The gradients of input and bias are exact. v has float32 at least, and is rounded to the dtype of the
    activations for use. It is zero until the first training batch sets it; then it never changes.
    """

    v: Tensor

    def __init__(self, linear: nn.Linear, groups: int, scale: float) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.groups, self.scale = groups, scale
        dtype = torch.promote_types(linear.weight.dtype, torch.float32)
        self.register_buffer("v", linear.weight.new_zeros(linear.in_features // groups, dtype=dtype))
        self.ready = False  # whether v is set; to ask v itself would stall a GPU in each forward pass
        self.rests = False  # whether a method freezes it for some updates, in which nothing is compressed
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return F.linear to the bit; UnsupportedError when a frozen weight is trained."""
        if not self._prepare(x, self.weight):
            return F.linear(x, self.weight, self.bias)
        return _Compressed.apply(x, self.weight, self.bias, self.v, self.scale)

    @torch.no_grad()
    def set_direction(self, vector: Tensor) -> None:
        """Set v to the direction of a vector (M); to equal entries where the vector is zero."""
        norm = torch.linalg.vector_norm(vector)
        self.v.copy_(torch.where(norm > 0, vector / norm, vector.numel() ** -0.5))
        self.ready = True

    def plain(self) -> nn.Linear:
        """Return the layer without compression."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight, linear.bias = self.dense_weight(), self.bias
        return linear.train(self.training)

    def dense_weight(self) -> Tensor:
        """Return the weight (out, D) of an equal linear layer."""
        return self.weight

    def _prepare(self, x: Tensor, trained: Tensor) -> bool:
        """Return whether this forward pass is one of training this layer; the first such sets v."""
        if not (self.training and torch.is_grad_enabled()):
            return False
        if not trained.requires_grad:
            if self.rests:
                return False
            raise UnsupportedError(
                "velora compresses the inputs of layers that train, and one of its layers is frozen; "
                "put it after the method that chooses what trains, e.g. [lora, velora]"
            )
        if not self.ready:
            total = x.detach().reshape(-1, self.v.numel()).sum(0, dtype=self.v.dtype)
            if distributed.is_available() and distributed.is_initialized():
                distributed.all_reduce(total)  # so that all processes have one v, that of their whole batch
            self.set_direction(total)
        return True

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if f"{prefix}v" in state_dict:
            self.ready = bool(state_dict[f"{prefix}v"].any())


class CoefficientLinear(VeLoRALinear):
    """y = W x + b + sqrt(scale) C p: W rests, and C (out, G), zero at first, trains. Its gradients are exact.

    That of C is sqrt(scale) gY^T p, so a step of SGD moves W + sqrt(scale) C (x) v just as the weight of a
    VeLoRALinear. W is a buffer, so that a method which makes all parameters trainable leaves it alone.
    """

    def __init__(self, linear: nn.Linear, groups: int, scale: float) -> None:
        super().__init__(linear, groups, scale)
        del self.weight
        self.register_buffer("weight", linear.weight.detach())
        self.coefficients = nn.Parameter(linear.weight.new_zeros(linear.out_features, groups))

    def forward(self, x: Tensor) -> Tensor:
        """Return y as above; UnsupportedError when frozen coefficients are trained."""
        self._prepare(x, self.coefficients)
        y = F.linear(x, self.weight, self.bias)
        return torch.add(y, F.linear(project(x, self.v), self.coefficients), alpha=self.scale**0.5)

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        """Return W + sqrt(scale) C (x) v, computed in at least float32."""
        exact = torch.promote_types(self.weight.dtype, torch.float32)
        change = self.coefficients.to(exact)[:, :, None] * (self.scale**0.5 * self.v.to(exact))
        return nn.Parameter((self.weight.to(exact) + change.flatten(1)).to(self.weight.dtype))
