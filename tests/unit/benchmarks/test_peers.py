"""The comparison with peers: its statistics, its file and its page, and that its cases do the same work."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.studies.peers import __main__ as peers
from benchmarks.studies.peers import adarankgrad, apollo, bench, galore, plain, sampled
from benchmarks.studies.peers.bench import (
    Case,
    Duel,
    PeerMissingError,
    agreement,
    alternate,
    peer_package,
    quartiles,
    ratios,
)
from benchmarks.studies.peers.table import Environment, Measured, Result, page, render
from harness.engine.run.environment import ROOT
from harness.files import installed

HAS_GALORE_TORCH = installed("galore-torch") != "absent"


# ------------------------------------------------------------------------------------------- timing
class Workshop:
    """Two sides whose work moves a clock by hand, on a machine that slows down from call to call."""

    def __init__(self, ours_s: float, peer_s: float, slowdown: float = 1.0) -> None:
        self.now, self.pace, self.slowdown = 0.0, 1.0, slowdown
        self.log: list[str] = []
        self.duel = Duel(self._side("ours", ours_s), self._side("peer", peer_s))

    def _side(self, name: str, seconds: float) -> Callable[[], None]:
        def work() -> None:
            self.log.append(name)
            self.now += seconds * self.pace
            self.pace *= self.slowdown

        return work

    def clock(self) -> float:
        return self.now


def test_a_duel_of_known_times_gives_these_times_and_their_ratio() -> None:
    workshop = Workshop(0.3, 1.2)
    times = alternate(workshop.duel, 5, workshop.clock)
    assert times.ours == pytest.approx([0.3] * 5)
    assert times.peer == pytest.approx([1.2] * 5)
    assert ratios(times.ours, times.peer) == pytest.approx([0.25] * 5)


def test_both_sides_warm_up_once_and_take_turns_to_begin() -> None:
    workshop = Workshop(1.0, 1.0)
    alternate(workshop.duel, 3, workshop.clock)
    assert workshop.log == ["ours", "peer", *["ours", "peer"], *["peer", "ours"], *["ours", "peer"]]


def test_a_machine_that_slows_down_does_not_move_the_median_ratio() -> None:
    """The times double from the first round to the last, and the second side is a little later."""
    workshop = Workshop(0.5, 1.0, slowdown=1.05)
    times = alternate(workshop.duel, 12, workshop.clock)
    assert times.peer[-1] > 2 * times.peer[0]
    assert quartiles(ratios(times.ours, times.peer))[1] == pytest.approx(0.5, rel=0.01)
    assert sum(times.ours) / sum(times.peer) == pytest.approx(0.5, rel=0.05)


def test_work_too_short_for_the_clock_is_repeated_within_a_round_and_divided_again() -> None:
    workshop = Workshop(0.001, 0.002)
    times = alternate(workshop.duel, 2, workshop.clock)
    assert workshop.log.count("ours") == workshop.log.count("peer") == 1 + 2 * 25
    assert times.ours == pytest.approx([0.001] * 2)
    assert times.peer == pytest.approx([0.002] * 2)


def test_quartiles_are_interpolated_between_the_values_and_never_outside() -> None:
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([3.0, 1.0, 2.0]) == (1.5, 2.0, 2.5)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_results_that_lie_apart_are_refused() -> None:
    ours = torch.tensor([3.0, 4.0])
    assert agreement(ours, ours * (1 + 1e-5), 1e-4) == "1e-05"
    with pytest.raises(ValueError, match=r"do different work: they lie 5\.0e-01 apart"):
        agreement(ours, 2 * ours, 1e-4)
    with pytest.raises(ValueError, match="nan"):
        agreement(ours * float("nan"), ours, 1e-4)


# ------------------------------------------------------------------------------------ file and page
def results(**environment: Any) -> Measured:
    """One case that met its target, one that missed it, one without a target, two without times."""
    name = {"shape": "2 x 3", "peer": "its authors' code"}
    return Measured(
        environment=Environment(
            **{"cpu": "Abacus 1", "threads": 2, "python": "3.11.7", "packages": {"torch": "2.13"}}
            | environment
        ),
        results=[
            Result(
                **name,
                method="a",
                work="met",
                target=0.5,
                ours_s=[0.001, 0.002, 0.003],
                peer_s=[0.01] * 3,
                facts={"distance": "1e-07", "rank": "3"},
            ),
            Result(**name, method="a", work="missed", target=0.88, ours_s=[4.0] * 2, peer_s=[5.0, 4.0]),
            Result(**name, method="b", work="untold", ours_s=[0.01234], peer_s=[0.02]),
            Result(**name, method="b", work="absent", target=0.5, missing="x is not installed"),
            Result(**name, method="b", work="broken", target=0.5, error="failed: ValueError: a | b"),
        ],
    )


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each row behind its method, by its work."""
    lines = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[1]: cells[2:] for cells in lines[2:]}


