"""What does not hold in published figures: claims about others, with evidence and a way to see it again.

A claim's text names its figures in braces; they are calculations or printed cells, so none is typed.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Annotated

from pydantic import Field

from harness.errors import UserError, nearest
from harness.suite import read_yaml
from harness.tables.format import Column, Table, fixed, plain
from harness.tables.papers.lookup import Sources
from harness.tables.papers.published import ERRATA
from harness.tables.papers.schema import Calculated, Printed, Strict
from harness.tables.report.build import Report
from harness.validation import validate


class Figure(Strict):
    """One figure of a claim: where it comes from, and how it is written."""

    of: Calculated | Printed
    unit: str = ""
    decimals: Annotated[int, Field(ge=0)] = 2


class Claim(Strict):
    """What does not hold, in which papers, by what evidence, and how anyone can see it again."""

    title: str
    about: Annotated[tuple[str, ...], Field(min_length=1)]
    text: str
    figures: Annotated[dict[str, Figure], Field(min_length=1)]
    evidence: Annotated[tuple[str, ...], Field(min_length=1)]
    again: str


class Errata(Strict):
    """All of them, in the order of the page."""

    claims: tuple[Claim, ...]


def load(folder: Path) -> Errata:
    """Read the claims; UserError in one line for anything that does not fit."""
    path = folder / f"{ERRATA}.yaml"
    return validate(Errata, read_yaml(path), where=str(path))


def build(errata: Errata, sources: Sources) -> Report:
    """The page of claims: each a table of its figures, with text, evidence and a command below it."""
    tables = tuple(_table(claim, sources) for claim in errata.claims)
    return Report(
        title="Errata of published figures",
        question="What does not hold in the papers, by which evidence, and how can anyone see it again?",
        tables=tables,
        caption=("figures are calculated (nox -s tables) or printed in the source named",),
        notes=(),
        lines=tuple(
            {
                "claim": claim.title,
                "about": " ".join(claim.about),
                "figure": name,
                "value": value,
                "how": how,
            }
            for claim in errata.claims
            for name, (value, how) in _figures(claim, sources).items()
        ),
    )


def _table(claim: Claim, sources: Sources) -> Table:
    figures = _figures(claim, sources)
    wanted = {name for _, name, _, _ in string.Formatter().parse(claim.text) if name}
    for name in wanted - set(figures):
        raise UserError(f"errata, {claim.title}: no figure {name!r}; {nearest(name, figures)}")
    if unused := sorted(set(figures) - wanted):
        raise UserError(
            f"errata, {claim.title}: the text does not use {', '.join(unused)}; name it or drop it"
        )
    text = claim.text.format_map({name: value for name, (value, _) in figures.items()})
    notes = (text, *(f"evidence: {item}" for item in claim.evidence), f"again: {claim.again}")
    names = tuple(name.replace("_", " ") for name in figures)
    units = tuple(figure.unit for figure in claim.figures.values())
    return Table(
        claim.title,
        (Column("figure", names, numeric=False),),
        (
            Column("value", tuple(value for value, _ in figures.values())),
            Column("unit", units, numeric=False),
            Column("how", tuple(how for _, how in figures.values()), numeric=False),
        ),
        tuple(plain(note) for note in notes),
    )


def _figures(claim: Claim, sources: Sources) -> dict[str, tuple[str, str]]:
    """The text of each figure and how it came about."""
    found = {}
    for name, figure in claim.figures.items():
        try:
            found[name] = _figure(figure, sources)
        except UserError as error:
            raise UserError(f"errata, {claim.title}, {name}: {error}") from error
    return found


def _figure(figure: Figure, sources: Sources) -> tuple[str, str]:
    if isinstance(figure.of, Printed):
        cell = sources.printed_cell(figure.of)
        value, how = cell.published, f"printed: {cell.where}"
    else:
        entry = sources.calculation(figure.of)
        value, how = entry["value"], str(entry.get("how", ""))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = fixed(figure.decimals)(value)
    return plain(str(value)), plain(how)
