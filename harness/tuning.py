"""Which learning rate suits each row of a suite: trials of rates, and what follows from their perplexities.

A rate is judged on text that is neither trained on nor reported, with a seed that no reported run uses.
No torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from harness import series, strict_yaml
from harness.config import LARGEST_SEED, EmbeddedData, RandomData, Run
from harness.credentials import shown
from harness.errors import UserError
from harness.record import Record
from harness.suite import Override, Suite

#: What the name of a suite's trials ends in, and so their folder of records.
SUFFIX = "_lr"
#: The seed of trials, or the next one that the suite does not use.
SEED = 100
#: The share of the documents to train on that trials are judged by, where the data says none.
VALIDATION = 0.1
LR = "train.lr"
#: Rates that may be tried: the limits of `--rates`, and of the search beyond it.
LEAST, MOST = 1e-9, 1e3
#: What a row's trials have in common with those of another, or not with its reported runs.
_NOT_OF_A_ROW = (LR, "data.validation", "evaluate", "tuning", "save_weights", "repeat")
_COMMAND = "lorebench tune"


def trials(suite: Suite, seed: int) -> Suite:
    """Return a suite of one run for each row that trains; `at_rate` gives it a rate to try.

    A row is a label with a config but for seed and rate. UserError where nothing trains, and where there is
    no text to judge by.
    """
    training = [run for run in suite.runs if run.train.stage != "compress"]
    if not training:
        raise UserError(f"suite {suite.name}: none of the selected rows trains, so there is no rate to tune")
    made = replace(suite, runs=tuple(training)).with_overrides(lambda run: _trial(run, seed))
    rows: dict[tuple[str, str], Run] = {}
    for run in made.runs:
        if run.misfit is not None:
            raise run.misfit
        rows.setdefault((run.name, _but_for_rate(run)), run)
    return replace(
        made,
        name=suite.name + SUFFIX,
        question=f"Which learning rate suits each row of {suite.name}, by perplexity on validation text? "
        "Trials may share the machine: their speed means nothing.",
        baseline=None,
        runs=tuple(rows.values()),
        axes=(*(axis for axis in suite.axes if axis != LR), LR),
        scale=None,
        targets={},
    )


def seed_for(suite: Suite, seed: int | None = None) -> int:
    """Return the seed of trials, the one that is asked for if there is one; UserError for a suite's own."""
    used = {run.seed for run in suite.runs}
    if seed is None:
        return next(number for number in range(SEED, SEED + len(used) + 1) if number not in used)
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"--seed {seed}: give a whole number from 0 to {LARGEST_SEED}")
    if seed in used:
        raise UserError(f"--seed {seed}: rows of suite {suite.name} report this seed; tune with another")
    return seed


def _trial(run: Run, seed: int) -> list[Override]:
    """Return what makes a trial of a reported run; its rate stays."""
    data, found = run.data, []
    if isinstance(data, RandomData):
        raise UserError(
            f"row {shown(run.name)} trains on random tokens, so there is no text to judge a rate by; "
            "give one by --data, or select other rows by --only"
        )
    protocol = f"world-{data.world}-validation" if isinstance(data, EmbeddedData) else "validation"
    if not isinstance(data, EmbeddedData) and data.validation is None:
        found.append(Override.of("data.validation", VALIDATION, _COMMAND))
    scored = strict_yaml.lift({"perplexity": [protocol], "batch": run.evaluate.batch}, _COMMAND)
    others = {"seed": seed, "repeat": 0, "save_weights": False, "tuning": None}
    found.append(Override("evaluate", replace(scored, replaces=True)))
    return [*found, *(Override.of(key, value, _COMMAND) for key, value in others.items())]


def conditions(suite: Suite, trial: Run) -> tuple[str, ...]:
    """Return conditions of `--only` that tell a row of a suite from others of its label, if there are any.

    UserError where rows of one label differ in their methods, which is nothing to select by.
    """
    alike = [run for run in suite.runs if run.name == trial.name and run.train.stage != "compress"]
    if len({_but_for_rate(run) for run in alike}) == 1:
        return ()
    if any(run.method != alike[0].method for run in alike):
        raise UserError(
            f"several methods have the label {shown(trial.name)}, so a rate cannot say which it is for; give "
            "each a label of its own"
        )
    keys: list[str] = []
    for axis in suite.axes:
        section = getattr(trial, axis) if axis in ("model", "data", "train") else {}
        keys += [f"{axis}.{name}" for name, _ in section] if section else [axis]
    left = [key for key in keys if key.partition(".")[0] not in _NOT_OF_A_ROW and key not in _NOT_OF_A_ROW]
    return tuple(replace(suite, axes=tuple(left)).selector(trial)[2:])


