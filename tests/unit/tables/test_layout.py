"""Tables on terminals: every width from 80 columns on shows every cell, and no line is wider."""

import itertools
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.tables import layout
from harness.tables.format import Column, Table

WIDTHS = st.integers(80, 200)
WORDS = st.text("abc±,;()漢é", min_size=1, max_size=12)
NAMES = st.lists(WORDS, min_size=1, max_size=8).map(" ".join)
NUMBERS = st.text("0123456789.,±", max_size=25)


def columns_on_a_terminal(text):
    """By the width that Unicode gives to characters, another source than rich's table."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


@st.composite
def tables(draw):
    rows = draw(st.integers(1, 5))

    def column(numeric):
        cells = st.lists(NUMBERS if numeric else NAMES, min_size=rows, max_size=rows)
        return Column(draw(WORDS), tuple(draw(cells)), numeric=numeric, joined=draw(st.booleans()))

    stub = tuple(column(False) for _ in range(draw(st.integers(1, 3))))
    columns = tuple(column(draw(st.booleans())) for _ in range(draw(st.integers(0, 9))))
    return Table("Title", stub, columns, ("a note",))


def printed(table, width):
    return [list(layout.lines(piece, width)) for piece in layout.pieces(table, width)]


@given(tables(), WIDTHS)
def test_no_line_is_wider_than_the_terminal_and_no_word_or_number_is_cut(table, width):
    found = printed(table, width)
    assert all(columns_on_a_terminal(line) <= width for piece in found for line in piece)
    text = "\n".join(line for piece in found for line in piece)
    for column in table.all_columns:
        for cell in (column.name, *column.cells):
            whole = columns_on_a_terminal(cell) <= layout.WRAPPED and (column.numeric or len(table.stub) == 1)
            assert all(part in text for part in ([cell] if whole else cell.split()))


@given(tables(), WIDTHS)
def test_the_pieces_have_all_columns_in_order_and_the_names_of_the_rows_each(table, width):
    found = layout.pieces(table, width)
    assert tuple(itertools.chain(*(piece.columns for piece in found))) == table.columns
    assert found[-1].notes == table.notes
    assert not any(piece.notes for piece in found[:-1])
    assert [piece.title for piece in found[1:]] == ["Title (continued)"] * (len(found) - 1)
    for piece in found:
        for named, *cells in zip(piece.stub[0].cells, *(column.cells for column in table.stub), strict=True):
            assert named.startswith(cells[0])


def test_wide_tables_are_split_with_ratios_beside_their_values():
    names = Column("method", ("full",), numeric=False)
    pairs = [Column(f"v{i}", ("1" * 20,)) for i in range(6)]
    ratios = [Column(f"r{i}", ("2" * 20,), joined=True) for i in range(6)]
    table = Table("wide", (names,), tuple(itertools.chain(*zip(pairs, ratios, strict=True))))
    for width, counts in ((80, [2] * 6), (120, [4, 4, 4]), (200, [8, 4]), (300, [12])):
        found = layout.pieces(table, width)
        assert [len(piece.columns) for piece in found] == counts
        assert all(piece.columns[0].name.startswith("v") for piece in found)


def test_lines_are_aligned_and_numbers_stand_to_the_right():
    table = Table("", (Column("method", ("full", "漢字"), numeric=False),), (Column("v", ("1.5", "-20.0")),))
    assert printed(table, 80) == [["method      v", "─" * 13, "full      1.5", "漢字    -20.0"]]


def test_a_long_name_is_wrapped_at_spaces_and_its_rows_are_set_apart():
    long = "one two three four five six seven eight nine"
    table = Table("", (Column("method", (long, "b"), numeric=False),), (Column("v", ("1" * 60, "2")),))
    ((_, _, *rows),) = printed(table, 100)
    assert rows[0].split() == ["one", "two", "three", "four", "five", "six", "seven", "1" * 60]
    assert rows[1:] == ["eight nine", "", "b" + " " * 98 + "2"]


def test_wrapped_columns_share_what_is_left_of_the_line():
    texts = [Column(name, (name * 3 + " " + "word " * 40,), numeric=False) for name in "ab"]
    table = Table("", (Column("n", ("x",), numeric=False),), tuple(texts))
    head, *_ = printed(table, 100)[0]
    assert head.index("b") - head.index("a") == pytest.approx((100 - head.index("a")) / 2, abs=2)


def test_many_columns_that_name_a_row_become_one_that_says_what_they_are():
    stub = tuple(Column(name, (f"{name} {'x' * 16}",), numeric=False) for name in ("method", "lr", "stage"))
    (piece,) = layout.pieces(Table("", stub, (Column("v", ("1",)),)), 80)
    (cell,) = piece.stub[0].cells
    assert cell == f"method {'x' * 16}; lr lr {'x' * 16}; stage stage {'x' * 16}"
    assert layout.pieces(Table("", stub, (Column("v", ("1",)),)), 200)[0].stub == stub


def overview(*, spare):
    """As wide as the overview of suite `welore`: 129 columns."""
    widths = {"ppl": 13, "vs full": 7, "verdict": 25, "accuracy": 10, "GiB": 6, "ratio": 6, "fits": 4}
    widths |= {"tokens/s": 11, "ratio of speed": 6}
    stub = (Column("method", ("m" * 23,), numeric=False),)
    values = (
        Column(name[:width], ("9" * width,), joined="ratio" in name, spare=spare and "ratio" in name)
        for name, width in widths.items()
    )
    return Table("Title", stub, tuple(values), ("a note",))


@pytest.mark.parametrize(("width", "left_out"), [(129, 0), (128, 1), (121, 1), (120, 2), (113, 2), (112, 0)])
def test_spare_columns_are_left_out_where_one_table_remains(width, left_out):
    whole = overview(spare=True)
    found = layout.without_spare(whole, width)
    assert len(whole.columns) - len(found.columns) == left_out
    needed = [column for column in whole.columns if not column.spare]
    assert [column for column in found.columns if not column.spare] == needed
    assert (len(layout.pieces(found, width)) == 1) == (width != 112)
    assert layout.without_spare(overview(spare=False), width) == overview(spare=False)


PARTS = st.lists(st.text("ab-±0.9%", min_size=1, max_size=30), max_size=40)


@given(st.integers(0, 8), PARTS, st.integers(80, 150))
def test_a_long_line_is_broken_at_blanks_alone_and_goes_on_further_in(indent, words, width):
    line = " " * indent + " ".join(words)
    first, *others = layout.folded(line, width).split("\n")
    assert " ".join([first, *others]).split() == words
    assert all(len(each) <= width for each in (first, *others))
    assert all(each.startswith(" " * (indent + 4)) for each in others if words)
    assert not words or first.startswith(" " * indent + words[0])
    if len(line) <= width and words:
        assert (first, others) == (line, [])
