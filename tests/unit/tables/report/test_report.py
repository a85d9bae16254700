"""The report: what it says of fabricated records whose true table is known."""

import csv
import io
import itertools
import math
import random
import re

import pandas as pd
import pytest
from rich.console import Console

from harness import record
from harness.config import Run
from harness.errors import UserError
from harness.record import (
    Accuracy,
    Data,
    Environment,
    Memory,
    Outcome,
    Parameters,
    Perplexity,
    Quality,
    Record,
    Time,
    Training,
    TrainMemory,
)
from harness.tables.aggregate import Stat
from harness.tables.format import DASH, bytes_text, fixed, latex, markdown, significant
from harness.tables.records import load
from harness.tables.report import build as report
from harness.tables.report import render

MIB = 1 << 20
TIMES = "\N{MULTIPLICATION SIGN}"
CHANCE = {"coins": 0.5, "facts": 0.25}


def fabricate(label="full", seed=0, *, peak=100.0, speed=1000.0, perplexity=8.0, correct=60, **options):
    """A finished record; `peak` in MiB. `train`, `stand`, `repeat`, `outcome`, `facts` may be given."""
    train = {"steps": 200, "lr": 1e-3, **options.get("train", {})}
    run = Run.model_validate(
        {
            "method": f"some.where:{re.sub(r'[^A-Za-z]', '', label) or 'X'}",
            "label": label,
            "seed": seed,
            "repeat": options.get("repeat", 0),
            "train": train,
            "evaluate": {"perplexity": ["world-b"], "tasks": ["embedded"]},
        }
    )
    return Record(
        run_id=run.run_id,
        config_id=run.config_id,
        suite=options.get("suite", "demo"),
        label=label,
        seed=seed,
        repeat=run.repeat,
        tier=run.tier,
        config=run.model_dump(mode="json"),
        rerun="lorebench run demo",
        outcome=options.get("outcome", Outcome(status="ok")),
        parameters=Parameters(
            total=1_000_000, trainable=500_000, facts={"anything": options.get("facts", {})}
        ),
        memory=fabricated_memory(peak, options.get("meter", "live")),
        time=Time(phase_s={"train": 12.5}, wall_s=20.0, tokens_per_s=speed),
        training=Training(steps=train["steps"], tokens=train["steps"] * 2048, loss=[2.0], lr=[1e-3]),
        quality=Quality(
            perplexity={"world-b": fabricated_perplexity(perplexity)},
            tasks={
                name: Accuracy(
                    accuracy=correct / 100, correct=correct, documents=100, chance=chance, version="1"
                )
                for name, chance in CHANCE.items()
            },
        ),
        data=Data(name="world-b", sha256="d" * 64, tokens=500_000, model="embedded", model_sha256="e" * 64),
        environment=fabricated_environment(**options.get("stand", {})),
    )


def fabricated_memory(peak, meter):
    part = int(peak * MIB / 8)
    train = TrainMemory(
        peak_allocated_bytes=8 * part,
        weights_trainable_bytes=part,
        weights_frozen_bytes=0,
        gradients_bytes=part,
        optimizer_bytes=2 * part,
        buffers_bytes=0,
        transient_bytes=4 * part,
        window_first_step=3,
        window_last_step=4,
        refreshes_in_window=0,
    )
    return Memory(meter=meter, train=train)


def fabricated_perplexity(value):
    nll = 1000 * math.log(value) if 0 < value < math.inf else value
    return Perplexity(
        perplexity=value,
        nll_nats=nll,
        tokens=1000,
        windows=8,
        dropped_tokens=0,
        context=128,
        text="f" * 64,
        floor=4.0,
    )


def fabricated_environment(*, device="a cpu", torch="2.9.0", threads=2, **others):
    packages = {"torch": torch, "transformers": "5.1.0", "lm-eval": "0.4.12", "rich": "14.0"}
    return Environment(
        device=device,
        cpu=others.pop("cpu", "a cpu"),
        cpu_threads=threads,
        system="Linux",
        python="3.12.1",
        packages=packages,
        git_sha="0123456789abcdef",
        **others,
    )


def failed(status, phase, message="", requested=None, label="broken", seed=0):
    """A record of a run that ended before anything was measured."""
    outcome = Outcome(status=status, phase=phase, message=message, requested_bytes=requested)
    nothing = {"memory": None, "time": None, "training": None, "quality": None, "parameters": None}
    return fabricate(label, seed, outcome=outcome).model_copy(update=nothing)


