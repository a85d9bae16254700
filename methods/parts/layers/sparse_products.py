"""The product with a matrix W = s B A + S, S on a fixed support, and its gradients, without storing W.

Shapes: W (out, in), B (out, rank), A (rank, in), x (tokens, in), y (tokens, out). A support is a sorted
list of distinct flat positions row * in + column. Two executions give the same result:

* `dense`: W is rebuilt and its gradient formed, as SLTrain's paper does it, here some rows at a time.
* `factored`: neither exists. y = s (x A^T) B^T + x S^T, dx likewise; dB = s dy^T (x A^T), dA = s (dy B)^T x,
  dv is dy^T x at the support alone. Sparse products want the tokens of one feature side by side, so x
  and dy are turned over, some tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: Elements of the rows of W that are rebuilt at a time: 4 MiB in float32, small beside W and as fast.
BLOCK_ELEMENTS = 1 << 20
#: Tokens that are turned over at a time: their features still fit into the cache of a processor.
CHUNK_TOKENS = 256


@dataclass(frozen=True)
class Weight:
    """W = scale * b @ a, plus `values` at the positions `support`."""

    b: Tensor
    a: Tensor
    values: Tensor
    support: Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def readable(self) -> bool:
        """Whether positions can be read without delay: not on an accelerator, nor in a simulation."""
        return type(self.support) is Tensor and self.support.device.type == "cpu"

    def blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield blocks of rows of W, their share of the support and its flat places within them.

        All in one block where the support cannot be read, hence not be cut, and in 16 bits, where sums
        over blocks would be rounded block by block.
        """
        outputs, inputs = self.shape
        cut = self.readable and self.b.element_size() >= 4
        height = max(1, BLOCK_ELEMENTS // inputs) if cut else outputs
        starts = range(0, outputs, height)
        edges = [0, len(self.support)]
        if len(starts) > 1:
            inner = torch.tensor(starts[1:], dtype=self.support.dtype) * inputs
            edges[1:1] = torch.searchsorted(self.support, inner).tolist()
        for start, first, last in zip(starts, edges[:-1], edges[1:], strict=True):
            places = self.support[first:last] - start * inputs
            yield slice(start, start + height), slice(first, last), places

    def dense(self, rows: slice, share: slice, places: Tensor) -> Tensor:
        """Return a block of W (rows, in)."""
        block = torch.mm(self.b[rows], self.a).mul_(self.scale)
        block.view(-1).index_add_(0, places, self.values[share])
        return block

    def sparse(self) -> Tensor:
        """Return S in compressed rows (out, in), in at least float32: 16 bits have no kernels."""
        outputs, inputs = self.shape
        return _compressed(self.support, inputs, self.support % inputs, self.values, (outputs, inputs))

    def sparse_transposed(self) -> Tensor:
        """Return S^T in compressed rows (in, out), in at least float32."""
        outputs, inputs = self.shape
        columns, order = torch.sort(self.support % inputs, stable=True)
        rows = self.support.div(inputs, rounding_mode="floor")[order]
        return _compressed(columns, 1, rows, self.values[order], (inputs, outputs))


def dense(x: Tensor, weight: Weight) -> Tensor:
    """Return y = x W^T, computed by rows of W."""
    y = x.new_empty(len(x), weight.shape[0])
    for rows, share, places in weight.blocks():
        torch.mm(x, weight.dense(rows, share, places).t(), out=y[:, rows])
    return y


def dense_backward(x: Tensor, dy: Tensor, weight: Weight, wants_dx: bool) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, B, A and the values, computed by rows of W and of its gradient."""
    dx = torch.zeros_like(x) if wants_dx else None
    db, da, dv = torch.empty_like(weight.b), torch.zeros_like(weight.a), torch.empty_like(weight.values)
    for rows, share, places in weight.blocks():
        if dx is not None:
            dx.addmm_(dy[:, rows], weight.dense(rows, share, places))
        dw = torch.mm(dy[:, rows].t(), x)
        torch.mm(dw, weight.a.t(), out=db[rows])
        da.addmm_(weight.b[rows].t(), dw, alpha=weight.scale)
        torch.index_select(dw.view(-1), 0, places, out=dv[share])
    return dx, db.mul_(weight.scale), da, dv


def factored(x: Tensor, weight: Weight) -> Tensor:
    """Return y = x W^T, computed by the parts of W."""
    y = x.new_empty(len(x), weight.shape[0])
    sparse, b, a = weight.sparse(), _wide(weight.b), _wide(weight.a)
    for start in range(0, len(x), CHUNK_TOKENS):
        part = slice(start, start + CHUNK_TOKENS)
        x_turned = _wide(x[part]).t().contiguous()
        inner = torch.mm(a, x_turned).mul_(weight.scale)
        y[part] = torch.mm(b, inner).addmm_(sparse, x_turned).t()
    return y


def factored_backward(x: Tensor, dy: Tensor, weight: Weight, wants_dx: bool) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, B, A and the values, computed by the parts of W."""
    dx, dtype = torch.empty_like(x) if wants_dx else None, weight.values.dtype
    sparse, transposed, b, a = weight.sparse(), weight.sparse_transposed(), _wide(weight.b), _wide(weight.a)
    db, da, dv = torch.zeros_like(b), torch.zeros_like(a), torch.zeros_like(sparse.values())
    for start in range(0, len(x), CHUNK_TOKENS):
        part = slice(start, start + CHUNK_TOKENS)
        x_turned, dy_turned = (_wide(z[part]).t().contiguous() for z in (x, dy))
        dy_inner = torch.mm(b.t(), dy_turned).mul_(weight.scale)
        da.addmm_(dy_inner, x_turned.t())
        db.addmm_(dy_turned, torch.mm(a, x_turned).t(), alpha=weight.scale)
        dv += torch.sparse.sampled_addmm(sparse, dy_turned, x_turned.t(), beta=0).values()
        if dx is not None:
            dx[part] = torch.mm(a.t(), dy_inner).addmm_(transposed, dy_turned).t()
    return dx, db.to(dtype), da.to(dtype), dv.to(dtype)


def _wide(tensor: Tensor) -> Tensor:
    """Return the tensor in at least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _compressed(
    keys: Tensor, keys_per_row: int, columns: Tensor, values: Tensor, shape: tuple[int, int]
) -> Tensor:
    """Return a sparse matrix of entries in order: row r has those with keys from r * keys_per_row on."""
    firsts = torch.arange(shape[0] + 1, dtype=keys.dtype, device=keys.device) * keys_per_row
    starts = torch.searchsorted(keys, firsts).int()
    return torch.sparse_csr_tensor(starts, columns.int(), _wide(values), shape, check_invariants=False)
