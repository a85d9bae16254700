"""Which verdict each rule of the gate gives, and what is not comparable and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import record
from harness.record import PROTOCOLS, Record
from harness.tables.compare import memory as compare_memory
from harness.tables.compare import pairing
from harness.tables.compare.comparison import Cell, Comparison
from harness.tables.compare.judge import compare
from harness.tables.compare.pairing import Loaded, Side, decides, load
from harness.tables.statistics import shift
from tests.support.gate_records import PACKAGES, environment, lines, made, memory, put, quality

MIB = 1 << 20
RANDOM = np.random.default_rng(0)
NATS = 20 * RANDOM.gamma(4, 0.2, 100)
RIGHT = RANDOM.random(200) < 0.8
DATA = {"name": "text", "sha256": "digest", "tokens": 10, "model": "nano", "model_sha256": "weights"}


def side(*records: Record) -> Side:
    return Side(tuple(Loaded(item, Path("nowhere") / f"{item.run_id}.json") for item in records), ())


def between(base: Record, candidate: Record, **controls: str) -> Comparison:
    return compare(side(base), side(candidate), controls)


def only(found: Comparison, quantity: str) -> Cell:
    cells = [cell for cell in found.cells if cell.quantity == quantity]
    assert len(cells) == 1, found.cells
    return cells[0]


def peak(base: dict[str, Any], candidate: dict[str, Any]) -> Cell:
    return only(between(made(memory=base), made(memory=candidate)), "peak memory")


# ----------------------------------------------------------------------------------------- memory
def test_one_byte_more_by_the_live_meter_fails() -> None:
    assert peak(memory(), memory(optimizer_bytes=(800 << 20) + 1)).verdict == "regression"
    assert peak(memory(), memory()).verdict == "ok"
    assert peak(memory(), memory(optimizer_bytes=(800 << 20) - 1)).verdict == "improvement"


def test_the_cause_names_the_components_the_largest_first() -> None:
    more = memory(optimizer_bytes=1210 * MIB, transient_bytes=102 * MIB)
    assert peak(memory(), more).cause == "peak +412 MiB: optimizer +410, activations and temporaries +2"
    less = memory(optimizer_bytes=1210 * MIB, gradients_bytes=0)
    assert peak(memory(), less).cause == "peak +10 MiB: optimizer +410, gradients -400"


def test_a_small_change_beside_a_large_one_is_not_written_as_zero() -> None:
    moved = memory(optimizer_bytes=1800 * MIB, buffers_bytes=129)
    assert peak(memory(), moved).cause.endswith("buffers +1 bytes")


def test_a_gpu_has_an_allowance_of_half_a_percent_and_8_mib() -> None:
    base = 1 << 30
    edge = int(base * 1.005) + 8 * MIB
    assert compare_memory.judge("cuda", base, edge) == "ok"
    assert compare_memory.judge("cuda", base, edge + 2) == "regression"
    assert compare_memory.judge("cuda", edge + 2, base) == "improvement"
    assert compare_memory.judge("simulated", base, base + 1) == "regression"


# ---------------------------------------------------------------------------------- comparability
@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"environment": environment(device="another")}, "device a CPU -> another"),
        ({"environment": environment(packages={"torch": "2.14.0"})}, "torch 2.13.0 -> 2.14.0"),
        ({"memory": memory("cuda", optimizer_bytes=1)}, "meter live -> cuda"),
        ({"protocols": {**PROTOCOLS, "memory": 9}}, "memory protocol 1 -> 9"),
        ({"environment": environment(cpu_threads=4)}, "threads 2 -> 4"),
        ({"environment": environment(packages={**PACKAGES, "peft": "0.1"})}, "peft 0.21.2 -> 0.1"),
    ],
)
def test_a_field_that_decides_makes_an_x_that_names_it(parts: dict[str, Any], field: str) -> None:
    cell = only(between(made(), made(**parts)), "peak memory")
    assert cell.verdict == "x"
    assert field in cell.cause
    assert cell.differences


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        (
            {"environment": environment(flags={"tf32": True})},
            {"environment": environment(flags={"tf32": False})},
            "tf32",
        ),
        ({"data": DATA}, {"data": {**DATA, "sha256": "other"}}, "data"),
        ({"data": DATA}, {"data": {**DATA, "tokens": 11}}, "data tokens"),
        ({"data": DATA}, {"data": {**DATA, "model_sha256": "other"}}, "model"),
    ],
)
def test_what_was_trained_and_how_decides_once_both_sides_know_it(
    before: dict[str, Any], after: dict[str, Any], field: str
) -> None:
    cell = only(between(made(**before), made(**after)), "peak memory")
    assert (cell.verdict, [each.field for each in cell.differences]) == ("x", [field])
    assert only(between(made(), made(**after)), "peak memory").verdict == "ok"


@pytest.mark.parametrize(
    "other", [{"text": "another"}, {"windows": 99}, {"tokens": 1999}, {"context": 64}, {"batches": 3}]
)
def test_a_text_that_is_cut_otherwise_is_not_comparable(other: dict[str, Any]) -> None:
    after = quality(NATS)
    after["perplexity"]["text"] |= other
    cell = only(between(made(quality=quality(NATS)), made(quality=after)), "perplexity text")
    assert (cell.verdict, cell.cause) == ("x", "not comparable: another text, or cut in another way")


@pytest.mark.parametrize("right", [RIGHT[:100], RIGHT])
def test_another_version_or_number_of_documents_is_not_comparable(right: Sequence[bool]) -> None:
    after = quality((), right)
    after["tasks"]["quiz"] |= {"version": "1" if len(right) < len(RIGHT) else "2"}
    cell = only(between(made(quality=quality((), RIGHT)), made(quality=after)), "accuracy quiz")
    assert cell.verdict == "x"
    assert "version 1 -> " in cell.cause


def test_another_protocol_of_perplexity_leaves_memory_comparable() -> None:
    protocols = {**PROTOCOLS, "perplexity": 9}
    found = between(made(quality=quality(NATS)), made(quality=quality(NATS), protocols=protocols))
    assert only(found, "peak memory").verdict == "ok"
    assert only(found, "perplexity text").verdict == "x"


def test_a_row_whose_settings_changed_names_the_settings() -> None:
    config = made().config
    other = made(config={**config, "method": [{"name": "row", "options": {"rank": 16}}]})
    cell = only(between(made(), other), "run")
    assert cell.verdict == "x"
    assert "method.0.options.rank 8 -> 16" in cell.cause


def test_the_same_run_with_other_threads_is_another_machine(tmp_path: Path) -> None:
    one, two = (made(environment=environment(cpu_threads=count)) for count in (1, 2))
    for machine, item in (("cpu-1t", one), ("cpu-2t", two)):
        record.write(item, tmp_path / "a" / machine / "demo" / f"{item.run_id}.json")
    put(
        tmp_path / "b",
        two.model_copy(update={"memory": made(memory=memory(optimizer_bytes=900 << 20)).memory}),
    )
    found = compare(load(tmp_path / "a"), load(tmp_path / "b"))
    assert not found.skipped
    assert {(cell.quantity, cell.verdict) for cell in found.cells} == {
        ("status", "ok"),
        ("peak memory", "regression"),
        ("run", "missing"),
    }


def test_the_same_run_on_two_machines_finds_its_own_twin() -> None:
    here, there = made(), made(environment=environment(device="another"), memory=memory(buffers_bytes=64))
    found = compare(side(here, there), side(there, here))
    assert [cell.verdict for cell in found.cells if cell.quantity == "peak memory"] == ["ok", "ok"]


def test_what_one_side_lacks_is_reported_and_does_not_fail() -> None:
    found = compare(side(made(), made("gone")), side(made(), made("fresh")))
    assert {(cell.row, cell.verdict) for cell in found.cells if cell.quantity == "run"} == {
        ("gone", "missing"),
        ("fresh", "new"),
    }
    assert found.exit_code == 0


def test_nothing_comparable_is_no_success() -> None:
    assert compare(side(made("gone")), side(made("fresh"))).exit_code == 2


# ----------------------------------------------------------------------------------------- status
@pytest.mark.parametrize("status", ["oom", "timeout", "diverged", "unsupported", "error", "interrupted"])
def test_a_run_that_no_longer_ends_well_fails(status: str) -> None:
    broken = made(outcome={"status": status, "phase": "train", "message": "so\nit is"})
    cell = only(between(made(), broken), "status")
    assert cell.verdict == "regression"
    assert cell.cause == f"ok -> {status} in train: so it is"
    assert only(between(broken, made()), "status").verdict == "improvement"
    same = between(broken, broken)
    assert (only(same, "status").verdict, same.exit_code) == ("reported", 2)
    assert only(between(broken, made(outcome={"status": "ok"})), "status").verdict == "improvement"


def test_a_run_that_fails_in_another_way_is_reported() -> None:
    broken, other = (made(outcome={"status": status, "phase": "train"}) for status in ("error", "oom"))
    found = between(broken, other)
    assert (only(found, "status").verdict, found.exit_code) == ("reported", 2)


def test_that_runs_ended_well_is_no_verdict_where_nothing_else_could_be_compared() -> None:
    found = between(made(), made(environment=environment(packages={"torch": "2.14.0"})))
    assert (found.counts, found.exit_code) == ({"x": 1, "ok": 1}, 2)
    assert found.summary.startswith("gate: nothing could be judged")


def test_a_run_that_broke_on_another_device_is_not_comparable() -> None:
    broken = made(outcome={"status": "oom", "phase": "train"}, environment=environment(device="smaller"))
    assert only(between(made(), broken), "status").verdict == "x"
    elsewhere = made(environment=environment(device="smaller"))
    assert only(between(made(), elsewhere), "status").verdict == "ok"


# ------------------------------------------------------------------------------------- perplexity
def on_disk(tmp_path: Path, nats: Any, right: Any, more_nats: Any, more_right: Any) -> Comparison:
    put(tmp_path / "a", made(quality=quality(nats, right)), nats, right)
    put(tmp_path / "b", made(quality=quality(more_nats, more_right)), more_nats, more_right)
    return compare(load(tmp_path / "a"), load(tmp_path / "b"))


def test_a_perplexity_that_is_surely_worse_fails_and_a_better_one_is_an_improvement(tmp_path: Path) -> None:
    worse = NATS + 20 * 0.01
    found = on_disk(tmp_path, NATS, RIGHT, worse, RIGHT)
    assert only(found, "perplexity text").verdict == "regression"
    assert "+1.01 %), 95 % interval" in only(found, "perplexity text").cause
    back = compare(load(tmp_path / "b"), load(tmp_path / "a"))
    assert only(back, "perplexity text").verdict == "improvement"


def test_a_sure_change_of_a_tenth_of_a_percent_is_none(tmp_path: Path) -> None:
    found = on_disk(tmp_path, NATS, RIGHT, NATS + 20 * 0.001, RIGHT)
    assert only(found, "perplexity text").verdict == "ok"


def test_a_change_that_a_few_windows_make_is_not_certain(tmp_path: Path) -> None:
    one = NATS.copy()
    one[3] += 10
    cell = only(on_disk(tmp_path, NATS, RIGHT, one, RIGHT), "perplexity text")
    assert cell.verdict == "ok"
    assert cell.cause.endswith("which holds 0")


def test_without_windows_a_change_is_not_comparable() -> None:
    found = between(made(quality=quality(NATS)), made(quality=quality(NATS + 1)))
    assert only(found, "perplexity text").verdict == "x"
    assert "no per-window nll" in only(found, "perplexity text").cause


def test_a_few_windows_give_no_interval(tmp_path: Path) -> None:
    few = on_disk(tmp_path, NATS[:19], RIGHT, 1.05 * NATS[:19], RIGHT)
    cell = only(few, "perplexity text")
    assert cell.verdict == "withheld"
    assert "19 windows are too few" in cell.cause


def test_windows_that_are_not_those_of_the_record_are_not_believed(tmp_path: Path) -> None:
    on_disk(tmp_path, NATS, RIGHT, NATS + 1, RIGHT)
    windows = next((tmp_path / "b").rglob("windows/text.jsonl"))
    found = [{"sha256": "0", "tokens": 20, "nll_nats": 1.0} for _ in NATS]
    lines(windows, found)
    cell = only(compare(load(tmp_path / "a"), load(tmp_path / "b")), "perplexity text")
    assert cell.verdict == "x"
    assert "do not add up" in cell.cause


def test_a_perplexity_that_is_no_longer_finite_fails() -> None:
    broken = quality(NATS)
    broken["perplexity"]["text"] |= {"nll_nats": float("nan"), "perplexity": float("nan")}
    assert only(between(made(quality=quality(NATS)), made(quality=broken)), "perplexity text").cause == (
        "no longer finite"
    )


# --------------------------------------------------------------------------------------- accuracy
def test_answers_that_became_wrong_fail(tmp_path: Path) -> None:
    worse = RIGHT.copy()
    worse[:40] = False
    cell = only(on_disk(tmp_path, NATS, RIGHT, NATS, worse), "accuracy quiz")
    assert cell.verdict == "regression"
    lost = int(RIGHT[:40].sum())
    assert f"{lost} of 200 became wrong, 0 right" in cell.cause


def changed(lost: int, won: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The answers with some of the right ones wrong and some of the wrong ones right."""
    other = RIGHT.copy()
    other[np.flatnonzero(RIGHT)[:lost]] = False
    other[np.flatnonzero(~RIGHT)[:won]] = True
    return other