def three(label, **options):
    """Three seeds with perplexities 1 apart around the given one, so that their spread is 1."""
    middle = options.pop("perplexity", 8.0)
    return [fabricate(label, seed, perplexity=middle + seed - 1, **options) for seed in range(3)]


def cell(made, title, row, column):
    """The text of one cell of the table whose title begins so; `row` is the method's label."""
    for table in made.tables:
        names = [item.name for item in table.all_columns]
        if table.title.startswith(title) and column in names:
            (found,) = [cells for cells in table.rows if cells[0] == row]
            return found[names.index(column)]
    raise AssertionError(f"no column {column!r} under {title!r}: {[t.title for t in made.tables]}")


def frame_of(made):
    """The CSV as a data frame."""
    return pd.read_csv(io.StringIO(render.to_csv(made)))


def printed(made, width=120):
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    render.to_terminal(made, console)
    return console.file.getvalue()


# ------------------------------------------------------------------------------------- the figures
def test_perplexity_is_mean_and_sample_deviation_over_seeds_with_the_ratio_to_the_baseline():
    made = report.build(three("full") + three("small", perplexity=12.0), baseline="full")
    assert cell(made, "Perplexity", "small", "world-b") == "12.000 ± 1.000"
    assert cell(made, "Perplexity", "small", "vs full") == TIMES + "1.500"
    assert cell(made, "Perplexity", "full", "vs full") == TIMES + "1.000"


def test_one_seed_has_no_spread():
    made = report.build([fabricate(perplexity=8.0)], baseline="full")
    assert cell(made, "Perplexity", "full", "world-b") == "8.000"
    assert frame_of(made)["perplexity_world-b_sd"].isna().all()


def test_the_floor_is_the_last_row_and_relative_too():
    made = report.build(three("full") + three("zzz"), baseline="full")
    (table,) = [table for table in made.tables if table.title.startswith("Perplexity")]
    assert table.rows[-1][0] == "floor"
    assert cell(made, "Perplexity", "floor", "world-b") == "4.000"
    assert cell(made, "Perplexity", "floor", "vs full") == TIMES + "0.500"


def test_accuracy_is_in_percent_with_binomial_error_difference_in_points_and_a_chance_row():
    made = report.build(three("full", correct=60) + three("small", correct=50), baseline="full")
    assert cell(made, "Accuracy", "small", "coins") == "50.0 [5.0]"  # sqrt(0.5 * 0.5 / 100)
    assert cell(made, "Accuracy", "small", "Δ vs full") == "-10.0"
    assert cell(made, "Accuracy", "chance", "coins") == "50.0"
    assert cell(made, "Accuracy", "chance", "mean") == "37.5"


def test_mfu_has_a_column_only_where_a_run_knows_it():
    known, unknown = fabricate(), fabricate("small")
    known.time.mfu = 0.4321
    made = report.build([known, unknown], baseline="full")
    assert cell(made, "Speed", "full", "MFU %") == "43.2"
    assert cell(made, "Speed", "small", "MFU %") == DASH
    with pytest.raises(AssertionError, match="no column 'MFU %'"):
        cell(report.build([unknown], baseline="full"), "Speed", "small", "MFU %")


def test_mfu_is_the_mean_over_runs():
    runs = three("full")
    for run, share in zip(runs, (0.1, 0.2, 0.6), strict=True):
        run.time.mfu = share
    assert cell(report.build(runs, baseline="full"), "Speed", "full", "MFU %") == "30.0"


def test_mfu_is_in_the_csv_with_its_spread_and_count_only_where_a_run_knows_it():
    runs = three("full")
    for run, share in zip(runs, (0.4, 0.4321, 0.4642), strict=True):
        run.time.mfu = share
    (line,) = csv.DictReader(io.StringIO(render.to_csv(report.build(runs, baseline="full"))))
    assert float(line["mfu_mean"]) == pytest.approx(0.4321)
    assert float(line["mfu_sd"]) == pytest.approx(0.0321)
    assert line["mfu_n"] == "3"
    assert "mfu_mean" not in render.to_csv(report.build([fabricate()], baseline="full"))


