"""The page of predicted, measured and published memory: its data, its cells, its command, its drift."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from benchmarks.studies.memory import __main__ as program
from benchmarks.studies.memory import charts, forecasts, papers, table
from benchmarks.studies.memory.forecasts import Forecast, Forecasts
from benchmarks.studies.memory.papers import Cell, PaperTable, Remark
from harness import record as records
from harness.config import Run
from harness.engine.run import checks
from harness.engine.run.environment import ROOT
from harness.errors import UserError
from harness.forecast import MemoryReport, Peak
from harness.record import Environment, Memory, Outcome, Record, TrainMemory

GIB = 2**30
#: Labels of rows that stand for a published table begin with the paper; all others are of the grid of sizes.
PAPERS = ("GaLore", "SLTrain", "WeLore", "VeLoRA")


@cache
def runs() -> dict[str, Run]:
    return {run.name: run for run in program._runs()}


def train_memory(trainable: int, frozen: int, gradients: int, optimizer: int, transient: int) -> TrainMemory:
    return TrainMemory(
        peak_allocated_bytes=(trainable + frozen + gradients + optimizer + transient) * GIB,
        weights_trainable_bytes=trainable * GIB,
        weights_frozen_bytes=frozen * GIB,
        gradients_bytes=gradients * GIB,
        optimizer_bytes=optimizer * GIB,
        buffers_bytes=0,
        transient_bytes=transient * GIB,
        window_first_step=1,
        window_last_step=3,
        refreshes_in_window=1,
    )


def forecast(run: Run, *sizes: int) -> Forecast:
    train = train_memory(*(sizes or (4, 0, 2, 8, 2)))
    groups = {"optimizer state": 8 * GIB, "gradients": 2 * GIB, "logits and loss": GIB, "norms": 7}
    report = MemoryReport(
        config_id=run.config_id,
        granularity=512,
        parameters_total=10,
        parameters_trainable=10,
        phase_peak_allocated_bytes={"train": train.peak_allocated_bytes},
        train=train,
        peak=Peak(part="backward", operation="aten::mm", groups=groups),
    )
    return Forecast(config_id=run.config_id, report=report)


def record(run: Run, gib: int, status: records.Status = "ok", meter: str = "cuda") -> Record:
    train = train_memory(gib, 0, 0, 0, 0)
    return Record(
        run_id=run.run_id,
        config_id=run.config_id,
        suite="shapes",
        label=run.name,
        seed=0,
        repeat=0,
        tier="shapes",
        config={},
        rerun="",
        outcome=Outcome(status=status),
        memory=Memory.model_validate({"meter": meter, "train": train.model_dump()}),
        environment=Environment(
            device="Abacus GPU", cpu="c", cpu_threads=1, system="s", python="3.11", packages={}
        ),
    )


def small(*cells: Cell, **options: object) -> papers.Papers:
    published = PaperTable.model_validate(
        {
            "title": "T",
            "paper": "P",
            "source": "S",
            "kind": "measured",
            "unit": "GiB",
            "cells": cells,
            **options,
        }
    )
    return papers.Papers(tables=(published,))


def cells_of(text: str, label: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {label} |")]
    return line[2:-2].split(" | ")


# ------------------------------------------------------------------------------------------ the data
def test_every_row_of_the_suite_is_a_supported_run_of_its_own() -> None:
    for run in runs().values():
        checks.supported(run, checks.stack(run))
        assert run.model.source == "shape"
        assert run.data.source == "random"
        assert run.train.steps > max(run.train.refresh_at)
    assert len({run.config_id for run in runs().values()}) == len(runs())


def test_published_figures_and_rows_of_the_suite_belong_to_each_other() -> None:
    cited = {cell.row for published in papers.load().tables for cell in published.cells}
    assert not cited - set(runs())
    assert not {name for name in runs() if name.startswith(PAPERS)} - cited


def test_a_row_is_cited_once_per_table_and_remarks_are_of_the_rows_of_their_table() -> None:
    for published in papers.load().tables:
        cited = [cell.row for cell in published.cells]
        assert len(set(cited)) == len(cited), published.title
        for remark in published.remarks:
            assert set(remark.rows) <= set(cited), published.title


def test_every_figure_that_differs_by_more_than_a_tenth_has_its_sentence() -> None:
    rows = table.rows_of(runs().values(), forecasts.read(ROOT / "results" / program.FORECASTS), None)
    for published in papers.load().tables:
        told = {label for remark in published.remarks for label in remark.rows}
        assert not {cell.row for cell in table.disagreeing(published, rows)} - told, published.title


def test_no_forecast_is_out_of_date_or_failed_and_remarks_name_figures_that_there_are() -> None:
    known = forecasts.read(ROOT / "results" / program.FORECASTS)
    stale = [
        name for name, found in known.forecasts.items() if name not in runs() or not found.is_of(runs()[name])
    ]
    assert not stale, "run: python -m benchmarks.studies.memory"
    rows = table.rows_of([run for run in runs().values() if known.of(run)], known, None)
    for published in papers.load().tables:
        for remark in published.remarks:
            if set(remark.rows) <= set(rows):
                remark.text.format_map(table.facts(published, remark, rows))


@pytest.mark.parametrize(
    ("unit", "size"), [("GB", 22e9), ("GiB", 22 * 1024**3), ("MB", 22e6), ("MiB", 22 * 1024**2)]
)
def test_a_published_figure_is_turned_into_bytes_by_its_own_unit(unit: str, size: float) -> None:
    (published,) = small(Cell(row="a", value=22), unit=unit).tables
    assert published.bytes_of(published.cells[0]) == size
    assert table.gib(22e9) == "20.49"


def test_a_file_of_figures_that_is_not_as_it_should_be_is_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "papers.yaml"
    file.write_text(
        "tables: [{title: T, paper: P, source: S, kind: guessed, unit: GB, cells: [{row: a, value: 1}]}]"
    )
    with pytest.raises(UserError, match="kind") as error:
        papers.load(file)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------ the page
def test_without_records_a_row_is_simulated_and_stands_beside_the_paper() -> None:
    run = runs()["1b: full"]
    known = Forecasts(forecasts={run.name: forecast(run)})
    text = table.page(table.rows_of([run], known, None), small(Cell(row=run.name, value=20)), None)
    assert "have no forecast yet" not in text
    cells = next(line for line in text.splitlines() if line.startswith("| 1b: full |"))[2:-2].split(" | ")
    assert cells[1:9] == ["full", "16 x 256", "16.00", "simulated", table.DASH, "20", "20.00", "0.80"]
    assert cells[9:] == ["backward", "optimizer state 8.00; gradients 2.00; logits and loss 1.00"]
    assert "no GPU: every row is simulated" in text
    assert f"Not explained yet: {run.name}." in text


def test_with_a_record_the_measured_peak_and_its_ratio_are_shown() -> None:
    run, failed = runs()["GaLore 7B: adam"], runs()["GaLore 7B: adam 8-bit"]
    known = Forecasts(forecasts={each.name: forecast(each) for each in (run, failed)})
    machine = table.Measured(
        "cuda, Abacus GPU",
        {run.config_id: record(run, 17), failed.config_id: record(failed, 1, status="oom")},
    )
    rows = table.rows_of([run, failed], known, machine)
    text = table.page(rows, small(Cell(row=run.name, value=16), Cell(row=failed.name, value=16)), machine)
    assert cells_of(text, run.name)[3:6] == ["16.00", "17.00", "1.06"]
    assert cells_of(text, failed.name)[3:6] == ["16.00", "oom", table.DASH]
    assert "on cuda, Abacus GPU, 1 of 2 rows" in text
    assert "Not explained yet" not in text


def test_what_a_paper_reckons_stands_beside_weights_and_states_alone() -> None:
    run = runs()["GaLore 7B: adam"]
    rows = table.rows_of([run], Forecasts(forecasts={run.name: forecast(run, 3, 1, 2, 8, 5)}), None)
    text = table.page(rows, small(Cell(row=run.name, value=12), against="states"), None)
    assert cells_of(text, run.name)[3:9] == ["12.00", "simulated", table.DASH, "12", "12.00", "1.00"]


def test_a_remark_takes_its_figures_from_its_rows() -> None:
    one, other = runs()["GaLore 7B: adam"], runs()["GaLore 7B: adam 8-bit"]
    known = Forecasts(forecasts={one.name: forecast(one), other.name: forecast(other, 4, 1, 2, 8, 2)})
    remark = Remark(rows=(one.name, other.name), text="{weights} of weights,\n{gap} more, {logits} of logits")
    figures = small(
        Cell(row=one.name, value=20), Cell(row=other.name, value=20), remarks=[remark.model_dump()]
    )
    text = table.page(table.rows_of([one, other], known, None), figures, None)
    assert "* All rows: 4.00 to 5.00 of weights, 3.00 to 4.00 more, 1.00 of logits" in text


def test_components_of_the_grid_add_up_to_the_peak() -> None:
    run = runs()["60m: full"]
    other = runs()["GaLore 7B: adam"]
    known = Forecasts(forecasts={run.name: forecast(run, 4, 1, 2, 8, 3)})
    text = table.page(table.rows_of([run, other], known, None), small(Cell(row=other.name, value=1)), None)
    cells = cells_of(text, run.name)
    assert float(cells[3]) == sum(map(float, cells[6:12])) == 18.0
    assert cells_of(text, other.name)[3] == table.DASH
    assert "1 of 2 rows have no forecast yet" in text


def test_only_records_of_a_gpu_count_as_measured(tmp_path: Path) -> None:
    run = runs()["60m: full"]
    for place, meter, gib in (("cpu", "live", 3), ("gpu", "cuda", 4)):
        records.write(record(run, gib, meter=meter), tmp_path / place / "shapes" / f"{run.run_id}.json")
    machine = table.measured(tmp_path)
    assert machine is not None
    assert machine.device == "cuda, Abacus GPU"
    (row,) = table.rows_of([run], Forecasts(), machine).values()
    assert row.measured() == 4 * GIB
    assert table.measured(tmp_path / "nowhere") is None


# ------------------------------------------------------------------------------------- forecasts
def test_a_forecast_serves_until_configuration_or_version_change() -> None:
    run = runs()["60m: full"]
    other = run.model_copy(update={"train": run.train.model_copy(update={"batch": 1})})
    known = Forecasts(forecasts={run.name: forecast(run)})
    assert known.missing([run]) == []
    assert known.missing([other]) == [other]
    assert known.of(other) is None
    report = known.forecasts[run.name].report
    assert report is not None
    report.version -= 1
    assert known.missing([run]) == [run]


def test_what_fails_is_kept_as_a_line_and_takes_nothing_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = [runs()[f"60m: {name}"] for name in ("full", "galore", "lora")]

    def simulate(run: Run) -> MemoryReport:
        if run is second:
            raise ValueError("broken\nhere")
        report = forecast(run).report
        assert report is not None
        return report

    monkeypatch.setattr("harness.engine.forecast.dry_run.simulate", simulate)
    file, said = tmp_path / "f.json", list[str]()
    forecasts.write(file, Forecasts(forecasts={"gone": forecast(first)}).model_dump_json())
    forecasts.complete(file, [first, second, third], [third, second, first], say=said.append)
    known = forecasts.read(file)
    assert list(known.forecasts) == [first.name, second.name, third.name]
    assert known.forecasts[second.name].error == "ValueError: broken here"
    assert known.missing([first, second, third]) == [second]
    assert said[0].startswith("60m: lora: 16.00 GiB")


def test_a_file_that_holds_no_forecasts_is_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_text('{"schema_version": 1, "forecasts": {"a": {}}}')
    with pytest.raises(UserError, match="not a file of forecasts"):
        forecasts.read(file)


# ------------------------------------------------------------------------------------------ the command
@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """The command on all rows, with made-up forecasts and no GPU, below a folder of the test."""
    monkeypatch.setattr(program, "_runs", lambda: list(runs().values()))
    monkeypatch.setattr(forecasts, "foresee", lambda run: (forecast(run), 0.0))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return lambda *arguments: program.main([*arguments, "--out", str(tmp_path)])


def test_the_command_fills_the_page_and_sees_when_it_was_edited(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 0
    assert f"{len(runs())} of {len(runs())} rows predicted" in capsys.readouterr().out
    assert command("--render-only") == 0
    page = tmp_path / program.PAGE
    written = page.read_text(encoding="utf-8")
    page.write_text(written.replace("16.00", "15.00", 1), encoding="utf-8")
    assert command("--render-only") == 1
    assert page.read_text(encoding="utf-8") == written
    assert command() == 0
    assert "0 of" in capsys.readouterr().out
    assert command("--fresh", "--only", "60m: full") == 0
    assert "1 of 1 rows" in capsys.readouterr().out


def test_a_chart_of_other_figures_has_drifted_too_and_equal_figures_give_equal_files(
    command: Callable[..., int], tmp_path: Path
) -> None:
    assert command("--only", "1b: ") == 0
    chart = tmp_path / program.CHARTS["1b"][0]
    drawn = chart.read_bytes()
    chart.write_bytes(drawn.replace(b"figures ", b"figures 0", 1))
    assert command("--render-only") == 1
    assert chart.read_bytes() == drawn


def test_a_choice_that_no_row_meets_is_one_clear_line(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--only", "70b") == 2
    assert "no row holds '70b'" in capsys.readouterr().err


def test_rows_that_fit_the_gpu_are_measured_by_one_command() -> None:
    small_run, large = runs()["60m: full"], runs()["1b: full"]
    known = Forecasts(
        forecasts={small_run.name: forecast(small_run), large.name: forecast(large, 90, 0, 0, 0, 0)}
    )
    every = [small_run, large, runs()["60m: lora"]]
    (found,) = program.commands(every, known, 80 * GIB, Path("out"))
    assert found[:6] == [sys.executable, "-m", "harness.cli", "run", "shapes", "--device"]
    assert found[6:] == ["cuda", "--results", "out/raw", "--only", 'label="60m: full"']
    assert program.commands(every, known, GIB, Path("out")) == []


def test_the_page_of_this_project_follows_from_its_files() -> None:
    out = ROOT / "results"
    machine = table.measured(out / "raw")
    rows = table.rows_of(runs().values(), forecasts.read(out / program.FORECASTS), machine)
    written = (out / program.PAGE).read_text(encoding="utf-8")
    assert written == table.page(rows, papers.load(), machine), (
        "run: python -m benchmarks.studies.memory --render-only"
    )
    for size, (name, title) in program.CHARTS.items():
        assert charts.is_of(out / name, program.bars(size, title, rows)), name
