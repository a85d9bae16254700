"""The transcribed tables: complete, equal to their source, and their references lead somewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import suite as suites
from harness.engine.run.environment import ROOT
from harness.errors import UserError
from harness.suite import suites_folder
from harness.tables.papers import published as transcribed
from harness.tables.papers.judge import Judged, judge
from harness.tables.papers.lookup import Sources, sources
from harness.tables.papers.published import Cell
from harness.tables.papers.schema import Calculated, Paper, Predicted, Recorded
from harness.tables.papers.table import remarks_of
from tests.support.realdata import development_data

ROWS = {
    "adarankgrad": 56,
    "apollo": 74,
    "asvd": 25,
    "bolaco": 76,
    "fira": 37,
    "galore": 229,
    "lisa": 15,
    "lorap": 23,
    "loraprune": 12,
    "lord": 8,
    "lotr": 50,
    "lqlora": 12,
    "owl": 17,
    "owlore": 17,
    "qgalore": 45,
    "sltrain": 62,
    "svdllm": 107,
    "velora": 98,
    "welore": 198,
}
SMALL: dict[str, Any] = {
    "paper": {"title": "T", "arxiv": "0000.00000", "url": "U", "read": "all of it"},
    "names": {"size": {"model": {"60M": "60m"}}, "stack": {"method": {"A": {"kept": {"rank": "{rank}"}}}}},
    "tables": [
        {
            "id": "Table 1",
            "caption": "C",
            "source": "S",
            "confidence": "verified",
            "metric": "score",
            "keys": ["method", "model", "rank"],
            "tolerance": {"absolute": 0.5, "reason": "a test"},
            "answers": [
                {
                    "when": {"method": "A"},
                    "ours": {"calculation": "size", "with": {"of": "{stack}", "at": "{size}"}},
                },
                {"needs": "data", "why": "{method} at {size}"},
            ],
            "rows": [
                {"method": "A", "model": "60M", "rank": 8, "value": 1},
                {"method": "B", "model": "60M", "value": 2},
            ],
        }
    ],
}


def small(**table: Any) -> Paper:
    return Paper.model_validate({**SMALL, "tables": [{**SMALL["tables"][0], **table}]})


@cache
def cells(name: str) -> list[Cell]:
    return list(transcribed.cells(name, transcribed.load(transcribed.folder(), name)))


def everything() -> list[Cell]:
    return [cell for name in ROWS for cell in cells(name)]


# --------------------------------------------------------------------------------------- completeness
def test_every_transcribed_row_is_one_cell() -> None:
    assert transcribed.available(transcribed.folder()) == sorted(ROWS)
    assert {name: sum(cell.primary for cell in cells(name)) for name in ROWS} == ROWS
    assert sum(cell.primary for cell in everything()) == 1161


def same(first: Any, second: Any) -> bool:
    both_nan = (
        isinstance(first, float) and isinstance(second, float) and math.isnan(first) and math.isnan(second)
    )
    return bool(first == second) or both_nan


@pytest.mark.realdata
@pytest.mark.parametrize("name", ROWS)
def test_every_cell_is_what_was_transcribed(name: str) -> None:
    source = yaml.safe_load(development_data("..", "papers", f"{name}.yaml").read_text(encoding="utf-8"))
    ours = {table.id: table.rows for table in transcribed.load(transcribed.folder(), name).tables}
    assert list(ours) == [table["id"] for table in source["tables"]]
    for table in source["tables"]:
        assert len(ours[table["id"]]) == len(table["rows"])
        for row, other in zip(ours[table["id"]], table["rows"], strict=True):
            assert row.keys() == other.keys()
            assert all(same(row[key], other[key]) for key in row), (table["id"], row, other)


def test_every_printed_value_of_a_row_is_a_cell() -> None:
    """A number in a row is a key, the row's value or a further one: none is left without an answer."""
    for name in ROWS:
        for table in transcribed.load(transcribed.folder(), name).tables:
            for number, row in enumerate(table.rows):
                known = {
                    cell.quantity
                    for cell in cells(name)
                    if cell.table.id == table.id and cell.number == number
                }
                assert set(row) - set(table.keys) - {"unit", "note"} == known