def test_records_from_before_mfu_are_read_and_written_without_it(tmp_path):
    old = fabricate()
    path = tmp_path / "old.json"
    record.write(old, path)
    assert "mfu" not in path.read_text()
    assert "requested_bytes" not in path.read_text()
    again = record.read(path)
    assert again.time.mfu is None
    assert (again.schema_version, again.memory.cap_bytes) == (1, None)


def test_what_all_task_names_begin_with_is_in_the_title_instead_of_each_heading():
    made = fabricate()
    made.quality.tasks = {f"set_b_{name}": task for name, task in made.quality.tasks.items()}
    built = report.build([made], baseline="full")
    assert cell(built, "Accuracy on set_b_…", "full", "coins") == "60.0 [4.9]"
    assert frame_of(built).loc[0, "accuracy_set_b_coins_mean"] == 0.6


def test_a_row_without_all_tasks_has_no_mean_over_tasks():
    whole, short = fabricate(), fabricate("short")
    whole.quality.tasks["third"] = short.quality.tasks["third"] = whole.quality.tasks["coins"]
    del short.quality.tasks["facts"]
    made = report.build([whole, short], baseline="full")
    assert cell(made, "Accuracy", "short", "facts") == DASH
    assert cell(made, "Accuracy", "short", "mean") == DASH
    assert cell(made, "Accuracy", "full", "mean") != DASH


def test_repeats_of_a_seed_count_once_for_quality_and_each_for_speed():
    speeds = {0: 100.0, 1: 200.0}
    records = [fabricate(repeat=repeat, speed=speed) for repeat, speed in speeds.items()]
    frame = frame_of(report.build(records, baseline="full"))
    assert frame.loc[0, "perplexity_world-b_n"] == 1
    assert frame.loc[0, "tokens_per_s_n"] == 2
    assert frame.loc[0, "tokens_per_s_mean"] == 150
    assert frame.loc[0, "tokens_per_s_sd"] == pytest.approx(math.sqrt(5000))


def test_the_components_of_the_peak_stand_in_one_unit_and_add_up_to_it():
    made = report.build([fabricate(peak=80.0), fabricate("small", peak=40.0)], baseline="full")
    (table,) = [table for table in made.tables if "memory" in table.title]
    assert "MiB" in table.title
    assert "counted on CPU" in table.title
    for row in table.rows:
        peak, _, *parts = row[1:]
        assert math.isclose(float(peak), sum(map(float, parts)), abs_tol=0.05)
    assert cell(made, "Peak memory", "small", "vs full") == TIMES + "0.500"


def test_memory_of_large_models_is_in_gib():
    made = report.build([fabricate(peak=20 * 1024)], baseline="full")
    assert cell(made, "Peak memory", "full", "peak") == "20.00"
    assert any("GiB" in table.title for table in made.tables)


def test_speed_is_relative_and_facts_of_any_method_get_their_columns():
    facts = {"attempted_err": 0.5, "measured_err": 0.497, "lrc": ["q"], "tau": 0.1}
    made = report.build([fabricate(), fabricate("small", speed=1500.0, facts=facts)], baseline="full")
    assert cell(made, "Speed", "small", "vs full") == TIMES + "1.500"
    assert cell(made, "Speed", "small", "trainable %") == "50.0"
    assert cell(made, "Speed", "small", "achieved rank reduction") == "0.497"
    assert cell(made, "Speed", "full", "achieved rank reduction") == DASH
    assert not any(column.name == "tau" for table in made.tables for column in table.all_columns)


def test_infinite_perplexity_is_a_figure_and_breaks_nothing():
    made = report.build([fabricate(), fabricate("small", perplexity=math.inf)], baseline="full")
    assert cell(made, "Perplexity", "small", "world-b") == "inf"


@pytest.mark.parametrize(("value", "text"), [(math.nan, "nan"), (math.inf, "inf")])
def test_a_perplexity_that_is_not_finite_is_no_empty_cell_in_the_csv(value, text):
    runs = [fabricate(), *(fabricate("small", seed, perplexity=value) for seed in range(3))]
    runs.append(failed("oom", "train", label="broken"))
    written = render.to_csv(report.build(runs, baseline="full"))
    lines = {line["method"]: line for line in csv.DictReader(io.StringIO(written))}
    said = {key: lines["small"][f"perplexity_world-b_{key}"] for key in ("mean", "ratio", "n")}
    assert said == {"mean": text, "ratio": text, "n": "3"}
    assert lines["broken"]["perplexity_world-b_mean"] == ""