def test_a_few_answers_either_way_are_noise(tmp_path: Path) -> None:
    assert only(on_disk(tmp_path, NATS, RIGHT, NATS, changed(6, 4)), "accuracy quiz").verdict == "ok"


def test_more_tasks_ask_for_more_evidence(tmp_path: Path) -> None:
    """Six lost answers are p = 0.03 alone, and nothing among twenty runs that each lost something."""
    for seed in range(20):
        after = changed(6 if seed == 0 else 1, 0)
        put(tmp_path / "a", made(seed=seed, quality=quality((), RIGHT)), (), RIGHT)
        put(tmp_path / "b", made(seed=seed, quality=quality((), after)), (), after)
    first = [
        load(path / "machine" / "demo" / f"{made().run_id}.json") for path in (tmp_path / "a", tmp_path / "b")
    ]
    assert only(compare(*first), "accuracy quiz").verdict == "regression"
    assert "regression" not in compare(load(tmp_path / "a"), load(tmp_path / "b")).counts


def test_tasks_of_equal_counts_are_tested_too(tmp_path: Path) -> None:
    """Six lost answers are p = 0.03 alone; Holm's six tests are six although five of them moved nothing."""
    for seed in range(6):
        after = changed(6, 0) if seed == 0 else changed(6, 6)
        put(tmp_path / "a", made(seed=seed, quality=quality((), RIGHT)), (), RIGHT)
        put(tmp_path / "b", made(seed=seed, quality=quality((), after)), (), after)
    found = compare(load(tmp_path / "a"), load(tmp_path / "b"))
    cells = [cell for cell in found.cells if cell.quantity == "accuracy quiz"]
    assert [cell.verdict for cell in cells] == ["ok"] * 6
    assert "Holm: p = 0.19" in cells[0].cause
    assert {cell.cause for cell in cells[1:]} == {f"{int(RIGHT.sum())} of 200 right, as before"}


