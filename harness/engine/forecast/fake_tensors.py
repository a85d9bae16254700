"""Tensors without values, on which real code runs by shapes alone, and the meter that counts them.

Inside `world()` every new tensor is fake: it has a shape, a dtype and a storage with a size, but no data,
so LLaMA-2 13B trains on a laptop. `SimulatedMeter` counts those storages as `live` counts real ones, and
groups them by purpose. Neither sees what a kernel allocates internally.
"""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from harness.engine.forecast.attribution import OTHER, Attribution
from harness.engine.forecast.fake_cache import CachedFakeTensorMode
from harness.engine.forecast.operations import OperationLog
from harness.engine.measure.peak import LiveStorages, Window
from harness.engine.measure.storages import parts
from harness.forecast import Part

#: What CUDA's caching allocator rounds every tensor up to, in bytes.
CUDA_GRANULARITY = 512
CPU, META = torch.device("cpu"), torch.device("meta")
_frozen = False


@contextmanager
def world(meter: SimulatedMeter) -> Iterator[None]:
    """Make every new tensor fake and count it with the meter.

    Real tensors as inputs are treated by shape. The cycle collector runs only at the start of a window, as
    with `live`, and ignores objects from before: all of them, or those that the process has frozen, which are
    most where it has frozen what it imported.
    """
    original, nn.Module._apply = nn.Module._apply, _apply  # type: ignore[method-assign]
    collects, frozen = gc.isenabled(), _has_frozen()
    gc.collect()
    if not frozen:
        gc.freeze()
    gc.disable()
    try:
        with warnings.catch_warnings(), CachedFakeTensorMode(), meter.storages:
            # torch reads it itself where a layer is copied.
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
            yield
    finally:
        nn.Module._apply = original  # type: ignore[method-assign]
        if not frozen:
            gc.unfreeze()
        if collects:
            gc.enable()


def _has_frozen() -> bool:
    """Return whether the process has frozen objects; they are counted one by one, so do not ask again."""
    global _frozen
    _frozen = _frozen or gc.get_freeze_count() > 0
    return _frozen


def _apply(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Stand in for `Module._apply` (`module.to()` and the like), which cannot swap fake parameters."""
    for child in module.children() if recurse else ():
        _apply(child, convert)
    with torch.no_grad():
        for name, parameter in module._parameters.items():
            if parameter is not None and (new := convert(parameter)) is not parameter:
                module._parameters[name] = nn.Parameter(new, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = convert(buffer)
    return module


@dataclass
class Moment(Window):
    """A window that also records its operations, its bytes at the peak by group and the peak of each part."""

    groups: dict[str, int] = field(default_factory=dict)
    part: Part = "forward"
    operation: str = ""
    part_peaks: dict[Part, int] = field(default_factory=dict)
    operations: OperationLog = field(default_factory=OperationLog)


class SimulatedMeter:
    """Peak bytes of fake tensors, each rounded up to `granularity`; windows do not nest."""

    def __init__(self, attribution: Attribution, granularity: int = CUDA_GRANULARITY) -> None:
        self.device, self.granularity = CPU, granularity
        self.storages = FakeStorages(attribution, granularity)
        self.moments: list[Moment] = []

    @contextmanager
    def window(self) -> Iterator[Window]:
        """Open a window; everything alive counts from its start, garbage does not."""
        gc.collect()
        self.moments.append(self.storages.begin())
        yield self.moments[-1]
        self.storages.begin()  # later operations belong to no window

    def count_operations(self, times: int) -> None:
        """From here on count each operation so often, until the next window."""
        self.storages.moment.operations.times = times


class FakeStorages(LiveStorages):
    """Counts fake tensors alone, from creation to release, and answers code that reads a value."""

    def __init__(self, attribution: Attribution, granularity: int) -> None:
        self.moment = Moment()
        super().__init__(self.moment, CPU, granularity)
        self.attribution = attribution
        self.groups: Counter[str] = Counter()
        self._group_of: dict[int, str] = {}
        self._part: Part = "forward"
        self._group, self._operation = OTHER, ""

    def begin(self) -> Moment:
        """Start to search for a new peak."""
        self.moment = self.window = Moment()
        self._mark()
        return self.moment

    def counts(self, tensor: Tensor) -> bool:
        """Count fake tensors alone: real ones are not part of the simulation."""
        return isinstance(tensor, FakeTensor)

    def label(self, tensors: Iterable[Tensor], group: str) -> None:
        """Move tensors to a group; until then they belong to the group of the place that created them."""
        for part in (part for tensor in tensors for part in parts(tensor)):
            key = part.untyped_storage()._cdata
            if self._group_of.get(key, group) != group:
                size = self._live[key].size_bytes
                self.groups[self._group_of[key]] -= size
                self.groups[group] += size
                self._group_of[key] = group

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.prim.device.default:  # more than half of all calls, and creates nothing
            tensor = args[0]
            return META if tensor.fake_mode.in_kernel_invocation else tensor.fake_device
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return _answer(args[0].dtype)
        self._part, self._group = self.attribution.here(func)
        self._operation = func.name()
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if result is not NotImplemented:  # a wrapper subclass does it by operations on its parts
            self.moment.operations.note(self._part, func, args, kwargs or {}, result)
        return result

    def _enter_storage(self, storage: torch.UntypedStorage) -> None:
        before, group = self.total_bytes, self._group_of.setdefault(storage._cdata, self._group)
        super()._enter_storage(storage)
        self.groups[group] += self.total_bytes - before

    def _leave(self, key: int) -> None:
        before = self.total_bytes
        super()._leave(key)
        self.groups[self._group_of.pop(key)] -= before - self.total_bytes

    def _mark(self) -> None:
        moment, total = self.moment, self.total_bytes
        if total > moment.part_peaks.get(self._part, 0):
            moment.part_peaks[self._part] = total
        if total > moment.peak_allocated_bytes:
            moment.part, moment.operation = self._part, self._operation
            moment.groups = dict(self.groups)
        super()._mark()


def _answer(dtype: torch.dtype) -> bool | float:
    """Return the value that code reads from a fake tensor: every number is 1, every condition true."""
    return True if dtype is torch.bool else 1.0 if dtype.is_floating_point else 1
