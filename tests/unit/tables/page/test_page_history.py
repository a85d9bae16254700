"""The history on a page: every point at its commit, steps marked, nothing joined across a break."""

import math
from pathlib import Path

import pytest

from harness.tables.history.tables import tables
from harness.tables.page import history as page_history
from tests.support.gate_records import memory
from tests.support.history_records import Repository, load, scored
from tests.unit.cli.test_gate import HOSTILE
from tests.unit.tables.page.test_page import Elements, charts, command, records, reference
from tests.unit.tables.page.test_page import made as page

pytest.importorskip("plotly")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    found = Repository.at(tmp_path / "code")
    monkeypatch.chdir(found.place)
    return found


def drawn(repository, name="Peak memory, MiB"):
    """The chart of that title, its lines, and the traces that mark steps."""
    found, said = page_history.charts(load([repository.results], "demo"))
    (chart,) = [chart for chart in found if chart.title == name]
    lines = [trace for trace in chart.content["data"] if trace["mode"] == "lines+markers"]
    marks = [trace for trace in chart.content["data"] if trace["mode"] == "markers"]
    return chart, lines, marks, said


def grown(mebibytes):
    return memory(optimizer_bytes=(800 + mebibytes) << 20)


def test_a_line_has_the_median_of_each_commit_at_its_place(repository) -> None:
    for value in (8.0, 9.0):
        repository.commit()
        for seed in range(3):
            repository.record(seed=seed, quality=scored(value + seed))
    chart, (line,), marks, _ = drawn(repository, "Perplexity text")
    assert line["x"] == [0, 1]
    assert line["y"] == pytest.approx([9.0, 10.0])
    assert "n=3" in line["hovertext"][0]
    assert marks == []
    assert chart.content["layout"]["xaxis"]["ticktext"] == [sha[:7] for sha in repository.commits]


def test_text_and_page_show_the_same_figures(repository) -> None:
    """One slow run of three moves a mean, and no median."""
    for _ in range(2):
        repository.commit()
        for seed, value in enumerate((1000.0, 1010.0, 400.0)):
            repository.record(seed=seed, time={"tokens_per_s": value})
    history = load([repository.results], "demo")
    _, (line,), _, _ = drawn(repository, "Throughput, tokens/s")
    assert line["y"] == [1000.0, 1000.0]
    (table,) = tables(history)
    assert next(column.cells for column in table.columns if column.name == "tokens/s") == ("1,000",)


def test_a_step_is_marked_at_the_first_commit_of_the_new_level_and_said_below(repository) -> None:
    for more in (0, 0, 3, 3):
        repository.commit(f"grow by {more}")
        repository.record(memory=grown(more))
    _, (line,), (mark,), said = drawn(repository)
    assert (mark["x"], mark["y"]) == ([2], [line["y"][2]])
    assert mark["name"] == "change point: worse"
    assert mark["marker"]["symbol"] == "triangle-up"
    assert any(text.startswith("worse: row, peak memory") and "grow by 3" in text for text in said)


def test_smaller_bytes_are_a_better_step_downwards(repository) -> None:
    for more in (3, 0):
        repository.commit()
        repository.record(memory=grown(more))
    _, _, (mark,), _ = drawn(repository)
    assert (mark["name"], mark["marker"]["symbol"]) == ("change point: better", "triangle-down")


def test_series_are_not_joined_where_the_stand_changes_and_a_line_says_where(repository) -> None:
    for torch in ("1", "1", "2", "2"):
        repository.commit()
        repository.record(stand={"packages": {"torch": torch}})
    chart, lines, _, said = drawn(repository)
    assert [line["x"] for line in lines] == [[0, 1], [2, 3]]
    assert [line["showlegend"] for line in lines] == [True, False]
    assert lines[0]["line"]["dash"] != lines[1]["line"]["dash"]
    assert [shape["x0"] for shape in chart.content["layout"]["shapes"]] == [1.5]
    assert any("torch 1 -> 2" in text for text in said)


