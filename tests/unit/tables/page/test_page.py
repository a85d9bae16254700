"""The page of a suite: the same figures as the report, in a file where text of records can do nothing."""

import csv
import importlib
import io
import json
import math
import random
import re
import shutil
import statistics
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import suite as suites
from harness.cli import main as cli
from harness.cli import report as report_command
from harness.engine.run import checks
from harness.engine.sweep import resolution
from harness.record import Outcome, RankMove
from harness.tables.aggregate import rows as rows_of
from harness.tables.format import DASH, Column, Table
from harness.tables.page import chart as page_chart
from harness.tables.page import compare, document, tradeoffs
from harness.tables.page import html as page_text
from harness.tables.page import ranks as page_ranks
from harness.tables.page import training as page_training
from harness.tables.page.quantities import groups, names
from harness.tables.page.tables import merged
from harness.tables.records import load
from harness.tables.report import build as report
from harness.tables.report import render
from harness.tables.report.at_scale import AtScale, Forecast
from harness.tables.report.view import View
from tests.support.reference import records_of
from tests.unit.tables.report.test_report import fabricate, failed, three

pytest.importorskip("plotly")

HOSTILE = (
    '</script><script>alert(1)</script><img src=x onerror=alert(2)>"\' onmouseover="alert(3)" '
    "<a href='javascript:alert(4)'>x</a> %{x} $x$ {{7*7}} <!-- \N{LINE SEPARATOR}&lt;"
)
#: The places in texts of charts that the drawing library fills.
OURS = {"%{x}", "%{y:.4f}", "%{z}", "%{x:.0%}", "%{y:.3g}"}
MOST_BYTES = 6_000_000
ROOT = Path(__file__).resolve().parents[4]


