"""Why published values differ from ours: the remarks of a table, their sizes filled in from forecasts."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence

from harness.errors import UserError, nearest
from harness.tables.papers.judge import Judged
from harness.tables.papers.lookup import Sources, converted
from harness.tables.papers.published import fits
from harness.tables.papers.schema import Predicted, Remark

GIB = 2**30


def remarks_of(judged: Sequence[Judged], sources: Sources) -> list[list[str]]:
    """Return the remarks on each of the values of one column, in the order of the values."""
    found: list[list[str]] = [[] for _ in judged]
    for remark in judged[0].cell.values.remarks if judged else ():
        places = [at for at, item in enumerate(judged) if fits(remark.when, item.cell.row)]
        if not places:
            raise UserError(f"{judged[0].cell.table.id}: no row fits the remark {remark.text[:40]!r}")
        text = _filled(remark, [judged[at] for at in places], sources)
        for at in places:
            found[at].append(text)
    return found


def _filled(remark: Remark, judged: Sequence[Judged], sources: Sources) -> str:
    """Fill in sizes in GiB over all rows: `1.20 GiB`, or `1.20 to 3.40 GiB`."""
    names = {name for _, name, _, _ in string.Formatter().parse(remark.text) if name}
    if not names:
        return remark.text
    sizes: dict[str, list[float]] = {}
    for item in judged:
        for name, size in _sizes(item, sources):
            sizes.setdefault(name, []).append(size / GIB)
    for name in names - set(sizes):
        where = judged[0].cell.table.id
        raise UserError(f"{where}: a remark names {{{name}}}, which no row has; {nearest(name, sizes)}")
    return remark.text.format_map({name: _range(values) for name, values in sizes.items()})


def _sizes(item: Judged, sources: Sources) -> Iterator[tuple[str, float]]:
    """Yield what a remark may name, in bytes, for a value that is compared with a forecast.

    `gap` is between the published value and ours; the others are of the forecast: its peak, its weights,
    and what is beyond weights and optimizer states at the peak and (`paper_beyond`) in the published value.
    """
    selector = next((each for each in item.cell.answer.selectors if isinstance(each, Predicted)), None)
    if selector is None or item.number is None:
        return
    published = converted(item.number, item.cell.unit, "bytes")
    predicted = sources.predicted(selector, "bytes").value
    peak, weights, optimizer = (
        sources.forecast_bytes(selector.forecast, part) for part in ("peak", "weights", "optimizer")
    )
    yield "gap", abs(published - float(predicted))
    yield "peak", peak
    yield "weights", weights
    yield "beyond", peak - weights - optimizer
    yield "paper_beyond", published - weights - optimizer


def _range(sizes: Sequence[float]) -> str:
    least, most = f"{min(sizes):.2f}", f"{max(sizes):.2f}"
    return f"{least} GiB" if least == most else f"{least} to {most} GiB"