def test_components_are_drawn_where_they_stepped_and_named_where_not(repository) -> None:
    for more in (0, 1):
        repository.commit()
        repository.record(memory=grown(more))
    found, said = page_history.charts(load([repository.results], "demo"))
    titles = [chart.title for chart in found]
    assert "Memory: optimizer, MiB" in titles
    assert "Memory: gradients, MiB" not in titles
    assert any(text.startswith("not drawn") and "memory: gradients" in text for text in said)


def test_what_is_not_finite_is_not_drawn(repository) -> None:
    for value in (8.0, math.inf, 8.0):
        repository.commit()
        quality = scored(8.0)
        quality["perplexity"]["text"]["perplexity"] = value
        repository.record(quality=quality)
    _, (line,), (mark,), said = drawn(repository, "Perplexity text")
    assert (line["x"], line["y"]) == ([0, 2], [8.0, 8.0])
    assert (mark["name"], mark["x"], mark["y"]) == ("change point: better", [2], [8.0])
    assert any(told.startswith("worse: row, perplexity text 8.000 -> inf") for told in said)
    assert any("perplexity text is not finite" in told for told in said)
    text = page(records(), baseline="full", history=load([repository.results], "demo"))
    traces = [trace for chart in charts(text).values() for trace in chart["data"]]
    assert all(math.isfinite(value) for trace in traces for value in trace.get("y", ()))


def test_of_many_commits_only_some_have_their_names_on_the_axis(repository) -> None:
    for _ in range(25):
        repository.commit()
        repository.record()
    chart, _, _, _ = drawn(repository)
    places = chart.content["layout"]["xaxis"]["tickvals"]
    assert len(places) <= page_history.TICKS
    assert places[-1] == 24


def test_text_of_commits_and_records_adds_no_element(repository) -> None:
    for more in (0, 1):
        repository.commit(HOSTILE.splitlines()[0] or "x")
        repository.record(label=HOSTILE, memory=grown(more), stand={"device": f"{HOSTILE}{more}"})
        repository.record(label="<img src=x>", memory=grown(more))
    text = page(records(), baseline="full", history=load([repository.results], "demo"))
    elements = Elements(text)
    assert 'id="history"' in text
    assert not elements.of("img")
    assert len(elements.of("script")) == 4
    hover = [t for c in charts(text).values() for trace in c["data"] for t in trace.get("hovertext", ())]
    assert any("&lt;img src=x&gt;" in said for said in hover if isinstance(said, str))
    assert not any("<img" in said for said in hover if isinstance(said, str))


def test_one_commit_has_no_chart_and_says_why(repository) -> None:
    repository.commit()
    repository.record()
    found, said = page_history.charts(load([repository.results], "demo"))
    assert found == []
    assert said[0].startswith(f"one commit, {repository.commits[0][:7]}")


def test_a_page_without_a_history_has_no_such_section() -> None:
    assert 'id="history"' not in page(records(), baseline="full")


# ------------------------------------------------------------------------------------- the command
def test_the_command_puts_the_history_of_a_folder_on_the_page(monkeypatch, capsys, tmp_path) -> None:
    results = reference(tmp_path / "results", "one")
    file = tmp_path / "page.html"
    code, _ = command(monkeypatch, capsys, results, "--out", file, "--history", results)
    assert code in (0, None)
    assert "History over commits" in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("page_too", [False, True])
def test_a_history_without_a_page_or_without_a_folder_is_one_line(
    monkeypatch, capsys, tmp_path, page_too
) -> None:
    results = reference(tmp_path / "results", "one")
    more = ["--out", tmp_path / "page.html"] if page_too else []
    code, said = command(monkeypatch, capsys, results, "--history", tmp_path / "none", *more)
    assert code == 2
    assert said.err.count("\n") == 1
    assert ("add --out FILE.html" in said.err) != page_too
