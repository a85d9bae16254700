"""A run that cannot fit its device is refused before anything starts; the others of its suite run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from sweeping import Remember, starts, stub_settings, suite_of

from harness.cli import main as cli
from harness.config import Run
from harness.engine import runner
from harness.engine.forecast import admission
from harness.engine.runner import Settings, Sweep, sweep
from tests.support import forecaster

GIB = 1 << 30


def sized(batch: int, label: str | None = None, do: str = "ok", **changes: Any) -> Run:
    """A run that needs `batch` GiB by the word of the worker."""
    content = {
        "model": {"source": "shape", "name": "llama-2-7b"},
        "data": {"source": "random", "seq_len": 2},
        "train": {"stage": "pretrain", "batch": batch},
        "method": {"name": "stub:Stub", "options": {"do": do}},
        "label": label,
    }
    return Run.model_validate({**content, **changes})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A device of 4 GiB."""
    (tmp_path / "device_bytes").write_text(str(4 * GIB))
    return stub_settings(tmp_path, command=forecaster.command(tmp_path))


@pytest.fixture
def go(settings: Settings, display: Remember) -> Callable[..., Sweep]:
    def go(*runs: Run, **changes: Any) -> Sweep:
        chosen = Settings(**{**settings.__dict__, **changes})
        return sweep(suite_of(*runs), chosen, display, lambda run: "")

    return go


Go = Callable[..., Sweep]


def test_a_run_that_cannot_fit_is_refused_and_the_others_run(
    go: Go, settings: Settings, display: Remember
) -> None:
    small, large = sized(4, "small"), sized(5, "large")
    result = go(large, small)
    says = (
        "llama-2-7b large: needs at least 5.0 GiB, stub has 4.0 GiB; choose a smaller batch, length or "
        "model, see lorebench plan, or --force"
    )
    assert result.refused == {large.run_id: says}
    assert list(result.records) == starts(settings) == [small.run_id]
    assert display.notes == [f"refused: {says}"]
    assert not (result.folder / f"{large.run_id}.json").exists()


def test_force_starts_it_and_simulates_nothing(go: Go, settings: Settings, tmp_path: Path) -> None:
    run = sized(5, "large")
    result = go(run, force=True)
    assert (result.refused, starts(settings)) == ({}, [run.run_id])
    assert forecaster.asked(tmp_path) == []


def test_nothing_is_simulated_where_the_size_of_the_device_is_not_known(go: Go, tmp_path: Path) -> None:
    (tmp_path / "device_bytes").unlink()
    assert go(sized(5)).refused == {}
    assert forecaster.asked(tmp_path) == []


def test_the_embedded_model_is_not_simulated(go: Go, tmp_path: Path) -> None:
    assert go(sized(5, model={"source": "embedded"})).refused == {}
    assert forecaster.asked(tmp_path) == []


def test_what_is_finished_or_ran_well_here_with_another_seed_is_not_simulated(go: Go, tmp_path: Path) -> None:
    go(sized(2, "a"), sized(3, "b", do="oom"))
    assert forecaster.asked(tmp_path) == [["a", "b"]]
    for file in (tmp_path / "cache" / "forecasts").iterdir():
        file.unlink()
    result = go(sized(2, "a"), sized(2, "a", seed=1), sized(3, "b", do="oom"))
    assert len(result.records) == 3
    assert forecaster.asked(tmp_path) == [["a", "b"]]
    go(sized(3, "b", do="oom", seed=1))
    assert forecaster.asked(tmp_path)[1:] == [["b"]], "a run that ran out of memory says nothing about room"


def test_a_forecast_is_kept_for_the_next_sweep(go: Go, tmp_path: Path) -> None:
    assert len(go(sized(5)).refused) == 1
    assert len(go(sized(5, seed=1)).refused) == 1
    assert len(forecaster.asked(tmp_path)) == 1


@pytest.mark.parametrize("label", ["failed", "unsupported", "refused", "die"])
def test_a_simulation_without_a_result_stops_no_run(
    label: str, go: Go, settings: Settings, display: Remember
) -> None:
    run = sized(5, label)
    assert go(run).refused == {}
    assert starts(settings) == [run.run_id]
    noted = label in ("failed", "die")
    says = f"{label}: no forecast of its memory: the simulation failed:"
    assert [note.startswith(says) for note in display.notes] == [True] * noted


def test_a_worker_that_cannot_simulate_stops_no_run(go: Go, tmp_path: Path, display: Remember) -> None:
    (tmp_path / "broken").touch()
    assert go(sized(5)).refused == {}
    assert ["exited with code 3" in note for note in display.notes] == [True]


# --------------------------------------------------------------------------------- the command line
@pytest.fixture
def lorebench(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command line with the worker of these tests."""
    monkeypatch.setenv("LOREBENCH_CACHE", str(tmp_path / "cache"))
    chosen = lambda **given: Settings(**given, command=settings.command)  # noqa: E731
    monkeypatch.setattr(runner, "Settings", chosen)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lorebench", *arguments, "--results", str(tmp_path / "results")])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return (code, *capsys.readouterr())

    return call


def suite_file(folder: Path, *runs: Run) -> str:
    rows = [json.loads(run.model_dump_json()) for run in runs]
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump({"suite": "s", "rows": rows}))
    return str(path)


def test_the_command_ends_with_code_2_and_the_figures_after_the_others_ran(
    lorebench: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    path = suite_file(tmp_path, sized(5, "large"), sized(5, "large", seed=1), sized(1, "small"))
    code, out, err = lorebench("run", path)
    assert code == 2
    says = "llama-2-7b large: needs at least 5.0 GiB, stub has 4.0 GiB; choose"
    assert err.splitlines()[-1].startswith(f"lorebench: {says}")
    assert err.splitlines()[-1].count(says) == 1, "seeds of one config are said once"
    assert len(list((tmp_path / "results").glob("*/s/*.json"))) == 1
    code, out, err = lorebench("run", path, "--force")
    assert (code, len(list((tmp_path / "results").glob("*/s/*.json")))) == (0, 3), (out, err)


def test_the_real_worker_says_how_large_the_device_is() -> None:
    import psutil
    import torch

    from harness.engine import worker

    answer = worker.resolve({"runs": [], "device": "cpu"})
    assert answer["device_bytes"] == psutil.virtual_memory().total
    if torch.cuda.is_available():
        assert worker.resolve({"runs": [], "device": "cuda"})["device_bytes"] > GIB
    assert admission.GIB == GIB
