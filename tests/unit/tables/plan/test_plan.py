"""The plan of a suite: what is done, what each config needs, where it fits; forecasts are of a stand-in."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import devices, record
from harness.cli import main as cli
from harness.config import Run
from harness.engine.process import child
from harness.engine.process.job import Job
from harness.engine.sweep import resolution
from harness.files import ROOT
from harness.forecast import UNSEEN, MemoryReport, Peak
from harness.record import TrainMemory
from harness.speed_forecast import SpeedForecast
from harness.tables.format import DASH
from harness.tables.plan import plan, tables
from tests.support import forecaster
from tests.support.gate_records import environment

GIB = 1 << 30
SUITE: dict[str, Any] = {
    "suite": "small",
    "question": "does it fit?",
    "base": {
        "model": {"source": "shape", "name": "60m"},
        "data": {"source": "random", "seq_len": 2},
        "train": {"stage": "pretrain"},
    },
    "matrix": {"seed": [0, 1]},
    "rows": [
        {"label": "three", "method": "full", "train.batch": 3},
        {"label": "nine", "method": "full", "train.batch": 9},
        {"label": "unsupported", "method": "full", "train.batch": 4},
    ],
}
Said = tuple[int, str, str]


@pytest.fixture
def lorebench(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Said]:
    """`lorebench plan` within this process, with the worker of these tests."""
    monkeypatch.setenv("LOREBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(child, "WORKER", forecaster.command(tmp_path))

    def resolve(runs: Sequence[Run], device: str = "auto", **reads: Any) -> resolution.Plan:
        return resolution.Plan(tuple(runs), "cpu", "cpu-9t")

    monkeypatch.setattr(resolution, "resolve", resolve)

    def call(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["lorebench", "plan", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SUITE))
    return path


def finish(suite: Path, results: Path, label: str, seed: int, wall_s: float, status: str = "ok") -> None:
    """Put the record of a run in place."""
    from harness.suite import load

    (run,) = [run for run in load(suite).runs if (run.name, run.seed) == (label, seed)]
    made = Job(run, "small", Path("x"), "cpu", Path("c"), "").blank()
    made.outcome.status = status  # type: ignore[assignment]
    made.time = record.Time(wall_s=wall_s)
    made.environment = record.Environment(**environment())
    record.write(made, results / "cpu-9t" / "small" / f"{run.run_id}.json")


def cells_of(out: str, label: str) -> list[list[str]]:
    """The cells of each line of a table that begins with a label."""
    lines = [line for line in out.splitlines() if line.startswith(f"{label} ")]
    return [re.split(r"\s{2,}", line.strip()) for line in lines]


# ------------------------------------------------------------------------------------------ the table
def test_each_config_has_one_row_with_what_is_done_its_peak_and_where_it_fits(
    lorebench: Callable[..., Said], suite: Path, tmp_path: Path
) -> None:
    finish(suite, tmp_path / "runs", "three", 0, 90.0)
    finish(suite, tmp_path / "runs", "nine", 0, 60.0, "oom")
    code, out, err = lorebench(
        suite,
        "--results",
        tmp_path / "runs",
        "--device-gib",
        "4",
        "--device-gib",
        "24",
        "--reserve-gib",
        "0.5",
    )
    assert code == 0, err
    assert cells_of(out, "three")[0] == [
        "three",
        "1",
        "1",
        "1.5",
        "100",
        "6",
        "3.00",
        "yes, 0.50 spare",
        "yes, 20.50 spare",
    ]
    assert cells_of(out, "nine")[0] == [
        "nine",
        "1",
        "1",
        DASH,
        "100",
        "18",
        "9.00",
        "no, 5.50 short",
        "yes, 14.50 spare",
    ]
    assert cells_of(out, "unsupported")[0] == ["unsupported", "0", "2", DASH, "100", "8", DASH, DASH, DASH]
    assert "does it fit?" in out
    assert UNSEEN.split(",")[0] in out
    assert "unsupported: no forecast: it does not do that" in out
    assert "6 runs on cpu-9t: 2 done, 4 to do; times known from records of equal runs: 1, 1.5 min" in out
    assert "the peak plus a reserve of 0.5 GiB" in out
    assert "simulated" not in out
    assert "[3/3]" in err, "progress goes to standard error"


def test_again_nothing_is_simulated_and_the_same_is_printed(
    lorebench: Callable[..., Said], suite: Path, tmp_path: Path
) -> None:
    asked = (suite, "--results", tmp_path / "runs", "--device-gib", "8", "--max-batch")
    first, again = lorebench(*asked), lorebench(*asked)
    assert again[1] == first[1]
    assert again[2] == ""
    assert len(forecaster.asked(tmp_path)) == 1


def test_the_largest_batch_and_length_stand_with_their_peaks(
    lorebench: Callable[..., Said], suite: Path, tmp_path: Path
) -> None:
    code, out, _ = lorebench(
        suite,
        "--results",
        tmp_path / "runs",
        "--device-gib",
        "8",
        "--device-gib",
        "80",
        "--max-batch",
        "--max-seq",
    )
    assert code == 0
    three = cells_of(out, "three")[1]
    assert three[1:] == ["7 (7.00; 8.00)", "64 (64.00; the bound)", "3 (6.00; 9.00)", "27 (78.00; 81.00)"]
    assert cells_of(out, "nine")[1][3] == "none: 2 needs 9.00"


def test_a_run_that_only_compresses_has_no_batch_to_find(
    lorebench: Callable[..., Said], suite: Path, tmp_path: Path
) -> None:
    said = lorebench(
        suite, "--set", "train.stage=compress", "--only", "label=nine", "--device-gib", "20", "--max-batch"
    )
    assert said[0] == 0
    assert forecaster.asked(tmp_path) == [["nine"]]
    assert "largest that fits" not in said[1]
    assert cells_of(said[1], "nine")[1][-2:] == ["prepare", DASH]
    assert cells_of(said[1], "nine")[0][4:6] == [DASH, DASH], "it makes no update"


def test_rows_that_only_compress_have_a_table_of_scoring_text(
    lorebench: Callable[..., Said], tmp_path: Path
) -> None:
    rows = [
        {"label": "trains", "method": "full", "train.batch": 3},
        {"label": "dense", "method": "full", "train.batch": 8, "train.stage": "compress"},
        {"label": "less", "method": "full", "train.batch": 4, "train.stage": "compress"},
        {"label": "unsupported", "method": "full", "train.batch": 5, "train.stage": "compress"},
    ]
    path = tmp_path / "mixed.yaml"
    path.write_text(yaml.safe_dump({**SUITE, "rows": rows, "baseline": "dense"}))
    asked = (path, "--on", "h200", "--device-gib", "6", "--results", tmp_path / "runs")
    code, out, err = lorebench(*asked, "--format", "md")
    assert code == 0, err
    _, found = out.split("Scoring text, forward only, on NVIDIA H200 SXM 141 GB, forecast")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found.splitlines() if "|" in line]
    cells = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}
    assert list(cells) == ["dense", "less", "unsupported"]
    dense, less = cells["dense"], cells["less"]
    assert (dense["tokens"], dense["peak GiB"], dense["fits 6 GiB"]) == ("8", "8.00", "no, 3.00 short")
    assert dense["largest groups at the peak"] == "logits and loss 6.00; weights 2.00"
    assert (dense["ratio"], less["ratio"]) == ("1.00", "1.00"), "half the work for half the tokens"
    assert dense["costliest operations, % of the time"] == "add float32 100"
    assert set(cells["unsupported"].values()) == {"unsupported", DASH}
    assert "scoring text: a forward pass without gradients" in found
    made = {row["label"]: row for row in json.loads(lorebench(*asked, "--format", "json")[1])["rows"]}
    assert "scoring" not in made["trains"]
    assert "scoring" not in made["trains"]["forecast"]
    assert made["less"]["speed"] == []
    scored = made["less"]["scoring"]
    assert scored["components_bytes"] == {"weights": GIB, "buffers": 0, "transient": 3 * GIB}
    assert scored["fits"] == [{"device_gib": 6.0, "fits": True, "spare_gib": 1.0}]
    assert scored["speed"][0]["parts_s"].keys() == {"forward"}
    assert f"{scored['speed'][0]['tokens_per_s']:,.0f}" == less["tokens/s"]


def test_without_a_device_scoring_has_memory_alone_and_without_a_row_that_trains_training_has_no_speed(
    lorebench: Callable[..., Said], suite: Path
) -> None:
    asked = (suite, "--set", "train.stage=compress", "--only", "label=nine")
    plain, on = lorebench(*asked)[1], lorebench(*asked, "--on", "h200")[1]
    assert "Scoring text, forward only, forecast" in plain
    assert "tokens/s  " not in plain
    assert "Speed on" not in on
    assert "Scoring text, forward only, on NVIDIA H200 SXM 141 GB, forecast" in on


def test_the_plan_as_json_has_the_same_rows_in_bytes(
    lorebench: Callable[..., Said], suite: Path, tmp_path: Path
) -> None:
    finish(suite, tmp_path / "runs", "three", 0, 90.0)
    lorebench(
        *(suite, "--results", tmp_path / "runs", "--out", tmp_path / "plan.json"),
        *("--device-gib", "8", "--max-batch"),
    )
    made = json.loads((tmp_path / "plan.json").read_text())
    assert (made["runs_done"], made["runs_to_do"], made["unseen"]) == (1, 5, UNSEEN)
    three, nine, unsupported = made["rows"]
    assert (
        three["peak_allocated_bytes"] == three["forecast"]["phase_peak_allocated_bytes"]["prepare"] == 3 * GIB
    )
    assert (three["runs_done"], three["runs_to_do"], three["to_do_s"]) == (1, 1, 90.0)
    assert (three["steps"], three["tokens_per_step"], three["tokens"]) == (100, 6, 600)
    assert three["fits"] == [{"device_gib": 8.0, "fits": True, "spare_gib": 4.0}]
    assert (three["largest"][0]["largest"], three["largest"][0]["peak_bytes"]) == (7, 7 * GIB)
    assert nine["fits"][0]["fits"] is False
    assert (unsupported["reason"], unsupported["forecast"]) == ("it does not do that", None)
    assert unsupported["fits"][0]["fits"] is None


def test_rows_with_one_label_say_what_differs(lorebench: Callable[..., Said], tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    rows = [{"label": "same", "method": "full"}]
    path.write_text(yaml.safe_dump({**SUITE, "matrix": {"train.batch": [1, 2]}, "rows": rows}))
    out = lorebench(path)[1]
    assert [row[0] for row in cells_of(out, "same")[:2]] == ["same train.batch=1", "same train.batch=2"]


def test_where_ranks_came_from_is_said(lorebench: Callable[..., Said], suite: Path, tmp_path: Path) -> None:
    (tmp_path / "ranks.json").write_text('{"q": 3}')
    out = lorebench(suite, "--ranks", tmp_path / "ranks.json")[1]
    assert "ranks given: the file ranks.json" in out


# ------------------------------------------------------------------------------------------ mistakes
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--device-gib", "0"], "--device-gib 0: give GiB as a number above 0, at most 100000"),
        (["--device-gib", "-4"], "--device-gib -4: give GiB"),
        (["--device-gib", "nan"], "--device-gib nan: give GiB"),
        (["--device-gib", "inf"], "--device-gib inf: give GiB"),
        (["--device-gib", "100001"], "--device-gib 100001: give GiB"),
        (["--device-gib", "24GB"], "--device-gib 24GB: give GiB"),
        (["--device-gib", "24", "--reserve-gib", "-1"], "--reserve-gib -1: give GiB as a number from 0"),
        (["--reserve-gib", "much"], "--reserve-gib much: give GiB"),
        (
            ["--device-gib", "80", "--device-gib", "24", "--reserve-gib", "24"],
            "leaves nothing of --device-gib 24",
        ),
        (["--max-batch"], "--max-batch needs the size of a device: add for example --device-gib 24"),
        (["--max-seq"], "--max-seq needs the size of a device"),
        (["--ranks", "unknown"], "--ranks unknown: known: upper"),
        (["--ranks", "./none.json"], "--ranks ./none.json: cannot be read"),
        (["--out", "/none/plan.json"], "--out /none/plan.json: no file can be written there"),
        (["--out", "/proc/plan.json"], "--out /proc/plan.json: no file can be written there"),
        (["--out", "plan.csv"], "its ending says no format; name a file that ends in .txt, .md, .tex, .json"),
        (
            ["--data", str(ROOT / "pyproject.toml")],
            "'.toml' says nothing about how to read it",
        ),
        (["--data", str(ROOT / "tests")], "is a folder: name its files"),
        (["--data", "none.csv"], "no file at none.csv"),
        (["--only", "label=ten"], "no run matches; the labels are: nine, three, unsupported"),
    ],
)
def test_a_mistake_is_one_line(
    lorebench: Callable[..., Said], suite: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    code, out, err = lorebench(suite, "--results", tmp_path / "runs", *arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert "simulated" not in err
    assert err.startswith("lorebench: ")
    assert err.count("\n") == 1


def test_nothing_may_be_kept_free(lorebench: Callable[..., Said], suite: Path) -> None:
    _, out, _ = lorebench(suite, "--device-gib", "9", "--reserve-gib", "0", "--only", "label=nine")
    assert cells_of(out, "nine")[0][-1] == "yes, 0 spare"


def test_an_unknown_shape_is_one_line_with_the_nearest(
    suite: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here the runs are completed by the real code, within this process."""
    from harness.engine import worker

    def resolve(runs: Sequence[Run], device: str = "auto", **reads: Any) -> resolution.Plan:
        worker.resolve({"runs": [run.model_dump(mode="json") for run in runs], "device": device})
        raise AssertionError("it was not refused")

    monkeypatch.setattr(resolution, "resolve", resolve)
    monkeypatch.setattr(sys, "argv", ["lorebench", "plan", str(suite), "--set", "model.name=llama-2-8b"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert end.value.code == 2
    assert said.err.startswith("lorebench: no shape 'llama-2-8b'; did you mean 'llama-2-7b'")
    assert said.err.count("\n") == 1


# ------------------------------------------------------------------------------------------ rendering
def trained(gib: int = 10) -> MemoryReport:
    return MemoryReport(
        config_id="0",
        granularity=512,
        parameters_total=1,
        parameters_trainable=1,
        phase_peak_allocated_bytes={"load": 5 * GIB, "prepare": 6 * GIB, "train": gib * GIB},
        train=TrainMemory(
            peak_allocated_bytes=gib * GIB,
            weights_trainable_bytes=GIB,
            weights_frozen_bytes=2 * GIB,
            gradients_bytes=GIB,
            optimizer_bytes=3 * GIB,
            buffers_bytes=10,
            transient_bytes=3 * GIB,
            window_first_step=2,
            window_last_step=3,
            refreshes_in_window=0,
        ),
        peak=Peak(part="backward", operation="x", groups={"a": 1, "b": 3 * GIB, "c": GIB, "d": 2 * GIB}),
        ranks={"m": "upper: all of them"},
        warnings=["clamped", "clamped"],
    )


def plan_of(*forecasts: MemoryReport | str, **changes: Any) -> plan.Plan:
    rows = [plan.Row(f"r{number}", str(number), 0, 1, None, f) for number, f in enumerate(forecasts)]
    given = {"device_gib": (11.0,), "reserve_gib": 1.0, "unseen": UNSEEN, **changes}
    return plan.Plan("s", "", "m", tuple(rows), **given)


def test_components_and_the_moment_of_the_peak_are_shown() -> None:
    report = tables.build(plan_of(trained(), "no such thing"))
    row, other = report.tables[-1].rows
    assert row == (
        *("r0", "3.00", "1.00", "3.00", "<0.01", "3.00", "train, backward"),
        "b 3.00; d 2.00; c 1.00",
    )
    assert set(other[1:]) == {DASH}
    assert report.tables[0].rows[0][-1] == "yes, 0 spare", "peak and reserve may fill the device"
    assert report.notes == (
        "ranks of m, which depend on values, by upper: all of them (r0)",
        "r0: clamped",
        "r1: no forecast: no such thing",
    )


def test_a_peak_before_the_training_is_named_by_its_phase() -> None:
    early = trained()
    early.phase_peak_allocated_bytes["prepare"] = 30 * GIB
    report = tables.build(plan_of(early))
    assert report.tables[-1].rows[0][6] == "prepare"
    assert report.tables[0].rows[0][-2:] == ("30.00", "no, 20.00 short")


def test_a_note_says_what_training_alone_needs_where_the_peak_is_before_it() -> None:
    compressed = trained().model_copy(update={"train": None, "peak": None, "ranks": {}, "warnings": []})
    compressed.phase_peak_allocated_bytes.pop("train")
    plain = {"ranks": {}, "warnings": []}
    early, first, usual = (trained(gib).model_copy(update=plain) for gib in (10, 4, 7))
    early.phase_peak_allocated_bytes["prepare"] = 30 * GIB
    first.phase_peak_allocated_bytes["load"] = 6 * GIB + 1
    report = tables.build(plan_of(early, usual, first, compressed, "no such thing"))
    assert report.notes == (
        "the peak is before training, in load or prepare; training alone needs: r0: 10.00 GiB; r2: 4.00 GiB",
        "r4: no forecast: no such thing",
    )
    assert tables.build(plan_of(usual)).notes == ()


def test_without_any_forecast_there_is_no_table_of_components() -> None:
    assert [table.title for table in tables.build(plan_of("x", device_gib=())).tables] == ["Runs"]


# ------------------------------------------------------------------------------- speed on a device
def spoken(step_s: float, refresh_s: float = 0.0, **settings: Any) -> SpeedForecast:
    parts = {"forward": step_s / 4, "backward": step_s / 2, "update": step_s / 4, "refresh": refresh_s}
    operations = {"mm bfloat16": 0.75 * step_s, "mul bfloat16": 0.25 * step_s, "svd float32": refresh_s}
    return SpeedForecast(1000, parts, operations, **{"mfu": 0.25, "hfu": 0.5, **settings})


def test_the_speed_on_a_device_stands_with_its_ratio_parts_and_costliest_operations() -> None:
    device = devices.profile("h200")
    rows = tuple(
        plan.Row(label, label, 0, 1, None, trained(), speed={device.title: found})
        for label, found in {
            "full": spoken(0.1),
            "slow": spoken(0.1, 0.1, mfu=None),
            "int8": "round has no rate for mm in int8",
        }.items()
    )
    made = plan.Plan("s", "q", "m", rows, (), 0, UNSEEN, devices=(device,), baseline="full")
    table = next(each for each in tables.build(made).tables if "Speed" in each.title)
    assert "H200" in table.title
    assert "forecast" in table.title
    cells = {row[0]: row[2:] for row in table.rows}
    assert cells["full"][:9] == ("10,000", "1.00", "25", "50", "100.0", "25.0", "50.0", "25.0", DASH)
    assert cells["slow"][:9] == ("5,000", "0.50", DASH, "50", "200.0", "25.0", "50.0", "25.0", "100.0")
    assert set(cells["int8"]) == {DASH}
    built = tables.build(made)
    costliest = [row[-1] for each in built.tables for row in each.rows if "mm bfloat16" in row[-1]]
    assert costliest[-1] == "mm bfloat16 38, mul bfloat16 12, svd float32 50"
    assert "int8: no speed on NVIDIA H200 SXM 141 GB: round has no rate for mm in int8" in built.notes
    assert any("assumed, not measured" in text for text in built.caption)
    spoken_rows = plan.as_dict(made)["rows"]
    assert spoken_rows[0]["speed"][0]["tokens_per_s"] == pytest.approx(10_000)
    assert spoken_rows[2]["speed"] == [{"device": device.title, "reason": "round has no rate for mm in int8"}]


def test_rows_of_one_label_keep_their_own_speed_and_the_device_says_whether_they_fit() -> None:
    device = devices.profile("h200")
    rows = tuple(
        plan.Row("x", name, 0, 1, None, trained(peak), speed={device.title: spoken(seconds)})
        for name, seconds, peak in (("a", 0.1, 20), ("b", 0.2, 200))
    )
    made = plan.Plan("s", "q", "m", rows, (), 1.0, UNSEEN, devices=(device,), baseline="x")
    table = next(each for each in tables.build(made).tables if "Speed" in each.title)
    fits, speed, ratio = table.columns[:3]
    assert speed.cells == ("10,000", "5,000")
    assert ratio.cells == ("1.00", "0.50")
    left = device.memory_gib - 1
    assert fits.cells == (f"yes, {left - 20:.2f} spare", f"no, {200 - left:.2f} short")


def test_two_rows_that_are_equal_at_scale_stay_two_rows(
    lorebench: Callable[..., Said], tmp_path: Path
) -> None:
    rows = [
        {"label": "short", "method": "full", "train.batch": 3},
        {"label": "long", "method": "full", "train.batch": 9},
    ]
    content = {**SUITE, "rows": rows, "baseline": "short", "at_scale": {"base": {"train.batch": 5}}}
    path = tmp_path / "scaled.yaml"
    path.write_text(yaml.safe_dump(content))
    code, out, err = lorebench(path, "--at-scale", "--results", tmp_path / "runs")
    assert code == 0, err
    assert [cells_of(out, label)[0][6] for label in ("short", "long")] == ["5.00", "5.00"]
    assert len(forecaster.asked(tmp_path)) == 1, "and are simulated once"


def test_at_scale_the_model_and_the_text_are_those_of_the_suite(
    lorebench: Callable[..., Said], tmp_path: Path
) -> None:
    """As in a report, which forecasts the rows of another model on no other than its own."""
    scaled = {"source": "random", "seq_len": 8}
    scale = {"base": {"model": {"source": "shape", "name": "nano"}, "data": scaled}}
    path = tmp_path / "scaled.yaml"
    path.write_text(yaml.safe_dump({**SUITE, "at_scale": scale}))
    text = tmp_path / "text.txt"
    text.write_text("a text")
    said = [
        lorebench(path, "--at-scale", *options, "--format", "json")[1]
        for options in ([], ["--model", "someone/else", "--data", str(text)])
    ]
    plain, other = (json.loads(text)["rows"] for text in said)
    assert [row["config_id"] for row in plain] == [row["config_id"] for row in other]


def test_two_profiles_of_one_title_are_refused(
    lorebench: Callable[..., Said], suite: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.yaml"
    copy.write_bytes((devices.FOLDER / "h200.yaml").read_bytes())
    code, _, err = lorebench(suite, "--on", "h200", "--on", copy)
    assert code == 2
    assert "it has the title of --on h200, 'NVIDIA H200 SXM 141 GB'; change one" in err


def test_a_device_that_is_not_known_is_refused_before_anything_is_simulated(
    lorebench: Callable[..., Said], suite: Path, tmp_path: Path
) -> None:
    code, out, err = lorebench(suite, "--on", "h20")
    assert (code, out) == (2, "")
    assert "--on h20: neither a device profile nor a file of one; did you mean 'h200'" in err
    assert not forecaster.asked(tmp_path)
