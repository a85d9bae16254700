"""Forecasts for the parent: computed once, cached at once, and never taken for that of another run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import record as records
from harness.config import Run
from harness.engine.forecast import cache, client
from harness.engine.forecast.admission import is_ample, refusals
from harness.engine.forecast.cache import ForecastAnswer, ForecastRequest, Keys
from harness.engine.forecast.client import ForecastClient, read_ranks
from harness.engine.process.child import Worker
from harness.engine.process.job import Job
from harness.errors import UserError
from harness.forecast import SETTINGS
from tests.support import forecaster

GIB = 1 << 30


def run_of(label: str = "a", batch: int = 1, **changes: Any) -> Run:
    """A run that needs `batch` GiB by the word of the test's worker."""
    content = {
        "model": {"source": "shape", "name": "60m"},
        "data": {"source": "random", "seq_len": 2},
        "train": {"stage": "pretrain", "batch": batch},
        "method": "full",
        "label": label,
    }
    return Run.model_validate({**content, **changes})


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def forecasts(tmp_path: Path, notes: list[str]) -> ForecastClient:
    return ForecastClient(tmp_path / "cache", forecaster.command(tmp_path), notify=notes.append)


def ask(forecasts: ForecastClient, *runs: Run) -> list[ForecastAnswer]:
    return forecasts.ask([ForecastRequest(run) for run in runs])


def cached(forecasts: ForecastClient) -> list[Path]:
    return sorted((forecasts.cache / "forecasts").glob("*"))


# ------------------------------------------------------------------------------------------ the cache
def test_what_was_answered_once_starts_no_worker(forecasts: ForecastClient, tmp_path: Path) -> None:
    first = ask(forecasts, run_of(batch=1), run_of(batch=2))
    again = ask(forecasts, run_of(batch=2), run_of(batch=1))
    assert [answer.report.peak_allocated_bytes for answer in first if answer.report] == [GIB, 2 * GIB]
    assert again == first[::-1]
    assert forecaster.asked(tmp_path) == [["a", "a"]]
    ask(forecasts, run_of(batch=1), run_of(batch=3, label="new"))
    assert forecaster.asked(tmp_path) == [["a", "a"], ["new"]], "only what is missing is asked for"


def test_seeds_repeats_and_labels_of_one_config_are_one_simulation(
    forecasts: ForecastClient, tmp_path: Path
) -> None:
    answers = ask(forecasts, run_of(), run_of(seed=1), run_of(repeat=2), run_of(label="b"))
    assert forecaster.asked(tmp_path) == [["a"]] or forecaster.asked(tmp_path) == [["b"]]
    assert len({answer.model_dump_json() for answer in answers}) == 1


def test_the_largest_batch_is_asked_for_and_cached_beside_the_report(
    forecasts: ForecastClient, tmp_path: Path
) -> None:
    requests = [
        ForecastRequest(run_of()),
        ForecastRequest(run_of(), "batch", 5 * GIB),
        ForecastRequest(run_of(), "batch", 7 * GIB),
    ]
    answers = forecasts.ask(requests)
    assert [answer.capacity and answer.capacity.largest for answer in answers] == [None, 5, 7]
    assert forecasts.ask(requests) == answers
    assert len(forecaster.asked(tmp_path)) == 1


def key(run: Run, ranks: Any = None, setting: Any = None, limit: int | None = None) -> str:
    return Keys(ranks).of(ForecastRequest(run, setting, limit))


def test_the_key_is_of_the_config_the_ranks_and_what_is_asked() -> None:
    run = run_of()
    keys = [
        key(run),
        key(run_of(batch=2)),
        key(run, "upper"),
        key(run, {"layers": {"q": 1}}),
        key(run, {"layers": {"q": 2}}),
        key(run, None, "batch", GIB),
        key(run, None, "seq_len", GIB),
        key(run, None, "batch", 2 * GIB),
    ]
    assert len(set(keys)) == len(keys)
    assert key(run_of("other", seed=3, repeat=1)) == keys[0]


