"""Published numbers on the page of a suite: its own cells, or those of its methods, with their verdicts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from harness.errors import UserError
from harness.record import Record
from harness.tables.aggregate import grouped, methods
from harness.tables.format import DASH, plain
from harness.tables.format import ratio as ratio_text
from harness.tables.page.html import escape, tag
from harness.tables.page.tables import sortable, words
from harness.tables.papers import judge, published, report
from harness.tables.papers.judge import VERDICTS, Judged
from harness.tables.papers.lookup import Sources
from harness.tables.papers.schema import Predicted, Recorded, Selector
from harness.tables.papers.table import notes, ours, shown

TITLE = "Published numbers"
#: Up to so many cells a table is open.
FEW = 40
#: The suite whose labels name forecasts.
_FORECASTS = "shapes"
#: Headings of the columns with their kind.
_HEADS = {
    "table": "words",
    "row": "words",
    "quantity": "words",
    "published": "number",
    "ours": "number",
    "ratio": "number",
    "verdict": "words",
    "origin of ours, notes, differing conditions": "words",
}
_COUNTED = "counted is one number per transcribed row; further values of a row are in its paper"
_GOOD = ("reproduced", "same order", "arithmetic checked")
_BAD = ("differs", "does not run as published")


def section(records: Sequence[Record], sources: Sources) -> str:
    """Return the section below its heading; a sentence where the published numbers cannot be read."""
    suite = records[0].suite
    sources.take(suite, records)
    try:
        names = published.available(sources.papers)
        judged = {name: judge.judge(name, sources.paper(name), sources) for name in names}
        cells, introduction = chosen(records, judged)
        by_paper = grouped(cells, lambda item: item.cell.paper)
        tables = "".join(_paper(name, own, sources, len(cells) <= FEW) for name, own in by_paper.items())
    except (UserError, OSError) as error:
        return tag("p", escape(f"Published numbers could not be compared with ours: {error}"))
    if not any(judged.values()):
        return tag("p", "No published numbers are available.")
    return tag("p", escape(introduction)) + (_filter(cells) if cells else "") + tables + _summary(judged)


# ------------------------------------------------------------------------------------ which cells
def chosen(records: Sequence[Record], judged: dict[str, list[Judged]]) -> tuple[list[Judged], str]:
    """Return the cells that this suite answers, else those of its methods, and a sentence on which."""
    suite, labels = records[0].suite, {record.label for record in records}
    everything = [item for items in judged.values() for item in items]
    own = [
        item
        for item in everything
        if any(_speaks_of(one, suite, labels) for one in item.cell.answer.selectors)
    ]
    if own:
        return own, "The published numbers that runs of this suite are compared with."
    stacks = list(dict.fromkeys(name for record in records for name in methods(record)))
    found = [item for item in everything if any(is_of(item, method) for method in stacks)]
    named = ", ".join(stacks)
    if not found:
        return [], f"No transcribed published number belongs to this suite or its methods ({named})."
    return found, (
        "No published number belongs to this suite, since no paper has its model and text. These are the "
        f"published numbers of its methods ({named}), beside ours from any suite."
    )


def _speaks_of(selector: Selector, suite: str, labels: set[str]) -> bool:
    if isinstance(selector, Recorded):
        return Path(selector.suite).name == suite and selector.only.get("label", "") in {*labels, ""}
    return isinstance(selector, Predicted) and suite == _FORECASTS and selector.forecast in labels


def is_of(item: Judged, method: str) -> bool:
    """Return whether a cell's row names a method in any spelling, or names none in a paper of that name.

    Spellings differ in case, hyphens, and digits before or behind the name.
    """
    name = item.cell.row.get("method")
    if name is None:
        return item.cell.paper == method
    parts = re.findall(r"[a-z]+|[0-9]+", str(name).lower())
    return method in parts or method in map("".join, pairwise(parts))


# ------------------------------------------------------------------------------------------ tables
def _filter(cells: Sequence[Judged]) -> str:
    there = [verdict for verdict in VERDICTS if any(item.verdict == verdict for item in cells)]
    choices = "".join(tag("option", escape(verdict), value=verdict) for verdict in there)
    text = (
        '<input type="search" id="published-text" autocomplete="off" spellcheck="false" '
        'placeholder="filter, e.g. &quot;llama 350M&quot;">'
    )
    every = tag("option", "any", value="")
    return tag(
        "form",
        tag("label", f"Filter published numbers {text}")
        + tag("label", "Verdict " + tag("select", every + choices, id="published-verdict"))
        + tag("output", id="published-count", for_="published-text published-verdict", aria_live="polite"),
        class_="filter",
        role="search",
    )


def _paper(name: str, items: Sequence[Judged], sources: Sources, is_open: bool) -> str:
    """Render the cells of one paper, below a line that counts them."""
    described = f"published-{name}"
    caption = tag("caption", escape(f"{name}: published numbers and ours"), id=described, class_="hidden")
    body = "".join(_row(item, sources) for item in items)
    drawn = sortable(described, caption, list(_HEADS.items()), body, class_="sortable published")
    summary = tag("summary", escape(f"{name}, {_counted(items)}"))
    return tag("details", summary + drawn, class_="cells", open="" if is_open else None)


def _row(item: Judged, sources: Sources) -> str:
    cell = item.cell
    named = [(key.replace("_", " "), shown(value)) for key, value in cell.keys.items()]
    row = ", ".join(value if key == "method" else f"{key} {value}" for key, value in named)
    unit = f" {cell.unit}".rstrip() if item.number is not None else ""
    by = [f"{item.ours.by}"] if item.ours else []
    texts = {
        "row": row,
        "quantity": cell.values.metric,
        "published": shown(cell.published) + unit,
        "ours": ours(item),
        "ratio": DASH if item.ratio is None else ratio_text(item.ratio),
    }
    value = item.ours.value if item.ours and not isinstance(item.ours.value, (str, bool)) else None
    sorts = {"published": item.number, "ours": value, "ratio": item.ratio}
    cells = tag("th", escape(cell.table.id), scope="row") + "".join(
        tag("td", escape(text), class_=_HEADS[head], data_value=_sort(sorts.get(head)))
        for head, text in texts.items()
    )
    ending = "all" if item.verdict in _GOOD else "none" if item.verdict in _BAD else "open"
    cells += tag("td", tag("span", escape(item.verdict), class_=f"ending {ending}"), class_="words")
    cells += tag("td", escape("; ".join((*by, *notes(item, sources)))), class_="words long")
    return tag("tr", cells, data_verdict=item.verdict)


def _sort(value: float | None) -> str | None:
    return None if value is None or value != value else repr(float(value))


def _summary(judged: dict[str, list[Judged]]) -> str:
    """Render the counts of verdicts of every paper, and its most frequent obstacle."""
    rows = {name: [item for item in items if item.cell.primary] for name, items in judged.items()}
    rows["all"] = [item for items in rows.values() for item in items]
    title, heads = "All papers: verdicts", ("paper", "verdicts", "most frequent obstacle")
    lines = [(name, _counted(items), _reason(items)) for name, items in rows.items()]
    read = tag("ul", "".join(tag("li", escape(text)) for text in (_COUNTED, *report.READING)))
    return tag("h3", escape(title)) + words("published-papers", title, heads, lines) + read


def _counted(items: Sequence[Judged]) -> str:
    counts = Counter(item.verdict for item in items)
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    return f"{len(items)} numbers: {verdicts}"


def _reason(items: Sequence[Judged]) -> str:
    """Return the most frequent reason for having no number of ours, with its count."""
    reasons = Counter(item.cell.answer.why for item in items if item.ours is None)
    if not reasons:
        return DASH
    ((reason, count),) = reasons.most_common(1)
    return plain(f"{count} times: {reason}")