def test_figures_whose_sum_is_larger_than_any_float_have_a_mean():
    runs = [fabricate(seed=seed, perplexity=1.7e308) for seed in range(3)]
    made = report.build(runs, baseline="full")
    assert frame_of(made).loc[0, "perplexity_world-b_mean"] == 1.7e308
    assert Stat.of([-1.7e308, 1.7e308]) == Stat(0.0, math.inf, 2)


def test_names_of_settings_and_protocols_hold_only_visible_characters():
    made = fabricate()
    made.config["a\ud800\x00b"] = {"\x1b": 1}
    made.protocols = {"memory\ud800": 1}
    written = render.to_csv(report.build([made], baseline="full"))
    written.encode()
    assert "a b." in written
    assert "memory protocol" in written
    assert "\x1b" not in written


# -------------------------------------------------------------------------------------- failures
@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (failed("oom", "train", requested=2 << 30), "oom in train, asked 2.0 GiB"),
        (failed("timeout", "evaluate"), "timeout in evaluate"),
        (failed("timeout", None), "timeout"),
        (failed("unsupported", "prepare", "no accumulation"), "unsupported: no accumulation"),
        (failed("error", "load", "no file"), "error in load: no file"),
        (failed("interrupted", "train"), "interrupted in train"),
    ],
)
def test_a_failure_is_a_row_that_says_why(record, expected):
    made = report.build([fabricate(), record], baseline="full")
    assert cell(made, "Runs", "broken", "status") == expected
    assert cell(made, "Perplexity", "broken", "world-b") == DASH
    assert cell(made, "Peak memory", "broken", "peak") == DASH


def test_a_partly_failed_row_counts_what_it_has():
    records = [*three("full"), *three("shaky")[:2], failed("diverged", "train", label="shaky", seed=2)]
    made = report.build(records, baseline="full")
    assert cell(made, "Runs", "shaky", "status") == "ok 2/3; diverged in train 1/3"
    assert cell(made, "Perplexity", "shaky", "world-b").endswith("(n=2)")
    assert cell(made, "Perplexity", "full", "world-b") == "8.000 ± 1.000"


def test_a_glance_shows_one_figure_of_each_kind_and_what_is_relative_to_the_baseline():
    made = report.build(three("full", correct=60) + three("small", correct=50), baseline="full")
    assert made.tables[0].title == "At a glance"
    assert cell(made, "At a glance", "full", "vs full") == TIMES + "1.000"
    assert cell(made, "At a glance", "full", "ppl world-b") == cell(made, "Perplexity", "full", "world-b")
    accuracy = cell(made, "Accuracy", "small", "mean").partition(" [")[0]
    assert cell(made, "At a glance", "small", "accuracy %") == accuracy


def test_missing_seeds_are_named():
    made = report.build([*three("full"), *three("short")[:2]], baseline="full")
    assert "Not all rows have the seeds 0, 1, 2: short (0, 1)." in made.notes


def test_a_long_reason_is_complete_in_the_notes():
    reason = "per-layer updates with gradient accumulation would be silently wrong; use grad_accum 1"
    made = report.build([fabricate(), failed("unsupported", "prepare", reason)], baseline="full")
    assert f"broken: unsupported in prepare: {reason}" in made.notes


def test_warnings_of_runs_are_notes_said_once_with_their_rows():
    records = [*three("full"), *three("small")]
    for each in records:
        each.warnings = ["14% of the tokens are <unk>"]
    records[3].warnings = [*records[3].warnings, "a rank was cut", "a rank was cut"]
    made = report.build(records, baseline="full")
    warnings = [note for note in made.notes if note.startswith("Warning")]
    assert warnings == [
        "Warning: 14% of the tokens are <unk>",
        "Warning for small: a rank was cut",
    ]
    records[0].warnings = [f"warning {number}" for number in range(30)]
    assert "12 more warnings are in the records." in report.build(records, baseline="full").notes


def test_only_failures_still_make_a_table():
    made = report.build([failed("oom", "load", requested=1 << 30)], baseline="full")
    assert [table.title for table in made.tables] == ["Runs"]
    assert "oom in load, asked 1.0 GiB" in render.to_markdown(made)


