"""After how many tokens and seconds rows reach a perplexity: fabricated curves whose true table is known."""

from __future__ import annotations

import csv
import io
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness import series as serieses
from harness import suite as suites
from harness.cli.report import _targets
from harness.errors import UserError
from harness.record import Outcome, Record, bytes_beside
from harness.series import Series
from harness.tables.aggregate import rows as rows_of
from harness.tables.curves import Reach, curves
from harness.tables.format import DASH
from harness.tables.report import build as report
from harness.tables.report import render
from harness.tables.report.view import View
from tests.unit.tables.report.test_report import TIMES, fabricate

STEPS, EVERY, TOKENS = 200, 50, 2048


def scored(
    folder: Path,
    label: str,
    values: list[float],
    *,
    seed: int = 0,
    update_s: float = 0.1,
    status: Any = "ok",
    **options: Any,
) -> Record:
    """A record whose model scored these values in training, the last one at its end if there are four."""
    record = fabricate(label, seed, perplexity=values[-1] if values else 8.0, **options)
    record.config["evaluate"]["during"] = {"every": EVERY}
    in_training = values[: STEPS // EVERY - 1]
    done = STEPS if status == "ok" else EVERY * len(values) + 10
    perplexity: list[dict[str, float] | None] = [None] * done
    seconds: list[float | None] = [None] * done
    for number, value in enumerate(in_training, 1):
        perplexity[number * EVERY - 1] = {"world-b": value}
        seconds[number * EVERY - 1] = number * EVERY * update_s
    assert record.training is not None
    if status == "ok":
        seconds[-1] = STEPS * update_s
    else:
        record.quality, record.outcome = None, Outcome(status=status, phase="train")
    record.training.steps, record.training.tokens = done, done * TOKENS
    record.training.scored = len(in_training) or None
    course = Series([2.0] * done, [1e-3] * done, trained_s=seconds, perplexity=perplexity)
    record.series = serieses.write(course, folder / f"{record.run_id}.json", record.run_id)
    return record.placed(partial(bytes_beside, folder), False)


def three(folder: Path, label: str, *values: list[float], **options: Any) -> list[Record]:
    return [scored(folder, label, each, seed=seed, **options) for seed, each in enumerate(values)]


def lines(found: list[Record], **targets: float) -> dict[str, dict[str, str]]:
    built = report.build(found, baseline="full", targets={"world-b": 10.0} | targets)
    table = csv.DictReader(io.StringIO(render.texts(built)["csv"]))
    return {line["method"]: line for line in table}


def table(found: list[Record], target: float = 10.0) -> dict[str, list[str]]:
    """The table of the time to a target, by its first column."""
    built = report.build(found, baseline="full", targets={"world-b": target})
    (wanted,) = [each for each in built.tables if "to perplexity" in each.title]
    assert wanted in built.overview
    return {row[0]: list(row[1:]) for row in wanted.rows}


def test_a_curve_has_tokens_seconds_and_the_value_at_the_end(tmp_path: Path) -> None:
    (curve,) = curves(scored(tmp_path, "full", [30.0, 12.0, 9.0, 8.0])).values()
    assert curve.tokens == (50 * TOKENS, 100 * TOKENS, 150 * TOKENS, 200 * TOKENS)
    assert curve.seconds == pytest.approx((5.0, 10.0, 15.0, 20.0))
    assert curve.perplexity == (30.0, 12.0, 9.0, 8.0)
    assert curve.lowest == 8.0


def test_a_target_is_reached_at_the_first_score_at_it_or_below(tmp_path: Path) -> None:
    (curve,) = curves(scored(tmp_path, "full", [30.0, 12.0, math.nan, 8.0])).values()
    assert curve.reach(12.0) == Reach(100 * TOKENS, 10.0)
    assert curve.reach(11.9) == Reach(200 * TOKENS, 20.0)
    assert curve.reach(7.9) is None
    assert curve.lowest == 8.0


def test_a_run_without_scores_in_training_has_no_curve() -> None:
    assert curves(fabricate()) == {}


def test_rows_have_the_mean_over_seeds_and_the_ratio_to_the_baseline(tmp_path: Path) -> None:
    found = three(tmp_path, "full", [20.0, 9.0, 8.0, 7.0], [20.0, 9.0, 8.0, 7.0], [20.0, 11.0, 8.0, 7.0])
    found += three(
        tmp_path, "fast", [9.0, 8.0, 7.0, 6.0], [9.5, 8.0, 7.0, 6.0], [11.0, 9.0, 7.0, 6.0], update_s=0.2
    )
    cells = table(found)
    assert cells["full"][:4] == ["3/3", "238,933 ± 59,121", f"{TIMES}1.000", DASH]
    reached, tokens, ratio, interval, seconds, slower, _, lowest = cells["fast"]
    assert (reached, tokens) == ("3/3", "136,533 ± 59,121")
    assert ratio == f"{TIMES}{200 / 350:.3f}"
    assert (seconds, slower) == ("13.33 ± 5.77", f"{TIMES}{40 / 35:.3f}")
    assert lowest == "6.000"
    mean = math.fsum(map(math.log, (50 / 100, 50 / 100, 100 / 150))) / 3
    line = lines(found)["fast"]
    low, high = float(line["target_world-b_tokens_low"]), float(line["target_world-b_tokens_high"])
    assert math.log(low * high) / 2 == pytest.approx(mean)
    sd = math.log(4 / 3) / math.sqrt(3)
    assert math.log(high / low) / 2 == pytest.approx(4.302653 * sd / math.sqrt(3), rel=1e-5)
    assert interval == f"{TIMES}{low:.3f} … {TIMES}{high:.3f}"


def test_a_row_has_no_mean_where_a_seed_does_not_get_there(tmp_path: Path) -> None:
    found = three(tmp_path, "full", [9.0, 8.0, 8.0, 7.0], [9.0, 8.0, 8.0, 7.0])
    found += three(tmp_path, "some", [9.0, 8.0, 8.0, 8.0], [30.0, 20.0, 14.0, 12.0])
    found += three(tmp_path, "none", [30.0, 20.0, 14.0, 12.0], [30.0, 20.0, 13.0, 13.5])
    cells = table(found)
    assert cells["some"][0] == "1/2"
    assert set(cells["some"][1:-1]) == {DASH}
    assert cells["none"] == ["not reached", *cells["some"][1:-1], "12.500"]
    assert lines(found)["none"]["target_world-b_lowest"] == "12.5"
    assert lines(found)["none"]["target_world-b_tokens_mean"] == ""


def test_a_run_that_failed_before_it_got_there_did_not_reach_the_target(tmp_path: Path) -> None:
    found = three(tmp_path, "full", [9.0, 8.0, 8.0, 7.0], [9.0, 8.0, 8.0, 7.0])
    found += [
        scored(tmp_path, "bad", [9.0, 8.0, 8.0, 7.0]),
        scored(tmp_path, "bad", [], seed=1, status="diverged"),
    ]
    found += [
        scored(tmp_path, "late", [9.0, 8.0, 8.0, 7.0]),
        scored(tmp_path, "late", [9.0], seed=1, status="diverged"),
    ]
    cells = table(found)
    assert cells["bad"][:2] == ["1/2", DASH]
    assert cells["late"][:2] == ["2/2", "102,400"]


def test_repeats_of_a_seed_count_once(tmp_path: Path) -> None:
    found = three(tmp_path, "full", [9.0, 8.0, 8.0, 7.0], [9.0, 8.0, 8.0, 7.0])
    found.append(scored(tmp_path, "full", [9.0, 8.0, 8.0, 7.0], repeat=1, update_s=0.3))
    cells = table(found)
    assert cells["full"][0] == "2/2"
    assert cells["full"][3] == "7.500 ± 3.536"  # 5 and 15 are one seed, 5 the other


def test_rows_that_are_not_scored_in_training_stay_empty(tmp_path: Path) -> None:
    found = [*three(tmp_path, "full", [9.0, 8.0, 8.0, 7.0]), fabricate("plain")]
    assert set(table(found)["plain"]) == {DASH}


def test_without_targets_or_without_scores_the_report_is_as_before(tmp_path: Path) -> None:
    plain = [fabricate("full"), fabricate("other", perplexity=9.0)]
    before = render.texts(report.build(plain, baseline="full"))
    assert before == render.texts(report.build(plain, baseline="full", targets={}))
    asked = report.build(plain, baseline="full", targets={"world-b": 10.0})
    assert asked.tables == report.build(plain, baseline="full").tables
    assert "Target world-b 10: no run here was scored by it in training (evaluate.during)" in asked.notes
    curved = three(tmp_path, "full", [9.0, 8.0, 8.0, 7.0])
    assert all("to perplexity" not in each.title for each in report.build(curved, baseline="full").tables)


def test_a_series_that_is_missing_is_said(tmp_path: Path) -> None:
    found = three(tmp_path, "full", [9.0, 8.0, 8.0, 7.0], [9.0, 8.0, 8.0, 7.0])
    assert found[1].series is not None
    (tmp_path / found[1].series.file).unlink()
    built = report.build(found, baseline="full", targets={"world-b": 10.0})
    (wanted,) = [each for each in built.tables if "to perplexity" in each.title]
    assert wanted.rows[0][1] == "1/1"
    assert any("without the curves of 1 run: " in note for note in wanted.notes)


def test_ratios_are_of_rows_in_one_environment_alone(tmp_path: Path) -> None:
    found = three(tmp_path, "full", [9.0, 8.0, 8.0, 7.0])
    found += three(tmp_path, "other", [9.0, 8.0, 8.0, 7.0], stand={"device": "another"})
    view = View(tuple(rows_of(found)), "full", {"world-b": 10.0})
    (goal,) = view.goals
    places = {row.label: place for place, row in enumerate(view.rows)}
    assert goal.line(places["full"])["target_world-b_seconds_ratio"] == 1.0
    assert goal.line(places["other"])["target_world-b_seconds_ratio"] is None


# ------------------------------------------------------------------------------------ where targets are given
SUITE = """\
suite: s
base:
  method: full
  train: {steps: 20}
  evaluate: {perplexity: [world-a, world-b], during: {every: 5, perplexity: [world-b]}}
"""


def load(tmp_path: Path, more: str, *overrides: str) -> suites.Suite:
    path = tmp_path / "some.yaml"
    path.write_text(SUITE + more)
    return suites.load(path, [suites.parse_override(each) for each in overrides])


def test_a_suite_has_targets_of_protocols_that_are_scored_in_training(tmp_path: Path) -> None:
    assert load(tmp_path, "").targets == {}
    assert load(tmp_path, "targets: {world-b: 25}").targets == {"world-b": 25.0}
    assert load(tmp_path, "targets: {world-b: 25}", "evaluate.during=null").targets == {"world-b": 25.0}
    for more, says in (
        ("targets: {world-a: 25}", "targets: no row scores 'world-a' in training; scored are: world-b"),
        ("targets: {world-b: 0.5}", "targets.world-b: give a number of at least 1, not 0.5"),
    ):
        with pytest.raises(UserError) as caught:
            load(tmp_path, more)
        assert str(caught.value) == f"{tmp_path}/some.yaml:6: {says}"


@pytest.mark.parametrize("text", ["heldout", "heldout=", "=3", "heldout=x", "heldout=0.5", "heldout=inf"])
def test_a_target_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="write PROTOCOL=PERPLEXITY, at least 1, for example heldout=25"):
        _targets([text])


def test_targets_of_the_command_line_have_a_protocol_each() -> None:
    assert _targets(["a=3", "c4-joined(context=256)=2.5"]) == {"a": 3.0, "c4-joined(context=256)": 2.5}
    with pytest.raises(UserError, match="a has a target already"):
        _targets(["a=3", "a=4"])