def test_the_page_shows_times_ratios_targets_and_what_was_missed() -> None:
    text = render(results().model_dump(mode="json"))
    table = rows(text)
    head = ["2 x 3", "its authors' code"]
    assert table["met"] == [*head, "2", "10", "0.200 (0.150-0.250)", "0.5", "yes", "distance: 1e-07; rank: 3"]
    assert table["missed"][2:7] == ["4000", "4500", "0.900 (0.850-0.950)", "0.88", "**no**"]
    assert table["untold"][2:5] == ["12.3", "20", "0.617 (0.617-0.617)"]
    assert "Targets met: 1 of 2." in text
    assert "## Abacus 1, 2 threads" in text
    assert "Python 3.11.7, torch 2.13." in text


def test_a_peer_that_is_not_installed_and_a_case_that_failed_are_shown_and_not_judged() -> None:
    text = render(results().model_dump(mode="json"))
    assert rows(text)["absent"][4:7] == ["x is not installed", "0.5", ""]
    assert "failed: ValueError: a \\| b" in text


def test_the_page_holds_the_parts_of_all_machines_and_nothing_of_the_day(tmp_path: Path) -> None:
    for name, cpu in (("b", "Abacus 2"), ("a", "Abacus 1")):
        (tmp_path / f"{name}.json").write_text(results(cpu=cpu).model_dump_json())
    text = page(tmp_path)
    assert text == page(tmp_path)
    assert text.index("## Abacus 1") < text.index("## Abacus 2")
    assert "nox -s tables" in text.splitlines()[0]
    assert text.endswith("|\n")


def test_a_file_of_another_schema_is_refused() -> None:
    content = results().model_dump(mode="json") | {"schema_version": 2}
    with pytest.raises(ValueError, match="schema_version"):
        render(content)


def test_the_page_of_this_project_follows_from_its_numbers() -> None:
    folder = ROOT / "results" / "peers"
    if not folder.exists():
        pytest.skip("no numbers are there")
    written = (ROOT / "results" / "tables" / "peers.md").read_text(encoding="utf-8")
    assert written == page(folder), "run: nox -s tables"


# ------------------------------------------------------------------------------------------ the command
@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """The command on four cases of which one has no peer and one fails; returns its exit code."""

    def known(ours: str, fails: type[Exception] | None = None) -> Callable[[], Duel]:
        def set_up() -> Duel:
            if fails is not None:
                raise fails("galore-torch is not installed" if fails is PeerMissingError else "bad")
            return Duel(lambda: None, lambda: None, {"side": ours})

        return set_up

    made = [
        Case("m", "first", "tiny", "p", known("one"), target=1e9),
        Case("m", "second", "tiny", "p", known("two")),
        Case("m", "absent", "tiny", "p", known("", PeerMissingError)),
        Case("n", "broken", "tiny", "p", known("", RuntimeError)),
    ]
    monkeypatch.setattr(peers, "collect", lambda quick: made)
    monkeypatch.setattr(bench, "ROUND_S", 1e-4)
    return lambda *arguments: peers.main([*arguments, "--out", str(tmp_path)])


def measured(tmp_path: Path) -> Measured:
    (file,) = (tmp_path / "peers").glob("*.json")
    return Measured.model_validate_json(file.read_text())


