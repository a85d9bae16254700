"""Published figures on the page of a suite: which cells, with which verdicts, and harmless text."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from harness import record
from harness.tables.page import papers as page_papers
from harness.tables.papers import judge, lookup, published
from harness.tables.papers.lookup import Sources
from tests.support.reference import records_of
from tests.unit.tables.page.test_page import HOSTILE, ROOT, Elements, records
from tests.unit.tables.page.test_page import made as page
from tests.unit.tables.report.test_report import fabricate

pytest.importorskip("plotly")


def paper(**table):
    """A paper with one table: a figure of the suite `demo`, and one that needs what is not there."""
    answers = [
        {
            "when": {"method": "Full-Rank"},
            "ours": {"suite": "demo", "only": {"label": "full"}, "quantity": "perplexity.world-b"},
            "needs": "data",
            "why": "the text is not at hand",
        },
        {"needs": "weights", "why": "the weights are not at hand"},
    ]
    rows = [{"method": "Full-Rank", "value": 8.1}, {"method": "8-bit SomeThing2", "value": 9.0}]
    made = {
        "id": "Table 1",
        "caption": "a caption",
        "source": "a source",
        "confidence": "verified",
        "metric": "perplexity",
        "unit": "ppl",
        "tolerance": {"relative": 0.05, "reason": "one run"},
        "keys": ["method"],
        "answers": answers,
        "rows": rows,
    }
    about = {"title": "a title", "arxiv": "1", "url": "https://example.org", "read": "all of it"}
    return {"paper": about, "tables": [{**made, **table}]}


def sources(folder, content=None, results=None):
    (folder / "papers").mkdir(exist_ok=True)
    text = yaml.safe_dump(content or paper())
    (folder / "papers" / "some.yaml").write_text(text, encoding="utf-8")
    (folder / "calculations.json").write_text("[]", encoding="utf-8")
    return Sources(folder / "papers", results or folder, ())


def shown(text):
    """The cells of every row of the published figures."""
    found = []
    for element in Elements(text).found:
        if element["tag"] == "tr" and "data-verdict" in element:
            found.append((element["data-verdict"], element["text"]))
    return found


def test_a_figure_that_runs_of_the_suite_measure_stands_beside_them_with_its_verdict(tmp_path) -> None:
    text = page_papers.section(records(), sources(tmp_path))
    assert "that runs of this suite are compared with" in text
    ((verdict, row),) = shown(text)
    assert verdict == "reproduced"
    for said in ("Full-Rank", "8.1 ppl", "8.0", "mean of 3 runs of suite demo", "a cpu"):
        assert said in row


@pytest.mark.parametrize("stack", [3, None, "some", [{"name": 3}, 3]])
def test_methods_that_are_no_list_of_choices_end_no_page(tmp_path, stack) -> None:
    other = fabricate("other", suite="another")
    other.config["method"] = stack
    assert "No transcribed published number" in page_papers.section([other], sources(tmp_path))


def test_a_suite_without_a_figure_of_its_own_shows_those_of_its_methods(tmp_path) -> None:
    other = fabricate("other", suite="another")
    other.config["method"] = [{"name": "something"}]
    text = page_papers.section([other], sources(tmp_path))
    assert shown(text) == [("needs weights", shown(text)[0][1])]
    assert "8-bit SomeThing2" in shown(text)[0][1]
    assert "the weights are not at hand" in shown(text)[0][1]
    assert "of its methods (something)" in text


@pytest.mark.parametrize(
    ("said", "method", "named"),
    [
        ("8-bit GaLore per-layer", "galore", True),
        ("GaLore8bit per-layer", "galore", True),
        ("Low-Rank", "lowrank", True),
        ("Full + VeLoRA", "velora", True),
        ("VeLoRA", "lora", False),
        ("ReLoRA", "lora", False),
        ("CoLA", "full", False),
    ],
)
def test_a_method_is_found_by_its_name_in_the_spelling_of_papers(tmp_path, said, method, named) -> None:
    content = paper(rows=[{"method": said, "value": 1.0}])
    found = sources(tmp_path, content)
    (item,) = judge.judge("some", published.load(found.papers, "some"), found)
    assert page_papers.is_of(item, method) == named


def test_the_summary_counts_as_the_committed_index_does() -> None:
    found = lookup.sources(ROOT)
    text = page_papers.section(records(), found)
    index = (ROOT / "results" / "tables" / "papers" / "index.md").read_text(encoding="utf-8")
    (table,) = [e for e in Elements(text).of("table") if "most frequent obstacle" in e["text"]]
    for name in published.available(found.papers):
        judged = judge.judge(name, published.load(found.papers, name), found)
        counts = Counter(item.verdict for item in judged if item.cell.primary)
        line = next(line for line in index.splitlines() if line.startswith(f"| {name} "))
        for verdict, count in counts.items():
            assert f"{count} {verdict}" in table["text"]
            assert f" {count} |" in line


@pytest.mark.parametrize("suite", ["welore", "pretrain", "finetune", "compressed"])
def test_the_page_of_a_suite_that_ships_stays_small_with_its_published_figures(suite) -> None:
    from harness.tables.records import load

    found, _ = load(records_of(suite))
    text = page(found, baseline=None, published=lookup.sources(ROOT))
    assert len(shown(text)) > 30
    assert len(text.encode()) < 6_000_000


def test_without_records_or_results_the_page_says_so_and_is_written(tmp_path) -> None:
    content = paper(answers=[{"ours": {"calculation": "some.thing", "with": {}}}])
    nothing = sources(tmp_path, content, results=Path("not", "there"))
    text = page(records(), baseline="full", published=nothing)
    (said,) = [e["text"] for e in Elements(text).of("p") if "could not be compared with ours" in e["text"]]
    assert "run nox -s tables" in said
    empty = Sources(tmp_path / "nowhere", tmp_path, ())
    assert "No published numbers are available." in page_papers.section(records(), empty)


def test_text_of_papers_and_records_adds_no_element(tmp_path) -> None:
    hostile = HOSTILE.replace("%{x}", "")  # papers fill names in braces
    rows = [{"method": hostile, "value": hostile, "note": hostile}]
    content = paper(
        rows=rows, answers=[{"needs": "weights", "why": hostile}], id=hostile, metric=hostile, unit=hostile
    )
    made = fabricate("a", suite=HOSTILE)
    made.config["method"] = [{"name": "img"}, {"name": HOSTILE}]
    elements = Elements(page([made], baseline=None, published=sources(tmp_path, content)))
    assert elements.of("tr", **{"data-verdict": "needs weights"})
    assert not elements.of("img")
    assert len(elements.of("script")) == 4
    assert {e["type"] for e in elements.of("input")} == {"search"}
    for element in elements.found:
        assert not [key for key in element if key.startswith("on")]
        assert element["tag"] != "a" or element["href"].startswith("#")


def test_records_that_were_read_take_the_place_of_their_files(tmp_path) -> None:
    folder = tmp_path / "machine" / "demo"
    folder.mkdir(parents=True)
    (folder / "x.json").write_text(json.dumps({}), encoding="utf-8")
    found = Sources(tmp_path / "papers", tmp_path, (tmp_path,))
    found.take("demo", records())
    assert {row.label for row in found._of_suite("demo")} == {"full", "small", "poor"}


def test_a_record_that_cannot_be_is_no_figure(tmp_path) -> None:
    folder = tmp_path / "machine" / "demo"
    sound, odd = fabricate("full", suite="demo"), fabricate("odd", suite="demo")
    odd.quality.tasks["facts"].documents = 0
    for item in (sound, odd):
        record.write(item, folder / f"{item.run_id}.json")
    found = Sources(tmp_path / "papers", tmp_path, (tmp_path,))
    assert {row.label for row in found._of_suite("demo")} == {"full"}
