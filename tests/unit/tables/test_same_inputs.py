"""Values of runs that read different content under one name are never averaged, compared or joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.record import Record
from harness.tables.aggregate import newest, rows
from harness.tables.compare.comparison import Cell, Comparison
from harness.tables.compare.judge import compare
from harness.tables.compare.pairing import Loaded, Side
from harness.tables.compare.rendering import to_markdown, to_text
from harness.tables.report import build as report
from tests.support.gate_records import environment, made
from tests.support.history_records import Repository, load, scored

OLD, NEW = {"weights": "a" * 64, "text d.jsonl": "b" * 64}, {"weights": "c" * 64, "text d.jsonl": "d" * 64}
DATA = {"name": "text", "sha256": "tokens", "tokens": 10, "model": "nano", "model_sha256": "a" * 64}


def run(perplexity: float, seed: int = 0, day: int = 1, **parts: Any) -> Record:
    start = f"2026-11-{day:02d}T10:00:00+00:00"
    return made(seed=seed, quality=scored(perplexity), started_at=start, **parts)


def means(found: list[Record]) -> list[tuple[list[int], float | None]]:
    return [(row.seeds, row.mean("perplexity_text")) for row in rows(found)]


@pytest.mark.parametrize(
    "other",
    [
        {"inputs": NEW},
        {"inputs": OLD | {"weights": "c" * 64}},
        {"inputs": OLD | {"text d.jsonl": "d" * 64}},
        {"data": {**DATA, "model_sha256": "c" * 64}},
    ],
    ids=["all", "weights", "text", "weights of an older record"],
)
def test_another_seed_on_other_content_is_another_row(other: dict[str, Any]) -> None:
    found = means([run(3.0, 0, inputs=OLD), run(11.0, 1, **other)])
    assert sorted(found) == [([0], 3.0), ([1], 11.0)]


@pytest.mark.parametrize(
    "other",
    [{"inputs": OLD}, {}, {"data": DATA}, {"inputs": {"weights": "a" * 64}}, {"inputs": OLD | {"more": "e"}}],
    ids=["equal", "unknown", "weights of an older record", "a part", "more"],
)
def test_content_that_does_not_contradict_is_one_row(other: dict[str, Any]) -> None:
    assert means([run(3.0, 0, inputs=OLD), run(5.0, 1, **other)]) == [([0, 1], 4.0)]


def test_training_tokens_tell_older_records_apart_unless_they_are_random() -> None:
    config = made().config
    for source, count in (("files", 2), ("random", 1)):
        own = {**config, "data": {"source": source}}
        pair = [run(3.0, s, data={**DATA, "sha256": f"of seed {s}"}) for s in (0, 1)]
        pair = [item.model_copy(update={"config": own}) for item in pair]
        assert len(rows(pair)) == count


def test_a_row_on_other_content_is_no_baseline() -> None:
    both = [
        run(3.0, inputs=OLD, label="full"),
        run(6.0, inputs=NEW, label="x"),
    ]
    built = report.build(both, baseline="full")
    assert any("No single row 'full' to compare with" in note and "x" in note for note in built.notes)
    assert "The text d.jsonl is not the same in all runs: do not compare them." in built.notes


# --------------------------------------------------------------------------------- which one is shown
def test_the_newest_content_is_shown_and_the_rest_counted() -> None:
    built = report.build([run(3.0, 0, 1, inputs=OLD), run(11.0, 1, 2, inputs=NEW)], baseline=None)
    assert [line["perplexity_text_mean"] for line in built.lines] == [11.0]
    assert "Not shown: 1 run of 'row' on inputs that have changed since." in built.notes


def test_a_complete_row_is_shown_until_the_new_one_is_as_complete() -> None:
    old = [run(3.0, seed, 1, inputs=OLD) for seed in (0, 1)]
    new = [run(11.0, seed, 2, inputs=NEW) for seed in (2, 3)]
    failed = made(seed=4, inputs=NEW, outcome={"status": "diverged"}, started_at="2026-11-09T10:00:00+00:00")
    for found, seeds in (([*old, new[0], failed], [0, 1]), ([*old, *new, failed], [2, 3, 4])):
        shown, older = newest(rows(found))
        assert [row.seeds for row in shown] == [seeds]
        assert len(older) == 1


def test_other_devices_and_other_configurations_are_no_older_content() -> None:
    elsewhere = run(3.0, 0, 1, inputs=OLD, environment=environment(device="another"))
    other = run(3.0, 0, 1, inputs=OLD, config={"method": []})
    shown, older = newest(rows([elsewhere, other, run(11.0, 0, 2, inputs=NEW)]))
    assert (len(shown), older) == (3, [])


def test_rows_on_older_content_are_named_where_todays_is_known() -> None:
    kept, new = run(3.0, 0, inputs=OLD), run(11.0, 1, inputs=NEW)
    today = {item.run_id: NEW for item in (kept, new)}
    built = report.build([kept, new], baseline=None, today=today)
    assert sorted(line["perplexity_text_mean"] for line in built.lines) == [3.0, 11.0]
    named = [note for note in built.notes if note.startswith("Older inputs")]
    assert len(named) == 1
    assert "ran before these changed: weights, text d.jsonl." in named[0]
    names = {line["perplexity_text_mean"]: line["method"] for line in built.lines}
    assert str(names[3.0]) in named[0]
    assert str(names[11.0]) not in named[0]


# ------------------------------------------------------------------------------ gate, ab and history
def between(base: Record, candidate: Record) -> Comparison:
    sides = (Side((Loaded(item, Path("nowhere.json")),), ()) for item in (base, candidate))
    return compare(*sides)


def test_the_gate_does_not_compare_across_content() -> None:
    found = between(run(3.0, inputs=OLD), run(11.0, inputs=NEW))
    judged = {cell.quantity: cell for cell in found.cells if cell.quantity != "status"}
    assert {cell.verdict for cell in judged.values()} == {"x"}
    fields = {field.field for cell in judged.values() for field in cell.differences}
    assert fields == {"model", "text d.jsonl"}
    code = between(
        run(3.0, inputs={**OLD, "plug-in mine": "a" * 64}), run(3.0, inputs={**OLD, "plug-in mine": "b" * 64})
    )
    assert {cell.verdict for cell in code.cells} == {"ok"}  # its changes are what is compared
    same = between(run(3.0, inputs=OLD), run(3.0, inputs=OLD))
    assert {cell.verdict for cell in same.cells} == {"ok"}


def test_a_history_breaks_where_content_changes_and_with_it_the_seed(tmp_path: Path) -> None:
    repository = Repository.at(tmp_path)
    for commit in range(6):
        repository.commit()
        inputs = OLD if commit < 3 else NEW
        repository.record(seed=commit // 3, inputs=inputs, quality=scored(3.0 if commit < 3 else 11.0))
    found = load([repository.results], "demo")
    scores = [each for each in found.series if each.quantity.key == "perplexity_text"]
    assert [[point.value for point in each.points] for each in scores] == [[3.0] * 3, [11.0] * 3]
    assert not found.change_points
    (broken,) = [each for each in found.breaks if each.quantity.key == "perplexity_text"]
    assert {field.field for field in broken.differences} == {"model", "text d.jsonl"}


# ----------------------------------------------------------------------------------- one cause, one line
def test_cells_that_are_not_comparable_for_one_cause_are_one_line() -> None:
    base = [made(f"row {n}", quality=scored(3.0)) for n in range(53)]
    other = environment(device="another", cpu="another")
    moved = [Record.model_validate({**item.model_dump(), "environment": other}) for item in base]
    sides = [Side(tuple(Loaded(item, Path("x.json")) for item in each), ()) for each in (base, moved)]
    found = compare(*sides)
    several = [cell for cell in found.cells if cell.verdict == "x"]
    assert len(several) == 2 * 53
    for text in (to_text(found), to_markdown(found)):
        lines = [line for line in text.splitlines() if "another" in line]
        assert len(lines) == 1
        assert "53 rows" in lines[0]
        assert "2 quantities" in lines[0]
        assert f"{len(several)} not comparable" in text


def test_other_causes_and_verdicts_keep_their_lines() -> None:
    cells = [Cell("s", f"row {n}", "seed 0", "run", "x", f"cause {n % 2}") for n in range(4)]
    cells += [Cell("s", f"row {n}", "seed 0", "peak memory", "regression", "grew") for n in range(3)]
    lines = to_text(Comparison(tuple(cells))).splitlines()
    assert [line for line in lines if line.startswith("regression")] == [
        f"regression: s/row {n} (seed 0) peak memory: grew" for n in range(3)
    ]
    assert len([line for line in lines if line.startswith("not comparable")]) == 2
