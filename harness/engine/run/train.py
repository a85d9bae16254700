"""The training loop that all methods plug into.

An update is: set the learning rate, forward and backward for each micro-batch, step, free the
gradients. The first updates warm up, the next run under the memory meter, the rest are timed, but for one
just after a score of the model in training: no update is metered and timed at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from harness.config import TrainConfig
from harness.engine.contract import members
from harness.engine.data.windows import PAD, PAD_TOKEN
from harness.engine.measure.components import Components, components
from harness.engine.measure.lockstep import Turn
from harness.engine.measure.peak import Meter
from harness.engine.measure.speed import StepClock, Stopwatch
from harness.errors import DivergedError
from harness.method import StepInfo, Stepper
from harness.record import TrainMemory
from harness.schedule import lr_at
from harness.series import Series

WARMUP_STEPS = 2  # optimizer state is created at the end of the first update
METERED_STEPS = 3
#: Updates after a score in training that are not timed: caches and memory have held something else.
UNSTEADY_STEPS = 1
REPORTS = 20  # progress reports of a training; each reads the loss, which stalls a GPU
REPORT_S = 30.0  # at the latest after so many seconds: a loss that is not finite ends a long training soon

Progress = Callable[[dict[str, Any]], None]
T = TypeVar("T")


@dataclass
class MemoryWindow:
    """Peak and components over the metered updates (counted from 1); None before the first."""

    peak_bytes: int = 0
    first_step: int | None = None
    last_step: int | None = None
    refreshes: int = 0
    parts: Components | None = None

    def add(self, step: int, peak_bytes: int, parts: Components, refreshed: bool) -> None:
        """Add one metered update."""
        self.peak_bytes = max(self.peak_bytes, peak_bytes)
        self.first_step = self.first_step or step
        self.last_step = step
        self.refreshes += refreshed
        if self.parts is None or parts.resident_bytes > self.parts.resident_bytes:
            self.parts = parts

    def summary(self) -> TrainMemory | None:
        """Return the memory for a record, None without a metered update."""
        if self.parts is None or self.first_step is None or self.last_step is None:
            return None
        return TrainMemory(
            peak_allocated_bytes=self.peak_bytes,
            **vars(self.parts),
            transient_bytes=self.peak_bytes - self.parts.resident_bytes,
            window_first_step=self.first_step,
            window_last_step=self.last_step,
            refreshes_in_window=self.refreshes,
        )


@dataclass(frozen=True)
class Point:
    """Perplexity of the model by protocol after `step` updates and `trained_s` seconds of training."""

    step: int
    trained_s: float
    perplexity: dict[str, float]


@dataclass
class TrainResult:
    """The course of a training, filled as it goes on, so that a failed run keeps what it measured."""

    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)
    rank_moves: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    refreshes: int | None = None
    skipped: int | None = None
    memory: MemoryWindow = field(default_factory=MemoryWindow)
    step_s: Sequence[float] = ()
    refresh_step: Sequence[bool] = ()
    real_tokens: list[int] = field(default_factory=list)
    norm_steps: list[int] = field(default_factory=list)
    timed_steps: list[int] = field(default_factory=list)
    curve: list[Point] = field(default_factory=list)
    trained_s: float | None = None

    def series(self) -> Series:
        """Return what was measured by update, as far as there are losses: a failed run has begun another."""
        updates = len(self.loss)

        def column(steps: Sequence[int], values: Sequence[T]) -> list[T | None]:
            placed: list[T | None] = [None] * updates
            for step, value in zip(steps, values, strict=False):
                if step <= updates:
                    placed[step - 1] = value
            return placed if values else []

        moved = [step for step, _ in self.rank_moves]
        scored = [point.step for point in self.curve]
        read = [(point.step, point.trained_s) for point in self.curve]
        if self.curve and self.trained_s is not None:
            read.append((updates, self.trained_s))
        return Series(
            loss=self.loss,
            lr=self.lr[:updates],
            grad_norm=column(self.norm_steps, self.grad_norm),
            step_s=column(self.timed_steps, self.step_s),
            refresh_step=column(self.timed_steps, self.refresh_step),
            ranks=column(moved, [ranks for _, ranks in self.rank_moves]),
            trained_s=column([step for step, _ in read], [seconds for _, seconds in read]),
            perplexity=column(scored, [point.perplexity for point in self.curve]),
        )


class Trainer:
    """Trains a prepared model; `batches` yields (batch, seq_len) int64 arrays on the host.

    With `padded` they contain `PAD`, and the loss of an update is the mean over all tokens that its
    micro-batches predict.
    """

    def __init__(
        self,
        model: nn.Module,
        stepper: Stepper,
        batches: Iterator[np.ndarray],
        config: TrainConfig,
        *,
        device: torch.device,
        meter: Meter,
        clock: StepClock,
        period: int | None = None,
        padded: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model, self.stepper, self.batches, self.config = model, stepper, batches, config
        self.device, self.meter, self.clock, self.period = device, meter, clock, period
        self.padded, self.turn, self.stopwatch = padded, Turn(), Stopwatch(device)
        self.result = TrainResult()
        #: Updates done by an earlier process, and what those were each time that one went on.
        self.first, self.resumed = 0, list[int]()
        #: The shorter run that did the first updates, by its id.
        self.extends: str | None = None
        #: Whether the coming update will refresh.
        self.refresh_next = False
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        #: When progress was last reported, and after how many updates.
        self._now, self._reported_at, self._reported = now, now(), 0

    def run(self, progress: Progress, after: Callable[[int], None] = lambda step: None) -> TrainResult:
        """Do all updates that are left; raises DivergedError when the loss is no longer finite.

        `after` is called after each with the number of updates done.
        """
        self.model.train()
        every = max(1, self.config.steps // REPORTS)
        self.stopwatch.start()
        for step in range(self.first, self.config.steps):
            lr = lr_at(step, self.config)
            self.result.lr.append(lr)
            self.stepper.set_lr(lr)
            if step + 1 in self.config.refresh_at:
                self._request_refresh()
            if step >= WARMUP_STEPS + METERED_STEPS:
                self.turn.wait()
            if self._metered(step):
                self.read()  # so that losses that nobody has read yet, however many, are not counted
                info = self._metered_update(step)
            else:
                info = self._timed_update(step) if self._timed(step) else self._update()
            self._note(step, info)
            due = (step + 1) % every == 0 or step + 1 == self.config.steps
            if due or self._now() - self._reported_at >= REPORT_S:
                self._report(step + 1, progress)
            after(step + 1)
        if self.result.curve:
            self.result.trained_s = self.stopwatch.seconds()
        self.turn.end()
        return self.result

    def measure_memory(self, steps: int, warm: bool = False, refresh: bool = True) -> TrainResult:
        """Do some updates under the meter, without clock or losses; the first warms up unless `warm`.

        The last one refreshes if the stepper has refreshes, unless none is wanted.
        """
        self.model.train()
        for step in range(steps):
            self.stepper.set_lr(lr_at(step, self.config))
            if refresh and step + 1 == steps:
                self._request_refresh()
            self._note(step, self._metered_update(step) if step or warm else self._update())
            self._losses, self._norms = [], []  # not read
        return self.result

    def _request_refresh(self) -> None:
        """Make the coming update refresh; does nothing for a stepper without refreshes."""
        getattr(self.stepper, "refresh_soon", lambda: None)()

    def _metered(self, step: int) -> bool:
        """Return whether to meter an update: the first after warm-up, and the first refresh after those."""
        if step < WARMUP_STEPS + METERED_STEPS:
            return step >= WARMUP_STEPS
        return self._refreshes(step) and not self.result.memory.refreshes

    def _timed(self, step: int) -> bool:
        """Return whether to time an update: one after the warm-up, and not just after a score.

        A refresh is timed there, too: each comes after a score where both have one rhythm.
        """
        scored = self.result.curve[-1].step if self.result.curve else -UNSTEADY_STEPS
        steady = step >= scored + UNSTEADY_STEPS
        return step >= self.first + WARMUP_STEPS and (steady or self._refreshes(step))

    def _refreshes(self, step: int) -> bool:
        """Return whether an update is expected to refresh."""
        by_period = self.period is not None and step % self.period == 0
        return self.refresh_next or by_period or step + 1 in self.config.refresh_at

    def _metered_update(self, step: int) -> StepInfo:
        parts: list[Components] = []
        with self.meter.window() as window:
            info = self._update(
                lambda: parts.append(components(self.model, members.state_tensors(self.stepper)))
            )
        self.result.memory.add(step + 1, window.peak_allocated_bytes, parts[0], info.refreshed)
        return info

    def _timed_update(self, step: int) -> StepInfo:
        self.clock.start()
        info = self._update()
        self.clock.stop(info.refreshed)
        self.result.timed_steps.append(step + 1)
        return info

    def _update(self, before_step: Callable[[], None] | None = None) -> StepInfo:
        batches, predicted = self._ahead() if self.padded else (self.batches, None)
        total: Tensor | None = None
        for _ in range(self.config.grad_accum):
            ids = torch.from_numpy(next(batches)).to(self.device, copy=True)
            loss = self._loss(ids, predicted)
            loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        if before_step is not None:
            before_step()
        info = members.step(self.stepper)
        self.stepper.zero_grad()
        assert total is not None
        self._losses.append(total)
        return info

    def _loss(self, ids: Tensor, predicted: int | None) -> Tensor:
        """Return the share of a micro-batch in the loss of an update; equal shares without padding."""
        if predicted is None:
            loss: Tensor = self.model(input_ids=ids, labels=ids).loss
            return loss * (1 / self.config.grad_accum)
        read = torch.where(ids == PAD, PAD_TOKEN, ids)
        padded: Tensor = self.model(input_ids=read, labels=ids, num_items_in_batch=predicted).loss
        return padded

    def _ahead(self) -> tuple[Iterator[np.ndarray], int]:
        """Return the batches of an update and the tokens predicted: no padding, no first token of a row."""
        drawn = [next(self.batches) for _ in range(self.config.grad_accum)]
        self.result.real_tokens.append(sum(int((batch != PAD).sum()) for batch in drawn))
        return iter(drawn), max(1, sum(int((batch[:, 1:] != PAD).sum()) for batch in drawn))

    def _note(self, step: int, info: StepInfo) -> None:
        result = self.result
        if info.grad_norm is not None:
            self._norms.append(info.grad_norm)
            result.norm_steps.append(step + 1)
        if info.ranks:
            result.ranks |= info.ranks
            result.rank_moves.append((step + 1, dict(info.ranks)))
        if info.refreshes is not None:
            result.refreshes = (result.refreshes or 0) + info.refreshes
        if info.skipped is not None:
            result.skipped = (result.skipped or 0) + info.skipped
        self.refresh_next = info.refresh_next

    def _report(self, step: int, progress: Progress) -> None:
        self.read()
        new = self.result.loss[max(self._reported, self.first) :]
        self._reported, self._reported_at = step, self._now()
        progress(
            {
                **{"step": step, "steps": self.config.steps, "lr": self.result.lr[-1]},
                **{"loss": new[-1], "mean_loss": math.fsum(new) / len(new)},
            }
        )

    def read(self) -> None:
        """Read losses and times since the last call from the device; raise DivergedError if not finite."""
        self.result.step_s, self.result.refresh_step = self.clock.seconds(), self.clock.refreshed
        if not self._losses:
            return
        before, new = len(self.result.loss), torch.stack(self._losses).double().tolist()
        self.result.loss += new
        if self._norms:
            self.result.grad_norm += torch.stack(self._norms).double().tolist()
        self._losses, self._norms = [], []
        for index, loss in enumerate(new):
            if not math.isfinite(loss):
                at = before + index + 1
                raise DivergedError(f"the loss is {loss} at step {at} of {self.config.steps}")
