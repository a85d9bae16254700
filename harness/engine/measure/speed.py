"""Measure speed: a clock for steps, tokens per second over a refresh period, model FLOPs utilisation."""

from __future__ import annotations

import statistics
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from harness.errors import UserError
from harness.factored import FactoredLinear


class StepClock:
    """Times the steps of one training: by events in the stream of a GPU, by a monotonic clock on a CPU.

    On a GPU `start` and `stop` only enqueue an event, so timing does not stall the device. `refreshed` has
    the label of each step that `seconds` has read.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        if device.type not in ("cpu", "cuda"):
            raise UserError(f"no clock for device {str(device)!r}; use cpu or cuda")
        self.refreshed: list[bool] = []
        self._device, self._now = device, now
        self._started: Any = None
        self._marks: list[tuple[Any, Any, bool]] = []
        self._seconds = array("d")

    def start(self) -> None:
        """Begin a step."""
        if self._started is not None:
            raise RuntimeError("the clock runs already; call stop() first")
        self._started = self._mark()

    def stop(self, refreshed: bool) -> None:
        """End the current step; `refreshed` labels it."""
        if self._started is None:
            raise RuntimeError("the clock does not run; call start() first")
        self._marks.append((self._started, self._mark(), refreshed))
        self._started = None

    def seconds(self) -> Sequence[float]:
        """Return the seconds of every step in order; waits for the device once.

        Reads only the steps since the last call, and adds them to what that one returned.
        """
        marks, self._marks = self._marks, []
        if self._device.type == "cpu":
            self._seconds.extend(stop - start for start, stop, _ in marks)
        else:
            torch.cuda.synchronize(self._device)
            self._seconds.extend(start.elapsed_time(stop) / 1000.0 for start, stop, _ in marks)
        self.refreshed.extend(refreshed for *_, refreshed in marks)
        return self._seconds

    def take(self, seconds: Sequence[float], refreshed: Sequence[bool]) -> None:
        """Continue the times of an earlier clock."""
        self._seconds, self.refreshed = array("d", seconds), list(refreshed)

    def _mark(self) -> Any:
        if self._device.type == "cpu":
            return self._now()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


class Stopwatch:
    """Counts the seconds of a training, without what is done in its middle; it may be read at any time."""

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self._device, self._now = device, now
        self._before = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Go on counting."""
        self._since = self._now()

    def seconds(self) -> float:
        """Return the seconds so far; waits for the device."""
        if self._since is None:
            return self._before
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._before + self._now() - self._since

    def take(self, seconds: float) -> None:
        """Continue the count of an earlier stopwatch."""
        self._before = seconds

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leave out a block; what the device has still to do before it counts."""
        self._before, running = self.seconds(), self._since is not None
        self._since = None
        try:
            yield
        finally:
            if running:
                self.start()


def tokens_per_s(
    tokens_per_step: int, step_s: Sequence[float], refreshed: Sequence[bool], period: int | None
) -> float | None:
    """Return throughput over one whole period T: T tokens / ((T - 1) median(plain) + median(refresh)).

    So 60 timed steps give a fair value for T = 200. Without a period refreshes count as often as they
    occurred. None if a required kind of step was not timed: plain steps alone would flatter a method with
    refreshes.
    """
    if period is not None and period < 1:
        raise ValueError(f"a period is at least one step, given {period}")
    plain = [seconds for seconds, fresh in zip(step_s, refreshed, strict=True) if not fresh]
    refresh = [seconds for seconds, fresh in zip(step_s, refreshed, strict=True) if fresh]
    if period is not None:
        plain_steps, refresh_steps = period - 1, 1
    else:
        plain_steps, refresh_steps = len(plain), len(refresh)
    if not step_s or (plain_steps and not plain) or (refresh_steps and not refresh):
        return None
    seconds = (plain_steps * statistics.median(plain) if plain_steps else 0.0) + (
        refresh_steps * statistics.median(refresh) if refresh_steps else 0.0
    )
    return (plain_steps + refresh_steps) * tokens_per_step / seconds if seconds > 0 else None


#: Peak of dense bfloat16 matrix products in FLOP/s, by the name that torch gives to a whole device. NVIDIA's
#: data sheets of H200 and H100 (with sparsity, which doubles the value: 1,979 and 1,513 TFLOPS), A100 (312).
PEAK_FLOPS = {
    "NVIDIA H200": 1979e12 / 2,
    "NVIDIA H100 80GB HBM3": 1979e12 / 2,
    "NVIDIA H100 PCIe": 1513e12 / 2,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
}


def peak_flops(device: str, dtype: str) -> float | None:
    """Return the peak FLOP/s of a device by name; None if not listed (CPU, part of a GPU) or not bfloat16."""
    return PEAK_FLOPS.get(device) if dtype == "bfloat16" else None


def flops_per_token(model: nn.Module, length: int) -> float:
    """Return the FLOPs per token of full training of a dense causal LM on sequences of `length`.

    6 N + 12 L H Q T: N weights of linear layers, the head included and the embedding not (it is looked up), L
    layers of H heads of width Q, T = `length` (Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
    A factored layer counts as the dense one that it replaces. Neither recomputation nor the number of trained
    parameters counts: methods that save work reach higher values.
    """
    factored = [module for module in model.modules() if isinstance(module, FactoredLinear)]
    factors = {id(factor) for layer in factored for factor in (layer.down, layer.up)}
    dense = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m) not in factors]
    weights = sum(layer.in_features * layer.out_features for layer in dense)
    weights += sum(layer.in_features * layer.out_features for layer in factored)
    config: Any = model.config
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 6.0 * weights + 12.0 * config.num_hidden_layers * heads * width * length


def utilisation(tokens_per_s: float | None, flops: float, peak: float | None) -> float | None:
    """Return model FLOPs utilisation: the share of the peak FLOP/s spent on the model's own arithmetic."""
    return tokens_per_s * flops / peak if tokens_per_s is not None and peak is not None else None