class Elements(HTMLParser):
    """All elements with their attributes and text, as a browser would find them."""

    VOID = ("meta", "input", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.found, self._open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.found.append(element)
        if tag not in self.VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag, "elements are not nested as they should be"

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def of(self, tag, **attributes):
        return [
            e
            for e in self.found
            if e["tag"] == tag and all(e.get(key) == value for key, value in attributes.items())
        ]


def records():
    broken = failed("oom", "train", "CUDA out of memory", requested=12 << 30)
    return [
        *three("full", peak=100.0, speed=1000.0, perplexity=8.0),
        *three("small", peak=50.0, speed=800.0, perplexity=9.0),
        *three("poor", peak=120.0, speed=700.0, perplexity=12.0),
        broken,
    ]


def made(found=None, *, baseline="full", question="which one?", notes=(), scale=None, **options):
    found = records() if found is None else found
    built = report.build(found, baseline=baseline, question=question, notes=notes, scale=scale)
    return document.build(built, found, baseline=baseline, scale=scale, **options)


def charts(text):
    (block,) = Elements(text).of("script", type="application/json")
    return json.loads(block["text"])


def view(found):
    return View(tuple(rows_of(found)), "full")


# ------------------------------------------------------------------------------------ same numbers
def test_every_figure_of_the_page_is_the_one_of_the_csv() -> None:
    built = report.build(records(), baseline="full")
    lines = list(csv.DictReader(io.StringIO(render.texts(built)["csv"])))
    seen = set()
    row = None
    for element in Elements(made()).found:
        row = element.get("data-row", row) if element["tag"] == "tr" else row
        if element.get("data-key") in lines[0]:
            seen.add(element["data-key"])
            expected = lines[int(row)][element["data-key"]]
            assert element.get("data-value") == (expected or None) or float(element["data-value"]) == float(
                expected
            )
            assert (element["text"] == DASH) == (expected == "")
    wanted = {name for name in lines[0] if name.startswith(("perplexity", "peak", "tokens_per_s"))}
    assert {name for name in wanted if name.endswith(("_mean", "_ratio"))} <= seen


@pytest.mark.parametrize("suite", ["welore", "pretrain", "finetune", "compressed"])
def test_the_page_of_reference_records_holds_the_numbers_of_the_committed_csv(suite) -> None:
    found, notes = load(records_of(suite))
    text = made(found, baseline=suites.load(suite).baseline, notes=notes)
    table = (ROOT / "results" / "tables" / f"{suite}.csv").read_text(encoding="utf-8")
    lines = {line["method"]: line for line in csv.DictReader(io.StringIO(table))}
    name, compared = "", 0
    for element in Elements(text).found:
        if element["tag"] == "th" and element.get("scope") == "row":
            name = element["text"]
        if element.get("data-key") in lines.get(name, ()):
            expected = lines[name][element["data-key"]]
            assert (element.get("data-value") or "") == expected
            compared += 1
    assert compared > 5 * len(lines)
    assert len(text.encode()) < MOST_BYTES


def test_the_cells_are_those_of_the_markdown_tables() -> None:
    built = report.build(records(), baseline="full")
    shown = [e["text"] for e in Elements(made()).found if e["tag"] in ("td", "th")]
    for table in built.tables:
        for column in table.columns:
            if column.name != "status":
                assert set(column.cells) <= set(shown), column.name


def test_the_charts_show_the_means_and_spreads_of_the_csv() -> None:
    (figure,) = [c for c in compare.figures(view(records())) if c.title.startswith("Perplexity")]
    drawn = {trace["y"][0]: trace for trace in figure.content["data"]}
    order = names(view(records()))
    assert drawn[order.index("small")]["x"] == [9.0]
    assert drawn[order.index("small")]["error_x"]["array"] == [1.0]
    assert order.index("broken") not in drawn


def test_a_row_that_ran_again_on_other_inputs_is_shown_once_as_in_the_report() -> None:
    older, newer = fabricate("full", 0), fabricate("full", 1)
    older.started_at, newer.started_at = "2026-11-21T10:00:00+00:00", "2026-11-22T10:00:00+00:00"
    newer.data.model_sha256 = "f" * 64
    page = made([older, newer])
    assert 'href="#row-0"' in page
    assert 'href="#row-1"' not in page


def test_a_cell_without_a_figure_in_the_csv_is_sorted_by_what_it_says() -> None:
    shares = Elements(made()).of("td", **{"data-value": "50.0"})
    assert any(cell["text"] == "50.0" for cell in shares)


# ------------------------------------------------------------------------------------------ failures
def test_a_failed_run_stands_in_its_place_with_status_phase_and_reason() -> None:
    elements = Elements(made())
    row = elements.of("tr", **{"data-ok": "none"})[0]
    assert "broken" in row["text"]
    assert "oom in train, requested 12.0 GiB: CUDA out of memory" in row["text"]
    assert [e["text"] for e in elements.of("small")] == [
        "oom in train, requested 12.0 GiB: CUDA out of memory"
    ]
    for chart in compare.figures(view(records())):
        assert any("oom in train" in said["text"] for said in chart.content["layout"]["annotations"])
    for chart in tradeoffs.tradeoffs(view(records())):
        assert "broken (oom in train" in chart.caption


def test_the_log_of_a_failed_run_and_the_command_of_every_run_are_there() -> None:
    broken = failed("error", "train", "it broke")
    broken.outcome.log_tail = [f"line {number}" for number in range(50)]
    broken.rerun = "lorebench run demo '--only=label=\"broken\"'"
    elements = Elements(made([*three("full"), broken]))
    assert broken.rerun in [e["text"] for e in elements.of("code")]
    assert len(elements.of("code")) == 4
    (log,) = elements.of("pre", **{"class": "log"})
    assert log["text"].splitlines() == [f"line {number}" for number in range(30, 50)]


def test_a_page_of_failed_runs_alone_has_no_charts_and_says_why_each_failed() -> None:
    text = made([failed("timeout", "load", "too slow"), failed("oom", "load", "too large", label="other")])
    assert charts(text) == {}
    assert "too slow" in text
    assert "too large" in text


def test_figures_that_are_not_finite_are_not_drawn_and_stay_in_the_table() -> None:
    text = made([*three("full"), fabricate("endless", perplexity=math.inf)])
    assert Elements(text).of("td", **{"data-value": "inf"})
    (chart,) = [c for name, c in charts(text).items() if name == "figure-0"]
    assert len(chart["data"]) == 1
    found = Elements(made([*three("full"), fabricate("none", perplexity=math.nan)]))
    assert {cell["text"] for cell in found.of("td", **{"data-value": "nan"})} >= {"nan"}


def test_utilisation_is_sorted_by_the_figure_of_the_csv_not_by_its_rounded_text() -> None:
    found = records()
    for item in found[:3]:
        item.time.mfu = 0.43214
    cells = Elements(made(found)).of("td", **{"data-key": "mfu_mean"})
    assert {(cell["text"], cell.get("data-value")) for cell in cells} == {("43.2", "0.43214"), (DASH, None)}


# ------------------------------------------------------------------------------------------- safety
def hostile():
    bad = fabricate(HOSTILE, 1, facts={HOSTILE: 1.0})
    bad.rerun = HOSTILE
    bad.warnings = [HOSTILE]
    bad.config["data"] = {"paths": [HOSTILE]}
    bad.parameters.spectra = {f"layers.0.{HOSTILE}": [1.0, 0.1], "layers.1.q": [1.0, 0.0], HOSTILE: [1.0]}
    bad.data.model = HOSTILE
    bad.parameters.ranks = {f"layers.0.{HOSTILE}": 3, "layers.1.q": 4, HOSTILE: 5}
    moves = [{f"layers.0.{HOSTILE}": rank} for rank in (3, 4)]
    bad.training.rank_moves = [RankMove(step=step, ranks=ranks) for step, ranks in enumerate(moves, 1)]
    bad.training.loss = [1.0, math.nan]
    bad.quality.perplexity[HOSTILE] = bad.quality.perplexity.pop("world-b")
    bad.quality.tasks[HOSTILE] = bad.quality.tasks.pop("coins")
    dead = failed("error", "train", HOSTILE, label=f"dead {HOSTILE}")
    dead.outcome.log_tail = [HOSTILE]
    ended = fabricate("ended", outcome=Outcome(status="diverged", phase="train", message=HOSTILE))
    bad.suite = ended.suite = dead.suite = HOSTILE
    return [bad, dead, ended]


def test_text_of_records_adds_no_element_and_no_attribute() -> None:
    elements = Elements(made(hostile(), question=HOSTILE, notes=[HOSTILE], baseline=HOSTILE))
    assert len(elements.of("script")) == 4
    assert not elements.of("img")
    allowed = {"href", "class", "id", "type", "scope", "tabindex", "role", "style", "lang", "content", "name"}
    allowed |= {
        "hidden",
        "charset",
        "http-equiv",
        "autocomplete",
        "spellcheck",
        "placeholder",
        "value",
        "for",
    }
    for element in elements.found:
        others = set(element) - allowed - {"tag", "text"}
        assert all(key.startswith(("data-", "aria-")) for key in others), others
        assert element["tag"] != "a" or element["href"].startswith("#")
    assert HOSTILE.split()[0] in elements.of("h1")[0]["text"]


def test_labels_of_charts_hold_no_markup_of_records() -> None:
    def texts(value):
        if isinstance(value, dict):
            for item in value.values():
                yield from texts(item)
        elif isinstance(value, list):
            for item in value:
                yield from texts(item)
        elif isinstance(value, str):
            yield value

    found = list(texts(charts(made(hostile()))))
    assert any("&lt;/script&gt;" in text for text in found)
    for text in found:
        assert set(re.findall(r"<[^>]*>?", text)) <= {"<b>", "</b>", "<br>", "<extra>", "</extra>"}, text
        assert not set(re.findall(r"%\{[^}]*\}", text)) - OURS
    templates = [t for c in charts(made(hostile())).values() for t in c["data"] if "hovertemplate" in t]
    assert all(t["hovertemplate"].count("%{x") == 1 for t in templates)


def test_the_policy_allows_the_scripts_of_the_page_and_no_network() -> None:
    text = made(hostile())
    elements = Elements(text)
    (policy,) = [
        e["content"] for e in elements.of("meta") if e.get("http-equiv") == "Content-Security-Policy"
    ]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    allowed = re.findall(r"'sha256-[^']+'", policy)
    scripts = [e["text"] for e in elements.of("script") if e.get("type") != "application/json"]
    assert len(scripts) == 3
    assert sorted(allowed) == sorted(page_text.script_hash(script) for script in scripts)
    assert "unsafe" not in policy.split("script-src")[1].split(";")[0]
    assert text.index("Content-Security-Policy") < text.index("<script")
    loading = [e for e in elements.found if "src" in e or e["tag"] in ("link", "iframe", "object", "base")]
    assert not loading


def test_the_library_does_not_run_before_a_chart_needs_it_and_tables_come_before_it() -> None:
    text = made()
    (stored,) = Elements(text).of("script", type="text/plain")
    assert stored["id"] == "library"
    assert "plotly.js v" in stored["text"]
    tables = (ROOT / "harness" / "tables" / "page" / "templates" / "page.js").read_text(encoding="utf-8")
    assert text.index(tables) < text.index("plotly.js v")


def test_only_parentheses_are_put_into_the_library(monkeypatch) -> None:
    text = page_chart.library("plotly.offline").get_plotlyjs()
    mended = page_chart.library_script()
    assert len(mended) == len(text) + 2
    head, body = mended.split("(() => {\n", 1)
    body, tail = body.rsplit("})));", 1)
    assert f"{head}() => {{\n{body}}}));{tail}" == text
    for other in ("var Plotly = {};", 'f(this, () => {\n"use strict"}));more()'):
        fake = SimpleNamespace(get_plotlyjs=lambda other=other: other)
        monkeypatch.setattr(page_chart, "library", lambda part, fake=fake: fake)
        assert page_chart.library_script() == other


def test_embedded_json_cannot_end_its_element() -> None:
    block = page_text.json_block({"a": "</script><!--<script>&\N{LINE SEPARATOR}"})
    assert not set("<>&\N{LINE SEPARATOR}") & set(block)
    assert json.loads(block) == {"a": "</script><!--<script>&\N{LINE SEPARATOR}"}
    with pytest.raises(ValueError, match="JSON"):
        page_text.json_block([math.nan])


# ------------------------------------------------------------------------------------------- charts
def test_rows_of_different_devices_share_no_chart() -> None:
    found = [*three("full"), *three("small"), *three("full", stand={"device": "a gpu"}, meter="cuda")]
    assert [len(group.places) for group in groups(view(found))] == [1, 2]
    assert all("device" in group.title for group in groups(view(found)))
    titles = [chart.title for chart in compare.figures(view(found))]
    assert sum("a gpu" in title for title in titles) * 2 == len(titles)


def test_the_components_of_a_bar_add_up_to_the_peak() -> None:
    (bars,) = compare.components(view(records()))
    sums = {}
    for trace in bars.content["data"]:
        for place, size in zip(trace["y"], trace["x"], strict=True):
            sums[place] = sums.get(place, 0) + size
    order = names(view(records()))
    assert sums[order.index("small")] == pytest.approx(50.0)
    assert order.index("broken") not in sums


def test_a_long_curve_is_thinned_to_means_and_says_so() -> None:
    assert page_training.thinned([1.0, 3.0, 5.0], 2) == [2.0, 5.0]
    assert page_training.thinned([1.0, math.nan, 5.0], 1) == [1.0, None, 5.0]
    assert page_training.thinned([1e308] * 4, 2) == [1e308, 1e308]
    assert page_training.thinned([1.79769313486e308], 1) == [None]  # rounds to infinity
    long = fabricate()
    long.training.loss = [float(step % 7) for step in range(100_000)]
    (chart,), _ = page_training.losses(view([long]))
    raw, smooth = chart.content["data"]
    assert len(raw["y"]) + len(smooth["y"]) <= page_training.POINTS
    assert [(trace["x0"], trace["dx"]) for trace in (raw, smooth)] == [(1, 9), (1, 9)]
    assert "mean of up to 9 updates" in chart.caption


@pytest.mark.parametrize("window", [3, 5, 11])
def test_a_smoothed_loss_is_the_median_of_what_is_around(window) -> None:
    draw = random.Random(0)
    values = [draw.choice([math.nan, math.inf, *[draw.random() for _ in range(8)]]) for _ in range(40)]
    half = window // 2
    for at, found in enumerate(page_training.smoothed(values, window)):
        around = [v for v in values[max(0, at - half) : at + half + 1] if math.isfinite(v)]
        assert found == statistics.median(around) if around else math.isnan(found)


def test_the_loss_of_a_run_is_a_thin_line_behind_the_smoothed_one() -> None:
    run = fabricate()
    run.training.loss = [5.0, 1.0, 4.0, 2.0, 3.0, math.nan]
    never = fabricate("never")
    never.training.loss = [math.nan, math.nan]
    (chart,), _ = page_training.losses(view([run, never]))
    raw, smooth = chart.content["data"]  # a run without any finite loss has no line
    assert raw["y"] == [5.0, 1.0, 4.0, 2.0, 3.0, None]
    assert smooth["y"] == [3.0, 4.0, 2.0, 3.0, 2.5, 3.0]
    assert raw["line"]["width"] < smooth["line"]["width"]
    assert raw["line"]["color"] == smooth["line"]["color"]
    assert "running median" in chart.caption


def test_ranks_are_placed_by_layer_and_kind() -> None:
    ranks = {"model.layers.0.self_attn.q_proj": 3, "model.layers.11.mlp.up_proj": 5, "lm_head": 7}
    kinds, layers, found = page_ranks.placed(ranks)
    assert (kinds, layers) == (["q_proj", "up_proj"], [0, 11])
    assert found == {("q_proj", 0): 3, ("up_proj", 11): 5}
    assert page_ranks.placed({f"layers.{'9' * 5000}.q_proj": 3})[0] == []
    clash = page_ranks.placed({"h.0.a.out": 1, "h.0.b.out": 2})
    assert clash[0] == ["a.out", "b.out"]


def test_a_map_shows_the_ranks_of_the_record_and_equal_ranks_are_a_sentence() -> None:
    uneven, even = fabricate("uneven"), fabricate("even")
    uneven.parameters.ranks = {"layers.0.a.q": 3, "layers.1.a.k": 5, "head": 9}
    even.parameters.ranks = {"layers.0.a.q": 8, "layers.1.a.q": 8}
    (chart,), said = page_ranks.maps(view([uneven, even]))
    assert chart.content["data"][0]["z"] == [[3, None], [None, 5]]
    assert "outside the layers head: 9" in chart.caption
    assert said == ["even: rank 8 in all 2 matrices"]


def test_moving_ranks_are_means_by_kind_after_each_change() -> None:
    moving, still = fabricate("moving"), fabricate("still")
    moving.training.rank_moves = [
        RankMove(step=1, ranks={"h.0.q": 8, "h.1.q": 4, "h.0.k": 2}),
        RankMove(step=5, ranks={"h.1.q": 2}),
    ]
    still.training.rank_moves = moving.training.rank_moves[:1]
    steps, lines = page_ranks.course(moving, moving.training.rank_moves)
    assert steps == [1, 5, moving.training.steps]
    assert lines == {"q": [6.0, 5.0, 5.0], "k": [2.0, 2.0, 2.0]}
    assert [chart.title for chart in page_ranks.moves(view([moving, still]))[0]] == ["moving, seed 0"]


# ------------------------------------------------------------------------------------------ the file
def test_the_same_records_make_the_same_page_and_it_stays_small() -> None:
    first = made()
    assert made(list(reversed(records()))) == first
    assert len(first.encode()) < MOST_BYTES
    assert first.count("plotly.js v") == 1


def test_the_overview_has_the_endings_behind_its_values() -> None:
    method = Column("method", ("a", "b"), numeric=False)
    rate = Column("train.lr", ("1", "2"), numeric=False)
    status = Column("status", ("ok", "oom"), numeric=False)
    below = Column("method", ("a", "b", "floor"), numeric=False)
    one, two = Column("one", ("1", "2", "3")), Column("two", ("4", "5", "6"))
    other = Table("Perplexity", (below,), (one,))
    tables = [Table("At a glance", (below,), (one, two)), Table("Runs", (method,), (rate, status)), other]
    whole, rest = merged(tables)
    assert [column.name for column in whole.all_columns] == ["method", "one", "two", "train.lr", "status"]
    assert whole.rows[1:] == [("b", "2", "5", "2", "oom"), ("floor", "3", "6", "", "")]
    assert rest == other
    assert merged(tables[1:2]) == tables[1:2]


def test_how_each_number_was_made_names_ruler_version_and_text() -> None:
    text = made()
    for said in (
        "perplexity, world-b",
        "perplexity 1",
        "memory 1",
        "steps 3 to 4",
        "documents 100",
        "time 1",
    ):
        assert said in text


def command(monkeypatch, capsys, results, *arguments, scale=None):
    """`lorebench report compressed` within this process, where the runs are completed, too."""

    def resolve(runs, **reads):
        return resolution.Plan(tuple(checks.resolve(runs, text=False)), "cpu", "cpu-1t")

    monkeypatch.setattr(resolution, "resolve", resolve)
    # A large model takes seconds.
    monkeypatch.setattr(report_command, "forecast_at_scale", lambda suite: scale)
    said = [
        "lorebench",
        "report",
        "compressed",
        "--results",
        results,
        "--out",
        results / "tables",
        *arguments,
    ]
    monkeypatch.setattr(sys, "argv", list(map(str, said)))
    try:
        cli.main()
    except SystemExit as end:
        return end.code, capsys.readouterr()
    return 0, capsys.readouterr()


def reference(folder, *machines):
    for machine in machines:
        shutil.copytree(records_of("compressed"), folder / machine / "compressed")
    return folder


def test_the_command_writes_the_page_beside_the_tables(monkeypatch, capsys, tmp_path) -> None:
    results = reference(tmp_path, "one")
    labels = {run.name for run in suites.load("compressed").runs}
    scale = AtScale("a-7b", "1 x 8 tokens", "a GPU", {label: Forecast(3 << 30, 20.0) for label in labels})
    code, said = command(monkeypatch, capsys, results, "--out", tmp_path / "page.html", scale=scale)
    assert code in (0, None)
    assert f"written: {tmp_path / 'page.html'}\n" in said.err
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert Elements(text).of("h1")[0]["text"] == "compressed"
    _, *points = charts(text)["tradeoff-0"]["data"]
    assert {tuple(point["x"]) for point in points} == {(3.0,)}


def test_each_machine_gets_a_page_of_its_own(monkeypatch, capsys, tmp_path) -> None:
    results = reference(tmp_path, "one", "two")
    command(monkeypatch, capsys, results, "--out", tmp_path / "page.html")
    assert sorted(path.name for path in tmp_path.glob("*.html")) == ["page-one.html", "page-two.html"]


def test_a_folder_in_place_of_the_page_is_said_before_anything_is_read(monkeypatch, capsys, tmp_path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "nothing.odd", tmp_path / "file" / "page.html"):
        code, said = command(monkeypatch, capsys, tmp_path / "nothing", "--out", place)
        assert code == 2
        assert said.err.startswith(f"lorebench: --out {place}: ")
        assert said.err.count("\n") == 1


def test_without_the_library_one_line_says_what_to_install(monkeypatch, capsys, tmp_path) -> None:
    real = importlib.import_module

    def missing(name, package=None):
        if name.startswith("plotly"):
            raise ImportError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    code, said = command(monkeypatch, capsys, tmp_path / "nothing", "--out", tmp_path / "page.html")
    assert (code, said.err.count("\n")) == (2, 1)
    assert "pip install 'lorebench[page]'" in said.err