def test_other_questions_are_not_comparable(tmp_path: Path) -> None:
    worse = RIGHT.copy()
    worse[:40] = False
    on_disk(tmp_path, NATS, RIGHT, NATS, worse)
    samples = next((tmp_path / "b").rglob("samples/quiz.jsonl"))
    samples.write_text(samples.read_text().replace('"d7"', '"other"'))
    cell = only(compare(load(tmp_path / "a"), load(tmp_path / "b")), "accuracy quiz")
    assert cell.verdict == "x"
    assert "2 questions differ" in cell.cause


# ------------------------------------------------------------------------------------- throughput
def runs(label: str, speed: float, late: int = 0, count: int = 5, seconds: int = 0) -> list[Record]:
    """Repeats one minute apart, a little uneven; `late` minutes after the full hour."""
    return [
        made(
            label,
            repeat=repeat,
            time={"tokens_per_s": speed * (1 + 0.002 * repeat)},
            started_at=f"2026-11-21T10:{late + repeat:02d}:{seconds:02d}+00:00",
        )
        for repeat in range(count)
    ]


def speeds(base: list[Record], candidate: list[Record], **controls: str) -> dict[str, Cell]:
    found = compare(side(*base), side(*candidate), controls)
    return {cell.row: cell for cell in found.cells if cell.quantity == "throughput"}