# ----------------------------------------------------------------------------------------- references
def test_labels_of_suites_that_ship_exist_in_them() -> None:
    wanted: dict[str, set[str]] = {}
    for cell in everything():
        for selector in cell.answer.selectors:
            if isinstance(selector, Recorded):
                wanted.setdefault(selector.suite, set()).add(selector.only["label"])
    assert "shapes" in wanted
    for name, labels in wanted.items():
        path = suites_folder() / f"{name}.yaml"
        if path.exists():
            assert not labels - {run.name for run in suites.load(path).runs}, name


def test_forecasts_that_are_cited_exist() -> None:
    labels = {run.name for run in suites.load("shapes").runs}
    cited = {s.forecast for cell in everything() for s in cell.answer.selectors if isinstance(s, Predicted)}
    assert cited
    assert not cited - labels


def test_copied_cells_are_equal_to_their_source() -> None:
    found = Sources(transcribed.folder(), Path("nowhere"), ())
    copied = [cell for cell in everything() if cell.answer.copied_from]
    assert len(copied) > 20
    for cell in copied:
        assert cell.answer.copied_from
        assert found.printed_cell(cell.answer.copied_from).published == cell.published, cell.where


# ---------------------------------------------------------------------------------------- the schema
def test_placeholders_are_filled_from_the_row_and_keep_their_type() -> None:
    first, second = transcribed.cells("small", small())
    assert first.answer.selectors == (
        Calculated.model_validate(
            {"calculation": "size", "with": {"of": {"kept": {"rank": 8}}, "at": "60m"}}
        ),
    )
    assert second.answer.why == "B at 60m"


def test_the_terms_of_an_average_are_collected_from_the_rows_beside_it() -> None:
    rows = [
        {"method": "A", "model": model, "value": value} for model, value in (("x", 1), ("y", 4), ("mean", 3))
    ]
    rows += [{"method": "B", "model": "x", "value": 9}]
    answer = {"ours": {"calculation": "mean", "with": {"values": "{terms}"}}}
    paper = small(
        keys=["method", "model"],
        rows=rows,
        answers=[answer],
        collect={"terms": {"over": "model", "without": ["mean"]}},
    )
    average = list(transcribed.cells("small", paper))[2]
    (selector,) = average.answer.selectors
    assert isinstance(selector, Calculated)
    assert selector.arguments == {"values": [1, 4]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"rows": [{"method": "A", "modle": "60M", "value": 1}]},
            "unknown key 'modle'; did you mean 'model'",
        ),
        ({"rows": [{"method": "A", "model": "60M"}]}, "every row has a printed value"),
        ({"answers": [{"when": {"method": "C"}, "needs": "data", "why": "x"}]}, "no answer fits the row"),
        ({"answers": [{"needs": "data", "why": "{sise}"}]}, "nothing is called {sise}; did you mean 'size'"),
        ({"rows": [{"method": "B", "model": "7B", "value": 1}]}, "{size} has no name for model '7B'"),
    ],
)
def test_a_mistake_in_a_table_is_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        list(transcribed.cells("small", small(**change)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_of_a_table_is_refused_with_the_nearest(tmp_path: Path) -> None:
    content = {**SMALL, "tables": [{**SMALL["tables"][0], "toleranse": 1}]}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"unknown key 'toleranse'.*'tolerance'"):
        transcribed.load(tmp_path, "small")


def test_an_unknown_paper_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="no paper 'galor'; did you mean 'galore'"):
        transcribed.load(transcribed.folder(), "galor")


def test_every_call_is_listed_once_and_filled() -> None:
    rows = [{"method": "A", "model": "60M", "rank": 8, "value": value} for value in (1, 2)]
    paper = small(rows=rows)
    assert len({str(cell.answer.selectors) for cell in transcribed.cells("small", paper)}) == 1
    for name in ROWS:
        found = transcribed.calls(transcribed.folder(), name)
        assert not transcribed.PLACEHOLDER.search(str(found))
        assert len({str(call) for call in found}) == len(found)