def test_no_records_make_a_report_without_tables(tmp_path):
    made = report.build([], baseline="full")
    assert made.tables == ()
    assert len(render.write(made, tmp_path, "empty")) == 3


# ------------------------------------------------------------------------------------ comparability
def test_nothing_is_relative_without_the_baseline_row():
    made = report.build([fabricate("small")], baseline="full")
    assert not any(c.name.startswith("vs") for table in made.tables for c in table.all_columns)
    assert any("'full'" in note for note in made.notes)
    assert not any(line.startswith("relative to") for line in made.caption)


@pytest.mark.parametrize(
    ("other", "field"),
    [
        ({"stand": {"torch": "2.8.0"}}, "torch"),
        ({"stand": {"device": "a gpu"}}, "device"),
        ({"stand": {"threads": 8}}, "threads"),
        ({"meter": "cuda"}, "meter"),
    ],
)
def test_different_stands_have_their_own_column_a_note_and_no_ratio(other, field):
    made = report.build([fabricate(), fabricate("small", **other)], baseline="full")
    assert field in [column.name for column in made.tables[1].all_columns]
    assert any(note.startswith("Rows differ in") and field in note for note in made.notes)
    assert cell(made, "Peak memory", "small", "vs full") == DASH
    assert cell(made, "Perplexity", "small", "vs full") == DASH


def test_protocol_versions_are_never_averaged_or_set_in_relation():
    old = fabricate(seed=1).model_copy(update={"protocols": {**record.PROTOCOLS, "memory": 0}})
    made = report.build([fabricate(seed=0), old], baseline="full")
    assert len(frame_of(made)) == 2
    assert any("memory protocol" in note for note in made.notes)


def test_seeds_of_different_torch_versions_are_two_rows():
    made = report.build([fabricate(), fabricate(seed=1, stand={"torch": "2.8.0"})], baseline="full")
    assert list(frame_of(made)["runs"]) == [1, 1]


def test_the_same_run_from_two_machines_is_never_averaged():
    made = report.build([fabricate(peak=10), fabricate(peak=20)], baseline="full")
    assert len(frame_of(made)) == 2
    assert len(set(frame_of(made)["method"])) == 2


def test_a_run_that_failed_before_it_knew_its_stand_joins_the_row_of_its_config():
    lost = failed("timeout", None, label="full", seed=1).model_copy(update={"environment": None})
    made = report.build([fabricate(), lost], baseline="full")
    assert list(frame_of(made)["status"]) == ["ok 1/2; timeout 1/2"]


def test_the_baseline_is_the_row_with_the_same_settings_when_several_carry_its_label():
    records = [
        fabricate(label, perplexity=value * factor, train={"lr": lr})
        for lr, factor in ((1e-3, 1), (1e-4, 10))
        for label, value in (("full", 8.0), ("small", 16.0))
    ]
    frame = frame_of(report.build(records, baseline="full"))
    assert list(frame.loc[frame["method"] == "small", "perplexity_world-b_ratio"]) == [2, 2]


def test_rows_with_rates_of_their_own_have_the_baseline_of_their_other_settings():
    records = [
        fabricate(label, perplexity=value * factor, train={"lr": lr, "steps": steps})
        for steps, factor in ((100, 1), (200, 10))
        for label, value, lr in (("full", 8.0, 1e-3), ("small", 16.0, 1e-2))
    ]
    for number, each in enumerate(records):
        each.config["tuning"] = {"suite": "demo_lr", "grid": [0.001, 0.01, number + 1.0]}
    frame = frame_of(report.build(records, baseline="full"))
    assert list(frame.loc[frame["method"] == "small", "perplexity_world-b_ratio"]) == [2, 2]


def test_a_vast_perplexity_does_not_fill_the_line():
    made = report.build([fabricate(), fabricate("small", perplexity=1.6e301)], baseline="full")
    assert cell(made, "Perplexity", "small", "world-b") == "1.600e+301"
    assert cell(made, "Perplexity", "small", "vs full") == f"{TIMES}2.000e+300"
    assert fixed(1)(9.99e14) == "999,000,000,000,000.0"


