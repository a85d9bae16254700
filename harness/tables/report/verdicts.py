"""Judge each row: is it better or worse than the baseline, and worse than a model that was not trained?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.record import Perplexity
from harness.tables import statistics
from harness.tables.aggregate import FACTS, Row, baseline_of, mean, methods
from harness.tables.format import DASH, plain
from harness.tables.statistics import LEAST_PERPLEXITY_CHANGE, LEAST_SEEDS, Interval

BETTER, WORSE, SAME = "better", "worse", "no difference seen"
FEW, DIVERGED, BASE_DIVERGED, BASELINE = "too few seeds", "diverged", "baseline diverged", "baseline"
#: What is said of rows, in this order.
KINDS = (BETTER, WORSE, SAME, FEW, DIVERGED, BASE_DIVERGED)
PERPLEXITY = "perplexity_"


@dataclass(frozen=True)
class Verdict:
    """A row against the baseline over `n` seeds that both have finished.

    `interval` is the relative change of perplexity, None below `LEAST_SEEDS`. `kind` is None where nothing
    can be compared.
    """

    kind: str | None = None
    n: int = 0
    interval: Interval | None = None

    @property
    def cell(self) -> str:
        """Return the verdict as text."""
        if self.kind == FEW:
            return f"n = {self.n}"
        return f"{self.kind}, n = {self.n}" if self.interval else self.kind or DASH

    @property
    def line(self) -> dict[str, object]:
        """Return the values for the CSV; bounds are those of the 95 % interval."""
        found = self.interval
        return {
            "verdict": None if self.kind == BASELINE else self.kind,
            "verdict_change": found.change if found else None,
            "verdict_low": found.low if found else None,
            "verdict_high": found.high if found else None,
            "verdict_n": self.n,
        }


def verdicts(rows: Sequence[Row], bases: Sequence[Row | None], key: str) -> list[Verdict]:
    """Compare the perplexity of each row with that of its baseline, paired by seed (`statistics.paired_t`).

    Seeds that one of both has not finished are left out. Where a seed diverged, the others alone would
    flatter the row, so there is no verdict.
    """
    scores = {id(row): _Scores.of(row, key) for row in rows}
    found = []
    for row, base in zip(rows, bases, strict=True):
        if base is None or base is row:
            found.append(Verdict(BASELINE if base else None))
        else:
            found.append(_verdict(scores[id(row)], scores[id(base)]))
    return found


@dataclass(frozen=True)
class Harm:
    """The row of an untrained model whose perplexity, under `key`, a trained one does not reach.

    `removed`: methods made the model smaller before it was trained, so training alone need not be to blame.
    """

    key: str
    start: Row
    removed: bool


def harmed(rows: Sequence[Row]) -> Iterator[Harm | None]:
    """Yield of each row that is worse than what it was trained from, or than the base model, which it is.

    Both are rows of the same model in the same environment that do not train: one that the same methods made
    smaller as far, and one that nothing changed. Means are compared, on held-out text of the kind that was
    trained on; one finished seed is enough. What is pre-trained starts from random weights.
    """
    untrained = [row for row in rows if row.settings.get("train.stage") == "compress"]
    bases = [row for row in untrained if _is_unchanged(row)]
    for row in rows:
        if row.settings.get("train.stage") != "finetune":
            yield None
            continue
        own = baseline_of(row, [other for other in untrained if _is_start(other, row)])
        base, key = baseline_of(row, bases), _trained_on(row)
        removed = any(_removed(row))
        found = (Harm(key, start, alone) for start, alone in ((own, False), (base, removed)) if start)
        yield next((harm for harm in found if _is_worse(row, harm.start, key)), None)


def _is_worse(row: Row, start: Row, key: str) -> bool:
    before, after = start.mean(key), row.mean(key)
    return before is not None and after is not None and not after <= before


def _is_start(untrained: Row, row: Row) -> bool:
    """Return whether the methods of an untrained row made of the model what others of a row then trained."""
    first, stack = methods(untrained.records[0]), methods(row.records[0])
    removed = _removed(untrained)
    return any(removed) and first == stack[: len(first)] and removed == _removed(row)


def _removed(row: Row) -> list[float | None]:
    """Return how much smaller methods made the model, as they report it."""
    return [row.mean(fact) for fact in FACTS]


def _is_unchanged(row: Row) -> bool:
    """Return whether the methods of a row have no options and report no change."""
    record = row.records[0]
    made = record.parameters
    stack = record.config.get("method") or ()
    return (
        made is not None
        and not (made.ranks or made.chosen_ranks or made.spectra)
        and not any(part.get("options") for part in stack)
    )


def _trained_on(row: Row) -> str:
    """Return the key of the perplexity on held-out text of the kind that a row is trained on."""
    world = row.settings.get("data.world")
    return f"{PERPLEXITY}world-{world}" if world else f"{PERPLEXITY}heldout"


# ----------------------------------------------------------------------------------------- the scores
@dataclass(frozen=True)
class _Scores:
    """Ln perplexity of a row by seed, of its finished runs, on which text, and whether a run diverged."""

    nats: dict[int, float]
    texts: set[tuple[object, ...]]
    diverged: bool

    @classmethod
    def of(cls, row: Row, key: str) -> _Scores:
        """Collect the scores; repeats of a seed are no new evidence and count once."""
        by_seed: dict[int, list[float]] = {}
        texts = set[tuple[object, ...]]()
        for record in row.records:
            if record.outcome.status == "ok" and record.quality:
                for name, score in record.quality.perplexity.items():
                    if f"{PERPLEXITY}{plain(name)}" == key:
                        by_seed.setdefault(record.seed, []).append(_nats(score))
                        texts.add((score.text, score.tokens, score.windows, score.context, score.batches))
        ended = any(record.outcome.status == "diverged" for record in row.records)
        nats = {seed: mean(values) for seed, values in by_seed.items()}
        return cls(nats, texts, ended or not all(map(math.isfinite, nats.values())))


def _nats(score: Perplexity) -> float:
    """Return ln perplexity: the mean negative log-likelihood of a token, but for a mean of batch means."""
    if score.batches and 0 < score.perplexity < math.inf:
        return math.log(score.perplexity)
    return score.nll_nats / score.tokens


def _verdict(own: _Scores, base: _Scores) -> Verdict:
    for side, kind in ((own, DIVERGED), (base, BASE_DIVERGED)):
        if side.diverged:
            return Verdict(kind)
    if len(own.texts | base.texts) > 1:
        return Verdict()
    seeds = sorted(own.nats.keys() & base.nats.keys())
    if len(seeds) < LEAST_SEEDS:
        return Verdict(FEW if seeds else None, len(seeds))
    found = statistics.paired_t([base.nats[seed] for seed in seeds], [own.nats[seed] for seed in seeds])
    certain = found.certain and abs(found.change) > LEAST_PERPLEXITY_CHANGE
    return Verdict(SAME if not certain else WORSE if found.change > 0 else BETTER, len(seeds), found)
