"""The rulers of time and of memory by component; the meters of peak memory are in `meters.py`.

Nothing here decides when to measure: the training loop does, and the worker keeps the phases.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from harness.engine.storages import parts
from harness.errors import UserError
from harness.factored import FactoredLinear


# ------------------------------------------------------------------------------- memory by component
@dataclass(frozen=True)
class Components:
    """Bytes that stay between two steps, each storage counted once."""

    weights_trainable_bytes: int
    weights_frozen_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    buffers_bytes: int

    @property
    def resident_bytes(self) -> int:
        """The sum of all components; a peak minus this is transient."""
        return (
            self.weights_trainable_bytes
            + self.weights_frozen_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.buffers_bytes
        )


def components(model: nn.Module, state: Iterable[tuple[str, Tensor]]) -> Components:
    """Split what a model and its optimizer hold right now into components.

    A storage belongs to the first of: trainable weights, frozen weights, gradients, buffers, optimizer
    `state`. So tied weights count once, and so does a state tensor that shares its storage with a
    parameter; a small view of a big storage counts as the storage that it keeps alive. Only storages
    on a device of the model's parameters count: state kept elsewhere is no memory of that device.
    """
    parameters = list(model.parameters())
    devices = {parameter.device for parameter in parameters}
    seen: set[int] = set()

    def fresh_bytes(tensors: Iterable[Tensor]) -> int:
        total = 0
        for part in (part for tensor in tensors for part in parts(tensor)):
            storage = part.untyped_storage()
            if part.device in devices and storage._cdata not in seen:
                seen.add(storage._cdata)
                total += storage.nbytes()
        return total

    return Components(
        weights_trainable_bytes=fresh_bytes(p for p in parameters if p.requires_grad),
        weights_frozen_bytes=fresh_bytes(p for p in parameters if not p.requires_grad),
        gradients_bytes=fresh_bytes(p.grad for p in parameters if p.grad is not None),
        buffers_bytes=fresh_bytes(model.buffers()),
        optimizer_bytes=fresh_bytes(tensor for _, tensor in state),
    )


def host_rss_bytes() -> int:
    """Resident memory of this process now."""
    return psutil.Process().memory_info().rss


def requested_bytes(device: torch.device) -> int | None:
    """The most that tensors asked for since the peak was reset; None on a device without such a count.

    Allocated bytes are more: CUDA's caching allocator counts the whole block that it hands out, which may
    be up to 1 MiB longer than what was asked for.
    """
    return torch.cuda.memory_stats(device)["requested_bytes.all.peak"] if device.type == "cuda" else None


def reserved_bytes(device: torch.device) -> int | None:
    """The most that the caching allocator held since its peak was reset; None on a device without one."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


# ------------------------------------------------------------------------------------------- time
class StepClock:
    """Times steps: by events in the stream of a GPU, by a monotonic clock on a CPU; one clock per training.

    On a GPU `start` and `stop` only enqueue a mark, so timing does not stall the device.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        if device.type not in ("cpu", "cuda"):
            raise UserError(f"no clock for device {str(device)!r}; use cpu or cuda")
        self.refreshed: list[bool] = []
        self._device, self._now = device, now
        self._started: Any = None
        self._marks: list[tuple[Any, Any]] = []

    def start(self) -> None:
        """Begin a step."""
        if self._started is not None:
            raise RuntimeError("the clock runs already; call stop() first")
        self._started = self._mark()

    def stop(self, refreshed: bool) -> None:
        """End the step that was started; `refreshed` labels it."""
        if self._started is None:
            raise RuntimeError("the clock does not run; call start() first")
        self._marks.append((self._started, self._mark()))
        self._started = None
        self.refreshed.append(refreshed)

    def seconds(self) -> list[float]:
        """The time of every step in order; waits for the device once."""
        if self._device.type == "cpu":
            return [stop - start for start, stop in self._marks]
        torch.cuda.synchronize(self._device)
        return [start.elapsed_time(stop) / 1000.0 for start, stop in self._marks]

    def _mark(self) -> Any:
        if self._device.type == "cpu":
            return self._now()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def tokens_per_s(
    tokens_per_step: int, step_s: Sequence[float], refreshed: Sequence[bool], period: int | None
) -> float | None:
    """Throughput over one whole period T: T tokens / ((T - 1) median(plain) + median(refresh)).

    So 60 timed steps give the honest figure for T = 200. Without a period the refreshes count as
    often as they were seen. None where a needed kind of step was not timed: plain steps alone would
    flatter a method with refreshes.
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


# ---------------------------------------------------------------------------- model FLOPs utilisation
#: Peak of dense bfloat16 matrix products in FLOP/s, by the name that torch gives to a whole device. NVIDIA's
#: data sheets of H200 and H100 (with sparsity, which doubles the figure: 1,979 and 1,513 TFLOPS), A100 (312).
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
    """Peak FLOP/s of a device by name; None where not listed (a CPU, a share of a GPU) or not bfloat16."""
    return PEAK_FLOPS.get(device) if dtype == "bfloat16" else None


def flops_per_token(model: nn.Module, length: int) -> float:
    """FLOPs per token of training the dense architecture of a causal LM in full, on sequences of `length`.

    6 N + 12 L H Q T: N weights of linear layers, the head included and the embedding not (it is looked up), L
    layers of H heads of width Q, T = `length` (Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
    A factored layer counts as the dense one that it stands for. Recomputation does not count, nor does it
    matter what is trained: methods that save work reach higher figures.
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
    """Model FLOPs utilisation: the share of the peak FLOP/s that the model's own arithmetic takes."""
    return tokens_per_s * flops / peak if tokens_per_s is not None and peak is not None else None
