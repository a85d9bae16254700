"""A published table beside ours: figures from every kind of source, cells, notes, the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import identity
from harness import record as records
from harness.cli import paper as paper_command
from harness.engine.run.environment import ROOT
from harness.errors import UserError
from harness.record import Accuracy, Environment, Outcome, Perplexity, Quality, Record
from harness.tables import generated
from harness.tables.papers import judge, lookup
from harness.tables.papers import published as transcribed
from harness.tables.papers import report as paper_report
from harness.tables.papers.judge import Judged
from harness.tables.papers.lookup import Sources
from harness.tables.papers.schema import Paper
from harness.tables.report import render

SUITE = {"suite": "llama2/made_up", "only": {"label": "7b {method}"}, "quantity": "perplexity.c4"}
CLOSE = {"relative": 0.1, "factor": 2, "reason": "a test"}
FORECAST = {
    "peak_allocated_bytes": 10 * 2**30,
    "optimizer_bytes": 6 * 2**30,
    "gradients_bytes": 0,
    "weights_trainable_bytes": 2 * 2**30,
    "weights_frozen_bytes": 2**30,
    "buffers_bytes": 0,
}


def paper(*rows: dict[str, Any], **table: Any) -> Paper:
    content = {
        "id": "Table 1",
        "caption": "a caption",
        "source": "a source",
        "confidence": "verified",
        "metric": "score",
        "unit": "ppl",
        "keys": ["method"],
        "tolerance": CLOSE,
        "rows": rows,
        "answers": [{"ours": SUITE, "needs": "weights", "why": "not at hand"}],
    }
    head = {"title": "A title", "arxiv": "0000.00000", "url": "U", "read": "all of it"}
    return Paper.model_validate({"paper": head, "tables": [{**content, **table}]})


def sources(folder: Path, *calculations: dict[str, Any]) -> Sources:
    results = folder / "results"
    (results / "forecasts").mkdir(parents=True, exist_ok=True)
    (results / "calculations.json").write_text(json.dumps(calculations), encoding="utf-8")
    other = {**FORECAST, "peak_allocated_bytes": 4 * 2**30}
    reports = {"big": FORECAST, "small": other}
    forecasts = {"rows": [{"label": label, "forecast": {"train": train}} for label, train in reports.items()]}
    (results / "forecasts" / "shapes.json").write_text(json.dumps(forecasts), encoding="utf-8")
    return Sources(folder / "papers", results, (folder / "runs",))


def write_record(
    folder: Path, label: str, perplexity: float, *, seed: int = 0, status: records.Status = "ok"
) -> None:
    config = {"method": label, "seed": seed, "repeat": 0}
    made = Record(
        run_id=identity.run_id(config),
        config_id=identity.config_id(config),
        suite="made_up",
        label=label,
        seed=seed,
        repeat=0,
        tier="weights",
        config=config,
        rerun="",
        outcome=Outcome(status=status),
        environment=Environment(
            device="Abacus", cpu="c", cpu_threads=1, system="s", python="3.11", packages={}
        ),
        quality=Quality(
            perplexity={
                "c4": Perplexity(
                    perplexity=perplexity, nll_nats=1, tokens=1, windows=1, dropped_tokens=0, text="t"
                )
            },
            tasks={"paper_svamp": Accuracy(accuracy=0.5, correct=1, documents=2, version="1")},
        ),
    )
    records.write(made, folder / "runs" / "machine" / "made_up" / f"{made.run_id}.json")


def judged(made: Paper, found: Sources) -> list[Judged]:
    return judge.judge("made", made, found)


def text(made: Paper, found: Sources) -> str:
    return render.to_markdown(paper_report.build("made", made, found))


# ------------------------------------------------------------------------------------------- sources
def test_a_record_fills_a_cell_with_the_mean_over_its_seeds(tmp_path: Path) -> None:
    write_record(tmp_path, "7b A", 10.0)
    write_record(tmp_path, "7b A", 12.0, seed=1)
    write_record(tmp_path, "7b B", 99.0)
    (cell,) = judged(paper({"method": "A", "value": 10.5}), sources(tmp_path))
    assert cell.ours is not None
    assert (cell.ours.value, cell.ours.by, cell.verdict) == (11.0, "measured", "reproduced")
    assert cell.ratio == pytest.approx(11 / 10.5)


def test_a_run_that_failed_and_a_broken_file_fill_nothing(tmp_path: Path) -> None:
    write_record(tmp_path, "7b A", 10.0, status="diverged")
    (tmp_path / "runs" / "machine" / "made_up" / "broken.json").write_text("{", encoding="utf-8")
    (cell,) = judged(paper({"method": "A", "value": 10.5}), sources(tmp_path))
    assert (cell.ours, cell.verdict) == (None, "needs weights")


def test_an_accuracy_of_a_record_is_in_percent(tmp_path: Path) -> None:
    write_record(tmp_path, "7b A", 10.0)
    answer = {"ours": {**SUITE, "quantity": "accuracy.paper_svamp"}, "needs": "weights", "why": "x"}
    (cell,) = judged(
        paper({"method": "A", "value": 50.0}, unit="percent", answers=[answer]), sources(tmp_path)
    )
    assert cell.ours is not None
    assert cell.ours.value == 50.0


def test_a_record_comes_before_a_forecast(tmp_path: Path) -> None:
    answer = {"ours": [{**SUITE, "quantity": "perplexity.c4"}, {"forecast": "big"}]}
    made = paper({"method": "A", "value": 10}, unit="GiB", answers=[answer])
    (cell,) = judged(made, sources(tmp_path))
    assert cell.ours is not None
    assert (cell.ours.value, cell.ours.by) == (10.0, "predicted")
    write_record(tmp_path, "7b A", 11.0)
    (cell,) = judged(made, sources(tmp_path))
    assert cell.ours is not None
    assert (cell.ours.value, cell.ours.by) == (11.0, "measured")


@pytest.mark.parametrize(
    ("selector", "unit", "value"),
    [
        ({"forecast": "big"}, "GiB", 10),
        ({"forecast": "big", "part": "states"}, "GiB", 9),
        ({"forecast": "big", "part": "weights"}, "GiB", 3),
        ({"forecast": "big", "beside": "small"}, "GiB", 6),
        ({"forecast": "big", "beside": "small", "give": "ratio"}, "x", 2.5),
        ({"forecast": "big", "beside": "small", "give": "reduction"}, "percent", 60),
    ],
)
def test_forecasts_give_parts_differences_and_shares(
    tmp_path: Path, selector: dict[str, Any], unit: str, value: float
) -> None:
    made = paper({"method": "A", "value": value}, unit=unit, answers=[{"ours": selector}])
    (cell,) = judged(made, sources(tmp_path))
    assert cell.ours is not None
    assert cell.ours.value == pytest.approx(value)


def test_a_calculation_is_found_whatever_the_order_of_its_arguments(tmp_path: Path) -> None:
    answer = {"ours": {"calculation": "f", "with": {"b": 2, "a": [1]}}}
    entry = {"calculation": "f", "with": {"a": [1], "b": 2}, "value": 3, "unit": "", "how": "by hand"}
    (cell,) = judged(paper({"method": "A", "value": 3}, answers=[answer]), sources(tmp_path, entry))
    assert cell.verdict == "arithmetic checked"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            {"ours": {"calculation": "f", "with": {}}},
            "no value of f {} yet; run nox -s tables",
        ),
        ({"ours": {"forecast": "bigg"}}, "no forecast 'bigg'; did you mean 'big'"),
        ({"ours": {"forecast": "big"}}, "'bytes' cannot be compared with one in 'ppl'"),
        ({"ours": {"paper": "none", "table": "T", "where": {}}}, "no paper 'none'"),
    ],
)
def test_a_reference_that_leads_nowhere_is_one_line_that_names_the_cell(
    tmp_path: Path, answer: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        judged(paper({"method": "A", "value": 3}, answers=[answer]), sources(tmp_path))
    assert said in str(caught.value)
    assert str(caught.value).startswith("made, Table 1, method A: ")


def test_a_missing_file_of_calculations_says_what_makes_it(tmp_path: Path) -> None:
    found = Sources(tmp_path, tmp_path, ())
    with pytest.raises(UserError, match=r"calculations.json: cannot be read.*run nox -s tables"):
        judged(paper({"method": "A", "value": 3}, answers=[{"ours": {"calculation": "f"}}]), found)


# -------------------------------------------------------------------------------------------- columns
def test_the_order_is_that_of_the_methods_of_one_column_alone(tmp_path: Path) -> None:
    """At 7b ours are ordered as published, at 13b the other way round."""
    for label, value in (("7b A", 15), ("7b B", 30), ("13b A", 30), ("13b B", 29)):
        write_record(tmp_path, label, value)
    answer = {"ours": {**SUITE, "only": {"label": "{size} {method}"}}, "needs": "weights", "why": "x"}
    rows = [{"method": m, "size": s, "value": v} for s in ("7b", "13b") for m, v in (("A", 10), ("B", 20))]
    found = judged(paper(*rows, keys=["method", "size"], answers=[answer]), sources(tmp_path))
    assert [cell.verdict for cell in found] == ["same order", "same order", "differs", "differs"]


def test_counts_are_of_rows_and_not_of_their_further_values(tmp_path: Path) -> None:
    also = {"memory": {"metric": "memory", "unit": "GB", "answers": [{"needs": "device", "why": "a GPU"}]}}
    made = paper(
        {"method": "A", "value": 3, "memory": 1}, {"method": "B", "value": 3, "memory": 1}, also=also
    )
    found = judged(made, sources(tmp_path))
    assert len(found) == 4
    (table,) = paper_report.summary({"made": found}).tables
    assert table.rows == [("made", "2", "2"), ("all", "2", "2")]
    assert [column.name for column in table.columns] == ["cells", "needs weights"]


# ----------------------------------------------------------------------------------------------- page
def test_the_page_shows_both_figures_their_conditions_and_the_verdict(tmp_path: Path) -> None:
    write_record(tmp_path, "7b A", 11.0)
    answer = {
        "ours": SUITE,
        "needs": "weights",
        "why": "not at hand",
        "conditions": {"batch": "4", "length": "256"},
    }
    made = paper(
        {"method": "A", "value": 10.5}, conditions={"batch": "512", "length": "256"}, answers=[answer]
    )
    page = text(made, sources(tmp_path))
    (row,) = [line for line in page.splitlines() if line.startswith("| A ")]
    assert [part.strip() for part in row.strip("|").split("|")][1:6] == [
        "10.5",
        "11.0",
        "\N{MULTIPLICATION SIGN}1.048",
        "measured",
        "reproduced",
    ]
    assert "batch: paper 512, ours 4" in page
    assert "length: paper" not in page
    assert "device: paper not said, ours Abacus" in page


def test_the_command_that_would_fill_a_cell_stands_once(tmp_path: Path) -> None:
    page = text(paper({"method": "A", "value": 1}, {"method": "A", "value": 2}), sources(tmp_path))
    assert page.count("lorebench run benchmarks/suites/llama2/made_up.yaml --only 'label=7b A'") == 1
    assert "benchmarks/suites/llama2/made_up.yaml does not exist yet" in page


def test_a_copied_value_is_said_to_be_copied_or_not(tmp_path: Path) -> None:
    found = sources(tmp_path)
    copied = {
        "ours": SUITE,
        "needs": "data",
        "why": "x",
        "obtained": "copied",
        "copied_from": {"paper": "made", "table": "Table 1", "where": {"method": "B"}},
    }
    made = paper(
        {"method": "A", "value": 3},
        {"method": "B", "value": 3},
        {"method": "C", "value": 4},
        answers=[copied],
    )
    found.__dict__["printed"] = {"made": list(transcribed.cells("made", made))}
    page = text(made, found)
    assert "equal to made, Table 1" in page
    assert "made, Table 1 has 3" in page


@pytest.mark.parametrize(
    ("published", "ours", "shown"),
    [(34.88, 35.1234, "35.123"), (1, 0.25, "0.250"), (10, 11.0, "11"), (73, 72.849, "72.8")],
)
def test_ours_is_written_with_one_decimal_more_than_the_published_figure(
    tmp_path: Path, published: float, ours: float, shown: str
) -> None:
    entry = {"calculation": "f", "with": {}, "value": ours, "unit": "", "how": ""}
    made = paper({"method": "A", "value": published}, answers=[{"ours": {"calculation": "f"}}])
    assert f"| {shown} |" in " ".join(text(made, sources(tmp_path, entry)).split())


def test_a_table_is_chosen_by_the_beginning_of_its_name(tmp_path: Path) -> None:
    found, made = sources(tmp_path), paper({"method": "A", "value": 1})
    assert paper_report.build("made", made, found, "table 1").tables[0].title == "Table 1"
    with pytest.raises(UserError, match="no table 'Tabel 1'; known: Table 1"):
        paper_report.build("made", made, found, "Tabel 1")


# ---------------------------------------------------------------------------------------- the project
@pytest.fixture(scope="module")
def project() -> dict[str, list[Judged]]:
    found = lookup.sources(ROOT)
    names = transcribed.available(found.papers)
    return {name: judge.judge(name, transcribed.load(found.papers, name), found) for name in names}


def test_every_transcribed_row_has_a_verdict(project: dict[str, list[Judged]]) -> None:
    (table,) = paper_report.summary(project).tables
    total = dict(zip((column.name for column in table.all_columns), table.rows[-1], strict=True))
    assert total.pop("") == "all"
    assert total.pop("cells") == "1161"
    assert sum(map(int, total.values())) == 1161


def test_pages_have_not_drifted() -> None:
    wrong = [
        path.name for path, text in generated.paper_pages(ROOT) if path.read_text(encoding="utf-8") != text
    ]
    assert not wrong, "run: nox -s tables"


def lorebench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", "paper", *arguments]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600, env=environment
    )


def test_the_command_prints_a_table_and_writes_all_forms(tmp_path: Path) -> None:
    done = lorebench("galore", "--table", "Table 6a", "--format", "csv", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "galore,Table 6a,method=Full-Rank; model=llama_60m,value,True,0.12,G" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["galore.csv", "galore.md", "galore.tex"]
    assert done.stdout == (tmp_path / "galore.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["galor"], "no paper 'galor'; did you mean 'galore'"),
        (["galore", "--table", "Table 99"], "no table 'Table 99'"),
        (["all", "--table", "Table 1"], "all is not a paper"),
    ],
)
def test_a_mistake_at_the_command_line_is_one_line(arguments: list[str], said: str) -> None:
    done = lorebench(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["all", "errata", "velora"])
def test_every_page_can_be_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for form in ("text", "tex"):
        paper_command.paper(name, form=form)  # type: ignore[arg-type]
        assert capsys.readouterr().out.strip()


def test_each_paper_is_read_once_for_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = transcribed.load

    def noted(place: Path, name: str) -> Any:
        read.append(name)
        return original(place, name)

    monkeypatch.setattr(transcribed, "load", noted)
    paper_command.paper("all", None, "md", None, Path("nowhere"))
    assert sorted(read) == transcribed.available(transcribed.folder())
