"""The acceptance on a GPU, as far as a CPU can tell: its flow on a tiny suite, and the code of its tests."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.studies import acceptance
from benchmarks.studies.acceptance import STAGES, Chosen, Stage
from benchmarks.studies.acceptance_table import pairs, rows, simulated_peaks
from harness import imports
from harness import suite as suites
from harness.config import OptimConfig
from harness.engine.models import shapes
from harness.engine.process.job import Job
from harness.engine.run import environment, phases
from harness.errors import UserError
from harness.record import Environment, Memory, Outcome, Parameters, Record, Time, TrainMemory
from harness.tables.format import DASH
from tests.contract.test_methods import CASES, Case
from tests.gpu import promises, watching
from tests.support import forked

CPU = torch.device("cpu")
GIB = 2**30
SUITE = """
suite: tiny
baseline: full
base:
  model: {source: shape, name: nano}
  data: {source: random, seq_len: 16}
  train: {steps: 8, batch: 2}
rows:
  - {label: full, method: full}
  - {label: galore, method: {galore: {rank: 4, period: 500}}, train.refresh_at: [4, 7]}
"""
TESTS = """
import pytest
from pathlib import Path

def test_that_passes(record_property):
    record_property("allocated", 7)
    with Path(__file__).with_name("calls.txt").open("a") as file:
        file.write("called\\n")

def test_that_fails():
    assert Path(__file__).with_name("mended").exists(), "not mended"

@pytest.mark.skip(reason="no reason")
def test_that_is_skipped():
    pass
