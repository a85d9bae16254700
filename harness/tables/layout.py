"""Lay tables out as lines of text that fit a width, from 80 columns on: no word, name or number is cut.

A table that is too wide becomes several below one another, each with the columns that name the rows. A long
text or list is wrapped at spaces. Widths are those of a terminal, where some characters take two columns.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.cells import cell_len

from harness.tables.format import Column, Table

#: Columns of text where there is no terminal: narrow tables would be hard to read there.
WIDTH = 140
#: A longer cell is wrapped before it costs other columns their place.
WRAPPED = 32
GAP = "  "


def pieces(table: Table, width: int) -> list[Table]:
    """Split a table into pieces of at most `width`, each with the stub and some columns, in order.

    Columns that are `joined` stay together where a piece has room for all of them. Stub columns that take
    more than half of the width become one.
    """
    stub = table.stub
    if len(stub) > 1 and _planned(stub) > width // 2:
        stub = (_stacked(stub),)
    room = width + len(GAP) - _planned(stub)  # none is needed behind the last column
    found: list[list[Column]] = [[]]
    for group in _groups(table.columns, room):
        if found[-1] and _planned((*found[-1], *group)) > room:
            found.append([])
        found[-1] += group
    further = f"{table.title} (continued)" if table.title else ""
    titles = [table.title, *[further] * (len(found) - 1)]
    cut = [Table(title, stub, tuple(columns)) for title, columns in zip(titles, found, strict=True)]
    return [*cut[:-1], replace(cut[-1], notes=table.notes)]


def without_spare(table: Table, width: int) -> Table:
    """Return a table with so few of its spare columns, from the last on, that it is one piece.

    Where that does not help it keeps all.
    """
    spare = [column for column in table.columns if column.spare]
    for kept in range(len(spare), -1, -1):
        left = tuple(column for column in table.columns if not column.spare or column in spare[:kept])
        if len(pieces(found := replace(table, columns=left), width)) == 1:
            return found
    return table


def folded(line: str, width: int) -> str:
    """Return a line as several, broken at blanks where it is wider, each but the first indented further."""
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    parts = textwrap.wrap(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(parts)


def lines(table: Table, width: int) -> Iterator[str]:
    """Yield the heading, a rule and the rows of one piece, set apart where a row has several lines."""
    columns = table.all_columns
    widths = _widths(columns, width)
    blocks = [
        [_wrapped(cell, room) for cell, room in zip(row, widths, strict=True)]
        for row in (tuple(column.name for column in columns), *table.rows)
    ]
    apart = any(len(cell) > 1 for block in blocks[1:] for cell in block)
    for place, block in enumerate(blocks):
        if place == 1:
            yield "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * (sum(widths) + len(GAP) * (len(widths) - 1))
        elif place and apart:
            yield ""
        for number in range(max(map(len, block))):
            parts = (
                _padded(cell[number] if number < len(cell) else "", room, column.numeric)
                for cell, room, column in zip(block, widths, columns, strict=True)
            )
            yield GAP.join(parts).rstrip()


def _stacked(stub: Sequence[Column]) -> Column:
    """Return one column whose cells name each further value: `full; train.lr 0.01`."""
    first, *others = stub
    cells = []
    for name, *values in zip(*(column.cells for column in stub), strict=True):
        pairs = zip(others, values, strict=True)
        cells.append("; ".join([name, *(f"{each.name} {value}" for each, value in pairs if value)]))
    return Column(first.name, tuple(cells), numeric=False)


def _groups(columns: Sequence[Column], room: int) -> list[list[Column]]:
    """Return joined columns as one group, those of a group that is wider than the room each by itself."""
    groups: list[list[Column]] = []
    for column in columns:
        if column.joined and groups:
            groups[-1].append(column)
        else:
            groups.append([column])
    return [
        part for group in groups for part in ([group] if _planned(group) <= room else [[c] for c in group])
    ]


# ------------------------------------------------------------------------------------------- widths
def _planned(columns: Sequence[Column]) -> int:
    """Return the least width at which columns are readable, with a gap behind each."""
    return sum(len(GAP) + _least(column) for column in columns)


def _least(column: Column) -> int:
    natural = _natural(column)
    if natural <= WRAPPED:
        return natural
    return max(WRAPPED, *(_length(word) for cell in (column.name, *column.cells) for word in cell.split()))


def _natural(column: Column) -> int:
    return max(_length(line) for cell in (column.name, *column.cells) for line in cell.split("\n"))


def _widths(columns: Sequence[Column], width: int) -> list[int]:
    """Return the width of each column; what is left of the line is shared by those that are wrapped."""
    widths = [_least(column) for column in columns]
    wanted = [_natural(column) - least for column, least in zip(columns, widths, strict=True)]
    spare = max(0, width - sum(widths) - len(GAP) * (len(widths) - 1))
    sharers = sorted((place for place, more in enumerate(wanted) if more), key=wanted.__getitem__)
    for left, place in zip(range(len(sharers), 0, -1), sharers, strict=True):
        more = min(wanted[place], spare // left)
        widths[place] += more
        spare -= more
    return widths


def _length(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def _wrapped(cell: str, width: int) -> list[str]:
    """Break a cell into lines at line breaks and, where a line is wider, at spaces."""
    found = []
    for text in cell.split("\n"):
        if _length(text) <= width:
            found.append(text)
            continue
        line = ""
        for word in text.split():
            longer = f"{line} {word}" if line else word
            if line and _length(longer) > width:
                found.append(line)
                longer = word
            line = longer
        found.append(line)
    return found


def _padded(text: str, width: int, right: bool) -> str:
    space = " " * (width - _length(text))
    return space + text if right else text + space
