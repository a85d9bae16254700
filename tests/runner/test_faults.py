"""Real workers that break in every phase: each is a row with its status and phase, and the sweep goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from sweeping import ROOT, Remember, alive, suite_of, wait_until

from harness import record as records
from harness import series
from harness.config import Run
from harness.engine.process.child import WORKER, Worker
from harness.engine.process.job import Job
from harness.engine.runner import Settings, Sweep, sweep
from harness.record import PHASES, Record

#: What may differ between two runs of one config and one seed: when, how long, and how much of the
#: host's memory the process held besides. Everything else must be equal, digit by digit. The state of
#: the code is left out because a person may save a file while this test runs.
NOT_COMPARED = {
    "started_at": True,
    "time": {"phase_s", "wall_s", "plain_steps", "refresh_steps", "tokens_per_s"},
    "series": True,  # holds the seconds of each step
    "memory": {"host_rss_bytes"},
    "environment": {"git_sha", "git_dirty_sha256"},
}
#: Each phase and each fault once; the slow tests have all pairs.
SELECTION = [
    ("memory", "load"),
    ("exception", "prepare"),
    ("sigkill", "train"),
    ("memory", "evaluate"),
    ("exception", "export"),
]
STATUS = {"exception": "error", "memory": "oom", "hang": "timeout", "sigkill": "error"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    write_inputs(folder)
    return folder


def write_inputs(folder: Path) -> None:
    """Write a text to train on and to score, and a tokenizer of 64 words for it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<s>", "</s>", "<unk>", *(f"w{number}" for number in range(61))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    documents = (" ".join(f"w{(start + 7 * place) % 61}" for place in range(30)) for start in range(60))
    (folder / "text.txt").write_text("\n\n".join(documents))


@pytest.fixture(scope="module", autouse=True)
def _workers_find_the_method() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        yield


def tiny(folder: Path, fault: str = "none", phase: str = "train", **changes: Any) -> Run:
    """A run that goes through all five phases within a second of its worker's start."""
    content = {
        "model": {"source": "shape", "name": "nano", "tokenizer": str(folder / "tokenizer")},
        "data": {
            "source": "files",
            "paths": [str(folder / "text.txt")],
            "separator": "\n\n",
            "seq_len": 16,
        },
        "train": {"steps": 3, "batch": 2},
        "evaluate": {"perplexity": ["heldout"]},
        "method": {"name": "tests.runner.faulty:Faulty", "options": {"fault": fault, "phase": phase}},
        "save_weights": True,
        "label": f"{fault} in {phase}",
    }
    return Run.model_validate({**content, **changes})


def settings_for(folder: Path, **changes: Any) -> Settings:
    given = {"results": folder / "results", "cache": folder / "cache", "device": "cpu"}
    return Settings(**{**given, **changes})


def carry_out(settings: Settings, runs: Iterable[Run], name: str = "faults") -> Sweep:
    return sweep(suite_of(*runs, name=name), settings, Remember(), lambda run: f"lorebench run {name}")


def ends(result: Sweep) -> dict[str, tuple[str, str | None]]:
    return {r.label: (r.outcome.status, r.outcome.phase) for r in result.records.values()}


def by_label(result: Sweep) -> dict[str, Record]:
    return {record.label: record for record in result.records.values()}


def faults_and_more(folder: Path) -> list[Run]:
    """The quick selection, a run without a fault and one with another seed."""
    faults = [tiny(folder, fault, phase) for fault, phase in SELECTION]
    return [*faults, tiny(folder), tiny(folder, seed=1, label="another seed")]


@pytest.fixture(scope="module")
def done(folder: Path) -> Sweep:
    """All but the last run, by workers from end to end; the one that is killed twice."""
    settings = settings_for(folder, deadline_s=120.0)
    first = carry_out(settings, faults_and_more(folder)[:-1])
    assert len(first.killed) == 1
    again = carry_out(settings, faults_and_more(folder)[:-1])
    assert again.done_now == list(first.killed)
    return again


# --------------------------------------------------------------------------------------------- faults
def test_a_fault_in_each_phase_is_a_row_and_the_sweep_goes_on(done: Sweep) -> None:
    expected = {f"{fault} in {phase}": (STATUS[fault], phase) for fault, phase in SELECTION}
    assert ends(done) == {**expected, "none in train": ("ok", "export")}
    found = by_label(done)
    for label in ("memory in load", "memory in evaluate"):
        assert found[label].outcome.requested_bytes == 2**51
    assert "this is not a shape I know" in found["exception in prepare"].outcome.message
    assert found["sigkill in train"].outcome.message.startswith("worker killed by SIGKILL")
    assert found["sigkill in train"].outcome.log_tail[-1] == "about to: sigkill"
    assert (done.folder / found["none in train"].run_id / "weights").is_dir()