"""


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chosen:
    """A suite of two runs, one stage that finds none, and a file of tests, on a CPU."""
    monkeypatch.setattr(acceptance, "CODE", ())
    monkeypatch.setattr(imports, "command", forked.command)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("LOREBENCH_CACHE", str(tmp_path / "cache"))
    suite = tmp_path / "tiny.yaml"
    suite.write_text(SUITE)
    tests = tmp_path / "test_tiny.py"
    tests.write_text(TESTS)
    stages = (Stage(str(suite)), Stage(str(suite), ("label=nobody",)))
    return Chosen(tmp_path / "results", "cpu", (tests,), stages)


def calls(chosen: Chosen) -> int:
    file = chosen.tests[0].with_name("calls.txt")
    return len(file.read_text().splitlines()) if file.exists() else 0


# ------------------------------------------------------------------------------------------- the flow
def test_a_call_does_what_is_left_and_the_next_does_nothing_again(
    chosen: Chosen, capfd: pytest.CaptureFixture[str]
) -> None:
    assert acceptance.accept(chosen, minutes=4) == 1  # a test fails
    said = capfd.readouterr().out
    assert "tests: 1 passed, 1 failed, 1 skipped" in said
    assert "test_that_fails: AssertionError: not mended" in said
    (machine,) = chosen.results.iterdir()
    found = {path.name: path.stat().st_mtime_ns for path in (machine / "tiny").glob("*.json")}
    assert len(found) == 2
    kept = json.loads((machine / "acceptance" / "tests.json").read_text())["files"]["test_tiny.py"]
    assert kept["cases"][0]["noted"] == {"allocated": "7"}
    page = (machine / "acceptance" / "table.md").read_text()
    assert page.count("| ok |") == 2
    assert "galore / full: throughput" in page
    assert DASH not in [line.split(" | ")[5] for line in page.splitlines() if "| ok |" in line]
    assert "left:" not in said

    assert acceptance.accept(chosen, minutes=4) == 1
    said = capfd.readouterr().out
    assert "==" not in said
    assert calls(chosen) == 1
    assert {path.name: path.stat().st_mtime_ns for path in (machine / "tiny").glob("*.json")} == found


def test_no_time_starts_nothing_and_says_what_is_left(
    chosen: Chosen, capfd: pytest.CaptureFixture[str]
) -> None:
    assert acceptance.accept(chosen, minutes=0.1) == 0
    said = capfd.readouterr().out
    assert "left: 2 runs, 1 file of tests, 0 simulations" in said
    assert "nothing has run yet" in said
    assert calls(chosen) == 0


def test_the_tests_are_repeated_when_asked_for_and_when_their_code_has_changed(
    chosen: Chosen, tmp_path: Path
) -> None:
    def again(retry: bool = False) -> int:
        now = Chosen(chosen.results, "cpu", chosen.tests, (), retry)
        return int(acceptance.try_out(tmp_path / "kept", now, lambda: 120.0)["test_tiny.py"]["failed"])

    assert again() == 1
    chosen.tests[0].with_name("mended").touch()
    assert (again(), calls(chosen)) == (1, 1)
    assert (again(retry=True), calls(chosen)) == (0, 2)
    assert (again(retry=True), calls(chosen)) == (0, 2)
    chosen.tests[0].write_text(TESTS + "# changed\n")
    assert (again(), calls(chosen)) == (0, 3)


def test_what_does_not_end_in_time_is_stopped_and_not_taken_for_done(tmp_path: Path) -> None:
    endless = tmp_path / "test_endless.py"
    endless.write_text("import time\n\ndef test_endless():\n    time.sleep(600)\n")
    left = iter([acceptance.LEAST_S, 2.0])  # for the decision to start, and for the limit
    done = acceptance.try_out(tmp_path, Chosen(tmp_path, "cpu", (endless,), ()), lambda: next(left))
    assert done == {}


def test_a_command_that_heeds_nothing_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance, "GRACE_S", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
    began = time.monotonic()
    assert acceptance.call([sys.executable, "-c", deaf], 1.0) is None
    assert time.monotonic() - began < 60
    assert acceptance.call([sys.executable, "-c", "import sys; sys.exit(3)"], 60) == 3


def test_a_stage_with_a_cap_tells_the_worker_and_the_others_do_not(
    chosen: Chosen, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[str], dict[str, str]]] = []

    def noted(command: list[str], limit_s: float, **variables: str) -> int:
        seen.append((command, variables))
        return 0

    monkeypatch.setattr(acceptance, "call", noted)
    name = chosen.stages[0].suite
    stages = (Stage(name, ("label=full",), 24), Stage(name, ("label=galore",)))
    limited = Chosen(chosen.results, "cpu", (), stages, retry=True)
    acceptance.carry_out(*acceptance.prepare(limited), limited, lambda: 60.0)
    (capped, cap), (_, free) = seen
    assert (cap, free) == ({"LOREBENCH_CUDA_GIB": "24"}, {})
    program = imports.command("harness.cli")
    assert tuple(capped[: len(program) + 2]) == (*program, "run", name)
    assert {"--only=label=full", "--device=cpu", "--retry"} <= set(capped)
    assert [word for word in capped if word.startswith("--budget=")]


def test_without_a_gpu_one_line_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert acceptance.main(["--results", str(tmp_path)]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "sees no CUDA device here" in said.err
    assert acceptance.main(["--minutes", "-1"]) == 2
    assert "--minutes -1: give more than 0" in capfd.readouterr().err


@pytest.mark.parametrize("name", sorted({stage.suite for stage in STAGES} - {"shapes"}))
def test_every_run_of_the_headlines_is_in_a_stage_and_is_supported(name: str) -> None:
    from harness.engine.run import checks

    suite = suites.load(name)
    caught = {run.run_id for s in STAGES if s.suite == name for run in suite.only(s.only).runs}
    assert caught == {run.run_id for run in suite.runs}
    for run in suite.runs:
        checks.supported(run, checks.stack(run))
        assert run.train.dtype == "bfloat16"
        assert run.data.source == "random"


def test_the_cap_is_written_the_same_in_both_places() -> None:
    assert acceptance.CAP == environment.CAP
    assert environment.CAP in environment.VARIABLES


# ---------------------------------------------------------------------------------------- the cap, MFU
@pytest.mark.parametrize("asked", ["0", "-1", "much", "nan", "inf", "1e9"])
def test_a_cap_that_makes_no_sense_is_one_line(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 139 * GIB

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
    monkeypatch.setenv(environment.CAP, asked)
    with pytest.raises(UserError, match=r"LOREBENCH_CUDA_GIB='.*': give GiB above 0, at most the 139.0"):
        environment.cap(torch.device("cuda"))


def test_a_cap_holds_the_share_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 96 * GIB

    held: list[tuple[float, torch.device]] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: held.append(given))
    monkeypatch.setenv(environment.CAP, "24")
    assert environment.cap(torch.device("cuda:0")) == 24 * GIB
    assert held == [(0.25, torch.device("cuda:0"))]


def test_a_cpu_cannot_be_held_under_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.cap(CPU) is None
    monkeypatch.setenv(environment.CAP, "24")
    with pytest.raises(UserError, match="a GPU alone"):
        environment.cap(CPU)


class Writer:
    """Enough of a record writer for the phases."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.time = self.record.time = Time()

    def notify(self, **event: object) -> None:
        pass

    def keep(self, series: object) -> None:
        pass


