"""The history of a suite: where its records come from, what belongs together, where it stepped and broke."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.cli import main as cli
from harness.errors import UserError
from harness.record import Record
from harness.tables.format import DASH
from harness.tables.history import segments
from harness.tables.history.quantities import conditions
from harness.tables.history.rendering import FORMATS
from harness.tables.history.series import History, Kind, Series
from harness.tables.history.wording import method
from tests.support.gate_records import made, memory, put
from tests.support.history_records import Repository, load, scored
from tests.support.mutations import put_mutated
from tests.unit.cli.test_gate import HOSTILE, Said

Call = Callable[..., Said]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    found = Repository.at(tmp_path / "code")
    monkeypatch.chdir(found.place)
    return found


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The command line within this process."""

    def run(*arguments: Any) -> Said:
        monkeypatch.setattr("sys.argv", ["lorebench", "history", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return run


def read(repository: Repository, **options: Any) -> History:
    return load([repository.results], "demo", **options)


def one(history: History, name: str, row: str = "row") -> Series:
    found = [series for series in history.series if (series.quantity.name, series.row) == (name, row)]
    assert len(found) == 1
    return found[0]


def grown(more: int) -> dict[str, Any]:
    return memory(optimizer_bytes=(800 << 20) + more)


def speeds(seed: int, values: int, level: float = 1000.0) -> list[float]:
    noise = np.random.default_rng(seed).normal(size=values)
    return [float(level * (1 + 0.014 * value)) for value in noise]


# ---------------------------------------------------------------------------------- sources, order
def test_records_of_a_folder_per_commit_become_points_in_the_order_of_the_repository(
    repository: Repository,
) -> None:
    """The first commit is measured last, as in a search for what broke: its place is still the first."""
    for message in ("first", "second", "third"):
        repository.commit(message)
        repository.record(started_at=f"2026-11-{20 - len(repository.commits)}T10:00:00+00:00")
    history = read(repository)
    assert [commit.subject for commit in history.commits] == ["first", "second", "third"]
    assert [commit.sha for commit in history.commits] == repository.commits
    points = one(history, "peak memory").points
    assert [point.order for point in points] == [0, 1, 2]
    assert points[0].value == sum(memory()["train"][name] for name in memory()["train"] if name in PARTS)


PARTS = {name for name in memory()["train"] if name.endswith("_bytes") and not name.startswith("peak")}


def test_changed_files_a_foreign_commit_and_no_commit_have_places_of_their_own(
    repository: Repository,
) -> None:
    known = repository.commit()
    repository.record(known)
    when = "2026-11-01T11:00:00+00:00"
    repository.record(known, folder="dirty", stand={"git_dirty_sha256": "ab" * 32}, started_at=when)
    repository.record("f" * 40, folder="foreign", started_at="2020-01-01T10:00:00+00:00")
    repository.record("", folder="none", started_at="2026-12-24T10:00:00+00:00")
    history = read(repository)
    names = ["fffffff", known[:7], f"{known[:7]}+", "no commit 2026-12-24"]
    assert [commit.name for commit in history.commits] == names
    assert [commit.dirty for commit in history.commits] == [False, False, True, False]
    assert [commit.known for commit in history.commits] == [False, True, True, False]
    assert len(history.notes) == 2


def test_committed_versions_are_points_though_the_folder_has_only_the_newest(repository: Repository) -> None:
    for more in (0, 1, 2):
        sha = repository.commit()
        repository.record(sha, folder="raw", memory=grown(more))
        repository.commit("keep the records")
    assert len(one(read(repository), "peak memory").points) == 1
    history = read(repository, committed=True)
    series = one(history, "peak memory")
    assert [point.value - series.points[0].value for point in series.points] == [0, 1, 2]
    assert series.points[0].source.startswith(repository.commits[1][:7] + ":raw/")
    assert len(series.change_points) == 2


def test_a_run_that_is_found_twice_counts_once(repository: Repository) -> None:
    sha = repository.commit()
    repository.record(sha)
    repository.record(sha, folder="a/copy/deep/in/the/tree")
    repository.commit()
    history = load([repository.results, repository.results / sha[:7]], "demo", committed=True)
    assert history.runs == 1


def test_runs_of_two_commits_that_start_in_one_second_are_two(repository: Repository) -> None:
    """As both sides of a pair that takes turns: two commits, and the newest with changed files."""
    shas = [repository.commit(), repository.commit()]
    for number, (sha, dirty) in enumerate(((shas[0], None), (shas[1], None), (shas[1], "ab" * 32))):
        stand = {"git_dirty_sha256": dirty}
        when = "2026-11-21T10:00:00+00:00"
        repository.record(sha, folder=str(number), stand=stand, started_at=when, memory=grown(number))
    series = one(read(repository), "peak memory")
    assert [point.value - series.points[0].value for point in series.points] == [0, 1, 2]


def test_a_deleted_record_is_found_in_the_history(repository: Repository) -> None:
    repository.commit()
    place = repository.record()
    repository.commit()
    place.unlink()
    repository.commit()
    with pytest.raises(UserError, match="no records"):
        read(repository)
    assert read(repository, committed=True).runs == 1


def test_records_of_a_branch_are_found_though_its_merge_kept_the_others(repository: Repository) -> None:
    base = repository.commit()
    for branch, more in (("side", 1), ("main", 2)):
        repository.git("checkout", "-q", *(["-b", branch, base] if branch == "side" else [branch]))
        when = f"2026-11-{10 + more}T10:00:00+00:00"
        repository.record(base, folder="raw", started_at=when, memory=grown(more))
        repository.commit("keep the records")
    repository.git("merge", "-q", "-s", "ours", "-m", "merge", "side")
    points = one(read(repository, committed=True), "peak memory").points
    assert [point.value - points[0].value for point in points] == [0, 1]


def test_committed_outside_of_a_repository_is_one_line(call: Call, tmp_path: Path) -> None:
    put(tmp_path / "alone", made())
    said = call("demo", "--results", tmp_path / "alone", "--committed")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "in no git repository" in said.err


def test_a_folder_that_git_ignores_says_so(repository: Repository) -> None:
    (repository.place / ".gitignore").write_text("/results/\n")
    repository.commit()
    repository.record()
    history = read(repository, committed=True)
    assert history.runs == 1
    assert "was ever committed" in history.notes[0]


def test_a_run_that_has_not_ended_is_left_out_until_it_has(repository: Repository) -> None:
    repository.commit()
    place = repository.record(outcome={"status": "interrupted"})
    repository.record(label="other")
    assert read(repository).rows == ["other"]
    repository.commit()
    place.unlink()
    repository.record()
    assert read(repository, committed=True).rows == ["other", "row"]


# ------------------------------------------------------------------------------------------ breaks
def test_a_series_breaks_where_the_stand_changes_and_says_how(repository: Repository) -> None:
    packages = {"torch": "3.0.0", "transformers": "5.23.0", "lm-eval": "0.4.13", "peft": "0.21.2"}
    for number in range(4):
        repository.commit()
        stand = {"packages": packages} if number > 1 else {}
        repository.record(memory=grown(number // 2), stand=stand)
    history = read(repository)
    found = [series for series in history.series if series.quantity.name == "peak memory"]
    assert [[point.order for point in series.points] for series in found] == [[0, 1], [2, 3]]
    assert not history.change_points
    broken = next(each for each in history.breaks if each.quantity.name == "peak memory")
    assert (broken.before, broken.after, broken.order, broken.beside) == (found[0].id, found[1].id, 2, False)
    assert [str(field) for field in broken.differences] == ["torch 2.13.0 -> 3.0.0"]


def test_a_new_config_of_a_row_breaks_its_series_and_names_the_setting(repository: Repository) -> None:
    for number in range(2):
        repository.commit()
        config = {"train": {"lr": 10.0**-number}, "method": [{"name": "row", "options": {}}]}
        repository.record(config=config)
    history = read(repository)
    assert history.rows == ["row"]
    fields = {field.field for each in history.breaks for field in each.differences}
    assert fields == {"config_id", "train.lr"}
    assert "train.lr 1.0 -> 0.1" in FORMATS["text"](history)


def test_a_grid_has_a_row_for_each_rate_and_no_breaks(repository: Repository) -> None:
    for _ in range(2):
        repository.commit()
        for number in range(3):
            config = {"train": {"lr": 10.0**-number}, "method": [{"name": "row", "options": {}}]}
            repository.record(config=config)
    history = read(repository)
    assert history.rows == ["row, train.lr=0.01", "row, train.lr=0.1", "row, train.lr=1.0"]
    assert not history.breaks


def test_a_second_machine_is_a_series_beside_and_never_joined(repository: Repository) -> None:
    for number in range(3):
        sha = repository.commit()
        repository.record(time={"tokens_per_s": 1000.0})
        if number:
            stand = {"device": "another CPU", "cpu": "another CPU"}
            repository.record(sha, folder=f"{sha[:7]}-b", stand=stand, time={"tokens_per_s": 500.0})
    history = read(repository)
    found = [series for series in history.series if series.quantity.name == "throughput"]
    assert [[point.value for point in series.points] for series in found] == [[1000.0] * 3, [500.0] * 2]
    assert all(each.beside for each in history.breaks)
    assert "also device a CPU -> another CPU" in FORMATS["text"](history)


def test_another_text_under_the_name_of_a_protocol_breaks_its_series_alone(repository: Repository) -> None:
    for number in range(2):
        repository.commit()
        repository.record(quality=scored(3.0, tokens=600 + 20 * number))
    history = read(repository)
    assert {each.quantity.kind for each in history.breaks} == {"perplexity"}
    assert "scored tokens 600 -> 620" in str(history.breaks[0].differences[0])


# -------------------------------------------------------------------------------------- exact steps
def test_one_byte_more_is_a_step_with_its_component(repository: Repository) -> None:
    for number in range(4):
        repository.commit()
        repository.record(memory=grown(number // 2))
    history = read(repository)
    (step,) = one(history, "peak memory").change_points
    assert (step.first, step.second, step.after - step.before, step.p_value) == (1, 2, 1.0, None)
    assert step.cause == "peak +1 bytes: optimizer +1"
    assert step.worse
    assert [each.quantity.name for each in history.change_points] == ["peak memory", "memory: optimizer"]
    text = FORMATS["text"](history)
    assert "1,782,579,328 -> 1,782,579,329 bytes" in text
    assert "memory: optimizer" not in text.split("now")[0]


def test_bytes_that_follow_the_seed_are_compared_within_seeds(repository: Repository) -> None:
    for seeds in ((0, 1), (0,), (1,), (0, 1)):
        repository.commit()
        for seed in seeds:
            repository.record(seed=seed, memory=grown(seed))
    assert not read(repository).change_points


def test_a_peak_that_moves_without_its_sum_is_told_by_component(repository: Repository) -> None:
    for more in (0, 8):
        repository.commit()
        repository.record(
            memory=memory(optimizer_bytes=(800 << 20) + more, transient_bytes=(100 << 20) - more)
        )
    names = [step.quantity.name for step in read(repository).change_points]
    assert names == ["memory: optimizer", "memory: activations and temporaries"]


def test_an_allocator_s_peak_may_move_within_its_allowance_but_not_creep(repository: Repository) -> None:
    """5 MiB a commit are within 0.5 % and 8 MiB of the commit before, but not of the first one."""
    for number in range(6):
        repository.commit()
        repository.record(memory=memory("cuda", optimizer_bytes=(800 + 5 * number) << 20))
    (step,) = one(read(repository), "peak memory").change_points
    assert (step.first, step.second) == (3, 4)


def test_repeats_of_one_commit_that_disagree_are_said(repository: Repository) -> None:
    repository.commit()
    for repeat in range(2):
        repository.record(repeat=repeat, memory=grown(repeat << 20))
    (remark,) = one(read(repository), "peak memory").remarks
    assert "disagree (seed 0)" in remark
    assert remark in FORMATS["text"](read(repository))


@pytest.mark.parametrize(
    ("meter", "more", "said"),
    [
        ("live", 512, "1,782,579,328 to 1,782,579,840 bytes"),
        ("live", 1 << 30, "1.7 GiB to 2.7 GiB"),
        ("cuda", 512, None),
        ("cuda", 1 << 30, "1.7 GiB to 2.7 GiB"),
    ],
)
def test_repeats_disagree_by_what_their_meter_does_not_explain_and_visibly(
    repository: Repository, meter: str, more: int, said: str | None
) -> None:
    repository.commit()
    for repeat in range(2):
        size = memory(meter, optimizer_bytes=(800 << 20) + more * repeat)
        repository.record(memory=size, repeat=repeat)
    remarks = one(read(repository), "peak memory").remarks
    assert [remark.partition(": ")[2] for remark in remarks] == ([said] if said else [])


@pytest.mark.parametrize(
    ("meters", "said"),
    [
        (["live"], ["bytes and outcomes: any change between runs of one seed counts"]),
        (
            ["cuda"],
            [
                "outcomes: any change between runs of one seed counts",
                "bytes by an allocator: a change between runs of one seed counts beyond 0.5 % + 8 MiB",
            ],
        ),
        (
            ["live", "cuda"],
            [
                "bytes that are counted and outcomes: any change between runs of one seed counts",
                "bytes by an allocator: a change between runs of one seed counts beyond 0.5 % + 8 MiB",
            ],
        ),
    ],
)
def test_an_allocator_s_allowance_is_said(repository: Repository, meters: list[str], said: list[str]) -> None:
    for number in range(2):
        repository.commit()
        for meter in meters:
            repository.record(label=meter, memory=memory(meter, optimizer_bytes=(800 + number) << 20))
    assert method(read(repository)) == said


def test_a_run_that_no_longer_ends_well_is_a_step_with_its_reason(repository: Repository) -> None:
    repository.commit()
    repository.record()
    repository.commit()
    repository.record(outcome={"status": "oom", "phase": "train", "message": "no room"})
    (step,) = read(repository).change_points
    assert (step.quantity.name, step.before, step.after) == ("runs ok", 1.0, 0.0)
    assert step.cause == "oom in train: no room"
    assert len(one(read(repository), "peak memory").points) == 1


@pytest.mark.parametrize("between", [0, 1, 3])
def test_a_failure_is_a_step_though_commits_between_ran_other_seeds(
    repository: Repository, between: int
) -> None:
    good, bad = {"outcome": {"status": "ok"}}, {"outcome": {"status": "oom", "phase": "train"}}
    for seed, outcome in ((0, good), *[(1, good)] * between, (0, bad), (1, good), (0, bad)):
        repository.commit()
        repository.record(seed=seed, **outcome)
    (step,) = one(read(repository), "runs ok").change_points
    assert (step.first, step.second, step.worse, step.cause) == (0, between + 1, True, "oom in train")


# -------------------------------------------------------------------------------------- noisy steps
def measured(repository: Repository, label: str, level: Callable[[int], float], commits: int = 12) -> None:
    """One run a commit, with noise, commits made where they are missing."""
    noise = speeds(sum(map(ord, label)), commits)
    for number in range(commits):
        if len(repository.commits) == number:
            repository.commit()
        value = noise[number] * level(number)
        repository.record(repository.commits[number], label, time={"tokens_per_s": value})


def test_a_step_of_throughput_is_found_where_it_is_and_a_control_row_clears_the_machine(
    repository: Repository,
) -> None:
    measured(repository, "full", lambda _: 1.0)
    measured(repository, "row", lambda number: 0.9 if number >= 6 else 1.0)
    history = read(repository, baseline="full")
    (step,) = history.change_points
    assert (step.row, step.quantity.name, step.first, step.second) == ("row", "throughput", 5, 6)
    assert step.ratio == pytest.approx(0.9, abs=0.03)
    assert step.p_value is not None
    assert step.p_value <= 0.05
    assert not step.doubtful
    assert "control row full moved by" in step.remark


def test_a_step_that_the_control_row_shows_as_well_may_be_the_machine(repository: Repository) -> None:
    for label in ("full", "row"):
        measured(repository, label, lambda number: 0.85 if number >= 6 else 1.0)
    history = read(repository, baseline="full")
    assert [(step.row, step.doubtful) for step in history.change_points] == [("full", True), ("row", True)]
    assert "may be machine noise: the control row full moved by -1" in history.change_points[1].remark
    assert "worse?" in FORMATS["text"](history)


@pytest.mark.parametrize("baseline", [None, "absent"])
def test_without_a_control_row_a_step_may_be_the_machine(
    repository: Repository, baseline: str | None
) -> None:
    measured(repository, "row", lambda number: 0.9 if number >= 6 else 1.0)
    (step,) = read(repository, baseline=baseline).change_points
    assert step.doubtful
    assert "may be machine noise" in step.remark


def test_runs_that_took_turns_need_no_control_row(repository: Repository) -> None:
    for _ in range(2):
        repository.commit()
    for repeat, value in enumerate(speeds(1, 5)):
        for side, sha in enumerate(repository.commits):
            when = f"2026-11-21T10:{2 * repeat + side:02d}:00+00:00"
            speed = {"tokens_per_s": value * (1 + side)}
            repository.record(sha, time=speed, started_at=when, repeat=repeat)
    (step,) = read(repository).change_points
    assert (step.remark, step.doubtful, step.worse) == ("runs were interleaved", False, False)


def test_two_runs_a_commit_on_two_days_took_no_turns(repository: Repository) -> None:
    """A A B B: from the fifth day on the machine is 15 % slower, and the control row shows it."""
    for number in range(8):
        repository.commit()
        for row, label in enumerate(("full", "row")):
            for repeat, value in enumerate(speeds(10 * number + row, 2)):
                speed = {"tokens_per_s": value * (0.85 if number >= 4 else 1.0)}
                repository.record(label=label, time=speed, repeat=repeat)
    history = read(repository, baseline="full")
    assert [(step.row, step.first, step.doubtful) for step in history.change_points] == [
        ("full", 3, True),
        ("row", 3, True),
    ]
    assert "the control row full moved by -1" in history.change_points[1].remark
    assert "change points: 2 maybe worse" in FORMATS["text"](history)


def test_a_significant_change_below_three_percent_is_no_step(repository: Repository) -> None:
    for number in range(12):
        repository.commit()
        repository.record(time={"tokens_per_s": (1000.0 if number < 6 else 980.0) + number % 3})
    series = one(read(repository), "throughput")
    assert series.tested
    assert not series.change_points


def test_too_few_runs_are_said_and_not_searched(repository: Repository) -> None:
    for value in (1000.0, 1001.0, 500.0):
        repository.commit()
        repository.record(time={"tokens_per_s": value})
    series = one(read(repository), "throughput")
    assert (series.tested, series.change_points) == (False, ())
    text = FORMATS["text"](read(repository))
    assert "too few runs to be searched: it takes 8, with 3 on each side, of one seed" in text


@pytest.mark.parametrize(("after", "found"), [(2, []), (3, [5]), (5, [3]), (6, [])])
def test_eight_runs_show_a_step_with_three_on_each_side(
    repository: Repository, after: int, found: list[int]
) -> None:
    for number, value in enumerate(speeds(0, 8)):
        repository.commit()
        repository.record(time={"tokens_per_s": value * (0.8 if number >= 8 - after else 1.0)})
    series = one(read(repository), "throughput")
    assert series.tested
    assert [step.second for step in series.change_points] == found


def test_a_perplexity_that_repeats_to_the_last_digit_needs_no_test(repository: Repository) -> None:
    for value in (3.0, 3.0, 3.0, 3.1, 3.1, 3.1001):
        repository.commit()
        repository.record(quality=scored(value))
    (step,) = one(read(repository), "perplexity text").change_points
    assert (step.first, step.second, step.p_value, step.worse) == (2, 3, None, True)


def seeded(repository: Repository, seeds: tuple[int, ...], level: float = 1.0, noise: Any = None) -> None:
    """A commit that ran some seeds, whose perplexities lie 5 % apart."""
    repository.commit()
    for seed in seeds:
        value = 3.0 * (1 + 0.05 * seed) * level * (1 + (1e-4 * noise.normal() if noise else 0.0))
        repository.record(quality=scored(float(value)), seed=seed)


SOME = [(0, 1, 2), (0,), (0,), (0,)]


@pytest.mark.parametrize(("level", "found"), [(1 + 1e-9, []), (1.0005, []), (1.01, [4])])
def test_commits_that_ran_other_seeds_make_no_step_of_a_perplexity_that_repeats(
    repository: Repository, level: float, found: list[int]
) -> None:
    for seeds in SOME:
        seeded(repository, seeds)
    seeded(repository, (0, 1, 2), level)
    steps = one(read(repository), "perplexity text").change_points
    assert [step.second for step in steps] == found
    assert all(step.ratio == pytest.approx(level) for step in steps)


@pytest.mark.parametrize(("level", "found"), [(1.0005, []), (1.01, [4])])
def test_commits_that_ran_other_seeds_make_no_step_of_a_perplexity_with_noise(
    repository: Repository, level: float, found: list[int]
) -> None:
    """A change below the least size is none, whichever seeds stand on which side."""
    noise = np.random.default_rng(0)
    for seeds in SOME:
        seeded(repository, seeds, noise=noise)
    for _ in range(4):
        seeded(repository, (0, 1, 2), level, noise)
    series = one(read(repository), "perplexity text")
    assert series.tested
    assert [step.second for step in series.change_points] == found
    assert all(step.ratio == pytest.approx(level, abs=3e-4) for step in series.change_points)


def test_a_step_between_commits_without_a_seed_in_common_has_no_size(repository: Repository) -> None:
    """Both seeds move at one commit, which only one of them shows: the other is no second step."""
    for seeds, level in (((0, 1), 1.0), ((0, 1), 1.0), ((0,), 1.01), ((1,), 1.01)):
        seeded(repository, seeds, level)
    (step,) = one(read(repository), "perplexity text").change_points
    assert (step.second, step.ratio) == (2, pytest.approx(1.01))


def unlike(value: float) -> dict[str, Any]:
    """The quality of a run whose perplexity is no number that a table can use."""
    found = scored(8.0)
    found["perplexity"]["text"]["perplexity"] = value
    return found


@pytest.mark.parametrize(("value", "shown"), [(math.inf, "inf"), (math.nan, "nan"), (1e300, "1e+300")])
def test_a_perplexity_that_becomes_infinite_is_a_worse_step_and_named(
    repository: Repository, value: float, shown: str
) -> None:
    for quality in (scored(8.0), scored(8.0), unlike(value)):
        repository.commit()
        repository.record(quality=quality)
    history = read(repository)
    (step,) = history.change_points
    assert (step.first, step.second, step.before, step.worse, step.ratio) == (1, 2, 8.0, True, None)
    text = FORMATS["text"](history)
    assert "change points: 1 worse" in text
    assert f"8.000 -> {shown}" in text
    assert f"row: perplexity text is not finite: {shown} at {repository.commits[2][:7]}" in text
    assert "the same at every commit, in every row: ppl" not in text
    assert any(shown in line.split() for line in text.splitlines() if line.startswith("  row  "))
    written = json.loads(FORMATS["json"](history), parse_constant=pytest.fail)
    assert len(written["steps"]) == 1


def test_a_perplexity_that_is_finite_again_is_a_better_step(repository: Repository) -> None:
    for quality in (scored(8.0), unlike(math.inf), scored(8.0)):
        repository.commit()
        repository.record(quality=quality)
    steps = read(repository).change_points
    assert [(step.second, step.worse) for step in steps] == [(1, True), (2, False)]


def test_a_row_that_never_had_a_finite_perplexity_is_named(call: Call, repository: Repository) -> None:
    for _ in range(6):
        repository.commit()
        repository.record(quality=unlike(math.inf))
    history = read(repository)
    assert not history.change_points
    assert any(
        "perplexity text is not finite" in note and note.endswith(" and 2 more") for note in history.notes
    )
    said = call("demo", "--results", repository.results, "--only", "quantity=perplexity")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "no run has a finite value" in said.err


def test_seeds_that_differ_hide_no_step_of_perplexity(repository: Repository) -> None:
    """Three seeds lie 5 % apart, and all move by 1 % with noise of 0.1 %."""
    noise = np.random.default_rng(0).normal(size=(8, 3))
    for number in range(8):
        repository.commit()
        for seed in range(3):
            value = (
                3.0 * (1 + 0.05 * seed) * (1.01 if number >= 4 else 1.0) * (1 + 0.001 * noise[number, seed])
            )
            repository.record(quality=scored(float(value)), seed=seed)
    (step,) = one(read(repository), "perplexity text").change_points
    assert (step.first, step.second) == (3, 4)
    assert step.ratio == pytest.approx(1.01, abs=0.002)


def test_an_accuracy_moves_only_beyond_what_its_documents_explain(repository: Repository) -> None:
    def task(correct: int) -> dict[str, Any]:
        return {
            "tasks": {"quiz": {"accuracy": correct / 50, "correct": correct, "documents": 50, "version": "1"}}
        }

    for number in range(12):
        repository.commit()
        repository.record(label="small", quality=task(20 + number % 2 + (3 if number >= 6 else 0)))
        repository.record(label="large", quality=task(20 + number % 2 + (15 if number >= 6 else 0)))
    steps = read(repository).change_points
    assert [(step.row, step.first, step.second) for step in steps] == [("large", 5, 6)]


def test_the_documents_of_a_task_count_though_another_has_the_same_accuracy(repository: Repository) -> None:
    """Ten documents explain a move from 50 to 60 %, five thousand do not."""
    for number in range(12):
        repository.commit()
        share = 6 if number >= 6 else 5
        tasks = {
            name: {"accuracy": share / 10, "correct": share * size, "documents": 10 * size, "version": "1"}
            for name, size in (("small", 1), ("large", 500))
        }
        repository.record(quality={"tasks": tasks})
    steps = read(repository).change_points
    assert [(step.quantity.name, step.first, step.second) for step in steps] == [("accuracy large", 5, 6)]


# ------------------------------------------------------------------------------------------ tables
def cells(history: History, row: str = "row") -> list[str]:
    """The words of a row in the first table."""
    lines = FORMATS["text"](history).splitlines()
    return [line.split() for line in lines if line.startswith(f"  {row}  ")][1]  # below its head


def test_the_table_compares_the_seeds_that_both_ends_have(repository: Repository) -> None:
    for seeds, level in (((0, 1, 2), 1.0), ((0, 1), 1.0), ((2,), 1.01)):
        seeded(repository, seeds, level)
    assert cells(read(repository, only=["quantity=perplexity"]))[:4] == ["row", "3.333", "+1.0", "%"]


def test_the_table_says_nothing_of_a_change_between_other_seeds(repository: Repository) -> None:
    for seeds, level in (((0, 1), 1.0), ((0,), 1.01), ((2,), 1.01)):
        seeded(repository, seeds, level)
    assert cells(read(repository, only=["quantity=perplexity"]))[:3] == ["row", "3.333", DASH]


def test_other_seeds_are_no_move_and_draw_no_trend(repository: Repository) -> None:
    only = ["quantity=perplexity"]
    for seeds in ((0, 1, 2), (2,), (1, 2)):
        seeded(repository, seeds)
    assert "the same at every commit, in every row: ppl text" in FORMATS["text"](read(repository, only=only))
    seeded(repository, (0, 1, 2), 1.0001)
    assert cells(read(repository, only=only))[-1] == "▄▄▄▅"


def test_a_share_of_failed_runs_is_no_median(repository: Repository) -> None:
    for failed in (0, 1):
        repository.commit()
        for seed in range(4):
            outcome = {"status": "oom" if seed < failed else "ok"}
            repository.record(outcome=outcome, seed=seed)
    assert cells(read(repository, only=["quantity=status"])) == ["row", "75.0", "-25.0"]


# ----------------------------------------------------------------------------------------- command
def test_the_command_says_commits_steps_and_where_rows_stand(call: Call, repository: Repository) -> None:
    for number in range(3):
        repository.commit(f"change {number}")
        repository.record(memory=grown((number // 2) << 20))
    said = call("demo", "--results", repository.results)
    assert said.code == 0
    assert "history of demo: 3 commits, 3 runs, 1 row\n" in said.out
    a, b = (sha[:7] for sha in repository.commits[1:])
    assert f"{a} -> {b}: change 2" in said.out
    assert "peak +1 MiB: optimizer +1" in said.out


def test_the_table_shows_a_trend_across_breaks_and_names_what_never_moved(repository: Repository) -> None:
    stand = {"device": "another CPU", "cpu": "another CPU"}
    for number in range(5):
        repository.commit()
        given = {"stand": stand} if number == 4 else {}
        repository.record(memory=grown((number // 2) << 28), quality=scored(3.0), **given)
    text = FORMATS["text"](read(repository))
    lines = [line.split() for line in text.splitlines() if line.startswith("  row ")]
    assert ["row", "2,212.0", DASH, "▁▁|▅▅/█"] in [words[:4] for words in lines]
    assert "- the same at every commit, in every row: ppl text" in text


def test_the_suite_s_baseline_and_order_of_rows_come_from_its_file(
    call: Call, repository: Repository
) -> None:
    (repository.place / "demo.yaml").write_text(
        "suite: demo\nbaseline: full\nrows:\n- {label: row, method: full}\n"
        "- {label: full, method: full, train.lr: 1e-4}\n"
    )
    measured(repository, "full", lambda _: 1.0, 3)
    measured(repository, "row", lambda _: 1.0, 3)
    found = json.loads(call("demo.yaml", "--results", repository.results, "--format", "json").out)
    assert found["baseline"] == "full"
    assert list(dict.fromkeys(series["row"] for series in found["series"])) == ["row", "full"]


def test_only_keeps_rows_seeds_settings_and_quantities_but_not_the_control(repository: Repository) -> None:
    measured(repository, "full", lambda _: 1.0)
    measured(repository, "row", lambda number: 0.9 if number >= 6 else 1.0)
    history = read(repository, baseline="full", only=["label=row", "quantity=throughput"])
    assert (history.rows, [each.name for each in history.quantities]) == (["row"], ["throughput"])
    assert not history.change_points[0].doubtful
    assert read(repository, only=["train.steps=100"]).runs == 24
    assert read(repository, only=["method=full", "seed=0"]).rows == ["full"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo", "--only", "label=nobody"], "the labels are: row"),
        (["demo", "--only", "quantity=throughputs"], "known: "),
        (["demo", "--only", "label"], "write KEY=VALUE"),
        (["domo"], "did you mean 'demo'?"),
        (["demo", "--out", "points.xlsx"], "name a file that ends in .txt, .md, .json, .csv, .parquet"),
        (["demo", "--out", "no/folder.csv"], "no file can be written there"),
        (["demo", "--experiment", "mine"], "add --mlflow URI"),
        (["demo", "--results", "nowhere"], "no such file or folder"),
    ],
)
def test_a_mistake_is_one_line(call: Call, repository: Repository, arguments: list[str], said: str) -> None:
    repository.commit()
    repository.record()
    given = [] if "--results" in arguments else ["--results", "results"]
    found = call(*arguments, *given)
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert said in found.err


@pytest.mark.parametrize("form", FORMATS)
def test_text_of_records_is_no_markup_and_stays_on_its_line(repository: Repository, form: str) -> None:
    for number in range(2):
        repository.commit(HOSTILE)
        outcome = {"outcome": {"status": "oom", "message": HOSTILE}} if number else {}
        repository.record(label=HOSTILE, folder=f"f{number}", **outcome)
        repository.record(
            label="row",
            folder=f"f{number}",
            quality={"perplexity": {HOSTILE: scored(3.0)["perplexity"]["text"]}},
        )
    text = FORMATS[form](read(repository, baseline=HOSTILE))
    assert not any(ord(char) < 32 and char != "\n" for char in text)
    assert form != "md" or "<script>" not in text
    assert form != "json" or json.loads(text)["steps"]


def test_what_is_no_sound_record_is_set_aside_and_counted(call: Call, repository: Repository) -> None:
    repository.commit()
    place = repository.record()
    repository.record(label="other")
    good = json.loads(place.read_text())
    (place.parent / "cut.json").write_text(json.dumps(good)[:200])
    (place.parent / "sum.json").write_text(json.dumps({**good, "memory": {**good["memory"], "meter": 3}}))
    (place.parent / "loop.json").symlink_to("loop.json")
    repository.commit()
    said = call("demo", "--results", repository.results, "--committed")
    assert (said.code, said.err) == (0, "")
    assert "5 skipped files" in said.out


def test_mutated_records_never_stop_it(repository: Repository) -> None:
    dice = random.Random(0)
    speed = {"tokens_per_s": 1000.0, "wall_s": 3.0, "step_s": [0.1]}
    items = [made(seed=seed, quality=scored(3.0), time=speed, started_at=None) for seed in range(30)]
    repository.commit()
    repository.record(label="sound", quality=scored(3.0))
    used = set()
    for turn in range(30):
        for item in items:
            put_mutated(repository.results / "many", item, dice)
        history = read(repository)
        used.add(history.runs)
        FORMATS[list(FORMATS)[turn % len(FORMATS)]](history).encode()
    assert len(used) > 3


def test_the_parts_of_a_history_cannot_be_changed(repository: Repository) -> None:
    repository.commit()
    repository.record()
    with pytest.raises(dataclasses.FrozenInstanceError):
        read(repository).series[0].row = "other"  # type: ignore[misc]


def test_conditions_are_written_out_once_for_runs_that_have_the_same(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def counted(item: Record, kind: Kind) -> Any:
        written.append(kind)
        return conditions(item, kind)

    monkeypatch.setattr(segments, "conditions", counted)
    for number in range(12):
        for seed in (0, 1):
            repository.record(sha=f"{number:040x}", folder=f"{number}-{seed}", seed=seed)
    history = read(repository)
    assert len(one(history, "peak memory").points) == 24
    assert sorted(set(written)) == ["memory", "status"]
    assert len(written) == 4, "for each seed and kind, whatever the number of commits"


def test_settings_are_written_out_once_for_each_config(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    original = segments._settings

    def counted(item: Record) -> dict[str, str]:
        asked.append(item.config_id)
        return original(item)

    monkeypatch.setattr(segments, "_settings", counted)
    for number in range(12):
        repository.record(sha=f"{number:040x}", folder=str(number))
    read(repository)
    assert len(asked) == len(set(asked)) == 1, "whatever the number of commits"