def test_a_run_that_breaks_keeps_what_it_had_measured(done: Sweep) -> None:
    broken = by_label(done)["exception in export"]
    assert broken.training is not None
    assert broken.training.steps == 3
    assert broken.quality is not None
    assert broken.quality.perplexity["heldout"].tokens > 0


def test_running_again_does_only_what_is_left(done: Sweep, folder: Path) -> None:
    again = carry_out(settings_for(folder, results=done.folder.parents[1]), faults_and_more(folder))
    assert [again.records[key].label for key in again.done_now] == ["another seed"]
    assert {key: again.records[key] for key in done.records} == done.records


def test_one_seed_gives_one_record_and_another_seed_another(done: Sweep, folder: Path) -> None:
    again = carry_out(settings_for(folder), faults_and_more(folder))
    twice = carry_out(settings_for(folder, results=folder / "twice"), [tiny(folder)])

    def compared(record: Record) -> dict[str, Any]:
        return record.model_dump(mode="json", exclude=NOT_COMPARED)

    first, second = by_label(done)["none in train"], by_label(twice)["none in train"]
    assert first.outcome.status == "ok"
    assert compared(first) == compared(second)
    assert series.losses(first) == series.losses(second)
    assert first.training != by_label(again)["another seed"].training


def test_a_worker_ends_with_code_2_and_one_line_where_only_loading_shows_bad_input(tmp_path: Path) -> None:
    run = tiny(tmp_path, "none", "train")
    job = Job(run, "faults", tmp_path / "faults" / run.run_id, "cpu", tmp_path / "cache", "")
    job.folder.mkdir(parents=True)
    job.write()
    events: list[Mapping[str, Any]] = []
    worker = Worker([*WORKER, "run", str(job.file)], job.log)
    assert worker.follow(60.0, events.append) is None
    worker.stop(1.0)
    assert worker.process.returncode == 2
    (said,) = [str(event["error"]) for event in events if "error" in event]
    outcome = records.read(job.record).outcome
    assert (outcome.status, outcome.phase, outcome.message) == ("interrupted", "load", said)
    assert str(tmp_path / "tokenizer") in said
    assert "\n" not in said


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_every_fault_in_every_phase(phase: str, folder: Path) -> None:
    faults = ["exception", "memory", "hang", "sigkill"]
    runs = [*(tiny(folder, fault, phase) for fault in faults), tiny(folder)]
    settings = settings_for(folder, deadline_s=25.0)
    carry_out(settings, runs, f"all-{phase}")
    result = carry_out(settings, runs, f"all-{phase}")  # what was killed is tried once more
    expected = {f"{fault} in {phase}": (STATUS[fault], phase) for fault in faults}
    assert ends(result) == {**expected, "none in train": ("ok", "export")}


@pytest.mark.slow
def test_every_kind_of_memory_error_and_a_loss_that_is_no_number_have_their_status(folder: Path) -> None:
    runs = [tiny(folder, fault, "train") for fault in ("gpu memory", "python memory", "nan")]
    result = carry_out(settings_for(folder), runs, "kinds")
    assert [r.outcome.status for r in result.records.values()] == ["oom", "oom", "diverged"]
    assert by_label(result)["gpu memory in train"].outcome.requested_bytes == 3 * 2**29


# ------------------------------------------------------------------------------------------- kill -9
SCRIPT = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from test_faults import carry_out, faults_and_more, settings_for, tiny
folder = Path(sys.argv[1])
runs = [*faults_and_more(folder)[:-1], tiny(folder, "hang", "evaluate")]
carry_out(settings_for(folder, deadline_s=300.0), runs)
"""


def test_kill_9_of_the_runner_leaves_no_worker_and_a_second_sweep_does_the_rest(
    done: Sweep, folder: Path
) -> None:
    paths = [str(ROOT), str(Path(__file__).parent)]
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT.format(paths=paths), str(folder)])
    run_id = tiny(folder, "hang", "evaluate").run_id
    log = done.folder / run_id / "log.txt"
    wait_until(lambda: log.exists() and "about to: hang" in log.read_text(), seconds=90.0)
    (worker,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    wait_until(lambda: not alive(worker.pid), seconds=20.0)
    assert records.read(done.folder / f"{run_id}.json").outcome.status == "interrupted"

    # Long enough for a worker to come to the evaluation on a machine that is as busy as this one.
    took = by_label(done)["none in train"].time
    assert took is not None
    assert took.wall_s is not None
    settings = settings_for(folder, deadline_s=10.0 + 2 * took.wall_s)
    result = carry_out(settings, [*faults_and_more(folder)[:-1], tiny(folder, "hang", "evaluate")])
    assert result.done_now == [run_id]
    assert ends(result)["hang in evaluate"] == ("timeout", "evaluate")
    assert result.records[run_id].training is not None
