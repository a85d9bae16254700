"""The real worker: a longer run that goes on from the end of a shorter one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from test_resumed_runs import Killing, content, curve_of, go, run_of, weights

from harness.config import Run
from harness.engine.resume import names
from harness.engine.runner import Sweep
from harness.record import Record

SHORT, LONG, EVERY = 40, 100, 20


def training(steps: int, **train: Any) -> Run:
    """A training with refreshes, and with scores at the end of the short one and beyond.

    When the meter sees the first refresh, both lengths of training have read another number of losses.
    """
    settings = {"schedule": "constant", "warmup": 5, "checkpoint": {"every": EVERY, "stay": True}, **train}
    evaluate = {"perplexity": ["world-b"], "during": {"every": EVERY}, "batch": 8}
    run = run_of(**{**settings, "steps": steps}).model_dump(mode="json")
    method = {"galore": {"rank": 8, "period": 14, "scale": 1.0}}
    return Run.model_validate(run | {"evaluate": evaluate, "method": [method]})


def only(result: Sweep) -> Record:
    (record,) = result.records.values()
    assert record.outcome.status == "ok", record.outcome
    return record


def course(record: Record) -> dict[str, Any]:
    found = content(record)
    del found["training"]["extends"]
    return found


def test_a_run_that_was_extended_is_the_longer_run_to_the_bit(tmp_path: Path) -> None:
    whole, short = go(tmp_path / "whole", training(LONG, checkpoint=None)), tmp_path / "extended"
    begun = only(go(short, training(SHORT)))
    killed = go(short, training(LONG), Killing("checkpoint", 3 * EVERY), extend=True)
    assert not killed.records
    extended = go(short, training(LONG), extend=True)
    mine, wanted = only(extended), only(whole)
    assert mine.training is not None
    assert mine.training.extends == begun.run_id
    assert mine.training.resumed == [SHORT, 3 * EVERY]
    assert course(mine) == content(wanted)
    assert curve_of(mine) == curve_of(wanted)
    assert [step for step, _ in curve_of(mine)] == [20, 40, 60, 80, 100]
    assert weights(extended, mine.run_id) == weights(whole, wanted.run_id)
    for record, steps in ((begun, SHORT), (mine, LONG)):  # each may be extended again
        kept = names.below(extended.folder / f"{record.run_id}{names.SUFFIX}")
        assert [names.step_of(path) for path in kept] == [steps]
    assert go(short, training(LONG), extend=True).done_now == []
