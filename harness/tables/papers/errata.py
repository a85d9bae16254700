"""Known errors in published values: claims about papers, with evidence and a way to reproduce each.

A claim's text names its values in braces; they are calculations or printed cells, so none is typed.
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


class ClaimValue(Strict):
    """One value of a claim: its source and its format."""

    of: Calculated | Printed
    unit: str = ""
    decimals: Annotated[int, Field(ge=0)] = 2


class Claim(Strict):
    """One error: the papers it is in, the evidence, and how to reproduce it."""

    title: str
    about: Annotated[tuple[str, ...], Field(min_length=1)]
    text: str
    values: Annotated[dict[str, ClaimValue], Field(min_length=1)]
    evidence: Annotated[tuple[str, ...], Field(min_length=1)]
    again: str


class Errata(Strict):
    """All claims, in the order of the page."""

    claims: tuple[Claim, ...]


def load(folder: Path) -> Errata:
    """Read the claims; UserError in one line for anything that does not fit."""
    path = folder / f"{ERRATA}.yaml"
    return validate(Errata, read_yaml(path), where=str(path))


def build(errata: Errata, sources: Sources) -> Report:
    """Build the page: each claim a table of its values, with text, evidence and a command below it."""
    return Report(
        title="Errata of published values",
        question="Which published values do not hold, by which evidence, and how can it be reproduced?",
        tables=tuple(_table(claim, sources) for claim in errata.claims),
        caption=("values are calculated (nox -s tables) or printed in the source named",),
        notes=(),
        lines=tuple(
            {
                "claim": claim.title,
                "about": " ".join(claim.about),
                "quantity": name,
                "value": value,
                "how": how,
            }
            for claim in errata.claims
            for name, (value, how) in _values(claim, sources).items()
        ),
    )


def _table(claim: Claim, sources: Sources) -> Table:
    values = _values(claim, sources)
    wanted = {name for _, name, _, _ in string.Formatter().parse(claim.text) if name}
    for name in wanted - set(values):
        raise UserError(f"errata, {claim.title}: no value {name!r}; {nearest(name, values)}")
    if unused := sorted(set(values) - wanted):
        raise UserError(
            f"errata, {claim.title}: the text does not use {', '.join(unused)}; name it or drop it"
        )
    text = claim.text.format_map({name: value for name, (value, _) in values.items()})
    notes = (text, *(f"evidence: {item}" for item in claim.evidence), f"again: {claim.again}")
    shown, how = zip(*values.values(), strict=True)
    units = tuple(item.unit for item in claim.values.values())
    return Table(
        claim.title,
        (Column("quantity", tuple(name.replace("_", " ") for name in values), numeric=False),),
        (Column("value", shown), Column("unit", units, numeric=False), Column("how", how, numeric=False)),
        tuple(map(plain, notes)),
    )


def _values(claim: Claim, sources: Sources) -> dict[str, tuple[str, str]]:
    """Return each value as text, with how it was obtained."""
    found = {}
    for name, item in claim.values.items():
        try:
            found[name] = _value(item, sources)
        except UserError as error:
            raise UserError(f"errata, {claim.title}, {name}: {error}") from error
    return found


def _value(item: ClaimValue, sources: Sources) -> tuple[str, str]:
    if isinstance(item.of, Printed):
        cell = sources.printed_cell(item.of)
        value, how = cell.published, f"printed: {cell.where}"
    else:
        entry = sources.calculation(item.of)
        value, how = entry["value"], str(entry.get("how", ""))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = fixed(item.decimals)(value)
    return plain(str(value)), plain(how)