# ------------------------------------------------------------------------------------------ remarks
def column(tmp_path: Path, *remarks: Any, calculations: Sequence[Any] = ()) -> list[list[str]]:
    """Remarks on two published peaks, of 3 and 4 GiB, beside forecasts of 2 GiB; all but the first on one."""
    train = {"peak_allocated_bytes": 2 << 30, "optimizer_bytes": 1 << 29}
    train |= {"weights_trainable_bytes": 1 << 29, "weights_frozen_bytes": 0}
    (tmp_path / "forecasts").mkdir()
    file = tmp_path / "forecasts" / "shapes.json"
    file.write_text(json.dumps({"rows": [{"label": "60m", "forecast": {"train": train}, "reason": None}]}))
    (tmp_path / "calculations.json").write_text(json.dumps(list(calculations)))
    given = [each if isinstance(each, dict) else {"text": each} for each in remarks]
    paper = small(
        unit="GiB",
        rows=[{"method": "A", "model": "60M", "value": 3}, {"method": "B", "model": "60M", "value": 4}],
        answers=[{"ours": {"forecast": "{size}"}}],
        remarks=[given[0], *({"when": {"method": "B"}, **each} for each in given[1:])],
    )
    found = Sources(transcribed.folder(), tmp_path, ())
    return remarks_of(judge("small", paper, found), found)


def test_a_remark_takes_its_sizes_from_its_rows(tmp_path: Path) -> None:
    every = "{gap} more, {weights} of weights; {beyond} beyond, {paper_beyond} there"
    first, second = column(tmp_path, every, "{gap} of {peak}, {optimizer} of states")
    assert first == ["1.00 to 2.00 GiB more, 0.50 GiB of weights; 1.00 GiB beyond, 2.00 to 3.00 GiB there"]
    assert second == [*first, "2.00 GiB of 2.00 GiB, 0.50 GiB of states"]


def test_a_remark_may_name_sizes_of_other_forecasts_and_of_calculations(tmp_path: Path) -> None:
    call = {"calculation": "size", "with": {"of": 1}}
    remark = {
        "text": "{other} and {bytes}",
        "sizes": {"other": {"forecast": "60m", "part": "optimizer"}, "bytes": call},
    }
    first, second = column(tmp_path, remark, calculations=[{**call, "value": 0.25, "unit": "GiB"}])
    assert first == second == ["0.50 GiB and 0.25 GiB"]


def test_a_size_that_a_remark_does_not_use_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Table 1: a remark does not use other; name it or drop it"):
        column(tmp_path, {"text": "{gap}", "sizes": {"other": {"forecast": "60m"}}})


def test_calculations_of_remarks_are_evaluated_too(tmp_path: Path) -> None:
    call = {"calculation": "mean", "with": {"values": [1, 2]}}
    content = {
        **SMALL,
        "tables": [{**SMALL["tables"][0], "remarks": [{"text": "{x}", "sizes": {"x": call}}]}],
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert Calculated.model_validate(call) in transcribed.calls(tmp_path, "small")


def test_a_remark_that_names_no_size_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Table 1: a remark names \{gab\}, .*'gap'") as caught:
        column(tmp_path, "{gab} more")
    assert "\n" not in str(caught.value)


def test_apollo_mini_with_int8_weights_stays_below_the_bound_of_its_paper() -> None:
    (cell,) = (each for each in cells("apollo") if each.published == "< 12")
    ours = sources(ROOT).find(cell)
    assert ours is not None
    assert float(ours.value) < 12


def test_every_peak_that_differs_by_more_than_a_tenth_has_its_sentence() -> None:
    found = sources(ROOT)
    for name in ROWS:
        by_column: dict[tuple[str, str], list[Judged]] = {}
        for item in judge(name, transcribed.load(transcribed.folder(), name), found):
            by_column.setdefault((item.cell.table.id, item.cell.quantity), []).append(item)
        for items in by_column.values():
            for item, texts in zip(items, remarks_of(items, found), strict=True):
                peak = any(isinstance(s, Predicted) and not s.beside for s in item.cell.answer.selectors)
                if peak and not 0.9 <= (item.ratio or 1) <= 1.1:
                    assert texts or item.cell.answer.why, item.cell.where
