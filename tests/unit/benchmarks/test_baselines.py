"""The baselines of peak memory: what is in them, what a check finds, and what it refuses to compare."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies.baselines import __main__ as command
from benchmarks.studies.baselines import judging, measuring
from benchmarks.studies.baselines.measuring import Figures, Measured
from harness import suite
from harness.config import Run
from harness.errors import UserError
from harness.record import TrainMemory
from harness.registry import REGISTRY
from tests.contract.test_methods import CASES
from tests.support.gate_records import memory

MIB = 1 << 20


def figures(**parts: int) -> Figures:
    train = TrainMemory.model_validate(memory(**parts)["train"])
    return Figures(phase_peak_bytes={"load": 5 * MIB, "prepare": 6 * MIB}, train=train)


def row(simulated: Figures | None = None, **values: Any) -> Measured:
    return Measured(**{"config_id": "a", "simulated": simulated or figures(), "live": figures(), **values})


def verdicts(base: Mapping[str, Measured], today: Mapping[str, Measured]) -> list[tuple[str, str, str]]:
    cells = judging.compare(base, today).cells
    return [(cell.row, cell.verdict, cell.cause) for cell in cells if cell.verdict != "ok"]


# --------------------------------------------------------------------------------------- the rows
def test_every_stack_of_the_contract_has_a_row_and_every_method_is_in_one() -> None:
    """But for dropout, which makes no difference between two states of the code."""
    runs = suite.load("baselines").runs
    assert {run.name for run in runs} == set(CASES)
    for run in runs:
        case = CASES[run.name]
        wanted = [
            (name, {k: v for k, v in options.items() if k != "dropout"}) for name, options in case.stack
        ]
        assert [(choice.name, choice.options) for choice in run.method] == wanted
        same = ("state_bits", "per_layer", "clip", "weight_decay", "lr")
        assert [getattr(run.train, key) for key in same] == [getattr(case.optim, key) for key in same]
    assert {choice.name for run in runs for choice in run.method} == set(REGISTRY)


def test_the_large_rows_are_there() -> None:
    names = [run.name for run in command.rows()]
    assert names[: len(command.LARGE)] == sorted(command.LARGE, key=names.index)
    assert set(command.LARGE) <= set(names)


def test_the_file_that_ships_has_every_row_as_it_is_configured_today() -> None:
    kept = judging.Baselines.model_validate_json(command.FILE.read_text(encoding="utf-8")).rows
    assert {label: found.config_id for label, found in kept.items()} == {
        run.name: run.config_id for run in command.rows()
    }
    assert all(found.live for label, found in kept.items() if label not in command.LARGE)


def test_what_was_simulated_is_what_was_counted() -> None:
    """In the file that ships; where a row has ranks that follow from values, both take the same."""
    kept = judging.Baselines.model_validate_json(command.FILE.read_text(encoding="utf-8")).rows
    both = [(label, found.simulated, found.live) for label, found in kept.items() if found.live]
    assert len(both) == len(CASES)
    for label, simulated, live in both:
        assert simulated is not None
        assert live is not None
        wanted = {name for name in TrainMemory.model_fields if name.endswith("_bytes")}
        assert simulated.train.model_dump(include=wanted) == live.train.model_dump(include=wanted), label


@pytest.mark.parametrize("label", ["full", "galore, 8 bits per layer"])
def test_a_row_measured_today_is_what_the_file_says(label: str) -> None:
    base = judging.read(command.FILE).rows[label]
    run = next(run for run in command.rows() if run.name == label)
    assert verdicts({label: base}, {label: measuring.measure(run)}) == []


# ------------------------------------------------------------------------------------ the verdicts
def test_a_mebibyte_of_optimizer_state_is_named_with_row_and_component() -> None:
    more = row(figures(optimizer_bytes=801 * MIB))
    cause = "peak +1 MiB: optimizer +1"
    assert verdicts({"galore": row()}, {"galore": more}) == [("galore", "regression", cause)]


def test_growth_that_a_smaller_transient_hides_is_growth() -> None:
    hidden = row(figures(optimizer_bytes=802 * MIB, transient_bytes=98 * MIB))
    assert verdicts({"a": row()}, {"a": hidden}) == [
        ("a", "regression", "peak unchanged: optimizer +2, activations and temporaries -2 (MiB)")
    ]
    assert verdicts({"a": hidden}, {"a": row()}) == []


def test_a_lower_peak_is_an_improvement() -> None:
    less = row(figures(transient_bytes=99 * MIB))
    assert verdicts({"a": row()}, {"a": less}) == [
        ("a", "improvement", "peak -1 MiB: activations and temporaries -1")
    ]


def test_one_byte_more_while_preparing_fails() -> None:
    more = figures()
    more.phase_peak_bytes["prepare"] += 1
    assert verdicts({"a": row()}, {"a": row(more)}) == [("a", "regression", "prepare peak +1 bytes")]


def test_a_row_that_fails_today_is_a_regression() -> None:
    failed = Measured(config_id="a", failed="KeyError: 'x'")
    assert verdicts({"a": row()}, {"a": failed}) == [("a", "regression", "failed: KeyError: 'x'")]


@pytest.mark.parametrize(
    ("today", "verdict"),
    [({}, "missing"), ({"a": row(), "b": row()}, "new"), ({"a": row(config_id="b")}, "x")],
)
def test_rows_that_do_not_compare_end_with_2(today: dict[str, Measured], verdict: str) -> None:
    found = judging.compare({"a": row()}, today)
    assert verdict in found.counts
    assert judging.exit_code(found) == 2


# ------------------------------------------------------------------------------------- the command
@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Measured]:
    """What a measurement would find; no process is started."""
    found = {"a": row(), "b": row()}

    def measure_all(runs: Sequence[Run], jobs: int, say: object) -> dict[str, Measured]:
        return found

    monkeypatch.setattr(measuring, "measure_all", measure_all)
    return found


def test_what_is_written_is_what_is_checked(
    measured: dict[str, Measured], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "results" / "memory.json")
    assert command.main(["--write", "--file", file]) == 0
    assert command.main(["--check", "--file", file]) == 0
    measured["a"] = row(figures(optimizer_bytes=801 * MIB))
    capsys.readouterr()
    assert command.main(["--file", file]) == 1
    assert "regression: baselines/a (simulated) peak +1 MiB: optimizer +1\n" in capsys.readouterr().out
    measured["a"] = row(figures(optimizer_bytes=799 * MIB))
    assert command.main(["--file", file]) == 0
    assert "--write" in capsys.readouterr().out


def test_other_forms_hold_nothing_else_so_that_programs_can_read_them(
    measured: dict[str, Measured], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "memory.json")
    command.main(["--write", "--file", file])
    measured["a"] = row(figures(optimizer_bytes=801 * MIB))
    capsys.readouterr()
    assert command.main(["--file", file, "--format", "json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["counts"]["regression"] == 1
    assert "2 rows in" in said.err
    assert command.main(["--file", file, "--format", "github"]) == 1
    assert capsys.readouterr().out.startswith("### gate: failed (1 regression")


def test_another_version_of_torch_is_one_line_and_2_before_anything_is_measured(
    measured: dict[str, Measured], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    file = tmp_path / "memory.json"
    judging.write(file, measured)
    monkeypatch.setattr(judging, "versions", lambda: {**judging_versions, "torch": "9.9.9"})
    measured.clear()
    assert command.main(["--check", "--file", str(file)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"torch {judging_versions['torch']} (here 9.9.9)" in said


judging_versions = judging.versions()


def test_the_part_of_a_version_that_names_a_build_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging.files, "installed", lambda name: "2.13.0+cu130")
    assert set(judging.versions().values()) == {"2.13.0"}


@pytest.mark.parametrize("content", [None, "{", '{"schema_version": 2}', '{"rows": []}'])
def test_a_file_that_is_no_baseline_is_one_line_and_2(
    tmp_path: Path, content: str | None, capsys: Any
) -> None:
    file = tmp_path / "memory.json"
    if content is not None:
        file.write_text(content)
    assert command.main(["--check", "--file", str(file)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def die(_: Run) -> None:
    """As a process does for which there is no memory."""
    os._exit(9)


def test_a_process_that_dies_is_one_line_and_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    file = tmp_path / "memory.json"
    monkeypatch.setattr(measuring, "measure", die)
    monkeypatch.setattr(command, "rows", lambda: suite.load("baselines").runs[:1])
    assert command.main(["--write", "--jobs", "1", "--file", str(file)]) == 2
    said = capsys.readouterr().err
    assert said == "one of 1 processes died before its work was done, as when memory runs out\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["a file/memory.json", "a folder", "n" * 5000])
def test_a_place_that_cannot_be_written_is_one_line_and_2_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, place: str
) -> None:
    (tmp_path / "a file").write_text("")
    (tmp_path / "a folder").mkdir()
    monkeypatch.setattr(measuring, "measure_all", lambda *_: pytest.fail("it was measured"))
    assert command.main(["--write", "--file", str(tmp_path / place)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cannot be written: " in said
    assert {path.name for path in tmp_path.iterdir()} == {"a file", "a folder"}


def test_a_disk_that_is_full_is_one_line_and_2(
    measured: dict[str, Measured], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert command.main(["--write", "--file", str(tmp_path / "memory.json")]) == 2
    assert capsys.readouterr().err.endswith("cannot be written: No space left on device; choose another\n")


def test_nothing_is_written_when_a_row_failed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a: KeyError"):
        judging.write(tmp_path / "memory.json", {"a": Measured(config_id="a", failed="KeyError")})
    assert not (tmp_path / "memory.json").exists()
