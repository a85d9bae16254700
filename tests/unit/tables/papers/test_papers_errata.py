"""The page of claims: every figure comes from a file, and published lists in it are those of the tables."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from harness.engine.run.environment import ROOT
from harness.errors import UserError
from harness.tables.papers import errata, lookup, published
from harness.tables.papers.errata import Claim, Errata
from harness.tables.papers.lookup import Sources
from harness.tables.papers.schema import Calculated
from harness.tables.report import render

#: A number with decimals, not part of an address, a version or a quoted name of a table.
DECIMAL = re.compile(r"(?<![\w./v{-])\d+\.\d+(?![\w}./])")


def claim(**changes: Any) -> Claim:
    figure = {"of": {"calculation": "f", "with": {}}, "decimals": 1}
    content = {
        "title": "T",
        "about": ["galore"],
        "text": "It is {figure}.",
        "values": {"figure": figure},
        "evidence": ["a file"],
        "again": "a command",
    }
    return Claim.model_validate({**content, **changes})


def sources(folder: Path) -> Sources:
    entry = {"calculation": "f", "with": {}, "value": 1.25, "unit": "", "how": "by hand"}
    (folder / "calculations.json").write_text(json.dumps([entry]), encoding="utf-8")
    return Sources(folder, folder, ())


def page(made: Claim, found: Sources) -> str:
    return render.to_markdown(errata.build(Errata(claims=(made,)), found))


def test_a_claim_shows_its_figure_its_evidence_and_how_to_see_it_again(tmp_path: Path) -> None:
    shown = page(claim(), sources(tmp_path))
    assert "- It is 1.2." in shown
    assert "- evidence: a file" in shown
    assert "- again: a command" in shown
    assert "by hand" in shown


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text": "It is {figur}."}, "no value 'figur'; did you mean 'figure'"),
        ({"text": "It is."}, "the text does not use figure"),
        ({"values": {"figure": {"of": {"calculation": "g", "with": {}}}}}, "no value of g {} yet"),
    ],
)
def test_a_claim_that_does_not_fit_is_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        page(claim(**change), sources(tmp_path))
    assert said in str(caught.value)
    assert str(caught.value).startswith("errata, T")


def test_claims_are_about_papers_that_are_here_and_have_evidence() -> None:
    for made in errata.load(published.folder()).claims:
        assert set(made.about) <= set(published.available(published.folder()))
        assert made.evidence
        assert made.again


def test_lists_in_calculations_are_those_of_the_tables() -> None:
    """A list of accuracies or scores is one that a table prints, value for value."""
    found = lookup.sources(ROOT)
    tables = [table for name in found.printed for table in published.load(found.papers, name).tables]
    printed = [list(row["values"]) for table in tables for row in table.rows if "values" in row]
    (downstream,) = [table for table in tables if table.id == "v1 Table 5"]
    tasks = {row["task"] for row in downstream.rows}
    printed += [[row["value"] for row in downstream.rows if row["task"] == task] for task in sorted(tasks)]
    lists = 0
    for made in errata.load(published.folder()).claims:
        for figure in made.values.values():
            for value in figure.of.arguments.values() if isinstance(figure.of, Calculated) else ():
                if isinstance(value, list) and all(isinstance(item, (int, float)) for item in value):
                    lists += 1
                    assert value in printed, (made.title, value)
    assert lists >= 8


def test_single_numbers_in_calculations_are_printed_somewhere() -> None:
    found = lookup.sources(ROOT)
    printed = {
        float(value)
        for cells in found.printed.values()
        for cell in cells
        for value in [cell.published]
        if isinstance(value, (int, float))
    }
    names = {"perplexity", "numerator", "denominator", "minuend", "subtrahend", "less_than"}
    derived = {46.5, 59.92}  # 22.0 + 24.5 and 22.0 + 37.92, by the text of the paper
    for made in errata.load(published.folder()).claims:
        for name, figure in made.values.items():
            if isinstance(figure.of, Calculated):
                given = {float(v) for key, v in figure.of.arguments.items() if key in names}
                assert given <= printed | derived, (made.title, name, given - printed)


def test_no_figure_of_ours_is_typed_in_a_text() -> None:
    """Decimal fractions in a text are printed ones that a source states, listed here with their source."""
    stated = {"0.0", "0.4999", "92.33", "1.08", "52.3", "4.88"}
    for made in errata.load(published.folder()).claims:
        assert set(DECIMAL.findall(made.text)) <= stated, made.title
