"""The page of predicted and measured memory: its rows, its cells, its program, its drift."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies.memory import __main__ as program
from benchmarks.studies.memory import growth, table
from harness import imports
from harness import record as records
from harness.config import Run
from harness.engine.run import checks
from harness.engine.run.environment import ROOT
from harness.errors import UserError
from harness.forecast import UNSEEN, MemoryReport, Peak
from harness.record import Environment, Memory, Outcome, Record, TrainMemory
from harness.suite import Suite
from harness.tables import generated
from harness.tables.papers import published
from harness.tables.papers.schema import Predicted
from harness.tables.plan.plan import Plan, as_json, read_forecasts
from harness.tables.plan.plan import Row as Planned

GIB = 2**30


@cache
def runs() -> dict[str, Run]:
    return table.resolved()


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


def forecast(run: Run, *sizes: int) -> MemoryReport:
    train = train_memory(*(sizes or (4, 0, 2, 8, 2)))
    groups = {"optimizer state": 8 * GIB, "gradients": 2 * GIB, "logits and loss": GIB, "norms": 7}
    return MemoryReport(
        config_id=run.config_id,
        granularity=512,
        parameters_total=10,
        parameters_trainable=10,
        phase_peak_allocated_bytes={"train": train.peak_allocated_bytes},
        train=train,
        peak=Peak(part="backward", operation="aten::mm", groups=groups),
    )


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
        config=run.canonical,
        rerun="",
        outcome=Outcome(status=status),
        memory=Memory.model_validate({"meter": meter, "train": train.model_dump()}),
        environment=Environment(
            device="Abacus GPU", cpu="c", cpu_threads=1, system="s", python="3.11", packages={}
        ),
    )


def planned(name: str, *rows: tuple[Run, MemoryReport | str]) -> Plan:
    made = (Planned(run.name, run.config_id, 0, 1, None, found) for run, found in rows)
    return Plan(name, "", "cpu-1t", tuple(made), (), 0.0, UNSEEN)


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


def test_rows_with_the_settings_of_a_published_table_are_compared_with_it() -> None:
    selectors: list[Any] = []
    for name in published.available(published.folder()):
        paper = published.load(published.folder(), name)
        selectors += [each for cell in published.cells(name, paper) for each in cell.answer.selectors]
        columns = [values for own in paper.tables for values in (own, *own.also.values())]
        remarks = [remark for values in columns for remark in values.remarks]
        selectors += [size for remark in remarks for size in remark.sizes.values()]
    predicted = [each for each in selectors if isinstance(each, Predicted)]
    cited = {label for each in predicted for label in (each.forecast, each.beside)}
    assert not {name for name in runs() if " " in name.partition(":")[0]} - cited


def test_every_row_has_a_current_forecast() -> None:
    known = read_forecasts(ROOT / table.FORECASTS)
    assert {run.config_id for run in runs().values()} == set(known), "run: nox -s bench-shapes"
    assert all(isinstance(found, MemoryReport) for found in known.values())


# ------------------------------------------------------------------------------------------ the page
def test_without_records_a_row_is_simulated() -> None:
    run = runs()["1b: full"]
    text = table.page(table.rows_of([run], {run.config_id: forecast(run)}, None), None)
    assert "have no forecast yet" not in text
    cells = cells_of(text, run.name)
    assert cells[1:6] == ["full", "16 x 256", "16.00", "simulated", table.DASH]
    assert cells[12:] == ["backward", "optimizer state 8.00; gradients 2.00; logits and loss 1.00"]
    assert "no GPU: every row is simulated" in text


def test_with_a_record_the_measured_peak_and_its_ratio_are_shown() -> None:
    run, failed = runs()["GaLore 7B: adam"], runs()["GaLore 7B: adam 8-bit"]
    known = {each.config_id: forecast(each) for each in (run, failed)}
    machine = table.Measured(
        "cuda, Abacus GPU",
        {run.config_id: record(run, 17), failed.config_id: record(failed, 1, status="oom")},
    )
    text = table.page(table.rows_of([run, failed], known, machine), machine)
    assert cells_of(text, run.name)[3:6] == ["16.00", "17.00", "1.06"]
    assert cells_of(text, failed.name)[3:6] == ["16.00", "oom", table.DASH]
    assert "on cuda, Abacus GPU, 1 of 2 rows" in text


def test_components_add_up_to_the_peak() -> None:
    run, other, failed = (runs()[name] for name in ("60m: full", "GaLore 7B: adam", "60m: lora"))
    known = {run.config_id: forecast(run, 4, 1, 2, 8, 3), failed.config_id: "it broke"}
    text = table.page(table.rows_of([run, other, failed], known, None), None)
    cells = cells_of(text, run.name)
    assert float(cells[3]) == sum(map(float, cells[6:12])) == 18.0
    assert cells_of(text, other.name)[3] == table.DASH
    assert cells_of(text, failed.name)[3] == "failed: it broke"
    assert "2 of 3 rows have no forecast yet" in text


def test_only_records_of_a_gpu_count_as_measured(tmp_path: Path) -> None:
    run = runs()["60m: full"]
    for place, meter, gib in (("cpu", "live", 3), ("gpu", "cuda", 4)):
        records.write(record(run, gib, meter=meter), tmp_path / place / "shapes" / f"{run.run_id}.json")
    machine = table.measured(tmp_path)
    assert machine is not None
    assert machine.device == "cuda, Abacus GPU"
    (row,) = table.rows_of([run], {}, machine).values()
    assert row.measured == 4 * GIB
    assert table.measured(tmp_path / "nowhere") is None


# ------------------------------------------------------------------------------------- forecasts
def test_forecasts_are_read_back_from_a_plan(tmp_path: Path) -> None:
    run, failed, old = (runs()[f"60m: {name}"] for name in ("full", "lora", "galore"))
    outdated = forecast(old)
    outdated.version -= 1
    file = tmp_path / "plan.json"
    file.write_text(as_json(planned("shapes", (run, forecast(run)), (failed, "it broke"), (old, outdated))))
    assert read_forecasts(file) == {run.config_id: forecast(run), failed.config_id: "it broke"}
    assert read_forecasts(tmp_path / "nowhere.json") == {}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"rows": [{}]}', '{"rows": [{"config_id": "a", "forecast": {"a": 1}}]}']
)
def test_a_file_that_is_no_plan_is_one_clear_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"^.*f\.json: not a plan; rebuild it: lorebench plan .*$"):
        read_forecasts(file)


# ------------------------------------------------------------------------------------------ the program
@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """The program with made-up forecasts and no GPU, below a folder of the test."""

    def plan(chosen: Suite, **_: object) -> Plan:
        return planned(chosen.name, *((run, forecast(run)) for run in checks.resolve(chosen.runs)))

    monkeypatch.setattr(program, "plan_suite", plan)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return lambda *arguments: program.main(arguments, tmp_path)


def test_the_program_fills_both_pages_and_sees_when_one_was_edited(
    command: Callable[..., int], tmp_path: Path
) -> None:
    assert command() == 0
    drifted = partial(generated.drifted, [*table.pages(tmp_path), *growth.pages(tmp_path)])
    assert not list(drifted())
    for place in (table.PAGE, growth.PAGE):
        page = tmp_path / place
        written = page.read_text(encoding="utf-8")
        page.write_text(written.replace("16.00", "15.00", 1), encoding="utf-8")
        assert list(drifted()) == [(page, written)]
        page.write_text(written, encoding="utf-8")


def test_a_chart_of_other_values_has_drifted_and_equal_values_give_equal_files(
    command: Callable[..., int], tmp_path: Path
) -> None:
    assert command() == 0
    chart = tmp_path / table.CHARTS["1b"][0]
    drawn = chart.read_bytes()
    chart.write_bytes(drawn.replace(b"figures ", b"figures 0", 1))
    assert [(path, text.encode()) for path, text in generated.drifted(table.pages(tmp_path))] == [
        (chart, drawn)
    ]


def test_a_row_without_a_forecast_is_named_and_ends_with_1(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs()["60m: full"]
    monkeypatch.setattr(program, "plan_suite", lambda chosen, **_: planned(chosen.name, (run, "it broke")))
    assert command() == 1
    assert "60m: full: no forecast: it broke" in capsys.readouterr().out


def test_an_unknown_option_is_one_clear_line(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--only", "70b") == 2
    assert capsys.readouterr().err == "unknown: --only 70b; this command has no options\n"


def test_rows_that_fit_the_gpu_are_measured_by_one_command() -> None:
    small, large = runs()["60m: full"], runs()["1b: full"]
    known = {small.config_id: forecast(small), large.config_id: forecast(large, 90, 0, 0, 0, 0)}
    every = [small, large, runs()["60m: lora"]]
    (found,) = program.commands(every, known, 80 * GIB, Path("out"))
    assert tuple(found[:6]) == (*imports.command("harness.cli"), "run", "shapes")
    assert found[6:] == ["--device", "cuda", "--results", "out/results/raw", "--only", 'label="60m: full"']
    assert program.commands(every, known, GIB, Path("out")) == []


def test_the_pages_of_this_project_follow_from_its_files() -> None:
    for path, text in (*table.pages(ROOT), *growth.pages(ROOT)):
        assert path.read_text(encoding="utf-8") == text, "run: nox -s tables"
