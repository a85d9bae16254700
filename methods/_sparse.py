"""The product with a matrix W = s B A + S, S on a fixed support, and its gradients, without keeping W.

Shapes: W (out, in), B (out, rank), A (rank, in), x (tokens, in), y (tokens, out). A support is a sorted
list of distinct flat positions row * in + column. Two executions give the same result:

* `dense`: W is rebuilt and its gradient formed, as SLTrain's paper does it, here some rows at a time.
* `factored`: neither exists. y = s (x A^T) B^T + x S^T; dB = s dy^T (x A^T), dA = s (dy B)^T x, and dv is
  dy^T x at the support alone. Sparse products want the tokens of one feature side by side, so x and dy
  are turned over, some tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

#: Elements of the rows of W that are rebuilt at a time: 4 MiB in float32, small beside W and as fast.
BLOCK_ELEMENTS = 1 << 20
#: Tokens that are turned over at a time: their features still fit into the cache of a processor.
CHUNK_TOKENS = 256


class Block(NamedTuple):
    """Some rows of W: which, their share of the support, and its flat places within the block."""

    rows: slice
    share: slice
    places: Tensor


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
        """Whether positions can be read at once: not on an accelerator, nor where tensors are simulated."""
        return type(self.support) is Tensor and self.support.device.type == "cpu"

    def blocks(self) -> Iterator[Block]:
        """All rows in turn; all in one block where the support cannot be read, hence not be cut.

        So too in 16 bits, where sums over blocks would be rounded block by block.
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
            yield Block(slice(start, start + height), slice(first, last), places)

    def rows(self, block: Block) -> Tensor:
        """The rows of a block of W (rows, in)."""
        rows = torch.mm(self.b[block.rows], self.a).mul_(self.scale)
        rows.view(-1).index_add_(0, block.places, self.values[block.share])
        return rows

    def sparse(self) -> Tensor:
        """S in compressed rows (out, in), in at least float32: there are no kernels for 16 bits."""
        outputs, inputs = self.shape
        starts = torch.arange(outputs + 1, dtype=self.support.dtype, device=self.support.device) * inputs
        starts = torch.searchsorted(self.support, starts)
        return _compressed(starts, self.support % inputs, self.values, self.shape)

    def sparse_transposed(self) -> Tensor:
        """S^T in compressed rows (in, out), in at least float32."""
        outputs, inputs = self.shape
        columns, order = torch.sort(self.support % inputs, stable=True)
        rows = self.support.div(inputs, rounding_mode="floor")[order]
        starts = torch.arange(inputs + 1, dtype=columns.dtype, device=columns.device)
        return _compressed(torch.searchsorted(columns, starts), rows, self.values[order], (inputs, outputs))


def dense(x: Tensor, weight: Weight) -> Tensor:
    """y = x W^T by rows of W."""
    y = x.new_empty(len(x), weight.shape[0])
    for block in weight.blocks():
        torch.mm(x, weight.rows(block).t(), out=y[:, block.rows])
    return y


def dense_backward(x: Tensor, dy: Tensor, weight: Weight, wants_dx: bool) -> tuple[Tensor | None, ...]:
    """The gradients of x, B, A and the values, by rows of W and of its gradient."""
    dx = torch.zeros_like(x) if wants_dx else None
    db, da, dv = torch.empty_like(weight.b), torch.zeros_like(weight.a), torch.empty_like(weight.values)
    for block in weight.blocks():
        dy_rows = dy[:, block.rows]
        if dx is not None:
            dx.addmm_(dy_rows, weight.rows(block))  # not named: gone before its gradient is there
        dw = torch.mm(dy_rows.t(), x)
        torch.mm(dw, weight.a.t(), out=db[block.rows])
        da.addmm_(weight.b[block.rows].t(), dw, alpha=weight.scale)
        torch.index_select(dw.view(-1), 0, block.places, out=dv[block.share])
    return dx, db.mul_(weight.scale), da, dv


def factored(x: Tensor, weight: Weight) -> Tensor:
    """y = x W^T by the parts of W."""
    y, sparse = x.new_empty(len(x), weight.shape[0]), weight.sparse()
    for x_part, y_part in zip(x.split(CHUNK_TOKENS), y.split(CHUNK_TOKENS), strict=True):
        y_part.copy_(torch.mm(sparse, _turned(x_part)).t())
    return y.addmm_(x @ weight.a.t(), weight.b.t(), alpha=weight.scale)


def factored_backward(x: Tensor, dy: Tensor, weight: Weight, wants_dx: bool) -> tuple[Tensor | None, ...]:
    """The gradients of x, B, A and the values, by the parts of W."""
    dx = torch.empty_like(x) if wants_dx else None
    sparse, transposed = weight.sparse(), weight.sparse_transposed()
    dv = torch.zeros_like(sparse.values())
    for start in range(0, len(x), CHUNK_TOKENS):
        part = slice(start, start + CHUNK_TOKENS)
        dy_turned, x_turned = _turned(dy[part]), _turned(x[part])
        dv += torch.sparse.sampled_addmm(sparse, dy_turned, x_turned.t(), beta=0).values()
        if dx is not None:
            dx[part] = torch.mm(transposed, dy_turned).t()
    x_inner, dy_inner = x @ weight.a.t(), dy @ weight.b
    if dx is not None:
        dx.addmm_(dy_inner, weight.a, alpha=weight.scale)
    db, da = torch.mm(dy.t(), x_inner), torch.mm(dy_inner.t(), x)
    return dx, db.mul_(weight.scale), da.mul_(weight.scale), dv.to(weight.values.dtype)


def _turned(x: Tensor) -> Tensor:
    """A contiguous transpose, in at least float32."""
    return x.t().to(torch.promote_types(x.dtype, torch.float32)).contiguous()


def _compressed(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    return torch.sparse_csr_tensor(starts.int(), columns.int(), wide, shape, check_invariants=False)
