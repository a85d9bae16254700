"""Verdicts on rows: better or worse than the baseline or than before training, rates that were not tuned."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from harness.record import Outcome
from harness.tables.format import DASH
from harness.tables.report import build as report
from harness.tables.report import render
from tests.unit.tables.report.test_report import cell, fabricate, failed, frame_of, printed

SEEDS = range(3)


def runs(label, *values, seeds=None, **options):
    """A finished run for each perplexity."""
    pairs = zip(seeds or range(len(values)), values, strict=True)
    return [fabricate(label, seed, perplexity=value, **options) for seed, value in pairs]


def base_model(perplexity, **options):
    made = fabricate("base model", perplexity=perplexity, train={"stage": "compress"}, **options)
    made.config["method"] = [{"name": "some.where:Base", "options": {}}]
    return made


def verdict(records, row="small", **options):
    return cell(report.build(records, baseline="full", **options), "At a glance", row, "verdict")


def full():
    """The baseline over three seeds."""
    return runs("full", 8.0, 8.1, 8.2)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((7.0, 7.1, 7.2), "better, n = 3"),
        ((9.0, 9.2, 9.1), "worse, n = 3"),
        ((7.0, 9.5, 8.1), "no difference seen, n = 3"),
        ((8.008, 8.108, 8.208), "no difference seen, n = 3"),  # certain, and less than 0.2 %
        ((8.024, 8.125, 8.224), "worse, n = 3"),  # certain, and more
        ((7.0, 7.1), "n = 2"),
        ((7.0,), "n = 1"),
    ],
)
def test_the_verdict_on_a_row(values, expected):
    assert verdict([*full(), *runs("small", *values)]) == expected


def test_the_baseline_is_not_judged():
    assert verdict([*full(), *runs("small", 7.0, 7.1, 7.2)], "full") == "baseline"


def test_verdicts_are_those_of_a_paired_test_over_the_seeds_that_both_have():
    """By a loop over seeds and scipy; some seeds of either side are missing, some runs failed."""
    random, seen = np.random.default_rng(0), set()
    for _ in range(60):
        made, values = [], {}
        for label, factor in (("full", 1.0), ("small", 1 + random.choice([0, 0.05]))):
            for seed in range(6):
                fate = random.choice(["ok", "ok", "ok", "oom", "absent"])
                if fate == "ok":
                    value = 8 * factor * math.exp(0.02 * random.standard_normal())
                    values[label, seed] = math.log(value)
                    made.append(fabricate(label, seed, perplexity=value))
                elif fate == "oom":
                    made.append(failed("oom", "train", label=label, seed=seed))
        pairs = [
            (values["full", seed], values["small", seed])
            for seed in range(6)
            if ("full", seed) in values and ("small", seed) in values
        ]
        if not {"full", "small"} <= {record.label for record in made} or not pairs:
            continue
        if len(pairs) < 3:
            expected = f"n = {len(pairs)}"
        else:
            test = scipy.stats.ttest_rel(*zip(*pairs, strict=True))
            change = math.exp(sum(own - base for base, own in pairs) / len(pairs)) - 1
            if test.pvalue >= 0.05 or abs(change) <= 0.002:
                expected = f"no difference seen, n = {len(pairs)}"
            else:
                expected = f"{'worse' if change > 0 else 'better'}, n = {len(pairs)}"
        assert verdict(made) == expected
        seen.add(expected.split(",")[0])
    assert {"no difference seen", "worse"} <= seen


def test_repeats_of_a_seed_count_once():
    made = [*full(), *runs("small", 7.0, 7.1), *runs("small", 7.2, 7.3, repeat=1)]
    assert verdict(made) == "n = 2"


def test_a_run_that_did_not_finish_is_no_evidence_though_it_was_scored():
    late = fabricate("small", 2, perplexity=7.2, outcome=Outcome(status="timeout", phase="export"))
    assert verdict([*full(), *runs("small", 7.0, 7.1), late]) == "n = 2"


def test_rows_that_do_not_depend_on_the_seed_are_judged_exactly():
    constant = runs("full", 8.0, 8.0, 8.0)
    assert verdict([*constant, *runs("small", 8.5, 8.5, 8.5)]) == "worse, n = 3"
    assert verdict([*constant, *runs("small", 8.001, 8.001, 8.001)]) == "no difference seen, n = 3"
    assert verdict([*constant, *runs("small", 8.0, 8.0, 8.0)]) == "no difference seen, n = 3"
    line = frame_of(report.build([*constant, *runs("small", 8.5, 8.5, 8.5)], baseline="full")).loc[1]
    assert line["verdict_low"] == line["verdict_high"] == pytest.approx(0.5 / 8)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_row_with_a_perplexity_that_is_not_finite_has_no_verdict_but_diverged(value):
    made = [*full(), *runs("small", 7.0, 7.1, value)]
    assert verdict(made) == "diverged"
    assert "diverged: small" in report.build(made, baseline="full").answer


def test_where_a_seed_diverged_the_others_are_no_verdict():
    lost = failed("diverged", "train", label="small", seed=3)
    assert verdict([*runs("full", 8.0, 8.1, 8.2, 8.3), *runs("small", 7.0, 7.1, 7.2), lost]) == "diverged"
    lost = failed("diverged", "train", label="full", seed=3)
    assert verdict([*full(), lost, *runs("small", 7.0, 7.1, 7.2)]) == "baseline diverged"


def test_nothing_is_said_without_a_baseline_of_the_same_environment_data_and_text():
    others = runs("small", 7.0, 7.1, 7.2)
    assert verdict([*full(), *runs("small", 7.0, 7.1, 7.2, stand={"torch": "2.8.0"})]) == DASH
    with pytest.raises(AssertionError, match="no column"):
        verdict(others)
    for each in others:
        each.quality.perplexity["world-b"].text = "0" * 64
    assert verdict([*full(), *others]) == DASH
    assert report.build(others, baseline="full").answer == ""


def test_the_csv_and_json_have_verdict_interval_and_number_of_seeds():
    values = (7.0, 7.2, 7.1)
    made = report.build([*full(), *runs("small", *values), *runs("few", 7.0)], baseline="full")
    lines = frame_of(made).set_index("method")
    differences = [math.log(own / base) for own, base in zip(values, (8.0, 8.1, 8.2), strict=True)]
    middle, error = np.mean(differences), np.std(differences, ddof=1) / math.sqrt(3)
    low, high = scipy.stats.t.interval(0.95, 2, middle, error)
    small = lines.loc["small"]
    assert (small["verdict"], small["verdict_n"]) == ("better", 3)
    found = [small[f"verdict_{name}"] for name in ("low", "change", "high")]
    assert found == pytest.approx([math.exp(value) - 1 for value in (low, middle, high)])
    assert (lines.loc["few", "verdict"], lines.loc["few", "verdict_n"]) == ("too few seeds", 1)
    assert pd.isna(lines.loc["few", "verdict_low"])
    assert pd.isna(lines.loc["full", "verdict"])
    in_json = {row["method"]: row for row in json.loads(render.to_json(made))["rows"]}
    assert in_json["small"]["verdict_high"] == pytest.approx(small["verdict_high"])


def test_the_answer_names_rows_by_verdict_and_stands_below_the_question():
    records = [*full(), *runs("better one", 7.0, 7.1, 7.2), *runs("a, b", 9.0, 9.1, 9.2), *runs("few", 7.0)]
    made = report.build(records, baseline="full", question="Which?")
    answer = 'Against full: better: better one; worse: "a, b"; too few seeds: few.'
    assert made.answer == answer
    assert printed(made, 140).splitlines()[:3] == ["demo", "Which?", answer]
    assert f"\nWhich?\n\n{answer}\n" in render.to_markdown(made)
    assert r"\item {}Against full" in render.to_latex(made)
    (caption,) = [text for text in made.caption if text.startswith("verdict")]
    for said in ("world-b", "95 % t interval", "0.2 %", "of 20 rows that equal the baseline, about one"):
        assert said in caption


@pytest.mark.parametrize(
    ("name", "named"), [("row {:02}", 16), ("a long name, {:02}", 5), ("x" * 150 + "{:02}", 1)]
)
def test_the_answer_names_rows_while_there_is_room_and_counts_the_others(name, named):
    names = [name.format(number) for number in range(50)]
    answer = report.build(
        [*full(), *(each for one in names for each in runs(one, 7.0))], baseline="full"
    ).answer
    assert [one in answer for one in names] == [True] * named + [False] * (50 - named)
    assert answer.endswith(f", {50 - named} more.")
    assert len(answer) < 200


def test_rows_of_one_name_are_told_apart_in_the_answer():
    made = [each for lr in (0.1, 0.2) for each in (*runs("full", 8.0, train={"lr": lr}),)]
    made += [each for lr in (0.1, 0.2) for each in (*runs("small", 7.0, train={"lr": lr}),)]
    answer = report.build(made, baseline="full").answer
    assert answer == "Against full: too few seeds: small (train.lr 0.1), small (train.lr 0.2)."


# ------------------------------------------------------------------------------- worse than the start
def test_a_row_that_training_made_worse_is_marked_and_named():
    made = report.build(
        [base_model(7.5), *full(), *runs("small", 7.0, 7.1, 7.2), *runs("one", 7.6)], baseline="full"
    )
    assert cell(made, "At a glance", "full", "ppl world-b") == "8.100* ± 0.100"
    assert cell(made, "Perplexity", "one", "world-b") == "7.600*"
    assert "*" not in cell(made, "Perplexity", "small", "world-b")
    assert "*" not in cell(made, "Perplexity", "base model", "world-b")
    note = "* Worse than base model without training: full, one; their learning rate may be too high."
    assert note in made.notes


HALF = {"attempted_err": 0.5, "measured_err": 0.51}


def compressed(records, *, facts=HALF, names=("some.where:Half",)):
    """Give records a stack of methods, the first of which has made the model smaller."""
    for each in records:
        each.config["method"] = [{"name": name, "options": {"err": 0.5}} for name in names]
        each.parameters.facts = {"half": facts}
        each.parameters.ranks = {"q": 4}
    return records


def untrained(perplexity, **options):
    return compressed(runs("half, untrained", perplexity, train={"stage": "compress"}), **options)


RATE = "their learning rate may be too high."
REMOVED = f"what is removed before training may cost more than it brings, or {RATE}"


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (9.0, 8.0, f"* Worse than base model without training: half; {REMOVED}"),
        (9.0, 9.5, f'* Worse than "half, untrained" without training: half; {RATE}'),
        (7.2, 7.4, f'* Worse than "half, untrained" without training: half; {RATE}'),
        (9.0, 7.4, None),
        (None, 8.0, f"* Worse than base model without training: half; {REMOVED}"),
        (None, 7.4, None),
    ],
)
@pytest.mark.parametrize("names", [("some.where:Half",), ("some.where:Half", "some.where:Other")])
def test_a_row_that_was_made_smaller_is_compared_with_what_it_was_trained_from(before, after, says, names):
    start = [] if before is None else untrained(before)
    made = report.build(
        [base_model(7.5), *start, *compressed(runs("half", after), names=names)], baseline=None
    )
    assert [note for note in made.notes if note.startswith("*")] == ([says] if says else [])
    assert cell(made, "Perplexity", "half", "world-b").endswith("*") == bool(says)


@pytest.mark.parametrize(
    "other", [{"facts": {"attempted_err": 0.3, "measured_err": 0.3}}, {"names": ("some.where:Third",)}]
)
def test_a_row_is_not_compared_with_what_others_were_trained_from(other):
    made = report.build([*untrained(7.0, **other), *compressed(runs("half", 8.0))], baseline=None)
    assert not [note for note in made.notes if note.startswith("*")]


def test_a_pre_trained_row_did_not_start_from_the_base_model():
    made = report.build([base_model(7.5), *runs("full", 8.0, train={"stage": "pretrain"})], baseline="full")
    assert "*" not in cell(made, "Perplexity", "full", "world-b")


def test_worse_by_the_mean_is_worse():
    made = report.build([base_model(8.0), *runs("full", 7.9, 7.9, 8.3)], baseline="full")
    assert cell(made, "Perplexity", "full", "world-b").startswith("8.033*")


def without_a_start():
    changed = base_model(7.5)
    changed.parameters.ranks = {"q": 4}
    yield changed
    with_options = base_model(7.5)
    with_options.config["method"][0]["options"] = {"bits": 4}
    yield with_options
    yield base_model(7.5, stand={"torch": "2.8.0"})
    other_model = base_model(7.5)
    other_model.config["model"] = {"source": "local", "path": "elsewhere"}
    yield other_model
    trained = fabricate("base model", perplexity=7.5)
    yield trained


@pytest.mark.parametrize("start", list(without_a_start()))
def test_nothing_is_marked_without_a_row_of_the_same_model_as_it_was(start):
    made = report.build([start, *full()], baseline="full")
    assert not any("*" in text for text in (*made.notes, cell(made, "Perplexity", "full", "world-b")))


def test_text_that_was_not_trained_on_is_not_marked():
    records = [base_model(7.5), *full()]
    for each in records:
        each.config["data"] = {**each.config["data"], "world": "a"}
    made = report.build(records, baseline="full")
    assert "*" not in cell(made, "Perplexity", "full", "world-b")


def test_held_out_text_of_files_is_what_training_should_improve():
    records = [base_model(7.5), *full()]
    for each in records:
        each.config["data"] = {"source": "files", "paths": ["a.txt"]}
        each.quality.perplexity = {"heldout": each.quality.perplexity["world-b"]}
    made = report.build(records, baseline="full")
    assert cell(made, "Perplexity", "full", "heldout").startswith("8.100*")


# ---------------------------------------------------------------------------------------- rates
def tuned(records):
    for each in records:
        each.config["tuning"] = {"suite": "demo_lr", "grid": [0.001, 0.01]}
    return records


def untuned(records, **options):
    made = report.build(records, baseline="full", **options)
    return [note for note in made.notes if note.startswith("Learning rates not tuned")]


def test_rows_whose_rate_no_grid_gave_are_named_with_the_command_that_tunes_them():
    records = [*tuned(runs("full", 8.0)), *runs("small", 7.0), base_model(9.0)]
    said = "Learning rates not tuned for this model and text: "
    assert untuned(records) == [f"{said}small: lorebench tune demo"]
    command = "lorebench tune demo --model=./mine"
    assert untuned([*runs("full", 8.0), *runs("small", 7.0)], tune=command) == [
        f"{said}all rows that train: {command}"
    ]
    assert not untuned(tuned(records))


def test_a_grid_of_rates_and_rows_without_quality_need_no_tuning():
    grid = [each for lr in (0.1, 0.2) for each in runs("full", 8.0, train={"lr": lr})]
    assert not untuned(grid)
    shapes = runs("full", 8.0)
    shapes[0].quality = None
    assert not untuned(shapes)


def test_where_rates_come_from_is_no_difference_between_rows():
    made = report.build([*tuned(runs("full", 8.0)), *runs("small", 7.0)], baseline="full")
    assert not any(column.name.startswith("tuning") for table in made.tables for column in table.all_columns)


# --------------------------------------------------------------------------------------- overview
def test_an_overview_has_the_answer_one_table_and_the_notes_that_fit():
    records = [*full(), *runs("small", 7.0, 7.1, 7.2)]
    for each in records:
        each.warnings = [f"warning {number} of a run" for number in range(15)]
    made = report.build(records, baseline="full", question="Which?")
    short = render.overview(made, 140)
    assert [table.title for table in short.tables] == ["At a glance"]
    assert (short.question, short.answer, short.caption) == (made.question, made.answer, ())
    assert short.notes[:-1] == made.notes[:12]
    left = len(made.notes) - 12
    assert short.notes[-1] == f"{left} more notes, all tables and settings: --full"
    text = printed(short, 140)
    assert "better: small" in text
    assert len(text.splitlines()) < 25


def test_an_overview_shows_how_runs_ended_where_one_failed():
    records = [*full(), failed("oom", "train", label="small")]
    short = render.overview(report.build(records, baseline="full"), 80)
    assert [table.title for table in short.tables] == ["At a glance", "Runs"]
    lost = fabricate("small", outcome=Outcome(status="diverged", phase="evaluate"))
    assert "Runs" in [table.title for table in report.build([*full(), lost], baseline="full").overview]


def test_long_notes_count_by_their_lines():
    made = report.build(full(), baseline="full", notes=["x" * 300] * 1 + ["y" * 300, "z" * 300, "w" * 300])
    assert len(render.overview(made, 80).notes) == 4  # three of four lines each, and what is left
    assert len(render.overview(made, 200).notes) > 4
