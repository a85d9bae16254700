"""Fixtures of the runner's tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sweeping import Remember, stub_settings, suite_of

from harness.config import Run
from harness.engine.runner import Settings, Sweep, sweep


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return stub_settings(tmp_path)


@pytest.fixture
def display() -> Remember:
    return Remember()


@pytest.fixture
def carry_out(settings: Settings, display: Remember) -> Callable[..., Sweep]:
    """Sweep over runs with the stub worker; keywords replace settings."""

    def go(*runs: Run, **changes: Any) -> Sweep:
        chosen = replace(settings, **changes)
        return sweep(suite_of(*runs), chosen, display, lambda run: f"lorebench run --only {run.run_id}")

    return go
