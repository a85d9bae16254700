"""Format cells: numbers with sensible digits, bytes in one unit, text that cannot act as markup.

Cells are plain Unicode text until a renderer escapes them for its format; nothing here knows records.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from harness.plain_text import plain as plain

#: The text of a cell without a measurement; a zero is always a measured zero.
DASH = "\N{EN DASH}"
#: Numbers from here on would fill the line.
VAST = 1e15
UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
#: How a record's meter counts memory, in a heading.
METERS = {"live": "counted on CPU", "cuda": "counted by CUDA's allocator"}

Show = Callable[[float], str]


@dataclass(frozen=True)
class Column:
    """A heading and its cells; `joined` columns stay beside their left neighbour on a narrow terminal.

    `key` names the column of the report's CSV that has the values of the cells, where there is one. `spare`
    columns may be left out of the overview on a narrow terminal.
    """

    name: str
    cells: tuple[str, ...]
    numeric: bool = True
    joined: bool = False
    key: str = ""
    spare: bool = False

    @property
    def empty(self) -> bool:
        """Return whether no cell has a value."""
        return all(cell in (DASH, "") for cell in self.cells)


@dataclass(frozen=True)
class Table:
    """A table of text: `stub` columns name the rows, and `notes` follow it."""

    title: str
    stub: tuple[Column, ...]
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()

    @property
    def all_columns(self) -> tuple[Column, ...]:
        """Return the stub and value columns."""
        return (*self.stub, *self.columns)

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Return the cells row by row."""
        return list(zip(*(column.cells for column in self.all_columns), strict=True))


# ---------------------------------------------------------------------------------------- numbers
def fixed(decimals: int) -> Show:
    """Write with thousands separators and so many decimals; what rounds to zero but is not reads `<0.1`.

    A value of `VAST` or more, as a perplexity after training went wrong, has an exponent.
    """

    def show(value: float) -> str:
        if abs(value) >= VAST:
            return f"{value:.3e}"
        if 0 < value < 0.5 * 10**-decimals:
            return f"<{10**-decimals:.{decimals}f}"
        return f"{value:,.{decimals}f}" if value else "0"

    return show


def significant(values: Iterable[float], digits: int) -> Show:
    """Write a column with one number of decimals, so that its smallest value keeps `digits` digits."""
    sizes = [abs(value) for value in values if value and abs(value) < float("inf")]
    before = len(str(int(min(sizes, default=1.0))))
    return fixed(max(0, digits - before))


def ratio(value: float) -> str:
    """Write a ratio to the baseline."""
    return f"\N{MULTIPLICATION SIGN}{value:.3e}" if value >= VAST else f"\N{MULTIPLICATION SIGN}{value:.3f}"


def points(value: float) -> str:
    """Write a difference of two shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}"


def percent(value: float) -> str:
    """Write a share of one in percent, the sign left to the heading."""
    return f"{100 * value:.1f}"


def byte_unit(largest: float) -> tuple[str, Show]:
    """Return the unit for a table whose largest value is `largest` bytes, and how to write bytes in it."""
    unit, size = next((pair for pair in UNITS if largest >= 4 * pair[1]), UNITS[-1])
    show = fixed(1 if largest / size >= 100 else 2)
    return unit, lambda value: show(value / size)


def bytes_text(value: float) -> str:
    """Write a number of bytes with its unit, for a sentence."""
    unit, size = next((pair for pair in UNITS if value >= pair[1]), UNITS[-1])
    return f"{value / size:,.1f} {unit}"


# ------------------------------------------------------------------------------------------- text
def first(lines: Sequence[str], most: int, more: str) -> list[str]:
    """Return the first lines; `more` is a line with `{}` for the number of the others, at least two."""
    left = len(lines) - most
    return [*lines[:most], more.format(left)] if left > 1 else list(lines)


def component(key: str) -> str:
    """Return the name of a component of the peak (`record.COMPONENTS`) for people."""
    if key == "transient_bytes":
        return "activations and temporaries"
    return key.removesuffix("_bytes").replace("_", " ")


def markdown(text: str) -> str:
    """Escape for Markdown; underscores inside a word are harmless and stay readable."""
    escaped = re.sub(r"([\\`*{}\[\]<>#|~$&!])", r"\\\1", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # a bracket at the start of a line would be an argument of the line break before it
    "]": "{]}",
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "Δ": r"$\Delta$",
    DASH: "--",
    "…": r"\dots{}",
    **{char: "\\" + char for char in "&%$#_{}"},
}


def latex(text: str) -> str:
    """Escape for LaTeX text mode."""
    return "".join(_LATEX.get(char, char) for char in text)
