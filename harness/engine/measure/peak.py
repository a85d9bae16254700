"""Meters of peak memory: the most bytes alive on a device within a window, by one of two meters.

`cuda` reads PyTorch's caching allocator. `live` counts the storages that are alive, operation by
operation: exact and repeatable to the byte on a CPU, but slow, so never time with it on. `live` does not see
what a kernel allocates and frees internally, nor a storage that only C++ holds when a window opens (an
autograd graph from before), until an operation touches it.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.engine.measure.storages import parts, tensors_alive, tensors_within
from harness.errors import UserError


@dataclass
class Window:
    """A time span; the peak is the absolute number of bytes alive on the device, readable at any time."""

    peak_allocated_bytes: int = 0


class Meter(Protocol):
    """Measures the peak memory of one device; windows of one meter may nest."""

    device: torch.device

    def window(self) -> AbstractContextManager[Window]:
        """Open a window; everything alive counts from its start, garbage does not."""


def meter_for(device: torch.device) -> CudaMeter | LiveMeter:
    """Return the meter of a device: `cuda` on a GPU, `live` on a CPU; UserError for any other."""
    if device.type == "cuda":
        return CudaMeter(device)
    if device.type == "cpu":
        return LiveMeter(device)
    raise UserError(f"no memory meter for device {str(device)!r}; use cpu or cuda")


# ------------------------------------------------------------------------------------------- cuda
class CudaMeter:
    """Reads `torch.cuda.max_memory_allocated`; one meter per device, since each window resets the counter."""

    def __init__(self, device: torch.device) -> None:
        self.name: Literal["cuda", "live"] = "cuda"
        self.device = device
        self._open: list[_CudaWindow] = []

    @contextmanager
    def window(self) -> Iterator[Window]:
        """Reset the allocator's peak; enclosing windows keep their own."""
        gc.collect()
        window = _CudaWindow(self._peak)
        self._carry()
        torch.cuda.reset_peak_memory_stats(self.device)
        self._open.append(window)
        try:
            yield window
        finally:
            self._carry()
            window.closed = True
            self._open.remove(window)

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)

    def _carry(self) -> None:
        for window in self._open:
            window.seen = max(window.seen, self._peak())


class _CudaWindow(Window):
    def __init__(self, peak: Callable[[], int]) -> None:
        self._peak, self.seen, self.closed = peak, 0, False

    @property
    def peak_allocated_bytes(self) -> int:  # type: ignore[override]
        return self.seen if self.closed else max(self.seen, self._peak())


# ------------------------------------------------------------------------------------------- live
class LiveMeter:
    """Counts live storages of one device; `granularity` rounds each up, 512 as CUDA's allocator does."""

    def __init__(self, device: torch.device, granularity: int = 1) -> None:
        self.name: Literal["cuda", "live"] = "live"
        self.device, self.granularity = device, granularity

    @contextmanager
    def window(self) -> Iterator[Window]:
        """Count within; the cycle collector is off, since it does not run at the same time in every run.

        A cycle that holds tensors therefore counts as alive until the window ends: no method can rely on the
        collector to free memory in time.
        """
        window = Window()
        gc.collect()
        collects = gc.isenabled()
        gc.disable()
        try:
            with LiveStorages(window, self.device, self.granularity) as storages:
                storages.enter_all(tensors_alive())
                yield window
        finally:
            if collects:
                gc.enable()


class LiveStorages(TorchDispatchMode):
    """Sees every operation (forward, backward, recomputation, hooks, optimizer) and sums the bytes alive.

    Memory grows only by an operation, so the sum after each one is enough to find the peak; a weak
    reference reports the release of a storage at once.
    """

    supports_higher_order_operators = True

    def __init__(self, window: Window, device: torch.device, granularity: int = 1) -> None:
        super().__init__()
        self.window, self.granularity = window, granularity
        self.device = torch.empty(0, device=device).device  # "cuda" means the current index
        self.total_bytes = 0
        self._live: dict[int, _Storage] = {}

    def counts(self, tensor: Tensor) -> bool:
        """Return whether to count a plain tensor; a simulation counts fake tensors alone."""
        return tensor.device == self.device

    def enter_all(self, tensors: Iterator[Tensor]) -> None:
        """Start to count these tensors."""
        for tensor in tensors:
            self._enter(tensor)
        self._mark()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            # A wrapper subclass unwraps itself first and then runs plain operations, which arrive here;
            # called from here, those would not be seen.
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        # Arguments count, too: they may come from outside (numpy, a file) or be resized in place.
        for tensor in tensors_within((result, args, kwargs)):
            self._enter(tensor)
        self._mark()
        return result

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._live.clear()  # drops the weak references, so no later release is reported

    def _enter(self, tensor: Tensor) -> None:
        try:
            for part in parts(tensor):
                if self.counts(part):
                    self._enter_storage(part.untyped_storage())
        except (NotImplementedError, RuntimeError, ValueError):
            return  # a tensor without storage: uninitialised, opaque, or a functorch wrapper around another

    def _enter_storage(self, storage: torch.UntypedStorage) -> None:
        size = -(-storage.nbytes() // self.granularity) * self.granularity
        key = storage._cdata
        known = self._live.get(key)
        if known is None:
            self._live[key] = _Storage(size, weakref.ref(storage, lambda _: self._leave(key)))
            self.total_bytes += size
        elif known.size_bytes != size:
            self.total_bytes += size - known.size_bytes
            known.size_bytes = size

    def _leave(self, key: int) -> None:
        self.total_bytes -= self._live.pop(key).size_bytes

    def _mark(self) -> None:
        if self.total_bytes > self.window.peak_allocated_bytes:
            self.window.peak_allocated_bytes = self.total_bytes


@dataclass(slots=True)
class _Storage:
    size_bytes: int
    reference: weakref.ref[torch.UntypedStorage]
