"""Which records are valid, and that no others end a report or a page."""

from __future__ import annotations

import functools
import json
import os
import random
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness import record
from harness.errors import UserError
from harness.record import DEEPEST_NESTING, Record, validated
from harness.tables import records as valid_records
from harness.tables.report import build as report
from harness.tables.report import render
from tests.support.gate_records import made, memory, put, quality
from tests.support.mutations import put_mutated

ROOT = Path(__file__).resolve().parents[3]
NATS, RIGHT = [20.0 + number / 10 for number in range(30)], [number % 3 > 0 for number in range(60)]
HUGE = 10**400
KINDS = ("q", "v")
FORMS = (render.to_markdown, render.to_csv, render.to_latex)


def whole(label: str = "row", seed: int = 0, **parts: Any) -> Record:
    """A record that has something of every part, with a second task and perplexity."""
    scores = quality(NATS, RIGHT)
    scores["tasks"]["riddle"] = {**scores["tasks"]["quiz"], "chance": 0.5}
    scores["perplexity"]["world-b"] = {**scores["perplexity"]["text"], "floor": 2.0}
    ranks = {f"layers.{layer}.{kind}": 1 + layer for layer in range(2) for kind in KINDS}
    content: dict[str, Any] = {
        "quality": scores,
        "parameters": {
            "total": 1000,
            "trainable": 500,
            "ranks": ranks,
            "spectra": {name: [1.0, 0.5, 0.1] for name in ranks},
            "facts": {"a method": {"measured_err": 0.5, "parameter_ratio": 1}},
        },
        "time": {
            "phase_s": {"train": 3.0},
            "wall_s": 4.0,
            "step_s": [0.1],
            "tokens_per_s": 1000.0,
            "mfu": 0.4,
        },
        "training": {
            "steps": 3,
            "tokens": 600,
            "loss": [3.0, 2.0, 1.0],
            "lr": [0.1, 0.1, 0.1],
            "rank_moves": [{"step": 1, "ranks": {"layers.0.q": 1}}, {"step": 2, "ranks": {"layers.0.q": 2}}],
        },
        "data": {
            "name": "a text",
            "sha256": "d" * 64,
            "tokens": 5000,
            "model": "m",
            "model_sha256": "e" * 64,
        },
    }
    return made(label, seed, **{**content, **parts})


def changed(path: str, value: Any, item: Record | None = None) -> Record:
    """A record with another value at a dotted place; a number among its names is an index."""
    content = (item or whole()).model_dump()
    place: Any = content
    *names, last = path.split("/")
    for name in names:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[last] = value
    return Record.model_validate(content)


def nested(levels: int) -> Any:
    return json.loads("[" * levels + "]" * levels)


# ---------------------------------------------------------------------------------- what is valid
def test_every_committed_record_is_valid() -> None:
    paths = sorted((ROOT / "results" / "raw").rglob("*-s*-r*.json"))
    assert len(paths) > 150
    for path in paths:
        assert valid_records.read(path) == record.read(path)


@pytest.mark.parametrize(
    "item",
    [
        made(),
        whole(),
        made(outcome={"status": "oom", "phase": "train", "requested_bytes": 12 << 30}, memory=None),
        made(outcome={"status": "diverged", "phase": "train"}, memory={"meter": "cuda"}),
        made(memory={**memory("cuda"), "reserved_bytes": 80 << 30, "cap_bytes": 141 << 30}),
        changed("training/loss", [1e308, float("inf"), float("nan")]),
        changed("training/grad_norm", [float("inf")] * 3),
        changed("quality/perplexity/text/perplexity", float("inf")),
        changed("quality/perplexity/text/nll_nats", float("nan")),
        changed("quality/perplexity/text/perplexity", float("nan")),
        changed(
            "parameters/facts", {"a method": {"flops": 10**25, "measured_err": float("nan"), "bias": -3}}
        ),
        changed("parameters/spectra/layers.0.q", [float("nan"), 0.0]),
        changed("config/method", [{"name": "a", "options": {"modules": [["q", "k"], ["v"]]}}]),
        changed("time/step_s", [0.0]),
    ],
)
def test_what_is_odd_but_possible_is_valid(item: Record) -> None:
    assert repr(validated(item, "run.json")) == repr(item)


