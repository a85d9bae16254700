"""Throughput, the step clock and bytes by component against values known beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import pytest
import torch
from torch import Tensor, nn

from harness.engine.measure.components import components, host_rss_bytes, reserved_bytes
from harness.engine.measure.speed import StepClock, tokens_per_s
from harness.errors import UserError

CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------- time
def clock_over(durations: list[float], refreshed: list[bool], pause: float = 0.0) -> StepClock:
    """A clock that has seen steps of these durations, with a pause between them that is nobody's time."""
    moments = iter(accumulate([0.0, *(x for duration in durations for x in (duration, pause))]))
    clock = StepClock(CPU, now=lambda: next(moments))
    for fresh in refreshed:
        clock.start()
        clock.stop(fresh)
    return clock


def test_ten_steps_of_one_second_with_100_tokens_each_are_100_tokens_per_second() -> None:
    clock = clock_over([1.0] * 10, [False] * 10)
    assert list(clock.seconds()) == [1.0] * 10
    assert tokens_per_s(100, clock.seconds(), clock.refreshed, None) == 100.0


def test_time_between_steps_belongs_to_no_step() -> None:
    clock = clock_over([1.0, 2.0, 4.0], [False, True, False], pause=8.0)
    assert list(clock.seconds()) == [1.0, 2.0, 4.0]
    assert clock.refreshed == [False, True, False]


def test_each_step_is_read_once_however_often_seconds_are_asked_for() -> None:
    read: list[int] = []

    class Moment(float):
        def __sub__(self, other: float) -> float:
            read.append(int(self))
            return float(self) - other

    moments = iter(range(200))
    clock = StepClock(CPU, now=lambda: Moment(next(moments)))
    for step in range(100):
        clock.start()
        clock.stop(step % 10 == 0)
        if step % 3 == 0:
            assert len(clock.seconds()) == len(clock.refreshed) == step + 1
    assert list(clock.seconds()) == [1.0] * 100
    assert clock.refreshed == [step % 10 == 0 for step in range(100)]
    assert read == list(range(1, 200, 2))


def test_throughput_weighs_one_refresh_per_period() -> None:
    times, refreshed = [1.0, 5.0, 1.0, 1.0], [False, True, False, False]
    assert tokens_per_s(100, times, refreshed, 4) == pytest.approx(4 * 100 / (3 * 1 + 5))
    # four steps are enough for the honest figure of a long period
    assert tokens_per_s(100, times, refreshed, 200) == pytest.approx(200 * 100 / (199 * 1 + 5))


def test_throughput_takes_medians_so_one_slow_step_does_not_count() -> None:
    times, refreshed = [1.0, 1.0, 60.0, 3.0, 3.0, 90.0], [False] * 3 + [True] * 3
    assert tokens_per_s(10, times, refreshed, 2) == pytest.approx(2 * 10 / (1 + 3))


def test_throughput_without_a_period_weighs_refreshes_as_often_as_seen() -> None:
    assert tokens_per_s(100, [1.0, 1.0, 4.0], [False, False, True], None) == pytest.approx(300 / 6)


def test_a_refresh_in_every_step_needs_no_plain_step() -> None:
    assert tokens_per_s(100, [2.0, 2.0], [True, True], 1) == 50.0


@pytest.mark.parametrize(
    ("times", "refreshed", "period"),
    [([], [], None), ([], [], 10), ([1.0], [False], 10), ([1.0], [True], 10), ([1.0], [False], 1)],
)
def test_throughput_is_absent_when_a_needed_kind_of_step_was_not_timed(
    times: list[float], refreshed: list[bool], period: int | None
) -> None:
    assert tokens_per_s(100, times, refreshed, period) is None


def test_throughput_refuses_labels_that_do_not_match_the_steps() -> None:
    with pytest.raises(ValueError, match="zip"):
        tokens_per_s(100, [1.0, 1.0], [False], None)
    with pytest.raises(ValueError, match="at least one step"):
        tokens_per_s(100, [1.0], [False], 0)


def test_the_clock_refuses_unpaired_calls_and_unknown_devices() -> None:
    clock = StepClock(CPU)
    with pytest.raises(RuntimeError, match="start"):
        clock.stop(False)
    clock.start()
    with pytest.raises(RuntimeError, match="stop"):
        clock.start()
    with pytest.raises(UserError, match="cpu or cuda"):
        StepClock(torch.device("mps"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_clock_of_a_gpu_times_the_work_and_not_its_enqueueing() -> None:
    clock = StepClock(torch.device("cuda"))
    x = torch.ones(8192, 8192, device="cuda")
    for repeats in (1, 1, 20):
        clock.start()
        for _ in range(repeats):
            x @ x
        clock.stop(False)
    _, short, long = clock.seconds()
    assert 10 < long / short < 40


# ------------------------------------------------------------------------------------------- memory
class Tied(nn.Module):
    """10 x 10 embedding tied to the head, a frozen layer of 10 x 5 with bias, two buffers."""

    steps: Tensor
    scratch: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 10)
        self.head = nn.Linear(10, 10, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Linear(10, 5).requires_grad_(False)
        self.register_buffer("steps", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(7), persistent=False)


def test_components_have_their_exact_bytes() -> None:
    model = Tied()
    model.embed.weight.grad = torch.zeros(10, 10)
    state = [
        ("m", torch.zeros(10, 10)),
        ("v", torch.zeros(10, 10, dtype=torch.bfloat16)),
        ("t", torch.zeros(())),
    ]
    found = components(model, state)
    assert found.weights_trainable_bytes == 400  # the tied weight once
    assert found.weights_frozen_bytes == 50 * 4 + 5 * 4
    assert found.gradients_bytes == 400
    assert found.buffers_bytes == 3 * 8 + 7 * 4
    assert found.optimizer_bytes == 400 + 200 + 4
    assert found.resident_bytes == 400 + 220 + 400 + 52 + 604


def test_gradients_count_only_while_they_are_there() -> None:
    model = nn.Linear(10, 10, bias=False)
    assert components(model, []).gradients_bytes == 0
    model(torch.ones(1, 10)).sum().backward()
    assert components(model, []).gradients_bytes == 400


def test_state_that_shares_storage_with_a_parameter_or_itself_counts_once() -> None:
    model = nn.Linear(10, 10, bias=False)
    moment = torch.zeros(10, 10)

    def state() -> Iterator[tuple[str, Tensor]]:
        yield "master", model.weight.detach()
        yield "m", moment
        yield "m as a row", moment.view(-1)

    assert components(model, state()).optimizer_bytes == 400


def test_a_weight_that_is_a_view_counts_the_storage_it_keeps_alive() -> None:
    model = nn.Linear(10, 4, bias=False)
    model.weight = nn.Parameter(torch.zeros(10, 10)[:4])
    assert components(model, []).weights_trainable_bytes == 400


def test_state_on_another_device_is_no_memory_of_this_one() -> None:
    model = nn.Linear(10, 10, bias=False)
    assert components(model, [("offloaded", torch.zeros(10, device="meta"))]).optimizer_bytes == 0


def test_host_memory_is_read_and_a_cpu_has_no_caching_allocator() -> None:
    before = host_rss_bytes()
    block = torch.ones(64 << 20, dtype=torch.uint8)
    assert 32 << 20 <= host_rss_bytes() - before <= 256 << 20
    assert reserved_bytes(CPU) is None
    del block
