"""Text of strangers: what it could do to a terminal, a build server, a spreadsheet, or a secret."""

from __future__ import annotations

import csv
import io
import re
import sys
import unicodedata
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from harness.config import Run
from harness.engine.process.progress import Live, Plain
from harness.errors import UserError, counted, one_line, refusing, text_of
from harness.plain_text import cell, plain, without_secrets
from harness.record import Outcome
from harness.tables.report.build import Report
from harness.tables.report.render import texts

#: What a runner of GitHub or an agent of Azure takes for a command: the first at a line's start after spaces,
#: the others anywhere (actions/runner, ActionCommand.cs; microsoft/azure-pipelines-agent, Command.cs).
COMMAND = re.compile(r"^\s*::|##\[|##vso\[", re.MULTILINE)
#: Control characters, with those that terminals read as the start of an escape sequence.
CONTROL = re.compile("[\x00-\x08\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
EVIL = [
    "::add-mask::a",
    "  ::error file=x::a",
    "a ##[add-path]b",
    "##vso[task.setvariable]x",
    ":::::add-mask::a",
    "###[group]x",
    "\x1b[2J\x1b[31mred",
    "\x9b31mred",
    "\x1b]0;title\x07",
    "\x1bP+q544e\x1b\\",
    "a\rb",
    "a\nb\n::add-mask::c",
    "a\u2028::add-mask::b",
    "\u202egpj.exe",
    "back\x08\x08space",
]


def test_every_character_that_is_not_visible_becomes_a_space() -> None:
    everything = [chr(number) for number in range(sys.maxunicode + 1)]
    hidden = "".join(char for char in everything if unicodedata.category(char)[0] in "CZ")
    visible = "".join(char for char in everything if unicodedata.category(char)[0] not in "CZ")
    assert plain("".join(f"a{char}" for char in hidden)) == " ".join("a" * len(hidden))
    kept = visible.replace("#", "").replace(":", "")
    assert plain(f"{kept}\t") == kept


@pytest.mark.parametrize("text", EVIL)
def test_no_control_and_no_command_is_left(text: str) -> None:
    assert not COMMAND.search(plain(text))
    assert not CONTROL.search(plain(text))
    assert plain(plain(text)) == plain(text)


def a_run(label: str) -> Run:
    return Run.model_validate({"method": "full", "label": label})


@pytest.mark.parametrize("display", [Plain, Live])
@pytest.mark.parametrize("text", EVIL)
def test_progress_shows_a_label_a_phase_and_a_message_harmlessly(display: Any, text: str) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=False, width=200)
    record: Any = SimpleNamespace(outcome=Outcome(status="error", phase="train", message=text))
    with display(console) as shown:
        shown.begin(2, 0)
        shown.note(text)
        shown.start(a_run(text), 3.0)
        shown.event({"phase": text, "step": 1, "steps": 2, "loss": 1.0})
        shown.end(a_run(text), record, 1.0)
    assert "error after" in written.getvalue()
    assert not COMMAND.search(written.getvalue())
    assert not CONTROL.search(written.getvalue())


FORMULAS = [
    "=1+1",
    "+1+1",
    "-@SUM(1)",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "-2+3",
    "\uff1d1",
    "=",
    "- note",
    "+",
    " =1",
]


@pytest.mark.parametrize("text", FORMULAS)
def test_text_that_a_spreadsheet_would_calculate_gets_an_apostrophe(text: str) -> None:
    assert cell(text) == "'" + text.strip()


@pytest.mark.parametrize("value", ["-1.5", "+3", "-inf", "1e-3", "", "a=b", "full", -1.5, 3, None, True])
def test_numbers_and_other_text_stay_as_they_are(value: object) -> None:
    assert cell(value) == value
    assert type(cell(value)) is type(value)


def test_csv_has_no_formula_in_names_or_cells_and_its_numbers_are_numbers() -> None:
    lines: tuple[dict[str, object], ...] = tuple(
        {"method": text, "@loss": -1.5, "=kind": "x"} for text in FORMULAS
    )
    report = Report(title="t", question="", tables=(), caption=(), notes=(), lines=lines)
    head, *rows = csv.reader(io.StringIO(texts(report)["csv"], newline=""))
    assert head == ["method", "'@loss", "'=kind"]
    assert [row[0] for row in rows] == ["'" + text.strip() for text in FORMULAS]
    assert {row[1] for row in rows} == {"-1.5"}


SECRETS = [
    ("cannot reach https://me:hunter2@host.org/x", "hunter2"),
    ("401 for https://hunter2@host.org/x?y=1", "hunter2"),
    ("GET https://host/x?token=hunter2&y=1 failed", "hunter2"),
    ("GET https://b.s3/x?X-Amz-Signature=hunter2 failed", "hunter2"),
    ("headers: {'Authorization': 'Bearer hunter2hunter2'}", "hunter2"),
    ("proxy http://user:hunter2@proxy:3128 refused", "hunter2"),
    ("token hf_" + "hunter2" * 5 + " is not valid", "hunter2"),
    ("token ghp_" + "hunter2" * 5 + " is not valid", "hunter2"),
]


@pytest.mark.parametrize(("message", "secret"), SECRETS)
def test_a_secret_in_the_message_of_a_library_reaches_neither_record_nor_terminal(
    message: str, secret: str
) -> None:
    error = RuntimeError(message)
    with pytest.raises(UserError) as caught, refusing("a file"):
        raise error
    outcome = Outcome(status="error", message=message, log_tail=[message])
    for text in (
        without_secrets(message),
        plain(message),
        text_of(error),
        one_line(error),
        str(caught.value),
    ):
        assert secret not in text
    assert secret not in outcome.model_dump_json()
    assert "(not shown)" in outcome.message


@pytest.mark.parametrize(
    "text", ["https://host.org/a@b", "me@host.org", "key=value", "git+ssh://host/x", "/data/a:b@c", "basic"]
)
def test_what_holds_no_secret_is_unchanged(text: str) -> None:
    assert without_secrets(text) == text


def test_a_noun_agrees_with_its_number() -> None:
    said = [counted(number, "run") for number in (0, 1, 2, 21, 1000)]
    assert said == ["0 runs", "1 run", "2 runs", "21 runs", "1,000 runs"]
