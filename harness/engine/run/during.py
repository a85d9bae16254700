"""Score the model in the middle of its training, every so many updates, without a trace in the training.

What training needs next is as if nothing had been scored: weights, random numbers, modes, gradients, text.
The time counts as evaluation, and the memory, too. Methods that keep a form to train are scored in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from harness.config import EvaluateConfig
from harness.engine.quality import perplexity
from harness.engine.quality.perplexity import Scored
from harness.engine.quality.scored_text import ScoredText
from harness.engine.run import randomness
from harness.engine.run.train import Point, Trainer

if TYPE_CHECKING:
    from harness.engine.run.record_writer import RecordWriter


class Scores:
    """The scores of one training; the record and the parent are told.

    `peak` takes the bytes of the peak of each. A score is given up where `stopped` says so, at the next
    batch: then the process that goes on from there makes it.
    """

    def __init__(
        self,
        evaluate: EvaluateConfig,
        texts: Mapping[str, ScoredText],
        trainer: Trainer,
        writer: RecordWriter,
        peak: Callable[[int], None],
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        during = evaluate.during
        self.every = during.every if during is not None else 0
        self.texts = {name: texts[name] for name in evaluate.in_training}
        self.batch, self.trainer, self.writer = evaluate.batch, trainer, writer
        self._peak, self._stopped = peak, stopped

    def due(self, step: int) -> bool:
        """Return whether to score the model after `step` updates: not after none, nor after the last."""
        if not self.texts or step % self.every or not 0 < step < self.trainer.config.steps:
            return False
        curve = self.trainer.result.curve
        return not curve or curve[-1].step < step

    def after(self, step: int) -> None:
        """Score the model after `step` updates if that is due."""
        if not self.due(step):
            return
        trainer = self.trainer
        trainer.read()  # a loss that is not finite has ended the training
        try:
            with trainer.stopwatch.stopped(), self.writer.scoring():
                point = Point(step, trainer.stopwatch.seconds(), self._scored(step))
        except _StoppedError:
            return
        trainer.result.curve.append(point)
        self._notify(step, perplexity=point.perplexity)

    def _scored(self, step: int) -> dict[str, float]:
        found = {}
        for name, text in self.texts.items():
            self._notify(step, task=name)
            with self.trainer.meter.window() as window, _given_up(self.trainer.model, self._stopped):
                scored = score(self.trainer.model, text.sequences, self.batch, self.trainer.device)
            self._peak(window.peak_allocated_bytes)
            found[name] = text.perplexity(scored)
        return found

    def _notify(self, step: int, **event: Any) -> None:
        self.writer.notify(step=step, steps=self.trainer.config.steps, **event)


def score(
    model: nn.Module, sequences: Sequence[np.ndarray | list[int]], batch: int, device: torch.device
) -> Scored:
    """Score sequences by a model in training, and leave the random numbers and modes as they were."""
    with randomness.kept(device):
        return perplexity.score(model, sequences, batch, device)


class _StoppedError(Exception):
    """The process shall end before a score is complete."""


@contextmanager
def _given_up(model: nn.Module, stopped: Callable[[], bool]) -> Iterator[None]:
    """Raise _StoppedError before the next batch once the process shall end."""

    def look(*_: Any) -> None:
        if stopped():
            raise _StoppedError

    hook = model.register_forward_pre_hook(look, prepend=True)
    try:
        yield
    finally:
        hook.remove()
