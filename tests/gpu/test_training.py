"""What training promises, on a GPU: precision of states, fused updates, freed gradients, equal bits, time."""

from __future__ import annotations

import pytest
import torch

from harness.config import OptimConfig
from harness.engine.models import shapes
from tests.contract.test_methods import CASES, Case
from tests.gpu.promises import (
    clock_against_wall,
    equal_twice,
    fused_devices,
    gradients_after_backward,
    peak_per_layer_and_not,
    state_dtypes,
)
from tests.gpu.watching import NAME, SHAPE

CUDA = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(("bits", "dtype"), [(32, torch.float32), (16, torch.bfloat16), (8, torch.uint8)])
@pytest.mark.parametrize("model", ["float32", "bfloat16"])
def test_states_have_the_precision_that_was_asked_for_and_are_on_the_gpu(
    bits: int, dtype: torch.dtype, model: str
) -> None:
    optim = OptimConfig.model_validate({"state_bits": bits})
    assert state_dtypes(Case([("full", {})], optim), model, CUDA) == {("cuda", dtype)}


@pytest.mark.parametrize("model", ["float32", "bfloat16"])
def test_states_have_the_dtype_of_the_model_where_nothing_is_asked_for(model: str) -> None:
    assert state_dtypes(Case([("full", {})]), model, CUDA) == {("cuda", getattr(torch, model))}


#: Stacks that AdamW trains in the precision of the model.
OF_ADAMW = [name for name, case in CASES.items() if case.optim.state_bits is None and "optim" not in name]


@pytest.mark.parametrize("name", OF_ADAMW)
def test_updates_run_in_the_fused_kernel_of_the_gpu(name: str) -> None:
    assert fused_devices(CASES[name], CUDA) == {"cuda"}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.optim.per_layer])
def test_per_layer_updates_leave_no_gradient_behind(name: str) -> None:
    assert gradients_after_backward(CASES[name], CUDA) == []


def test_per_layer_updates_save_most_of_the_gradients_at_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, NAME, SHAPE)
    per_layer, plain, gradients = peak_per_layer_and_not(CUDA, shape=NAME, length=32, batch=2)
    assert plain - per_layer > 0.5 * gradients


@pytest.mark.parametrize("name", CASES)
def test_two_runs_are_equal_to_the_bit_with_deterministic_kernels(name: str) -> None:
    try:
        assert equal_twice(CASES[name], CUDA)
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        pytest.skip(f"torch has no deterministic kernel for a part of it: {str(error).splitlines()[0]}")


def test_the_clock_of_events_agrees_with_the_clock_on_the_wall() -> None:
    by_events, by_wall = clock_against_wall(CUDA)
    assert by_events == pytest.approx(by_wall, rel=0.05)
