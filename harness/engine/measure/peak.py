"""The memory meters: peak bytes alive on a device within a window, by one of two named rulers.

`cuda` asks PyTorch's caching allocator. `live` counts the storages that are alive, operation by
operation: exact and repeatable to the byte on a CPU, but slow, so never time with it on. What a
kernel allocates and frees inside itself is invisible to `live`, and so is a storage that only C++
holds when a window opens (an autograd graph kept from before), until an operation touches it.
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
    """A stretch of time; the peak is absolute bytes alive on the device, readable during and after."""

    peak_allocated_bytes: int = 0


class Meter(Protocol):
    """A ruler of the memory of one device; windows of one meter may nest."""

    device: torch.device

    def window(self) -> AbstractContextManager[Window]:
        """Open a window: all that is alive now counts from the start, garbage does not."""


def meter_for(device: torch.device) -> CudaMeter | LiveMeter:
    """The meter of a device: `cuda` on a GPU, `live` on a CPU; UserError for any other."""
    if device.type == "cuda":
        return CudaMeter(device)
    if device.type == "cpu":
        return LiveMeter(device)
    raise UserError(f"no memory meter for device {str(device)!r}; use cpu or cuda")


# ------------------------------------------------------------------------------------------- cuda
class CudaMeter:
    """`torch.cuda.max_memory_allocated`; use one meter per device, since each window resets the counter."""

    def __init__(self, device: torch.device) -> None:
        self.name: Literal["cuda", "live"] = "cuda"
        self.device = device
        self._open: list[_CudaWindow] = []

    @contextmanager
    def window(self) -> Iterator[Window]:
        """Reset the allocator's peak; enclosing windows keep what they have seen."""
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
        """Count within; the cycle collector rests, since its moments are not the same in every run.

        A cycle that holds tensors therefore counts as alive until the window ends, as it may in any
        run: no method can rely on the collector to free memory in time.
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
    """Sees every operation (forward, backward, recomputation, hooks, optimizer) and keeps the sum of bytes.

    Memory grows only by an operation, so the sum after each one is enough to find the peak; a
    storage's death is told by a weak reference at the moment it happens.
    """

    supports_higher_order_operators = True

    def __init__(self, window: Window, device: torch.device, granularity: int = 1) -> None:
        super().__init__()
        self.window, self.granularity = window, granularity
        self.device = torch.empty(0, device=device).device  # "cuda" means the current index
        self.total_bytes = 0
        self._live: dict[int, _Storage] = {}

    def counts(self, tensor: Tensor) -> bool:
        """Whether a plain tensor is one of ours; a simulation may count fake tensors alone."""
        return tensor.device == self.device

    def enter_all(self, tensors: Iterator[Tensor]) -> None:
        """Count these tensors as alive from now on."""
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
            # A wrapper unwraps itself first and then runs plain operations, which come back here;
            # run from here, those would be out of sight.
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        # Arguments are looked at too: they may come from outside (numpy, a file) or be resized in place.
        for tensor in tensors_within((result, args, kwargs)):
            self._enter(tensor)
        self._mark()
        return result

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._live.clear()  # drops the weak references, so no later death is told

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