def test_a_run_writes_and_a_sweep_reads_what_no_table_takes(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    item = whole(outcome={"status": "oom", "requested_bytes": 8 << 60})
    item.time.tokens_per_s = -1.0  # type: ignore[union-attr]
    record.write(item, path)
    assert record.read(path) == item
    with pytest.raises(UserError, match=r"not a record: outcome\.requested_bytes"):
        valid_records.read(path)


IMPOSSIBLE: dict[str, Iterable[Any]] = {
    "quality/tasks/quiz/documents": (0, -5, HUGE),
    "quality/tasks/quiz/correct": (61, -1),
    "quality/tasks/quiz/unparsable": (-1, HUGE),
    "quality/tasks/riddle/chance": (-0.1, 1e308, float("nan")),
    "quality/perplexity/text/tokens": (0, HUGE),
    "quality/perplexity/text/windows": (0, -1),
    "quality/perplexity/text/dropped_tokens": (-1, HUGE),
    "quality/perplexity/text/perplexity": (-1.0, float("-inf")),
    "quality/perplexity/text/nll_nats": (-1.0,),
    "parameters/total": (-1, HUGE),
    "parameters/trainable": (HUGE,),
    "parameters/ranks/layers.0.q": (-3, HUGE),
    "parameters/chosen_ranks": ({"a method": {"layers.0.q": HUGE}},),
    "parameters/facts/a method": ({"measured_err": HUGE}, [{"deeper": [-HUGE]}], nested(DEEPEST_NESTING + 1)),
    "config/model": (nested(500), nested(DEEPEST_NESTING)),
    "memory/train/peak_allocated_bytes": (HUGE, -1, 1),
    "memory/train/window_last_step": (HUGE,),
    "memory/phase_peak_allocated_bytes": ({"train": HUGE}, {"train": -1}),
    "memory/reserved_bytes": (HUGE,),
    "memory/requested_bytes": (-1,),
    "memory/host_rss_bytes": (HUGE,),
    "outcome/requested_bytes": (HUGE, -1),
    "time/phase_s": ({"train": float("nan")}, {"train": -1.0}),
    "time/wall_s": (float("inf"), -1.0, float("nan")),
    "time/step_s": ([0.1, 1e308], [float("nan")]),
    "time/tokens_per_s": (0.0, -1.0, float("inf"), 1e308),
    "time/mfu": (-0.1, float("nan"), float("inf")),
    "time/tokens_per_step": (-1,),
    "training/steps": (HUGE,),
    "training/tokens": (-1,),
    "training/rank_moves/0/step": (HUGE, -1),
    "training/rank_moves/1/ranks/layers.0.q": (HUGE, -1),
    "data/tokens": (HUGE,),
    "environment/cpu_threads": (HUGE,),
    "run_id": ("another",),
    "seed": (-1, 5),
}


@pytest.mark.parametrize(("path", "value"), [(path, v) for path, vs in IMPOSSIBLE.items() for v in vs])
def test_a_record_with_an_impossible_value_is_invalid_and_the_value_is_named(path: str, value: Any) -> None:
    with pytest.raises(UserError, match=r"run\.json: not a record: ") as refused:
        validated(changed(path, value), "run.json")
    assert path.rsplit("/", 1)[-1].partition("_")[0] in str(refused.value) or path.split("/")[0] in str(
        refused.value
    )
    assert len(str(refused.value)) < 200


# ------------------------------------------------------------------------------ a folder of records
def test_a_report_skips_invalid_records_names_some_and_counts_all(tmp_path: Path) -> None:
    good = put(tmp_path, whole("full"))
    for seed in range(30):
        item = changed("parameters/total", HUGE, whole(seed=seed))
        (good.parent / f"{seed}.json").write_text(item.model_dump_json())
    (good.parent / "half.json").write_text("{")
    records, notes = valid_records.load(good.parent)
    assert [item.label for item in records] == ["full"]
    assert notes[0] == "Skipped 0.json: not a record: parameters.total: is not a count"
    assert notes[-1] == "31 of 32 files skipped: no valid record."
    assert len(notes) < 25
    assert notes[-1] in render.to_markdown(report.build(records, baseline="full", notes=notes))


def test_what_is_no_file_of_a_sane_size_is_skipped(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "link.json").symlink_to("link.json")
    (tmp_path / "folder.json").mkdir()
    records, notes = valid_records.load(tmp_path)
    assert records == []
    assert len(notes) == 4


@pytest.mark.parametrize(
    "value",
    ["[" * 500 + "]" * 500, '["' + "x" * 9 + '", ' + "[" * 500 + "]" * 500 + "]"],
)
def test_a_message_that_is_nested_deep_is_no_record(value: str) -> None:
    text = made().model_dump_json().replace('"log_tail":[]', f'"log_tail":{value}')
    with pytest.raises(UserError, match=r"not a record: outcome\.log_tail"):
        record.parse(text, "run.json")


def filled(folder: Path, numbers: Iterable[int], dice: random.Random) -> None:
    """A folder with a valid record and, by seed, mutated ones."""
    folder.mkdir(parents=True)
    sound = whole("full")
    record.write(sound, folder / f"{sound.run_id}.json")
    for seed in numbers:
        put_mutated(folder, seeded(seed), dice)


seeded = functools.cache(partial(whole, "row"))


def test_ten_thousand_mutated_records_are_reported_or_skipped(tmp_path: Path) -> None:
    dice, read, together = random.Random(0), 0, 20
    for number in range(10_000 // together):
        folder = tmp_path / str(number) / "demo"
        filled(folder, range(together), dice)
        records, notes = valid_records.load(folder)
        refused = 1 + together - len(records)
        assert sum(note.startswith("Skipped ") for note in notes) == refused
        assert not refused or f"{refused} of {1 + together} files" in notes[-1]
        read += len(records) - 1
        built = report.build(records, baseline="full", notes=notes)
        FORMS[number % len(FORMS)](built).encode()
    assert 500 < read < 9000


def test_mutated_records_are_drawn_or_skipped(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    from tests.unit.tables.page.test_page import made as page_of
    from tests.unit.tables.page.test_page_papers import paper, sources

    met = {"suite": "demo", "only": {"label": "row"}, "quantity": "perplexity.world-b"}
    content = paper(answers=[{"ours": met, "needs": "data", "why": "the text is not at hand"}])
    dice, drawn = random.Random(1), 0
    for number in range(30):
        folder = tmp_path / str(number) / "demo"
        filled(folder, range(10), dice)
        records, notes = valid_records.load(folder)
        drawn += len(records) - 1
        page = page_of(records, baseline="full", notes=notes, published=sources(tmp_path, content))
        page.encode()
        assert "could not be set beside" not in page
        assert not notes or notes[-1] in page
    assert 30 < drawn < 270
