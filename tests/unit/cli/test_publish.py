"""What a sweep prints of records that it found and no run can have made."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli import show
from harness.cli.options import Selection
from harness.cli.output import FOLDER
from harness.errors import UserError
from harness.suite import Suite
from tests.unit.tables.report.test_report import fabricate


def test_an_invalid_record_is_skipped_when_a_sweep_goes_on_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    valid, odd = fabricate("full"), fabricate("odd")
    odd.quality.tasks["facts"].documents = 0
    show.publish(Suite("demo", "", None, ()), [valid, odd], ["a note"], {tmp_path: FOLDER}, "demo")
    said = " ".join(capsys.readouterr().out.split())
    assert (
        f"Skipped {odd.run_id}: not a record: quality.tasks.facts.documents: is not a positive count; move"
        in said
    )
    assert "a note" in said
    assert "odd" not in (tmp_path / "demo.csv").read_text()


def test_where_no_record_is_valid_there_is_no_table_and_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = fabricate("odd")
    odd.time.tokens_per_s = -1.0
    show.publish(Suite("demo", "", None, ()), [odd], [], {tmp_path: FOLDER}, "demo")
    said = capsys.readouterr().out
    assert "time.tokens_per_s: is not a speed" in said
    assert not list(tmp_path.iterdir())


def test_tables_are_written_before_they_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(built: object, full: bool) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(show, "show", fail)
    with pytest.raises(OSError, match="No space"):
        show.publish(Suite("demo", "", None, ()), [fabricate("full")], [], {tmp_path: FOLDER}, "demo")
    assert "full" in (tmp_path / "demo.md").read_text()


def test_tables_that_cannot_be_written_are_printed_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tables").touch()
    with pytest.raises(UserError, match="tables: no tables can be written there"):
        show.publish(
            Suite("demo", "", None, ()), [fabricate("full")], [], {tmp_path / "tables": FOLDER}, "demo"
        )
    assert "full" in capsys.readouterr().out


def test_the_command_that_tunes_has_what_changes_the_suite_but_no_rates() -> None:
    asked = Selection("demo", model="./mine", settings=["train.steps=5"], rates=Path("old.yaml"))
    assert asked.tune() == "lorebench tune demo --model=./mine --set=train.steps=5"


def test_numbers_of_a_list_stand_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    show.table(("name", "count"), [("a", "1,000"), ("b", "2"), ("c", "-")])
    assert capsys.readouterr().out.splitlines()[2:] == ["a     1,000", "b         2", "c         -"]