def _but_for_rate(run: Run) -> str:
    train = run.train.model_copy(update={"lr": 1.0})
    return run.model_copy(update={"train": train}).config_id


def at_rate(trial: Suite, rate: float) -> Run:
    """Return the only run of a suite at another rate."""
    (run,) = trial.with_overrides(lambda _: [Override.of(LR, rate, f"--rates {rate:g}")]).runs
    return run


# ------------------------------------------------------------------------------------------- rates
def neighbour(rate: float, *, above: bool) -> float | None:
    """Return the next rate of the series … 1e-3, 3e-3, 1e-2, 3e-2, … above or below one.

    None where that is beyond what may be tried, `LEAST` to `MOST`.
    """
    power = math.floor(math.log10(rate))
    near = [float(f"{digit}e{power + step}") for step in (-1, 0, 1, 2) for digit in (1, 3)]
    found = min(x for x in near if x > rate) if above else max(x for x in near if x < rate)
    return found if LEAST <= found <= MOST else None


def perplexity(record: Record) -> float:
    """Return the perplexity of a trial, infinite for one that failed."""
    scores = record.quality.perplexity.values() if record.quality and record.outcome.status == "ok" else ()
    found = min((score.perplexity for score in scores), default=math.inf)
    return found if math.isfinite(found) else math.inf


def untrained(record: Record) -> float | None:
    """Return the perplexity of the model before its first update, on the batch of that update.

    That is another text than a trial is judged by, so only a rough measure of it. None where the record has
    no loss of it.
    """
    loss = series.first_loss(record)
    try:
        return None if loss is None else math.exp(loss)
    except OverflowError:
        return math.inf


def best(tried: Mapping[float, float]) -> float | None:
    """Return the rate with the lowest perplexity, None where every trial failed; of equal ones one inside."""
    lowest = min(tried.values())
    equal = sorted(rate for rate in tried if tried[rate] == lowest)
    inside = next((rate for rate in equal if not any(_open(tried, rate))), equal[0])
    return inside if math.isfinite(lowest) else None


def _open(tried: Mapping[float, float], rate: float) -> tuple[bool, bool]:
    """Return whether nothing tried below a rate, and above it, bounds the search for a better one.

    Below only a trial that succeeded does: one that failed may have failed as its rate was too high, too.
    """
    below = not any(math.isfinite(tried[other]) for other in tried if other < rate)
    return below, rate == max(tried)


def beyond(tried: Mapping[float, float], diverged: bool) -> list[float]:
    """Return the rates to try next, none where the best one is inside or its edge is the limit.

    Below, the search goes on until a rate succeeds and is worse; above, one that failed ends it, too. Where
    every trial failed, and some diverged, the next lower rate may not.
    """
    found = best(tried)
    below, above = (diverged, False) if found is None else _open(tried, found)
    lower = neighbour(min(tried), above=False) if below else None
    higher = neighbour(max(tried), above=True) if above else None
    return [rate for rate in (lower, higher) if rate is not None]


def in_words(tried: Mapping[float, float]) -> str:
    """Return the best rate, and at which edges of what was tried it is."""
    found, lowest, highest = best(tried), min(tried), max(tried)
    end = neighbour(lowest, above=False) is None
    if found is None:
        return f"none: every trial failed{', down to the lowest allowed' if end else ''}"
    below, above = _open(tried, found)
    said = [f"{found:g}"]
    if below and found == lowest:
        said.append(f"the lowest {'allowed' if end else 'tried'}")
    elif below:
        said.append(f"below it every trial failed{', down to the lowest allowed' if end else ''}")
    if above:
        said.append(f"the highest {'allowed' if neighbour(highest, above=True) is None else 'tried'}")
    return f"{said[0]}, {' and '.join(said[1:])}" if said[1:] else said[0]