def test_what_differs_has_a_column_and_what_is_shared_is_in_the_caption():
    made = report.build([fabricate(), fabricate("small", train={"lr": 0.5})], baseline="full")
    caption = "\n".join(made.caption)
    assert cell(made, "Runs", "small", "train.lr") == "0.5"
    assert cell(made, "Runs", "full", "train.lr") == "0.001"
    assert " lr " not in caption
    for shared in ("steps 200", "batch 16", "dtype float32", "tokens 409600", "torch 2.9.0", "threads 2"):
        assert shared in caption
    for shared in ("device a cpu", "memory counted on CPU", "perplexity 1", "seeds: 0", "source embedded"):
        assert shared in caption


def test_a_setting_that_only_one_row_has_differs_too():
    made = report.build([fabricate(), fabricate("small", train={"clip": 1.0})], baseline="full")
    assert cell(made, "Runs", "small", "train.clip") == "1.0"
    assert cell(made, "Runs", "full", "train.clip") == DASH


def test_equal_settings_over_other_tokens_are_noted():
    other = fabricate("small")
    other.data.sha256 = "0" * 64
    made = report.build([fabricate(), other], baseline="full")
    assert "The training data is not the same in all runs: do not compare them." in made.notes
    assert not any("base model" in note for note in made.notes)


def test_versions_of_a_task_do_not_share_a_column():
    other = fabricate("small")
    other.quality.tasks["coins"].version = "2"
    made = report.build([fabricate(), other], baseline="full")
    assert cell(made, "Accuracy", "small", "coins v1") == DASH
    assert cell(made, "Accuracy", "full", "coins v2") == DASH


def test_runs_of_different_commits_are_noted():
    other = fabricate("small")
    other.environment.git_sha = "fedcba9876543210"
    made = report.build([fabricate(), other], baseline="full")
    assert "Runs differ in commit: 0123456789; fedcba9876." in made.notes


# ------------------------------------------------------------------------------------- order, names
def test_rows_follow_the_order_of_the_suite_and_what_is_missing_or_stale_is_said():
    records = [fabricate("a"), fabricate("b"), fabricate("full")]
    ids = [records[2].config_id, "not-run-yet", records[1].config_id]
    made = report.build(records, baseline="full", order=ids)
    assert list(frame_of(made)["method"]) == ["full", "b", "a"]
    assert "No record yet: 1 of the suite's 3 configurations." in made.notes
    assert "Not in the suite as it is now: a." in made.notes


def test_rows_without_an_order_are_sorted_by_label():
    made = report.build([fabricate("c"), fabricate("a"), fabricate("b")], baseline=None)
    assert list(frame_of(made)["method"]) == ["a", "b", "c"]


def test_rows_of_one_label_that_nothing_else_tells_apart_carry_their_id():
    twin = fabricate("full").model_copy(update={"config_id": "abcdef123456", "run_id": "abcdef123456-s0-r0"})
    made = report.build([fabricate("full"), twin], baseline="full")
    assert "full [abcdef]" in set(frame_of(made)["method"])


# --------------------------------------------------------------------------------------- renderers
def test_the_same_records_in_any_order_make_the_same_bytes(tmp_path):
    records = [*three("full"), *three("small"), failed("oom", "train"), fabricate(stand={"torch": "2.8.0"})]
    shuffled = random.Random(0).sample(records, len(records))
    written = [
        [path.read_bytes() for path in render.write(report.build(r, baseline="full"), tmp_path / str(i), "t")]
        for i, r in enumerate((records, shuffled))
    ]
    assert written[0] == written[1]


def test_written_files_are_named_by_their_format(tmp_path):
    paths = render.write(report.build([fabricate()], baseline="full"), tmp_path / "new", "demo")
    assert [path.name for path in paths] == ["demo.md", "demo.csv", "demo.tex"]


def test_the_csv_reads_back_with_exact_numbers_units_and_gaps(tmp_path):
    records = [*three("full", peak=80.0), failed("oom", "train")]
    _, path, _ = render.write(report.build(records, baseline="full"), tmp_path, "demo")
    frame = pd.read_csv(path).set_index("method")
    assert frame.loc["full", "peak_allocated_bytes_mean"] == 80 * MIB
    assert frame.loc["full", "train_s_mean"] == 12.5
    assert frame.loc["full", "perplexity_world-b_sd"] == 1.0
    assert frame.loc["full", "perplexity_world-b_floor"] == 4.0
    assert frame.loc["full", "train.steps"] == 200
    assert pd.isna(frame.loc["broken", "peak_allocated_bytes_mean"])
    assert frame.loc["broken", "peak_allocated_bytes_n"] == 0
    assert len(next(csv.reader(path.open()))) == len(frame.columns) + 1


