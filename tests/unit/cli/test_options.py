"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.cli.options import Selection, use_threads
from harness.errors import UserError

SUITE = """
suite: small
baseline: full
{}
base: {{model: {{source: embedded}}, train: {{steps: 2}}}}
rows:
  - {{label: full, method: full}}
"""


@pytest.fixture
def variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is restored in the end, and absent now."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    del os.environ["OMP_NUM_THREADS"]


@pytest.fixture
def suite(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(SUITE.format("threads: 3"), encoding="utf-8")
    return str(path)


@pytest.mark.usefixtures("variable")
def test_runs_compute_on_the_threads_of_their_suite(suite: str) -> None:
    use_threads(Selection(suite).load())
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_the_variable_wins_over_the_threads_of_a_suite(suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    use_threads(Selection(suite).load())
    assert os.environ["OMP_NUM_THREADS"] == "5"


@pytest.mark.usefixtures("variable")
@pytest.mark.parametrize(
    "given",
    [{"model": "JackFram/llama-68m"}, {"settings": ["data.world=a"]}, {"settings": ["method=full"]}],
    ids=["model", "text", "method"],
)
def test_another_model_or_text_computes_on_all_threads(suite: str, given: dict[str, object]) -> None:
    """They may be of any size, and what the suite says is about its own."""
    use_threads(Selection(suite, **given).load())  # type: ignore[arg-type]
    assert "OMP_NUM_THREADS" not in os.environ


def test_no_threads_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    path.write_text(SUITE.format("threads: 0"), encoding="utf-8")
    with pytest.raises(UserError, match=r"none\.yaml:4: threads"):
        Selection(str(path)).load()