@pytest.mark.parametrize(("device", "known"), [("NVIDIA H200", True), ("a cpu", False)])
def test_a_run_notes_its_mfu_where_the_peak_is_known(
    device: str, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = watching.run_of(CASES["full"], shape="nano", length=16, batch=2, dtype="bfloat16", steps=8)
    job = Job(run, "s", tmp_path / "run", "cpu", tmp_path, "")
    described = environment.describe(CPU).model_copy(update={"device": device})
    monkeypatch.setattr(environment, "describe", lambda device, state_bits: described)
    going = phases.RunInProgress(job, Writer(job.blank()))  # type: ignore[arg-type]
    going.load()
    going.train(going.prepare())
    clock, memory = going.record.time, going.record.memory
    assert clock is not None
    assert memory is not None
    assert clock.tokens_per_s is not None
    # nano: 2 layers of 4 x 32 x 32 + 3 x 32 x 88, a head of 64 x 32; 2 layers, 4 heads of 8, 16 tokens
    flops = 6 * (2 * (4 * 32 * 32 + 3 * 32 * 88) + 64 * 32) + 12 * 2 * 4 * 8 * 16
    assert clock.mfu == (pytest.approx(clock.tokens_per_s * flops / 989.5e12) if known else None)
    assert (memory.requested_bytes, memory.cap_bytes) == (None, None)


# ------------------------------------------------------------------------------------------ the table
def measured(label: str, peak: int, speed: float, status: str = "ok") -> Record:
    """A record of a GPU with one plain and one refresh step timed twice."""
    run = watching.run_of(CASES["full"], shape="nano").model_copy(update={"label": label})
    parts = dict.fromkeys(("weights_trainable", "weights_frozen", "gradients", "optimizer", "buffers"), 0)
    train = TrainMemory(
        peak_allocated_bytes=peak,
        transient_bytes=peak,
        **{f"{part}_bytes": size for part, size in parts.items()},
        window_first_step=3,
        window_last_step=5,
        refreshes_in_window=1,
    )
    return Record(
        run_id=f"{label}-s0-r0",
        config_id=label,
        suite="headlines",
        label=label,
        seed=0,
        repeat=0,
        tier="shapes",
        config=run.model_dump(mode="json"),
        rerun="",
        outcome=Outcome.model_validate({"status": status}),
        memory=Memory(meter="cuda", train=train, requested_bytes=peak // 2),
        time=Time(step_s=[1, 3, 5, 9], refresh_step=[False, True, False, True], tokens_per_s=speed, mfu=0.5),
        parameters=Parameters(total=1, trainable=1),
        environment=Environment(device="d", cpu="c", cpu_threads=1, system="s", python="3", packages={}),
    )


def test_a_line_sets_measured_and_simulated_beside_each_other() -> None:
    peaks = {"near-s0-r0": 101 * GIB, "far-s0-r0": 103 * GIB}
    near, far, odd = rows([measured(label, 100 * GIB, 2000) for label in ("near", "far", "odd")], peaks)
    assert near[4:] == ("100.00", "101.00", "1.0100", "50.00", "3.0000", "6.0000", "2,000", "50.0")
    assert far[6] == "1.0300 !"
    assert odd[5:7] == (DASH, DASH)


def test_pairs_are_ratios_to_the_baseline_of_the_suite() -> None:
    found = [measured("full", 100 * GIB, 1000), measured("welore 50 %", 60 * GIB, 3000)]
    (said,) = pairs(found, {"headlines": "full"})
    assert said == "headlines, nano: welore 50 % / full: throughput 3.000, peak memory 0.600"
    assert pairs(found, {"headlines": "nobody"}) == []
    elsewhere = measured("galore", 50 * GIB, 2000)
    elsewhere.config["model"]["name"] = "9m"
    assert pairs([*found, elsewhere], {"headlines": "full"}) == [said]


def test_forecasts_are_cached_and_a_failing_one_is_no_peak(tmp_path: Path) -> None:
    good, bad = measured("good", GIB, 1), measured("bad", GIB, 1)
    bad.config["model"]["name"] = "nowhere"
    assert simulated_peaks([good, bad], tmp_path, lambda: False) == ({}, 2)
    peaks, missing = simulated_peaks([good, bad], tmp_path, lambda: True)
    assert peaks == {"good-s0-r0": watching.watch(watching.run_of(CASES["full"], shape="nano"), CPU).live}
    assert missing == 0
    assert simulated_peaks([good], tmp_path, lambda: False) == (peaks, 0)


# ------------------------------------------------------------------- the tests on a GPU, tried on a CPU
@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests of promises train on a CPU: matrices just large enough for states of 8 bits."""
    monkeypatch.setitem(shapes.SHAPES, "mini", shapes.Shape(64, 128, 2, 2, vocab=64, context=32))
    monkeypatch.setattr(promises, "SMALL", {"shape": "mini", "length": 16, "batch": 2})


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("full", "bfloat16"), ("galore", "float32"), ("welore + lora", "bfloat16")],
)
def test_three_rulers_agree_on_a_cpu_to_the_byte(name: str, dtype: str) -> None:
    run = watching.run_of(CASES[name], shape="nano", length=24, batch=3, dtype=dtype)
    seen = watching.watch(run, CPU)
    assert seen.live == seen.simulated
    assert seen.refreshed == (name == "galore")
    exact = watching.watch(run, CPU, granularity=1)
    assert exact.allocated == exact.live == exact.simulated < seen.live
    assert exact.requested is None


def test_ranks_that_move_leave_the_rulers_within_the_tolerance() -> None:
    """A simulation has the ranks of the last refresh from the first step on."""
    run = watching.run_of(CASES["adarankgrad, 8 bits per layer"], shape="nano", length=24, batch=3)
    seen = watching.watch(run, CPU, granularity=1)
    assert seen.allocated == seen.live
    assert seen.refreshed
    assert not seen.complaints()


def test_rulers_that_disagree_are_complained_of() -> None:
    def complaints(live: int, simulated: int, refreshed: bool = False) -> int:
        return len(watching.Seen(1000, 1000, live, simulated, refreshed).complaints())

    assert [complaints(980, 1020), complaints(979, 1000), complaints(1000, 1021)] == [0, 1, 1]
    assert [complaints(760, 760, True), complaints(740, 1000, True), complaints(1030, 1000, True)] == [
        0,
        1,
        1,
    ]


def test_a_training_that_holds_more_than_its_simulation_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, watching.NAME, shapes.Shape(32, 64, 2, 2, vocab=64, context=32))
    run = watching.run_of(CASES["full"], length=16, batch=2)
    assert not watching.watch(run, CPU, granularity=1).complaints()
    hoard, plain = [], watching.ready

    def wasteful(*given: Any) -> Any:
        hoard.append(torch.ones(5000))
        return plain(*given)

    monkeypatch.setattr(watching, "ready", wasteful)
    (said,) = watching.watch(run, CPU, granularity=1).complaints()
    assert said.startswith("simulated / allocated is 0.")


@pytest.mark.parametrize(("bits", "dtype"), [(32, torch.float32), (16, torch.bfloat16), (8, torch.uint8)])
@pytest.mark.usefixtures("small")
def test_the_dtypes_of_states_are_read_on_a_cpu_too(bits: int, dtype: torch.dtype) -> None:
    optim = OptimConfig.model_validate({"state_bits": bits})
    assert promises.state_dtypes(Case([("full", {})], optim), "bfloat16", CPU) == {("cpu", dtype)}


@pytest.mark.usefixtures("small")
def test_fused_updates_are_seen_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from methods.parts.optim import adamw

    assert promises.fused_devices(CASES["lora"], CPU) == {"cpu"}
    plain = adamw.adamw
    monkeypatch.setattr(
        adamw, "adamw", lambda *given, fused, **others: plain(*given, foreach=False, **others)
    )
    assert promises.fused_devices(CASES["lora"], CPU) == set()


@pytest.mark.usefixtures("small")
def test_gradients_that_stay_are_seen() -> None:
    assert promises.gradients_after_backward(CASES["full, 8 bits per layer"], CPU) == []
    assert promises.gradients_after_backward(CASES["full"], CPU)


@pytest.mark.usefixtures("small")
def test_the_saving_of_per_layer_updates_is_seen() -> None:
    per_layer, plain, gradients = promises.peak_per_layer_and_not(CPU, shape="mini", length=4, batch=1)
    assert plain - per_layer > 0.5 * gradients


@pytest.mark.usefixtures("small")
def test_equal_runs_are_equal_and_the_check_leaves_torch_as_it_was() -> None:
    assert promises.equal_twice(CASES["lora"], CPU)
    assert not torch.are_deterministic_algorithms_enabled()


def test_both_clocks_run_on_a_cpu() -> None:
    by_clock, by_wall = promises.clock_against_wall(CPU, repeats=2, size=64)
    assert 0 < by_clock <= by_wall
