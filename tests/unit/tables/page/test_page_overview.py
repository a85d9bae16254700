"""The first charts of a page: quality against memory and speed, and perplexity over the learning rate."""

import math
from dataclasses import replace

import pytest

from harness.record import Outcome
from harness.tables.aggregate import rows as rows_of
from harness.tables.page import compare, rates, tradeoffs
from harness.tables.report.at_scale import AtScale, Forecast
from harness.tables.report.view import View
from tests.unit.tables.page.test_page import Elements, charts, made
from tests.unit.tables.report.test_report import fabricate, failed, three

pytest.importorskip("plotly")

GIB = 1 << 30
#: Peak in GiB and tokens per second at scale, perplexities by seed.
ROWS = {
    "full": (50.0, 9000.0, [8.0, 8.2, 8.1]),
    "small": (20.0, 11000.0, [9.0, 9.4]),
    "once": (30.0, 12000.0, [8.5]),
    "worse": (60.0, 8000.0, [9.5, 9.5]),
}


def view(found, baseline="full"):
    return View(tuple(rows_of(found)), baseline)


def records():
    return [
        fabricate(label, seed, perplexity=value)
        for label, (*_, values) in ROWS.items()
        for seed, value in enumerate(values)
    ]


def scale(**others):
    rows = {label: Forecast(int(gib * GIB), speed) for label, (gib, speed, _) in ROWS.items()}
    return AtScale("llama-2-7b", "1 x 2,048 tokens in bfloat16", "an H200", rows | others, "full")


def named(chart):
    return {trace["name"]: trace for trace in chart.content["data"] if "name" in trace}


# -------------------------------------------------------------------------------------------- front
@pytest.mark.parametrize(
    ("points", "better", "kept"),
    [
        ([(1, 5), (2, 4), (3, 6), (2, 7)], ("lower", "lower"), [0, 1]),
        ([(1, 5), (2, 4), (3, 6), (2, 7)], ("lower", "higher"), [0, 3]),
        ([(1, 5), (2, 4), (3, 6), (2, 7)], ("higher", "lower"), [2, 1]),
        ([(1, 5), (2, 4), (3, 6), (2, 7)], ("higher", "higher"), [2, 3]),
        ([(1, 5), (1, 5), (1, 6)], ("lower", "lower"), [0, 1]),
        ([(3, 1), (2, 2), (1, 3)], ("lower", "lower"), [2, 1, 0]),
        ([], ("lower", "lower"), []),
    ],
)
def test_the_front_holds_what_no_other_row_beats(points, better, kept) -> None:
    assert tradeoffs.front(points, better) == kept


@pytest.mark.parametrize("axis", [0, 1])
def test_quality_stands_against_memory_and_speed_at_scale(axis) -> None:
    """The front by a loop of its own over the forecasts and the means above."""
    chart = tradeoffs.tradeoffs(view(records()), scale())[axis]
    means = {label: math.fsum(values) / len(values) for label, (*_, values) in ROWS.items()}
    cost = {label: row[0] if axis == 0 else -row[1] for label, row in ROWS.items()}
    drawn = named(chart)
    assert set(drawn) == set(ROWS)
    on_front = set()
    for label, trace in drawn.items():
        assert trace["x"] == [ROWS[label][axis]]
        assert trace["y"] == [pytest.approx(means[label])]
        beaten = any(cost[other] < cost[label] and means[other] < means[label] for other in ROWS)
        on_front |= set() if beaten else {label}
        assert ("on the front" in trace["hovertext"][0]) is not beaten
    line = chart.content["data"][0]
    inner = sorted(on_front, key=cost.get)
    assert line["x"][1:-1] == [ROWS[label][axis] for label in inner]
    assert line["y"][1:-1] == [pytest.approx(means[label]) for label in inner]
    # It goes on to the worst value in either direction.
    assert (line["x"][0], line["y"][-1]) == (line["x"][1], line["y"][-2])
    assert line["y"][0] == max(means.values())
    assert line["x"][-1] == ROWS[max(cost, key=cost.get)][axis]
    assert chart.content["layout"]["xaxis"]["title"]["text"].endswith("llama-2-7b, forecast")
    assert "forecasts, not measured" in chart.caption
    assert f"best is lower {('left', 'right')[axis]}" in chart.caption


def test_forecasts_of_scoring_are_named_so() -> None:
    for chart in tradeoffs.tradeoffs(view(records()), replace(scale(), scoring=True)):
        title = chart.content["layout"]["xaxis"]["title"]["text"]
        assert title.endswith("of scoring text by llama-2-7b, forecast")
        assert "not measured: scoring text with 1 x 2,048 tokens" in chart.caption


def test_a_single_seed_is_an_open_mark_and_others_have_whiskers() -> None:
    drawn = named(tradeoffs.tradeoffs(view(records()), scale())[0])
    assert {label for label, trace in drawn.items() if trace["marker"]["symbol"].endswith("-open")} == {
        "once"
    }
    assert {label for label, trace in drawn.items() if trace.get("error_y")} == {"full", "small", "worse"}
    assert drawn["full"]["error_y"]["array"] == [pytest.approx(0.1)]  # of 8.0, 8.1, 8.2
    assert not any(trace.get("error_x") for trace in drawn.values())  # a forecast has no spread