def test_every_case_is_written_and_one_that_fails_takes_no_other_along(
    program: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program("--rounds", "2") == 1
    found = measured(tmp_path).results
    assert [result.work for result in found] == ["first", "second", "absent", "broken"]
    assert [len(result.ours_s) for result in found] == [2, 2, 0, 0]
    assert found[2].missing == "galore-torch is not installed"
    assert found[3].error == "failed: RuntimeError: bad"
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("m: first, tiny, beside p: ")
    assert "target 1000000000.0 met; side: one" in printed[0]
    assert printed[2].endswith("galore-torch is not installed")
    assert (tmp_path / "tables" / "peers.md").read_text() == page(tmp_path / "peers")


def test_a_peer_that_is_not_installed_is_no_failure(program: Callable[..., int]) -> None:
    assert program("--only", "ABSENT") == 0


def test_chosen_cases_are_merged_into_what_is_there(program: Callable[..., int], tmp_path: Path) -> None:
    assert program("--only", "second", "--rounds", "1") == 0
    assert program("--only", "first", "--rounds", "3") == 0
    assert program("--only", "second", "--rounds", "2") == 0
    found = measured(tmp_path).results
    assert [(result.work, len(result.ours_s)) for result in found] == [("first", 3), ("second", 2)]


def test_numbers_of_another_machine_or_package_are_not_mixed_with_these(
    program: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program("--only", "first", "--rounds", "1") == 0
    (file,) = (tmp_path / "peers").glob("*.json")
    content = json.loads(file.read_text())
    content["environment"]["packages"]["torch"] = "1.0"
    file.write_text(json.dumps(content))
    assert program("--only", "second", "--rounds", "1") == 0
    assert "starting over" in capsys.readouterr().out
    assert [result.work for result in measured(tmp_path).results] == ["second"]


def test_a_spent_budget_begins_no_case(program: Callable[..., int], tmp_path: Path) -> None:
    assert program("--budget", "-1") == 0
    assert not (tmp_path / "peers").exists()


def test_what_chooses_or_measures_nothing_is_refused(
    program: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert program("--only", "fourth") == 2
    assert "no case contains 'fourth'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        program("--rounds", "0")
    assert "--rounds 0 measures nothing" in capsys.readouterr().err


def test_all_cases_have_names_of_their_own_and_tiny_ones_no_target() -> None:
    for quick in (True, False):
        found = peers.collect(quick)
        labels = [peers.case_label(case) for case in found]
        assert len(set(labels)) == len(labels)
        assert {case.method for case in found} >= {"galore", "adarankgrad", "lora", "full"}
        assert not quick or all(case.target is None for case in found)


# ------------------------------------------------------------------------------------------ the cases
def quick_cases() -> Iterator[Case]:
    """Those of this file's modules; VeLoRA's and SLTrain's have tests of their own."""
    for module in (galore, adarankgrad, apollo, plain):
        yield from module.cases(quick=True)


def needs_galore_torch(case: Case) -> bool:
    return galore.PEER in case.peer


@pytest.mark.parametrize("case", list(quick_cases()), ids=peers.case_label)
def test_a_case_can_be_set_up_and_both_sides_can_be_called_again_and_again(case: Case) -> None:
    """Each checks while it is set up that both sides do the same work."""
    try:
        duel = case.set_up()
    except PeerMissingError as missing:
        pytest.skip(str(missing))
    for _ in range(3):
        duel.ours()
        duel.peer()
    distances = [float(value) for key, value in duel.facts.items() if key.endswith("differ by")]
    assert all(distance <= 1e-4 for distance in distances)
    if "energy" in " ".join(duel.facts):
        assert float(duel.facts["captured energy / exact"]) > 0.999


def test_lisa_says_the_bytes_and_the_peaks_of_states_that_are_dropped_kept_and_the_peers() -> None:
    (case,) = sampled.cases(quick=True)
    found = {key: int(value) for key, value in case.set_up().facts.items() if "differ" not in key}
    states, peaks = (
        [found[f"{what}, {who}"] for who in ("ours", "ours kept", "peer")]
        for what in ("bytes of states", "peak of a step beyond what was there")
    )
    assert states[1] == pytest.approx(states[2], rel=1e-2)
    assert states[0] < 0.9 * states[1]
    assert all(peak > 0 for peak in peaks)
    totals = [state + peak for state, peak in zip(states, peaks, strict=True)]
    assert totals[0] <= totals[2]


def test_without_galore_torch_its_cases_say_so_and_all_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ROUND_S", 1e-4)
    galore.setting.cache_clear()
    for module in [name for name in sys.modules if name.startswith("galore_torch")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "galore_torch", None)
    with pytest.raises(PeerMissingError, match="galore-torch is not installed"):
        peer_package("galore_torch.galore_projector", "galore-torch")
    for case in quick_cases():
        result = peers.measure(case, rounds=1)
        wanted = "galore-torch is not installed" if needs_galore_torch(case) else None
        if apollo.PEER not in case.peer:
            assert result.problem == wanted, case.work


@pytest.mark.skipif(not HAS_GALORE_TORCH, reason="galore-torch is not installed")
def test_a_step_with_other_settings_than_the_peers_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = galore.one_matrix

    def other_scale(*arguments: Any, **options: Any) -> Any:
        return honest(*arguments, **options, scale=0.2)

    monkeypatch.setattr(galore, "one_matrix", other_scale)
    with pytest.raises(ValueError, match="different work"):
        galore.plain_step(24, 16, 4)


@pytest.mark.skipif(not HAS_GALORE_TORCH, reason="galore-torch is not installed")
def test_the_gradient_of_a_refresh_has_a_spectrum_that_falls_like_a_power() -> None:
    values = torch.linalg.svdvals(galore.setting(96, 64, 8).gradient)
    assert 4 < float(values[0] / values[7]) < 12
    assert 0.9 < float(values[:16].square().sum() / values.square().sum()) < 0.99


def test_a_missed_target_has_its_reason_on_the_page_and_a_met_one_none() -> None:
    def said(ours: float) -> str:
        result = {"method": "galore", "work": "plain step", "shape": "s", "peer": "p", "target": 0.5}
        times = {"ours_s": [ours], "peer_s": [1.0], "facts": {}}
        environment = {"cpu": "c", "threads": 1, "python": "3", "packages": {}}
        return render({"environment": environment, "results": [{**result, **times}]})

    assert "why targets are missed" in said(0.9)
    assert "why targets are missed" not in said(0.4)
