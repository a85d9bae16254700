"""Baselines of peak memory: their rows, the verdicts, and what `lorebench gate --baselines` refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import suite
from harness.cli import gate as gate_command
from harness.cli import main as cli
from harness.config import Run
from harness.engine.forecast.count import count
from harness.engine.forecast.dry_run import simulate
from harness.engine.run import checks
from harness.errors import UserError
from harness.files import ROOT
from harness.forecast import MemoryReport
from harness.record import TrainMemory
from harness.registry import REGISTRY
from harness.tables.compare import baselines
from harness.tables.compare.baselines import Peaks, Row
from tests.contract.test_methods import CASES
from tests.support.ending import ended
from tests.support.gate_records import memory

FILE = ROOT / "results" / "baselines" / "memory.json"
MIB = 1 << 20


def peaks(**parts: int) -> Peaks:
    train = TrainMemory.model_validate(memory(**parts)["train"])
    return Peaks(phase_peak_bytes={"load": 5 * MIB, "prepare": 6 * MIB}, train=train)


def row(simulated: Peaks | None = None, **values: Any) -> Row:
    return Row(**{"config_id": "a", "simulated": simulated or peaks(), "live": peaks(), **values})


def verdicts(base: Mapping[str, Row], today: Mapping[str, Row]) -> list[tuple[str, str, str]]:
    cells = baselines.compare(base, today).cells
    return [(cell.row, cell.verdict, cell.cause) for cell in cells if cell.verdict != "ok"]


def runs(smallest: bool) -> list[Run]:
    found = checks.resolve(suite.load(baselines.SUITE).runs)
    return [run for run in found if (dict(run.model)["name"] == gate_command.SMALLEST) is smallest]


# --------------------------------------------------------------------------------------- the rows
def test_every_stack_of_the_contract_has_a_row_and_every_method_is_in_one() -> None:
    """But for dropout, which makes no difference between two states of the code."""
    rows = [run for run in suite.load("baselines").runs if dict(run.model)["name"] == "nano"]
    assert {run.name for run in rows} == set(CASES)
    for run in rows:
        case = CASES[run.name]
        wanted = [
            (name, {k: v for k, v in options.items() if k != "dropout"}) for name, options in case.stack
        ]
        assert [(choice.name, choice.options) for choice in run.method] == wanted
        same = ("state_bits", "per_layer", "clip", "weight_decay", "lr")
        assert [getattr(run.train, key) for key in same] == [getattr(case.optim, key) for key in same]
    assert {choice.name for run in rows for choice in run.method} == set(REGISTRY)


def test_the_large_rows_are_rows_of_the_shapes_suite() -> None:
    shapes = {run.name: run.config_id for run in suite.load("shapes").runs}
    large = [run for run in suite.load("baselines").runs if dict(run.model)["name"] != "nano"]
    assert len(large) == 6
    assert all(shapes[run.name] == run.config_id for run in large)


def test_the_file_that_ships_has_every_row_as_it_is_configured_today() -> None:
    stored = baselines.read(FILE)
    assert {label: found.config_id for label, found in stored.items()} == {
        run.name: run.config_id for run in checks.resolve(suite.load("baselines").runs)
    }
    assert {label for label, found in stored.items() if found.live} == {run.name for run in runs(True)}


def test_what_was_simulated_is_what_was_counted() -> None:
    """In the file that ships; where a row has ranks that follow from values, both take the same."""
    stored = baselines.read(FILE)
    both = [(label, found.simulated, found.live) for label, found in stored.items() if found.live]
    assert len(both) == len(CASES)
    for label, simulated, live in both:
        assert simulated is not None
        assert live is not None
        wanted = {name for name in TrainMemory.model_fields if name.endswith("_bytes")}
        assert simulated.train.model_dump(include=wanted) == live.train.model_dump(include=wanted), label


@pytest.mark.parametrize("label", ["full", "galore, 8 bits per layer"])
def test_a_row_measured_today_is_what_the_file_says(label: str) -> None:
    """Also by a second count within a process, where what methods cache exists already."""
    import bitsandbytes  # noqa: F401  # what its import leaves is not of a run

    base = baselines.read(FILE)[label]
    run = next(run for run in runs(True) if run.name == label)
    for _ in range(2):
        today = Row.of(run.config_id, {"simulated": simulate(run, granularity=1), "live": count(run)})
        assert verdicts({label: base}, {label: today}) == []


def test_a_meter_without_a_report_fails_the_row() -> None:
    report = MemoryReport(
        config_id="a",
        granularity=1,
        parameters_total=1,
        parameters_trainable=1,
        phase_peak_allocated_bytes={"load": 5, "train": 9},
        train=peaks().train,
    )
    failed = Row.of("a", {"simulated": report, "live": "KeyError: 'x'"})
    assert failed == Row(config_id="a", failed="KeyError: 'x'")
    found = Row.of("a", {"simulated": report})
    assert found == Row(config_id="a", simulated=Peaks(phase_peak_bytes={"load": 5}, train=peaks().train))


# ------------------------------------------------------------------------------------ the verdicts
def test_a_mebibyte_of_optimizer_state_is_named_with_row_and_component() -> None:
    more = row(peaks(optimizer_bytes=801 * MIB))
    cause = "peak +1 MiB: optimizer +1"
    assert verdicts({"galore": row()}, {"galore": more}) == [("galore", "regression", cause)]


def test_growth_that_a_smaller_transient_hides_is_growth() -> None:
    hidden = row(peaks(optimizer_bytes=802 * MIB, transient_bytes=98 * MIB))
    assert verdicts({"a": row()}, {"a": hidden}) == [
        ("a", "regression", "peak unchanged: optimizer +2, activations and temporaries -2 (MiB)")
    ]
    assert verdicts({"a": hidden}, {"a": row()}) == []


def test_a_lower_peak_is_an_improvement() -> None:
    less = row(peaks(transient_bytes=99 * MIB))
    assert verdicts({"a": row()}, {"a": less}) == [
        ("a", "improvement", "peak -1 MiB: activations and temporaries -1")
    ]


def test_one_byte_more_while_preparing_fails() -> None:
    more = peaks()
    more.phase_peak_bytes["prepare"] += 1
    assert verdicts({"a": row()}, {"a": row(more)}) == [("a", "regression", "prepare peak +1 bytes")]


def test_a_row_that_fails_today_is_a_regression() -> None:
    failed = Row(config_id="a", failed="KeyError: 'x'")
    assert verdicts({"a": row()}, {"a": failed}) == [("a", "regression", "failed: KeyError: 'x'")]


@pytest.mark.parametrize(
    ("today", "verdict"),
    [({}, "missing"), ({"a": row(), "b": row()}, "new"), ({"a": row(config_id="b")}, "x")],
)
def test_rows_that_do_not_compare_end_with_2(today: dict[str, Row], verdict: str) -> None:
    found = baselines.compare({"a": row()}, today)
    assert verdict in found.counts
    assert baselines.exit_code(found) == 2


# ------------------------------------------------------------------------------------- the command
@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Row]:
    """What a measurement would find; no worker is started."""
    found = {"a": row(), "b": row()}
    monkeypatch.setattr(gate_command, "_measure", lambda: found)
    return found


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command line within this process; returns its exit code."""

    def call(*arguments: Any) -> int:
        monkeypatch.setattr("sys.argv", ["lorebench", "gate", "--baselines", *map(str, arguments)])
        return ended(cli.main)

    return call


