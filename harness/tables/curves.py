"""What a run scored while it trained: perplexity by protocol after how many tokens and seconds."""

from __future__ import annotations

from dataclasses import dataclass

from harness import series
from harness.record import Record


@dataclass(frozen=True)
class Reach:
    """After how many tokens and seconds of training something was reached."""

    tokens: int
    seconds: float


@dataclass(frozen=True)
class Curve:
    """The perplexity of one run by one protocol, in order of training, with the value at its end.

    `tokens` are places in batches, as throughput counts them. `seconds` are those of training alone, without
    scores and checkpoints.
    """

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    perplexity: tuple[float, ...]

    def reach(self, target: float) -> Reach | None:
        """Return when the perplexity was first seen at a target or below, None where it never was.

        Nothing is interpolated. Source: Dahl et al. 2023, Benchmarking Neural Network Training Algorithms
        (AlgoPerf, arXiv 2306.07179), whose runs are timed to the first evaluation at the target.
        """
        points = zip(self.tokens, self.seconds, self.perplexity, strict=True)
        return next((Reach(tokens, seconds) for tokens, seconds, value in points if value <= target), None)

    @property
    def lowest(self) -> float:
        """Return the lowest perplexity; infinite where none is a number."""
        return min((value for value in self.perplexity if value == value), default=float("inf"))


def curves(record: Record) -> dict[str, Curve]:
    """Return the curves of a run by protocol; empty where it was not scored in training.

    A run that failed has those up to its failure. UserError where the series cannot be read.
    """
    training, scores = record.training, series.scores(record)
    if training is None or not scores:
        return {}
    per_update = training.tokens // training.steps
    ends = record.quality.perplexity if record.quality else {}
    found: dict[str, list[tuple[int, float, float]]] = {}
    for score in scores:
        values = score.perplexity or {name: ends[name].perplexity for name in found if name in ends}
        for name, value in values.items():
            found.setdefault(name, []).append((score.step * per_update, score.trained_s, value))
    return {name: Curve(*zip(*points, strict=True)) for name, points in found.items()}