HOSTILE = "a|b [red]c[/red] <b>d</b> $e$ _f_ `g` \\input{h} #i & 50% ^~ ![j](k)\n| l\x1b[31m\ud800"


def test_text_of_records_cannot_act_as_markdown():
    made = report.build(
        [fabricate(HOSTILE), failed("error", "load", HOSTILE)], baseline=HOSTILE, notes=[HOSTILE]
    )
    text = render.to_markdown(made)
    tables = [
        list(block) for row, block in itertools.groupby(text.splitlines(), lambda x: x.startswith("|")) if row
    ]
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert not re.search(r"(?<!\\)(<b>|\$|`|!\[|\]\()", text)
    assert "\x1b" not in text
    text.encode("utf-8")


def test_text_of_records_cannot_act_as_latex():
    text = render.to_latex(report.build([fabricate(HOSTILE)], baseline=None, notes=[HOSTILE]))
    assert "\\input" not in text
    assert r"\textbackslash{}input\{h\}" in text
    assert r"a\textbar{}b {[}red{]}c" in text
    assert r"\$e\$ \_f\_" in text
    assert r"\#i \& 50\% \textasciicircum{}\textasciitilde{}" in text


def test_text_of_records_cannot_act_as_terminal_markup():
    made = report.build([fabricate(HOSTILE)], baseline=None, notes=["[bold]note[/bold]"])
    text = printed(made, width=400)
    assert "[red]c[/red]" in text
    assert "[bold]note[/bold]" in text
    assert "\x1b" not in text


def test_latex_tables_are_balanced_booktabs():
    text = render.to_latex(report.build(three("full") + three("small"), baseline="full"))
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\toprule") == 6
    for body in re.findall(r"\\begin\{tabular\}\{([lr]+)\}\n(.*?)\\end\{tabular\}", text, re.S):
        lines = [line for line in body[1].splitlines() if line.endswith(r"\\")]
        assert all(len(re.findall(r"(?<!\\)&", line)) == len(body[0]) - 1 for line in lines)


def test_the_terminal_needs_no_more_than_120_columns_and_loses_no_figure():
    records = [
        *three("full"),
        *three("a(rank=16, period=200) + b(share=0.5, train=none)", train={"lr": 0.25}),
    ]
    made = report.build(records, baseline="full")
    text = printed(made)
    assert max(map(len, text.splitlines())) <= 120
    for table in made.tables:
        for column in table.all_columns:
            assert column.name in text
            assert all(value in text for value in column.cells if column.numeric)


# --------------------------------------------------------------------------------------------- load
def test_unreadable_records_are_skipped_with_a_line_each(tmp_path):
    folder, good = tmp_path / "demo", fabricate()
    record.write(good, folder / f"{good.run_id}.json")
    (folder / "half.json").write_text('{"schema_version": 1, "run')
    (folder / "old.json").write_text('{"schema_version": 0}')
    records, notes = load(folder)
    assert [item.label for item in records] == ["full"]
    assert "half.json" in notes[0]
    assert "schema version 0" in notes[1]
    assert notes[2:] == ["2 of 3 files skipped: no valid record."]
    assert not any(str(tmp_path) in note or "\n" in note for note in notes)
    assert notes[0] in report.build(records, baseline="full", notes=notes).notes


def test_a_missing_folder_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="run the suite first"):
        load(tmp_path / "nowhere")


# -------------------------------------------------------------------------------------------- cells
def test_numbers_keep_their_meaning_when_rounded():
    assert fixed(1)(0.0) == "0"
    assert fixed(1)(0.01) == "<0.1"
    assert fixed(1)(12345.67) == "12,345.7"
    assert significant([8.1234, 123.4], 4)(8.1234) == "8.123"
    assert significant([123456.0], 4)(123456.0) == "123,456"
    assert bytes_text(3 * 512 * MIB) == "1.5 GiB"


def test_escaping_leaves_ordinary_names_readable():
    assert markdown("train.min_lr_ratio = 0.1") == "train.min_lr_ratio = 0.1"
    assert latex("lora(rank=8)") == "lora(rank=8)"
