"""The option `--jobs` of the programs beside the suites."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.papers.calculations import collecting
from benchmarks.studies import jobs
from harness.errors import UserError


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    jobs.add_to(made, default=2)
    return made


@pytest.mark.parametrize(("given", "number"), [([], 2), (["--jobs", "1"], 1), (["--jobs=16"], 16)])
def test_a_number_of_processes_is_taken(given, number) -> None:
    assert parser().parse_args(given).jobs == number


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5"])
def test_what_starts_no_process_is_refused_in_a_line(given, capsys) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args([f"--jobs={given}"])
    assert f"{given} is no number of processes; give at least 1" in capsys.readouterr().err


# ----------------------------------------------------------------------------------- the processes
def die(*_: Any) -> None:
    """As a process does for which there is no memory."""
    os._exit(9)


def several_in_one_pool() -> None:
    with jobs.pool(2) as pool:
        pool.submit(die).result()


def calculations() -> None:
    call = collecting.Call("a calculation", {"shape": "a shape"}, "a file")
    collecting.entries([call], jobs=2)


@pytest.mark.parametrize("work", [several_in_one_pool, calculations])
def test_a_process_that_dies_is_one_line(work: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "_keyed", die)
    with pytest.raises(UserError, match=r"^one of 2 processes died .* memory runs out; .* --jobs 1$"):
        work()


def test_what_goes_wrong_in_a_process_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), jobs.pool(1) as pool:
        pool.submit(divmod, 1, 0).result()
