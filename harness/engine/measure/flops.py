"""Count the floating-point operations of an operator of torch by the shapes of its arguments.

They are those of `torch.utils.flop_counter`, where a multiplication with an addition counts two, and formulas
for what it leaves out. Where only memory limits an operator, the count is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from harness.devices import Decomposition

aten = torch.ops.aten


def flops_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    """Return the floating-point operations of one call that returned `result`."""
    packet = func._overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=result))
    formula = FORMULAS.get(packet)
    return 0 if formula is None else formula(*args, **kwargs)


def decomposition_flops(kind: Decomposition, rows: int, columns: int) -> float:
    """Return the floating-point operations of one decomposition with its vectors.

    Golub and Van Loan, Matrix Computations, 4th edition: `svd` by QR and bidiagonalisation, figure 8.6.1;
    `eigh` section 8.3.5; `qr` by Householder with the first columns of Q, section 5.2.2.
    """
    m, n = max(rows, columns), min(rows, columns)
    if kind == "svd":
        return 6 * m * n * n + 20 * n**3
    return 9 * n**3 if kind == "eigh" else 4 * m * n * n - 4 * n**3 / 3


def _decomposition(kind: Decomposition) -> Callable[..., int]:
    def count(matrix: Tensor, *_: Any, **__: Any) -> int:
        *batch, rows, columns = matrix.shape
        return round(prod(batch) * decomposition_flops(kind, rows, columns))

    return count


def _matrix_vector(matrix: Tensor, vector: Tensor, *_: Any, **__: Any) -> int:
    return 2 * matrix.numel()


def _added_matrix_vector(_: Tensor, matrix: Tensor, *__: Any, **___: Any) -> int:
    return 2 * matrix.numel()


def _added_product(_: Tensor, left: Tensor, right: Tensor, *__: Any, **___: Any) -> int:
    return 2 * left.numel() * right.shape[-1]


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape))


#: Formulas by the arguments of an operator, for those that torch has none for.
FORMULAS: dict[Any, Callable[..., int]] = {
    aten.mv: _matrix_vector,
    aten.addmv: _added_matrix_vector,
    aten.addmm_: _added_product,
    aten.baddbmm_: _added_product,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten._linalg_svd: _decomposition("svd"),
    aten._linalg_eigh: _decomposition("eigh"),
    aten.linalg_qr: _decomposition("qr"),
}
