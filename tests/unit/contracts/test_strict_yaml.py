"""Text becomes values: those of YAML 1.2 with their lines, one meaning each, bounded in size and depth."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UserError
from harness.strict_yaml import DEEPEST, LARGEST_INTEGER, in_line, parse, read

Read = Callable[[str | bytes], Any]


@pytest.fixture
def read_text(tmp_path: Path) -> Read:
    def write_and_read(text: str | bytes) -> Any:
        path = tmp_path / "some.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read(path)

    return write_and_read


# ---------------------------------------------------------------------------------- YAML 1.2, core schema
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-12", -12),
        ("+3", 3),
        ("0x1F", 31),
        ("0o17", 15),
        ("1e-3", 0.001),
        ("1.", 1.0),
        (".5", 0.5),
        ("-1.5E+2", -150.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("1_000", "1_000"),
        ("0x_", "0x_"),
        ("0b1", "0b1"),
        ("1:30", "1:30"),
        ("190:20:30.15", "190:20:30.15"),
        ("2001-13-45", "2001-13-45"),
        ("2001-01-01", "2001-01-01"),
        ("=", "="),
        ("1e", "1e"),
        ("'010'", "010"),
        ('"true"', "true"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ('"\\ud83d\\ude42"', "🙂"),
        (r"\n\n", r"\n\n"),
    ],
)
def test_a_scalar_is_what_yaml_1_2_says(text: str, value: Any) -> None:
    """The right values are those of the tables in section 10.3 of the specification."""
    found = parse(text, "--set x").plain()
    assert (found, type(found)) == (value, type(value))


def test_nan_is_a_number() -> None:
    assert math.isnan(parse(".nan", "--set x").plain())


#: Values of every kind, within one another.
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abcdef", max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_json_means_what_it_means_elsewhere(value: Any) -> None:
    """JSON is a part of YAML 1.2; infinity is no part of JSON."""
    text = json.dumps(value)
    if "Infinity" not in text and "\x7f" not in text:
        assert parse(text, "--set x").plain() == json.loads(text)


@given(
    VALUES | st.sampled_from(["null", "no", "1e-3", "0x1F", "a:", "a: b", "- a", "#", "module:Class", "\n"])
)
def test_what_is_written_on_a_line_is_read_as_what_it_was(value: Any) -> None:
    text = in_line(value)
    assert "\n" not in text
    assert parse(text, "--set x").plain() == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (("q_proj", None, True), "[q_proj, null, true]"),
        ({"rank": 8, "scale": 1e-6, "names": []}, "{rank: 8, scale: 1e-06, names: []}"),
        ("my_file.py:Class", "my_file.py:Class"),
        ("true", '"true"'),
        ("an é, no", '"an é, no"'),
        (math.inf, ".inf"),
    ],
)
def test_a_value_on_a_line_has_no_more_quotes_than_it_needs(value: Any, text: str) -> None:
    assert in_line(value) == text


# ------------------------------------------------------------------------------------------ what is refused
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
DEEP_BY_ALIAS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 2000))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", ":3: the key 'a' is given twice, first at"),
        ("x:\n  - {b: 1, b: 2}\n", ":2: the key 'b' is given twice"),
        ("a: {}\n'a': 1\n", ":2: the key 'a' is given twice"),
        ("a: 1\nsteps: 010\n", ":2: 010 begins with 0, which some read as octal: write 10, or quotes"),
        ("a: -007", ":1: -007 begins with 0"),
        ("lr: 01.5e-3", ":1: 01.5e-3 begins with 0: leave that out, or use quotes"),
        ("a: 00", ":1: 00 begins with 0, which some read as octal: write 0"),
        (f"seed: {'9' * 5000}", ":1: an integer of 5,000 digits is too large"),
        (f"seed: {2**70}", f"is too large; the largest integer is {LARGEST_INTEGER}"),
        ("seed: 0xffffffffffffffffff", "is too large"),
        ("lr: 1e999", ":1: 1e999 is too large for a number"),
        ("lr: !!float abc", ":1: 'abc' is no float; leave the tag out"),
        ("lr: !!int 0x_", ":1: '0x_' is no int"),
        ("lr: !!int '010'", ":1: 010 begins with 0"),
        ("lr: !!bool yes", ":1: 'yes' is no bool"),
        ("a: !!binary aGk=", ":1: the tag !!binary is not known"),
        ("a: !!set {b}", ":1: the tag !!set is not known"),
        ("a: !!timestamp 2001-01-01", ":1: the tag !!timestamp is not known"),
        ("a: !!python/name:os.system x", ":1: the tag !!python/name:os.system is not known"),
        ("a: !mine {b: 1}", ":1: the tag !mine is not known"),
        ("a: !replace 3", ":1: !replace belongs before a section in braces"),
        ("a: !replace [3]", ":1: !replace belongs before a section in braces"),
        ("a: &a [*a]", ":1: an alias stands inside the value that it repeats"),
        ("a: &a {b: {c: *a}}", ":1: an alias stands inside the value"),
        ("a: &a {<<: *a}", ":1: an alias stands inside the value"),
        ("a: *b", "not valid YAML: found undefined alias"),
        ("a: {<<: 3}", ":1: '<<' merges mappings"),
        (
            "a: &a\n  b: {c: 1, d: 2}\ne: {<<: *a, b: {c: 3}}",
            ":3: '<<' merges no sections within 'b', so this drops 'd'",
        ),
        (
            "a: &a {b: {c: 1}}\ne: {<<: [{b: {d: 2}}, *a]}",
            ":2: '<<' merges no sections within 'b', so this drops 'c'",
        ),
        (
            "a: &a\n  b: {c: {d: 1, e: 2}}\ne: {<<: *a, b: {c: {d: 3}}}",
            ":3: '<<' merges no sections within 'c', so this drops 'e'",
        ),
        ("a: {<<: {b: 1}, <<: {c: 1}}", ":1: the key '<<' is given twice"),
        ("1: x", ":1: a key is text, not '1'; a number or boolean needs quotes"),
        ("true: x", ":1: a key is text, not 'true'"),
        ("? [a]\n: x", ":1: a key is text, not a list or a section"),
        ("~: x", ":1: a key is text"),
        ("a: 1\n---\nb: 1\n", ":2:1: not valid YAML: a second document begins here"),
        ("a: [" * 2000, f"not valid YAML: nested more than {DEEPEST} deep"),
        ("[" * 2000, f":1:{DEEPEST + 1}: not valid YAML: nested more than {DEEPEST} deep"),
        ("- " * 2000, "nested more than"),
        ("? " * 2000, "nested more than"),
        (BOMB, "the aliases in it write out to more than can be settings"),
        (DEEP_BY_ALIAS, "the aliases in it write out to more than can be settings"),
        ("a: 1\nb: 'x\0y'", ":2: not valid YAML: the control character U+0000 is not allowed"),
        ("a: \x1b[31m", ":1: not valid YAML: the control character U+001B"),
        ('a: "\\0"', ":1: the character \\0 is not allowed"),
        ('a: "\\ud800"', ":1: half a character"),
        ('a: "\\U00110000"', "not valid YAML"),
        ("a: 1\n\tb: 2\n", ":2:1: not valid YAML"),
        ("a: {b: 1\n", "not valid YAML"),
        ("%YAML 2.0\n---\na: 1", "not valid YAML"),
        ("%TAG ! x\n%TAG ! y\n---\na: 1", "not valid YAML"),
        ("a: |99\n x", "not valid YAML"),
        (b"a: \xff", ":1: not valid YAML: byte 3 is not UTF-8 text"),
        ("a: 1".encode("utf-16"), ":1: not valid YAML: byte 0 is not UTF-8 text"),
        (b"a: 1\n" * 500_000, "too large to be settings"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_can_be_read_in_two_ways_or_fills_the_memory_is_refused_with_its_line(
    read_text: Read, text: str | bytes, says: str
) -> None:
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        read_text(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert time.monotonic() - began < 5


def test_a_wrong_value_of_the_command_line_names_the_option() -> None:
    with pytest.raises(UserError, match=r"^--set train.steps: 010 begins with 0"):
        parse("010", "--set train.steps")
    with pytest.raises(UserError, match=r"^--set x: the value is not valid YAML: "):
        parse("[1", "--set x")


# ------------------------------------------------------------------------------------------ what is kept
def test_values_keep_their_lines_through_aliases_and_merged_keys(read_text: Read) -> None:
    found = read_text(
        "\ufeffbase: &base\n  lr: 1\n  steps: 2\nrow:\n  <<: *base\n  steps:\n    3\nrows: [*base, {lr: 4}]\n"
    )
    assert found.plain() == {
        "base": {"lr": 1, "steps": 2},
        "row": {"lr": 1, "steps": 3},
        "rows": [{"lr": 1, "steps": 2}, {"lr": 4}],
    }

    def line(*path: str | int, key: bool = False) -> int:
        return int(found.place(path, key).rpartition(":")[2])

    assert (line("base", "lr"), line("row", "lr"), line("row", "steps")) == (2, 2, 7)
    assert line("row", "steps", key=True) == 6
    assert (line("rows", 0, "steps"), line("rows", 1, "lr")) == (3, 8)
    assert line("rows", 1, "absent") == 8, "the line of what is around it"


def test_a_negative_zero_is_zero(read_text: Read) -> None:
    assert [math.copysign(1, value) for value in read_text("[-0.0, -0e5, 0.0]").plain()] == [1, 1, 1]


@pytest.mark.parametrize(
    ("own", "found"),
    [
        ("train: {steps: 2, lr: 3}", {"train": {"steps": 2, "lr": 3}}),
        ("train: !replace {lr: 3}", {"train": {"lr": 3}}),
        ("train: 5", {"train": 5}),
        ("lr: 3", {"train": {"steps": 1}, "lr": 3}),
        ("train: *t", {"train": {"steps": 1}}),
        ("method: {lora: {}}", {"train": {"steps": 1}, "method": {"lora": {}}}),
    ],
)
def test_a_merged_key_may_be_replaced_where_nothing_is_dropped_unsaid(
    read_text: Read, own: str, found: Any
) -> None:
    text = f"a: &a {{train: &t {{steps: 1}}, method: {{full: {{}}}}}}\nb: {{<<: *a, {own}}}\n"
    assert read_text(text).plain()["b"] == {"method": {"full": {}}, **found}


def test_of_several_merged_mappings_the_first_wins_and_own_keys_win_over_all(read_text: Read) -> None:
    found = read_text("a: &a {x: 1, y: 1}\nb: &b {x: 2, y: 2, z: 2}\nc: {y: 3, <<: [*a, *b]}\n")
    assert found.plain()["c"] == {"x": 1, "y": 3, "z": 2}