def test_a_slower_row_fails_beside_a_stable_control_when_runs_took_turns() -> None:
    base = [*runs("control", 1000), *runs("row", 1000)]
    after = [*runs("control", 1005, seconds=30), *runs("row", 900, seconds=30)]
    found = speeds(base, after, demo="control")
    assert found["row"].verdict == "regression"
    assert found["control"].verdict == "reported"
    assert speeds(after, base, demo="control")["row"].verdict == "improvement"


def test_a_control_that_moved_withholds_the_verdict() -> None:
    base = [*runs("control", 1000), *runs("row", 1000)]
    after = [*runs("control", 730, seconds=30), *runs("row", 730, seconds=30)]
    found = speeds(base, after, demo="control")["row"]
    assert found.verdict == "withheld"
    assert "moved, too: -27.0 %" in found.cause


def test_without_a_control_a_slower_row_is_withheld() -> None:
    assert speeds(runs("row", 1000), runs("row", 900, seconds=30))["row"].verdict == "withheld"


@pytest.mark.parametrize("factor", [0.73, 1.05])
def test_another_day_is_reported_and_never_fails(factor: float) -> None:
    base = [*runs("control", 1000), *runs("row", 1000)]
    after = [*runs("control", 1000, late=20), *runs("row", 1000 * factor, late=20)]
    cell = speeds(base, after, demo="control")["row"]
    assert cell.verdict == "reported"
    assert "were not interleaved" in cell.cause