def test_the_key_changes_with_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(run_of())
    for package in cache.PACKAGES:
        with monkeypatch.context() as patch:
            patch.setattr(
                "harness.files.installed", lambda name, new=package: "new" if name == new else "old"
            )
            assert key(run_of()) != before
            before = key(run_of())
    monkeypatch.setattr(cache, "FORECAST_VERSION", 99)
    assert key(run_of()) != before


def test_the_key_changes_with_the_code_of_a_method_which_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_alone.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "mine_package").mkdir()
    (tmp_path / "mine_package" / "__init__.py").write_text("raise SystemExit('imported')\n")
    for name, file in (("mine_alone", "mine_alone.py"), ("mine_package.inner", "mine_package/inner.py")):
        (tmp_path / file).write_text("1\n")
        run = run_of(method=f"{name}:Mine")
        before = key(run)
        assert key(run) == before
        (tmp_path / file).write_text("2\n")
        assert key(run) != before


@pytest.mark.parametrize("method", ["mine_of_two:Mine", {"optim": {"type": "mine_of_two:Mine"}}])
def test_the_key_changes_with_what_a_method_imports(
    method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # as for a worker, the current folder is searched as well
    (tmp_path / "mine_of_two.py").write_text("from helper_of_mine import rank\n")
    (tmp_path / "helper_of_mine.py").write_text("rank = 1\n")
    before = key(run_of(method=method))
    (tmp_path / "helper_of_mine.py").write_text("rank = 2\n")
    assert key(run_of(method=method)) != before


def test_the_key_is_of_all_code_that_simulates() -> None:
    hashed = Keys(None)
    hashed.sources(run_of())
    names = {path.name for path in hashed._files}
    simulating = {"dry_run.py", "fake_tensors.py", "train.py", "forecast.py", "spectrum.py"}
    assert {*simulating, "galore.py", "adamw.py"} <= names


def test_the_key_changes_with_what_matters_of_a_models_folder(tmp_path: Path) -> None:
    run = run_of(model={"source": "local", "path": str(tmp_path)})
    keys = [key(run)]
    for name, content in (
        ("config.json", "1"),
        ("config.json", "2"),
        ("factors.json", "1"),
        ("other.txt", "1"),
    ):
        (tmp_path / name).write_text(content)
        keys.append(key(run))
    assert len(set(keys)) == 4
    assert keys[-1] == keys[-2], "other files do not matter"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"kind": "report"}', '{"kind": "failed", "reason": "x"}']
)
def test_a_file_that_is_no_forecast_is_computed_again(
    content: str, forecasts: ForecastClient, tmp_path: Path, notes: list[str]
) -> None:
    first = ask(forecasts, run_of())
    (path,) = cached(forecasts)
    good = path.read_bytes()
    path.write_text(content)
    assert ask(forecasts, run_of()) == first
    assert notes == [f"{path}: not a forecast of this run; computed again"]
    assert path.read_bytes() == good
    assert len(forecaster.asked(tmp_path)) == 2


def test_the_forecast_of_another_run_is_not_taken_for_this_one(
    forecasts: ForecastClient, tmp_path: Path
) -> None:
    ask(forecasts, run_of(batch=1))
    (one,) = cached(forecasts)
    other = one.read_bytes()
    ask(forecasts, run_of(batch=2))
    (two,) = set(cached(forecasts)) - {one}
    two.write_bytes(other)
    (answer,) = ask(forecasts, run_of(batch=2))
    assert answer.report is not None
    assert answer.report.peak_allocated_bytes == 2 * GIB