def test_without_a_forecast_memory_and_speed_are_measured() -> None:
    first, second = tradeoffs.tradeoffs(view([*records(), failed("oom", "train")]))
    assert first.content["layout"]["xaxis"]["title"]["text"] == "peak memory, MiB"
    assert named(first)["small"]["x"] == [100.0]
    assert second.content["layout"]["xaxis"]["title"]["text"] == "throughput, tokens/s"
    assert "forecast" not in first.caption
    assert "broken (oom in train" in first.caption


def test_a_row_without_a_forecast_is_named_beside_the_chart() -> None:
    first, second = tradeoffs.tradeoffs(view(records()), scale(once=Forecast(GIB, None, "no period")))
    assert "once" in named(first)
    assert "not in the chart: once (no forecast)" in second.caption


def test_without_quality_throughput_stands_against_memory() -> None:
    found = records()
    for record in found:
        record.quality = None
    (chart,) = tradeoffs.tradeoffs(view(found), scale())
    axes = [chart.content["layout"][axis]["title"]["text"] for axis in ("xaxis", "yaxis")]
    assert axes == ["peak GiB of llama-2-7b, forecast", "tokens/s of llama-2-7b, forecast"]


def test_the_page_begins_with_the_chart_and_its_table_has_the_forecasts() -> None:
    text = made(records(), scale=scale())
    assert next(iter(charts(text))) == "tradeoff-0"
    elements = Elements(text)
    assert text.index('id="tradeoffs"') < text.index('id="results"')
    heads = [head["text"] for head in elements.of("thead")[0:1]]
    assert "7b GiB" in heads[0]
    assert {"50.0", "20.0", "30.0", "60.0"} <= {cell["text"] for cell in elements.of("td")}


# -------------------------------------------------------------------------------------------- rates
def tried(label, values, **train):
    """One record per rate, with its perplexity."""
    return [
        fabricate(label, 0, perplexity=value, train={"lr": rate, **train}) for rate, value in values.items()
    ]


def test_rates_are_one_chart_with_a_line_per_row_and_its_best_marked() -> None:
    found = [
        *tried("full", {1e-2: 8.0, 1e-3: 9.0, 1e-1: 80.0}),
        *tried("small", {1e-3: 9.5, 1e-2: 9.0, 1e-1: 8.9}),
    ]
    (chart,) = rates.charts(view(found))
    drawn = named(chart)
    assert list(drawn) == ["full: 0.01", "small: 0.1"]
    full, small = drawn.values()
    assert (full["x"], full["y"]) == ([1e-3, 1e-2, 1e-1], [9.0, 8.0, 80.0])
    assert [size == max(full["marker"]["size"]) for size in full["marker"]["size"]] == [False, True, False]
    assert full["marker"]["symbol"][1].endswith("-open")
    assert small["marker"]["size"].index(max(small["marker"]["size"])) == 2
    assert {chart.content["layout"][axis]["type"] for axis in ("xaxis", "yaxis")} == {"log"}
    assert "lowest or highest rate tried: small" in chart.caption
    assert "full" not in chart.caption.partition("tried: ")[2].partition(";")[0]


def test_charts_below_show_each_row_at_its_best_rate_and_tables_all() -> None:
    found = [
        *tried("full", {1e-2: 8.0, 1e-3: 9.0}),
        *tried("small", {1e-3: 7.0, 1e-2: math.inf}),
        fabricate("one"),
    ]
    best = rates.best(view(found))
    assert [(row.label, row.settings["train.lr"]) for row in best.rows] == [
        ("full", "0.01"),
        ("one", "0.001"),
        ("small", "0.001"),
    ]
    text = made(found)
    drawn = charts(text)
    assert next(iter(drawn)) == "rates-0"
    assert not any(name.startswith(("figure", "tradeoff")) for name in drawn)
    assert len(drawn["components-0"]["layout"]["yaxis"]["ticktext"]) == 3
    assert len(Elements(text).of("tr", **{"data-row": "4"})) >= 1


def test_a_rate_that_diverged_is_named_beside_the_chart() -> None:
    ended = Outcome(status="diverged", phase="train", message="loss is nan")
    lost = fabricate("full", 0, train={"lr": 1e-1}, outcome=ended).model_copy(update={"quality": None})
    (chart,) = rates.charts(view([*tried("full", {1e-3: 9.0, 1e-2: 8.0}), lost]))
    assert named(chart)["full: 0.01"]["x"] == [1e-3, 1e-2]
    assert "at 0.1 (diverged in train" in chart.caption


def test_rows_that_differ_in_more_than_the_rate_have_a_line_each() -> None:
    found = [*tried("full", {1e-3: 9.0, 1e-2: 8.0}), *tried("full", {1e-3: 7.0, 1e-2: 6.5}, batch=4)]
    (chart,) = rates.charts(view(found))
    assert sorted(trace["y"] for trace in named(chart).values()) == [[7.0, 6.5], [9.0, 8.0]]
    assert len(set(named(chart))) == 2


def test_one_rate_a_row_is_no_chart_of_rates() -> None:
    found = view([*three("full"), *tried("small", {1e-2: 9.0})])
    assert rates.charts(found) == []
    assert rates.best(found) is found
    assert len(compare.figures(found)) > 0
