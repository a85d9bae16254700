"""Search for the largest batch or length whose simulated peak fits, with few simulations.

A simulation of a large model takes seconds, so each counts. Torch is imported only where a worker needs it.
"""

from __future__ import annotations

from collections.abc import Callable

from harness.config import ModelConfig, Run, ShapeModel
from harness.engine.models.shapes import known_shape, shape_of
from harness.forecast import LEAST, Capacity, Setting

BATCH_CEILING = 4096
LENGTH_CEILING = 1 << 20  # where a model's configuration names no context

Peak = Callable[[Run], int]


def value_of(run: Run, setting: Setting) -> int:
    """Return the value of a setting in a run."""
    return run.train.batch if setting == "batch" else run.data.seq_len


def with_value(run: Run, setting: Setting, value: int) -> Run:
    """Return the same run with another batch or length."""
    if setting == "batch":
        return run.model_copy(update={"train": run.train.model_copy(update={"batch": value})})
    return run.model_copy(update={"data": run.data.model_copy(update={"seq_len": value})})


def ceiling(run: Run, setting: Setting) -> tuple[int, str]:
    """Return the largest value to try, and the reason for that bound."""
    if setting == "batch":
        return BATCH_CEILING, "no larger batch is tried"
    context = context_of(run.model)
    if context is None:
        return LENGTH_CEILING, "no larger length is tried"
    return context, "the model's context"


def context_of(model: ModelConfig) -> int | None:
    """Return the number of positions of a model, None if it sets no limit."""
    model = known_shape(model)
    if isinstance(model, ShapeModel):
        return shape_of(model).context
    from harness.engine.models import load

    return load.context_of(load.architecture(model))


def largest(
    run: Run,
    setting: Setting,
    limit_bytes: int,
    peak: Peak,
    bound: tuple[int, str] | None = None,
    seen: dict[int, int] | None = None,
) -> Capacity:
    """Return the largest value of `setting` for which `peak(run)` is at most `limit_bytes`.

    Assumes that peaks never fall as batch or length grows. Starts at the run's own value, guesses by linear
    interpolation, and bisects where that does not help. The value found and the next one are always
    simulated, never only extrapolated. `seen` holds known peaks by value and is added to, so that several
    limits share simulations.
    """
    top, why = bound or ceiling(run, setting)
    none = LEAST[setting] - 1  # stands for: nothing fits
    seen = {} if seen is None else seen
    known = len(seen)
    low = max((value for value in seen if value <= top and seen[value] <= limit_bytes), default=none)
    high = min((value for value in seen if seen[value] > limit_bytes), default=top + 1)
    guesses = _Guesses(seen, limit_bytes, top, start=min(value_of(run, setting), top), none=none)
    while high - low > 1:
        value = guesses.next(low, high)
        seen[value] = peak(with_value(run, setting, value))
        low, high = (value, high) if seen[value] <= limit_bytes else (low, value)
    return Capacity(
        setting=setting,
        limit_bytes=limit_bytes,
        largest=low if low > none else 0,
        peak_bytes=seen.get(low),
        next_peak_bytes=seen[high] if high <= top else None,
        bound=None if high <= top else why,
        probes=len(seen) - known,
    )


class _Guesses:
    """Guesses between a value that fits and one that does not."""

    def __init__(self, seen: dict[int, int], limit: int, top: int, start: int, none: int) -> None:
        self._seen, self._limit, self._top, self._start, self._none = seen, limit, top, start, none
        self._stride = 0  # grows while lines fall short of the boundary
        self._width: int | None = None  # of the bracket before the last guess by a line

    def next(self, low: int, high: int) -> int:
        """Return a value between `low`, which fits or stands for nothing, and `high`, which does not fit."""
        if high > self._top:
            guess = self._beyond(low)
        elif low == self._none:
            guess = low + 1
        else:
            guess = self._between(low, high)
        return min(max(guess, low + 1), high - 1)

    def _beyond(self, low: int) -> int:
        """Extrapolate from the two largest values, or double: none is known yet that does not fit."""
        if low == self._none:
            return self._start
        below = max((value for value in self._seen if value < low), default=None)
        rise = 0 if below is None else self._seen[low] - self._seen[below]
        if below is None or rise <= 0:
            return 2 * low
        guess = low + (self._limit - self._seen[low]) * (low - below) // rise
        guess, self._stride = max(guess, low + self._stride), max(1, 2 * self._stride)
        return guess

    def _between(self, low: int, high: int) -> int:
        """Interpolate between both ends; bisect if the last interpolation did not halve the bracket."""
        width = high - low
        if self._width is not None and 2 * width > self._width:
            self._width = None
            return (low + high) // 2
        self._width = width
        return low + (self._limit - self._seen[low]) * width // (self._seen[high] - self._seen[low])