def test_a_write_that_breaks_off_leaves_nothing_that_would_be_read(
    forecasts: ForecastClient, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        (answer,) = ask(forecasts, run_of())
    assert answer.report is not None, "the answer is there all the same"
    assert [path for path in cached(forecasts) if not path.name.startswith(".")] == []
    assert "the forecast is not stored: No space left on device" in notes[0]


def test_a_cache_that_cannot_be_written_is_only_noted(forecasts: ForecastClient, notes: list[str]) -> None:
    forecasts.cache.write_text("a file")
    assert ask(forecasts, run_of())[0].report is not None
    assert len(notes) >= 1


# ------------------------------------------------------------------------------------------ the worker
def test_what_was_done_before_an_interruption_is_cached(forecasts: ForecastClient, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forecasts.ask([ForecastRequest(run_of()), ForecastRequest(run_of("hang", batch=2))], stop)
    ask(forecasts, run_of(), run_of("b", batch=3))
    assert forecaster.asked(tmp_path) == [["a", "hang"], ["b"]]


def test_a_worker_that_dies_costs_only_the_question_that_it_died_of(
    forecasts: ForecastClient, tmp_path: Path
) -> None:
    runs = [run_of(), run_of("die", batch=2), run_of("c", batch=3)]
    answers = ask(forecasts, *runs)
    assert [answer.kind for answer in answers] == ["report", "failed", "report"]
    assert answers[1].reason.startswith("the simulation failed: worker killed by SIGKILL")
    assert forecaster.asked(tmp_path) == [["a", "die", "c"], ["c"]]
    ask(forecasts, *runs)
    assert forecaster.asked(tmp_path)[2:] == [["die"]], "such an end is not cached"


def test_a_worker_that_never_starts_is_started_once(forecasts: ForecastClient, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    answers = ask(forecasts, run_of(), run_of(batch=2))
    assert [answer.kind for answer in answers] == ["failed", "failed"]
    assert answers[0].reason == "the simulation failed: worker exited with code 3 and left no result"
    assert not cached(forecasts)


def test_a_worker_that_is_gone_before_it_is_asked_is_no_accident(
    forecasts: ForecastClient, tmp_path: Path, monkeypatch
) -> None:
    """Its end comes first here, as on a busy machine; then closing its input sends the question again."""
    at_once = Worker.ask

    def late(worker: Worker, *rest: Any) -> str:
        worker.process.wait()
        return at_once(worker, *rest)

    (tmp_path / "broken").touch()
    monkeypatch.setattr(Worker, "ask", late)
    assert [answer.kind for answer in ask(forecasts, run_of(), run_of(batch=2))] == ["failed", "failed"]


def test_only_what_stays_true_is_cached(forecasts: ForecastClient, tmp_path: Path) -> None:
    labels = ["unsupported", "refused", "failed"]
    runs = [run_of(label, batch=number) for number, label in enumerate(labels, 1)]
    answers = ask(forecasts, *runs)
    assert [answer.reason for answer in answers] == list(forecaster.ANSWERS.values())
    assert ask(forecasts, *runs) == answers
    assert forecaster.asked(tmp_path) == [labels, ["refused", "failed"]]


def test_ranks_that_are_wrong_for_all_end_it(forecasts: ForecastClient) -> None:
    with pytest.raises(UserError, match="--ranks unknown: known: upper"):
        ForecastClient(forecasts.cache, forecasts.command, "unknown").ask([ForecastRequest(run_of())])


def test_progress_counts_what_is_answered(forecasts: ForecastClient) -> None:
    ask(forecasts, run_of())
    progress = []
    requests = [
        ForecastRequest(run_of()),
        ForecastRequest(run_of("b", batch=2)),
        ForecastRequest(run_of("c", batch=3)),
    ]
    forecasts.ask(requests, lambda request, done, total: progress.append((request.run.label, done, total)))
    assert progress == [("b", 2, 3), ("c", 3, 3)]


# ------------------------------------------------------------------------------------------ refusals
def refused(
    forecasts: ForecastClient, *runs: Run, gib: float = 4, notify: Callable[[str], None] = print
) -> dict[str, str]:
    return refusals(runs, "cuda", int(gib * GIB), forecasts.cache, forecasts.command, notify)


def test_only_what_certainly_cannot_fit_is_refused(forecasts: ForecastClient) -> None:
    runs = [run_of(batch=batch) for batch in (3, 4, 5)]
    assert refused(forecasts, *runs) == {
        runs[
            2
        ].run_id: "60m a: needs at least 5.0 GiB, cuda:0 has 4.0 GiB; choose a smaller batch, length or "
        "model, see lorebench plan, or --force"
    }


def test_a_simulation_that_fails_refuses_nothing_and_is_noted(forecasts: ForecastClient) -> None:
    notes: list[str] = []
    runs = [run_of("failed", batch=9), run_of("unsupported", batch=8), run_of("failed", batch=9, seed=1)]
    assert refused(forecasts, *runs, notify=notes.append) == {}
    assert notes == ["failed: no forecast of its memory: the simulation failed: KeyError: 'x'"]


def test_small_shapes_on_large_devices_and_the_embedded_model_are_not_simulated(
    forecasts: ForecastClient, tmp_path: Path
) -> None:
    nano = run_of(batch=64, model={"source": "shape", "name": "nano"})
    embedded = run_of(model={"source": "embedded"})
    assert refused(forecasts, nano, embedded) == {}
    assert forecaster.asked(tmp_path) == []
    assert not is_ample(nano, 1 << 20)
    assert not is_ample(run_of(model={"source": "shape", "name": "llama-2-7b"}), 1 << 40)
    assert not is_ample(run_of(model={"source": "hub", "id": "x/y"}), 1 << 60)


@pytest.mark.parametrize("method", ["full", "galore", "sltrain"])
def test_a_run_that_is_not_simulated_would_have_fitted(method: str) -> None:
    from harness.engine.forecast.dry_run import simulate

    nano = {"source": "shape", "name": "nano"}
    run = run_of(batch=8, model=nano, data={"source": "random", "seq_len": 64}, method=method)
    peak = simulate(run).peak_allocated_bytes
    smallest = next(1 << size for size in range(20, 60) if is_ample(run, 1 << size))
    assert peak * 8 < smallest, "with room to spare for methods that need more"


# ------------------------------------------------------------------------------------------ ranks by people
def test_a_word_is_the_name_of_an_approximation() -> None:
    assert read_ranks("upper") == ("upper", "the approximation 'upper'")


@pytest.mark.parametrize(
    ("content", "source"),
    [
        ({"q": 3, "k": 1}, {"layers": {"q": 3, "k": 1}}),
        ({"welore": {"q": 3}, "welore#2": {"q": 1}}, {"methods": {"welore": {"q": 3}, "welore#2": {"q": 1}}}),
    ],
)
def test_a_file_gives_ranks_by_layer_or_by_method(content: Any, source: Any, tmp_path: Path) -> None:
    (tmp_path / "ranks.json").write_text(json.dumps(content))
    assert read_ranks(str(tmp_path / "ranks.json")) == (source, "the file ranks.json")


def record_with(chosen: dict[str, dict[str, int]] | None) -> records.Record:
    record = Job(run_of("mine"), "s", Path("x"), "cpu", Path("c"), "").blank()
    if chosen is not None:
        record.parameters = records.Parameters(total=1, trainable=1, chosen_ranks=chosen)
    return record


def test_a_record_gives_the_ranks_that_it_chose(tmp_path: Path) -> None:
    record = record_with({"welore": {"q": 3}})
    records.write(record, tmp_path / "r.json")
    assert read_ranks(str(tmp_path / "r.json")) == (
        {"methods": {"welore": {"q": 3}}},
        f"the record {record.run_id} (mine)",
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: No such file or directory; give a record or a JSON file"),
        ("{", "not JSON"),
        ("[1]", "no ranks; write {layer: rank} or {method: {layer: rank}}"),
        ("{}", "no ranks; write"),
        ('{"q": -1}', "q: rank -1; a rank is a whole number from 1"),
        ('{"q": 0}', "q: rank 0; a rank"),
        ('{"q": 1.5}', "q: rank 1.5; a rank"),
        ('{"q": true}', "q: rank true; a rank"),
        ('{"q": 1, "lora": {"q": 2}}', 'lora: rank {"q": 2}; a rank'),
        ('{"welore": {"q": "2"}}', 'welore: q: rank "2"; a rank'),
        ('{"welore": {}}', "welore: no ranks; write"),
        ('{"welor": {"q": 2}}', "unknown method 'welor'; did you mean 'welore'"),
        ('{"schema_version": 99}', "schema version 99"),
        (record_with(None).model_dump_json(), "this record chose no ranks; give one of a method that does"),
    ],
)
def test_a_mistake_in_a_file_of_ranks_is_one_line(content: str | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "ranks.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_ranks(str(path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------ in the worker
def answers_to(ranks: Any, *runs: Run) -> list[dict[str, Any]]:
    from harness.engine.forecast.server import answer_all

    items = [
        {
            "key": str(number),
            "run": run.model_dump(mode="json"),
            "setting": None,
            "limit": None,
            "meter": "cuda",
            "peak": None,
        }
        for number, run in enumerate(runs)
    ]
    sent: list[dict[str, Any]] = []
    answer_all({"ranks": ranks, "items": items}, sent.append)
    assert sent.pop(0) == {"ready": True}
    return [event["answer"] for event in sent]


def test_an_unknown_approximation_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"--ranks uper: neither a file .* did you mean 'upper'\?"):
        answers_to("uper")
    with pytest.raises(UserError, match="known: filled, power-law, published, uniform, upper"):
        answers_to("x")


def test_why_there_is_no_report_is_said_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.engine.forecast import server

    nano = {"model": {"source": "shape", "name": "nano"}}
    clipped = {"stage": "pretrain", "per_layer": True, "clip": 1.0}
    compress = {"welore": {"err": 0.5, "train": "none"}}
    given = {"methods": {"lora": {"q": 1}}}
    kinds = answers_to(
        given,
        run_of(**nano),
        run_of(**nano, train=clipped),
        run_of(**nano, method=compress, train={"stage": "compress"}),
    )
    assert [answer["kind"] for answer in kinds] == ["report", "unsupported", "refused"]

    def broken(*_: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(server, "simulate", broken)
    (failed,) = answers_to(None, run_of(**nano))
    assert (failed["kind"], failed["reason"]) == ("failed", "the simulation failed: KeyError: 'x'")


def test_ranks_without_a_method_are_for_the_only_one_that_needs_some() -> None:
    from harness.engine.forecast.server import ranks_for

    one, given = {"welore": {"err": 0.5}}, {"layers": {"q": 1}}
    assert ranks_for(run_of(), given) is None
    assert ranks_for(run_of(method=[one, "full"]), given) == {"welore": {"q": 1}}
    assert ranks_for(run_of(method=one), {"methods": {"welore": {"q": 1}}}) == {"welore": {"q": 1}}
    with pytest.raises(UserError, match="welore and welore#2 both need some"):
        ranks_for(run_of(method=[one, one]), given)


def test_a_real_worker_answers_a_real_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.engine.forecast.dry_run import simulate
    from harness.engine.process.child import WORKER

    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(forecaster.ROOT), os.environ.get("PYTHONPATH", "")])
    )
    run = run_of(model={"source": "shape", "name": "nano"}, data={"source": "random", "seq_len": 16})
    report = simulate(run)
    requests = [ForecastRequest(run), ForecastRequest(run, "batch", 2 * report.peak_allocated_bytes)]
    forecast, capacity = ForecastClient(tmp_path, WORKER).ask(requests)
    assert forecast.report == report
    assert capacity.capacity is not None
    assert capacity.capacity.largest > 1


def test_many_configs_are_dealt_out_whole_to_several_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A config's searches need its peak, so they go where its forecast goes."""
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    runs = [run_of(batch=batch) for batch in range(1, 31)]
    requests = {
        f"{run.config_id} {setting}": ForecastRequest(run, setting, GIB)
        for run in runs
        for setting in SETTINGS
    }
    shares = client._shares(requests)
    assert [len(share) for share in shares] == [20, 20, 20]
    assert {key for share in shares for key in share} == set(requests)
    for share in shares:
        mine = {request.run.config_id for request in share.values()}
        others = {q.run.config_id for other in shares if other is not share for q in other.values()}
        assert not mine & others
    few = dict(list(requests.items())[:6])  # three configs
    assert client._shares(few) == [few]
