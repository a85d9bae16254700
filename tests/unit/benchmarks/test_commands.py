"""The benchmark of the commands, with a hundred records: each does what it is timed for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.studies import commands
from harness.errors import UserError


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "GRANULARITY_NS", 0)


def test_a_command_gets_a_row_with_its_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["commands", "--records", "100", "--only", "run"])
    commands.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["run"]
    for _, *seconds in rows:
        wall_cold, used_cold, wall_warm, used_warm = map(float, seconds)
        assert min(wall_cold, used_cold, wall_warm, used_warm) > 0


def test_a_command_that_ends_otherwise_is_not_timed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"exit code 2, not 0: .*no records"):
        commands.measure("gate BASE BASE", 0, {"BASE": str(tmp_path)}, tmp_path)
