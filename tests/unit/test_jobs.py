"""The option `--jobs` of the programs beside the suites."""

from __future__ import annotations

import argparse

import pytest

from benchmarks import jobs


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