def test_what_is_written_is_what_is_checked(
    measured: dict[str, Row], gate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results" / "memory.json"
    assert gate(file, "--write") == 0
    assert capsys.readouterr().out == "memory.json: 2 rows written\n"
    assert gate(file) == 0
    measured["a"] = row(peaks(optimizer_bytes=801 * MIB))
    capsys.readouterr()
    assert gate(file) == 1
    assert "regression: baselines/a (simulated) peak +1 MiB: optimizer +1\n" in capsys.readouterr().out
    measured["a"] = row(peaks(optimizer_bytes=799 * MIB))
    assert gate(file) == 0
    assert "nox -s gate -- --write" in capsys.readouterr().err
    measured["c"] = row()
    assert gate(file) == 2


def test_other_formats_contain_nothing_else_so_that_programs_can_read_them(
    measured: dict[str, Row], gate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "memory.json"
    gate(file, "--write")
    measured["a"] = row(peaks(optimizer_bytes=801 * MIB))
    capsys.readouterr()
    assert gate(file, "--format", "json") == 1
    assert json.loads(capsys.readouterr().out)["counts"]["regression"] == 1
    assert gate(file, "--format", "github") == 1
    assert capsys.readouterr().out.startswith("### gate: failed (1 regression")


def test_another_version_of_torch_is_one_line_and_2_before_anything_is_measured(
    gate: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    file, here = tmp_path / "memory.json", baselines.versions()
    baselines.write(file, {"a": row()})
    monkeypatch.setattr(baselines, "versions", lambda: {**here, "torch": "9.9.9"})
    monkeypatch.setattr(gate_command, "_measure", lambda: pytest.fail("it was measured"))
    assert gate(file) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert f"torch {here['torch']} (here 9.9.9)" in line


def test_the_part_of_a_version_that_names_a_build_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines.files, "installed", lambda name: "2.13.0+cu130")
    assert set(baselines.versions().values()) == {"2.13.0"}


@pytest.mark.parametrize("content", [None, "{", '{"schema_version": 2}', '{"rows": []}'])
def test_a_file_that_is_no_baseline_is_one_line_and_2(
    gate: Callable[..., int], tmp_path: Path, content: str | None, capsys: Any
) -> None:
    file = tmp_path / "memory.json"
    if content is not None:
        file.write_text(content)
    assert gate(file) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("place", ["a file/memory.json", "a folder", "n" * 5000])
def test_a_place_that_cannot_be_written_is_one_line_and_2_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, gate: Callable[..., int], tmp_path: Path, capsys: Any, place: str
) -> None:
    monkeypatch.setattr(gate_command, "_measure", lambda: pytest.fail("measured first"))
    (tmp_path / "a file").write_text("")
    (tmp_path / "a folder").mkdir()
    assert gate(tmp_path / place, "--write") == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "cannot be written: " in line
    assert {path.name for path in tmp_path.iterdir()} == {"a file", "a folder"}


@pytest.mark.parametrize(
    "arguments", [("a", "b"), ("--control", "full"), ("a", "--control", "full")], ids=" ".join
)
def test_options_of_records_are_refused(gate: Callable[..., int], arguments: tuple[str, ...]) -> None:
    assert gate(*arguments) == 2


def test_nothing_is_written_when_a_row_failed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a: KeyError"):
        baselines.write(tmp_path / "memory.json", {"a": Row(config_id="a", failed="KeyError")})
    assert not (tmp_path / "memory.json").exists()


def test_each_row_is_forecast_and_the_smallest_are_counted_as_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOREBENCH_CACHE", str(tmp_path))
    (small,) = [run for run in runs(True) if run.name == "sltrain, 8 bits per layer"]
    large = small.model_copy(
        update={"model": small.model.model_copy(update={"name": "9m"}), "label": "larger"}
    )
    chosen = suite.load("baselines")
    monkeypatch.setattr(suite, "load", lambda name: replace(chosen, runs=(large, small)))
    found = gate_command._measure()
    assert verdicts({small.name: baselines.read(FILE)[small.name]}, {small.name: found[small.name]}) == []
    assert found["larger"].live is None
    assert found["larger"].simulated is not None
    assert found["larger"].simulated.train.peak_allocated_bytes % 512 == 0
