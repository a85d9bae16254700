"""The live and the simulated meter against `torch.cuda.max_memory_allocated`, for every method and stack.

Both are within 2 % where no refresh falls into the watched updates. A refresh decomposes matrices, and the
library's workspace for that is seen by the allocator alone: there both may be up to 25 % too low.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from harness.engine.models import shapes
from tests.contract.test_methods import CASES
from tests.gpu.watching import NAME, SHAPE, run_of, watch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_three_rulers_see_the_same_peak(
    name: str,
    dtype: str,
    checkpointing: bool,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.setitem(shapes.SHAPES, NAME, SHAPE)
    run = run_of(CASES[name], dtype=dtype, activation_checkpointing=checkpointing)
    seen = watch(run, torch.device("cuda"))
    for key, value in vars(seen).items():
        record_property(key, value)
    assert not seen.complaints(), "; ".join(seen.complaints())