def test_four_runs_a_side_are_too_few_for_a_verdict() -> None:
    base = [*runs("control", 1000, count=4), *runs("row", 1000, count=4)]
    after = [*runs("control", 1000, count=4, seconds=30), *runs("row", 500, count=4, seconds=30)]
    assert "needs 5" in speeds(base, after, demo="control")["row"].cause


def test_another_machine_is_reported_with_what_differs() -> None:
    other = [
        item.model_copy(update={"environment": made(environment=environment(cpu_threads=4)).environment})
        for item in runs("row", 500, seconds=30)
    ]
    cell = speeds(runs("row", 1000), other)["row"]
    assert cell.verdict == "reported"
    assert "threads 2 -> 4" in cell.cause


# ------------------------------------------------------------------------------- pairs at one time
def at_once(label: str, moods: list[float], speed: float = 1000.0, seconds: int = 0) -> list[Record]:
    """Runs that took turns update by update; a mood is what the machine made of the speed."""
    return [
        made(
            label,
            repeat=repeat,
            time={"tokens_per_s": speed * mood},
            started_at=f"2026-11-21T10:{repeat:02d}:{seconds:02d}+00:00",
            environment=environment(flags={"in_turns": True}),
        )
        for repeat, mood in enumerate(moods)
    ]


MOODS = [1.0, 0.8, 1.2, 0.7, 1.1]


def test_pairs_show_what_the_moods_of_a_machine_would_hide() -> None:
    base = [*at_once("control", MOODS), *at_once("row", MOODS)]
    even = [1.01, 0.99, 1.005, 0.995, 1.0]
    after = [
        *at_once("control", [mood * more for mood, more in zip(MOODS, even, strict=True)], seconds=1),
        *at_once(
            "row", [0.91 * mood * more for mood, more in zip(MOODS, even[::-1], strict=True)], seconds=1
        ),
    ]
    found = speeds(base, after, demo="control")
    assert found["row"].verdict == "regression"
    assert found["row"].cause == "-9.0 % beside the control by medians of 5 pairs, completely separated"
    assert found["control"].cause == "+0.0 % by medians of 5 pairs; the control row"
    assert speeds(after, base, demo="control")["row"].verdict == "improvement"


def test_pairs_that_the_controls_pairs_reach_are_no_regression() -> None:
    base = [*at_once("control", MOODS), *at_once("row", MOODS)]
    after = [
        *at_once(
            "control", [m * x for m, x in zip(MOODS, (1.0, 0.9, 1.01, 1.0, 1.0), strict=True)], seconds=1
        ),
        *at_once("row", [0.92 * mood for mood in MOODS], seconds=1),
    ]
    cell = speeds(base, after, demo="control")["row"]
    assert (cell.verdict, "overlap" in cell.cause) == ("ok", True)


@pytest.mark.parametrize("row", [700, 1000, 800])
def test_a_row_beside_a_control_that_moved_is_not_judged_even_where_it_moved_alike(row: int) -> None:
    base = [*at_once("control", MOODS), *at_once("row", MOODS)]
    after = [*at_once("control", MOODS, 700, seconds=1), *at_once("row", MOODS, row, seconds=1)]
    found = compare(side(*base), side(*after), {"demo": "control"})
    cell = next(cell for cell in found.cells if (cell.row, cell.quantity) == ("row", "throughput"))
    assert cell.verdict == "withheld"
    assert "the control row control moved, too: -30.0 %" in cell.cause
    assert found.exit_code == 2


