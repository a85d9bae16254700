"""The live meter against peaks computed by hand: exact to the byte."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.engine.measure.peak import LiveMeter, meter_for
from harness.errors import UserError

CPU = torch.device("cpu")


def peak_over_start(work: Callable[[], Any], granularity: int = 1) -> int:
    """Peak of `work` above what was alive before it, in bytes."""
    with LiveMeter(CPU, granularity).window() as window:
        before = window.peak_allocated_bytes
        work()
    return window.peak_allocated_bytes - before


def test_a_chain_of_operations_peaks_at_what_is_alive_together() -> None:
    x = torch.ones(1000)
    assert peak_over_start(lambda: x.exp().sum()) == 4000 + 4


def test_a_temporary_that_dies_makes_room_for_the_next() -> None:
    def work() -> None:
        for _ in range(5):
            torch.ones(1000)

    assert peak_over_start(work) == 4000


def test_two_temporaries_alive_together_add_up() -> None:
    x = torch.ones(1000)
    assert peak_over_start(lambda: (x + 1) * (x + 2)) == 3 * 4000


def test_tensors_made_before_the_window_count_from_the_start() -> None:
    with LiveMeter(CPU).window() as without:
        pass
    kept = torch.ones(1000, dtype=torch.float64)
    with LiveMeter(CPU).window() as window:
        pass
    assert window.peak_allocated_bytes - without.peak_allocated_bytes == kept.nbytes == 8000


def test_gradients_of_leaves_and_caches_hidden_in_objects_count_from_the_start() -> None:
    class Method:
        def __init__(self) -> None:
            self.cache = {"projector": [torch.ones(500)]}

    with LiveMeter(CPU).window() as without:
        pass
    method = Method()
    leaf = torch.ones(250, requires_grad=True)
    leaf.sum().backward()
    with LiveMeter(CPU).window() as window:
        pass
    assert window.peak_allocated_bytes - without.peak_allocated_bytes == 2000 + 1000 + 1000
    del method


def test_views_and_tied_weights_count_once() -> None:
    first, second = nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)
    second.weight = first.weight
    x = torch.ones(1000)
    assert peak_over_start(lambda: [x.view(10, 100), x[::2], x.T if x.ndim > 1 else x.detach()]) == 0
    with LiveMeter(CPU).window() as tied:
        pass
    del second
    with LiveMeter(CPU).window() as alone:
        pass
    assert tied.peak_allocated_bytes == alone.peak_allocated_bytes


def test_a_small_view_keeps_its_whole_storage_alive() -> None:
    def work() -> None:
        corner = torch.ones(1000)[:1]
        gc.collect()
        corner + torch.ones(1)

    assert peak_over_start(work) == 4000 + 4 + 4


def test_garbage_in_cycles_does_not_count_at_the_start() -> None:
    with LiveMeter(CPU).window() as without:
        pass
    gc.disable()
    try:
        cycle: list[Any] = [torch.ones(1000)]
        cycle.append(cycle)
        del cycle
        with LiveMeter(CPU).window() as window:
            pass
    finally:
        gc.enable()
    assert window.peak_allocated_bytes == without.peak_allocated_bytes


def test_the_window_leaves_the_collector_as_it_found_it() -> None:
    with LiveMeter(CPU).window():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_in_place_resize_is_seen() -> None:
    x = torch.ones(1000)
    assert peak_over_start(lambda: x.resize_(3000)) == 8000


def test_tensors_from_outside_count_once_an_operation_meets_them() -> None:
    def work() -> None:
        torch.from_numpy(np.ones(1000, dtype=np.float32)).sum()

    assert peak_over_start(work) == 4000 + 4


def test_a_storage_resized_without_an_operation_counts_when_an_operation_meets_it() -> None:
    x = torch.ones(1000)

    def work() -> None:
        x.untyped_storage().resize_(12_000)
        x.sum()

    assert peak_over_start(work) == 8000 + 4


def test_sparse_tensors_count_indices_and_values() -> None:
    def work() -> None:
        torch.ones(2, 3).to_sparse()

    # dense 24, then 6 values of 4 bytes and 2 x 6 indices of 8; the kernel shows its steps as operations
    assert peak_over_start(work) >= 24 + 24 + 96


def test_temporaries_inside_a_custom_backward_are_seen() -> None:
    class Wasteful(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.sum()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            big = torch.zeros(100_000)
            return big[:10] * grad

    x = torch.ones(10, requires_grad=True)
    # sum 4, its gradient 4, the temporary, its product with the gradient 40
    assert peak_over_start(lambda: Wasteful.apply(x).backward()) == 4 + 4 + 400_000 + 40


def test_recomputation_of_a_checkpoint_is_seen() -> None:
    x = torch.ones(1000, requires_grad=True)

    def block(y: Tensor) -> Tensor:
        return y.exp().exp().exp().exp().exp()

    def plain() -> None:
        block(block(x)).sum().backward()

    def checkpointed() -> None:
        middle = checkpoint(block, x, use_reentrant=False)
        checkpoint(block, middle, use_reentrant=False).sum().backward()

    # the loss and its gradient are 4 bytes each; the rest is results of exp and one gradient, 4000 each
    assert peak_over_start(plain) == (10 + 1) * 4000 + 8
    x.grad = None
    # the input of the second block, its five results again, and two gradients before the last result dies
    assert peak_over_start(checkpointed) == (1 + 5 + 2) * 4000 + 8


def test_a_hook_that_frees_gradients_keeps_one_gradient_alive_at_a_time() -> None:
    def run(free: bool) -> int:
        layers = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(8)])
        for parameter in layers.parameters():
            if free:
                parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        x = torch.ones(1, 64)
        return peak_over_start(lambda: layers(x).sum().backward())

    weight, activation, scalars = 64 * 64 * 4, 64 * 4, 2 * 4
    # all gradients at the end, with the last gradient of an activation; or one, when all activations live
    assert run(free=False) == 8 * weight + activation + scalars
    assert run(free=True) == weight + 7 * activation + activation + scalars


def test_memory_that_a_wrapper_subclass_uses_inside_itself_is_seen() -> None:
    packed = Packed(torch.ones(1000, dtype=torch.int8))
    # multiplying unpacks to float32 (4000), makes the product (4000) and packs it (1000)
    assert peak_over_start(lambda: packed * 2) == 4000 + 4000 + 1000


def test_granularity_rounds_every_storage_up() -> None:
    assert peak_over_start(lambda: torch.ones(1) + torch.ones(200), granularity=512) == 512 + 1024 + 1024


def test_the_peak_reads_during_the_window_and_after_an_exception() -> None:
    def broken() -> None:
        with LiveMeter(CPU).window() as window:
            windows.append((window, window.peak_allocated_bytes))
            torch.ones(1000)
            assert window.peak_allocated_bytes == windows[0][1] + 4000
            raise ValueError("as when memory runs out")

    windows: list[Any] = []
    with pytest.raises(ValueError, match="memory runs out"):
        broken()
    torch.ones(10_000)
    window, before = windows[0]
    assert window.peak_allocated_bytes == before + 4000


def test_windows_nest() -> None:
    meter = LiveMeter(CPU)
    with meter.window() as outer:
        before = outer.peak_allocated_bytes
        torch.ones(2000)
        with meter.window() as inner:
            torch.ones(1000)
    assert outer.peak_allocated_bytes == before + 8000
    assert inner.peak_allocated_bytes == before + 4000


def test_two_processes_measure_the_same_to_the_byte() -> None:
    program = """
        import torch
        from harness.engine.measure.peak import LiveMeter
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = torch.nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
        optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, foreach=True)
        peaks = []
        for _ in range(3):
            with LiveMeter(torch.device("cpu")).window() as window:
                model(torch.randn(2, 8, 32)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            peaks.append(window.peak_allocated_bytes)
        print(*peaks)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    first, second = (subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in "ab")
    assert first == second
    _, second_peak, third_peak = first.split()
    assert second_peak == third_peak


def test_there_is_no_meter_for_an_unknown_device() -> None:
    with pytest.raises(UserError, match="use cpu or cuda"):
        meter_for(torch.device("mps"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_cuda_meter_sees_a_temporary_and_nested_windows_keep_their_own_peaks() -> None:
    meter = meter_for(torch.device("cuda"))
    assert meter.name == "cuda"
    with meter.window() as outer:
        before = outer.peak_allocated_bytes
        torch.ones(1 << 20, device="cuda")
        with meter.window() as inner:
            torch.ones(1 << 18, device="cuda")
            assert inner.peak_allocated_bytes == before + (1 << 20)
    torch.ones(1 << 22, device="cuda")
    assert outer.peak_allocated_bytes == before + (1 << 22)
    assert inner.peak_allocated_bytes == before + (1 << 20)


class Packed(Tensor):
    """A tensor kept as int8 that computes in float32: what an 8-bit optimizer state looks like."""

    data8: Tensor

    @staticmethod
    def __new__(cls, data8: Tensor) -> Packed:
        tensor: Packed = Tensor._make_wrapper_subclass(cls, data8.shape, dtype=torch.float32)
        tensor.data8 = data8
        return tensor

    def __init__(self, data8: Tensor) -> None: ...

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["data8"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Packed:
        unpacked = [a.data8.float() if isinstance(a, Packed) else a for a in args]
        return Packed(func(*unpacked, **(kwargs or {})).to(torch.int8))
