"""What is written as JSON can be read by every program: it has no NaN and no infinity."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from harness import strict_json
from harness.engine.quality import scored_text, task_scores
from harness.engine.quality.perplexity import Scored
from harness.engine.quality.scored_text import ScoredText
from harness.record import TrainMemory
from harness.speed_forecast import SpeedForecast
from harness.tables.plan import plan


def refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def strictly(text: str) -> Any:
    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "said"),
    [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity"), (np.float64("inf"), "Infinity")],
)
def test_a_number_that_json_lacks_is_text_as_in_a_record(value: float, said: str) -> None:
    assert strictly(strict_json.text(value)) == said
    nested = {"a": [value, (1.5, {"b": value})], "c": None}
    assert strictly(strict_json.text(nested, indent=1)) == {"a": [said, [1.5, {"b": said}]], "c": None}
    assert TrainMemory.model_config["ser_json_inf_nan"] == "strings"


def test_what_is_finite_is_written_as_by_python() -> None:
    content = {"é": [1, 2.5, True, None, "NaN"], "path": Path("a")}
    for options in ({}, {"ensure_ascii": False}, {"indent": 2}):
        written = strict_json.text(content, default=str, **options)
        assert written == json.dumps(content, default=str, **options) + "\n"


def test_sequences_of_a_model_that_broke_are_kept_as_json(tmp_path: Path) -> None:
    text = ScoredText("a text", [np.arange(3), np.arange(4), np.arange(5)])
    scored_text.write_sequences(
        tmp_path / "w" / "x.jsonl", text, Scored(math.nan, 9, [math.nan, math.inf, 2.5])
    )
    lines = [strictly(line) for line in (tmp_path / "w" / "x.jsonl").read_text().splitlines()]
    assert [line["nll_nats"] for line in lines] == ["NaN", "Infinity", 2.5]


def test_answers_of_a_model_that_broke_are_kept_as_json(tmp_path: Path) -> None:
    """The answer to a question with choices is the log-likelihood of each."""
    sample = dict.fromkeys(("doc_id", "doc_hash", "prompt_hash", "target", "doc"), 0)
    answers = [(-math.inf, False), (math.nan, False)]
    task_scores.write_samples(tmp_path / "s" / "x.jsonl", [{**sample, "filtered_resps": answers}], [False])
    (line,) = (tmp_path / "s" / "x.jsonl").read_text().splitlines()
    assert strictly(line)["responses"] == [["-Infinity", False], ["NaN", False]]


def test_a_plan_without_a_number_is_json() -> None:
    speed = {"a device": SpeedForecast(1, {"forward": math.inf}, {}, math.nan, None)}
    row = plan.Row("row", "id", 0, 1, math.inf, "no forecast", speed=speed)
    found = strictly(plan.as_json(plan.Plan("small", "why?", "cpu-1t", (row,), (), 1.0, "nothing")))
    (row_found,) = found["rows"]
    assert row_found["to_do_s"] == row_found["speed"][0]["step_s"] == "Infinity"
    assert row_found["speed"][0]["mfu"] == "NaN"