def test_a_control_that_did_not_take_turns_withholds_the_verdict() -> None:
    base = [*runs("control", 1000), *runs("row", 1000)]
    after = [*runs("control", 1000, late=30), *runs("row", 900, seconds=30)]
    found = speeds(base, after, demo="control")["row"]
    assert found.verdict == "withheld"
    assert "the control row control: another day or time" in found.cause


def test_two_rows_of_the_control_s_label_are_no_control() -> None:
    base = [*runs("control", 1000), *runs("row", 1000)]
    after = [*runs("control", 1000, seconds=30), *runs("row", 900, seconds=30)]
    twin = {"config_id": "f" * 12, "run_id": "f" * 12 + "-s0-r0"}
    for found in (base, after):
        found.append(found[0].model_copy(update=twin))
    cell = speeds(base, after, demo="control")["row"]
    assert (cell.verdict, cell.cause.rpartition("; ")[2]) == (
        "withheld",
        "2 rows are named control as the control is: name one by --control",
    )


def test_another_protocol_of_time_is_not_comparable() -> None:
    base, after = runs("row", 1000), runs("row", 900, seconds=30)
    after = [item.model_copy(update={"protocols": {**PROTOCOLS, "time": 99}}) for item in after]
    cell = speeds(base, after)["row"]
    assert (cell.verdict, [field.field for field in cell.differences]) == ("x", ["time protocol"])


def test_a_control_whose_pairs_moved_withholds_the_verdict() -> None:
    base = [*at_once("control", MOODS), *at_once("row", MOODS)]
    after = [*at_once("control", MOODS, 940, seconds=1), *at_once("row", MOODS, 800, seconds=1)]
    cell = speeds(base, after, demo="control")["row"]
    assert cell.verdict == "withheld"
    assert "the control row control moved, too: -6.0 %" in cell.cause


def test_runs_that_were_not_all_at_once_are_no_pairs() -> None:
    base, after = at_once("row", MOODS), at_once("row", MOODS, seconds=1)
    alone = after[0].model_copy(update={"environment": made(environment=environment()).environment})
    assert "5 and 5 runs" in speeds(base, [alone, *after[1:]])["row"].cause
    assert "5 pairs" in speeds(base, after)["row"].cause


@pytest.mark.parametrize(("change", "least", "most"), [(1.0, 0.0, 0.01), (0.9, 0.9, 1.0)])
def test_on_a_moody_machine_pairs_raise_few_alarms_and_find_a_tenth(
    change: float, least: float, most: float
) -> None:
    """Moods of 10 % that both runs of a pair share, and 1.3 % that they do not."""
    random, tries = np.random.default_rng(1), 1000
    own = 1 + 0.013 * random.standard_normal((tries, 4, 5))
    moods = 1 + 0.1 * random.standard_normal((tries, 2, 5))
    alarms = 0
    for shared, each in zip(moods, own, strict=True):
        ratios = [(shared[k] * each[2 * k + 1]) / (shared[k] * each[2 * k]) for k in range(2)]
        row, control = change * ratios[0], ratios[1]
        alone = shift([1 + ratio - np.median(control) for ratio in control], list(control))
        moved = shift(list(control), list(row))
        alarms += moved.certain and not alone.large
    assert least <= alarms / tries <= most


def test_conditions_are_not_written_out_where_two_sides_differ_in_the_commit_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[Record] = []

    def counted(item: Record, quantity: str) -> dict[str, str]:
        written.append(item)
        return decides(item, quantity)

    monkeypatch.setattr(pairing, "decides", counted)
    sides = [
        side(*(made(seed=seed, memory=memory(), environment=environment(git_sha=sha)) for seed in range(40)))
        for sha in ("a" * 40, "b" * 40)
    ]
    found = compare(*sides)
    assert not written
    assert [cell.verdict for cell in found.cells if cell.quantity == "peak memory"] == ["ok"] * 40
    one = made(memory=memory(), environment=environment(git_sha="b" * 40, cpu_threads=3))
    assert only(between(made(memory=memory()), one), "peak memory").verdict == "x"
    assert written
