"""An installed wheel has all that the commands need, in an empty folder and with no checkout beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.docs.sources import PACKAGES, files

ROOT = Path(__file__).resolve().parents[3]
pytest.importorskip("hatchling")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a wheel of this code was installed to; it has no scripts to build."""
    place = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (wheel,) = place.glob("lorebench-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "site")
    return place / "site"


def lorebench(site: Path, folder: Path, *arguments: str) -> str:
    """What a command prints in a folder; only dependencies are found elsewhere."""
    command = [sys.executable, "-P", "-m", "harness.cli", *arguments]
    variables = {**os.environ, "PYTHONPATH": str(site), "LOREBENCH_CACHE": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_every_file_of_the_packages_and_the_mark_of_types(installed: Path) -> None:
    wanted = [path for path in files() if path.parts[0] in PACKAGES]
    assert len(wanted) > 200
    assert not [path for path in wanted if not (installed / path).is_file()]
    assert (installed / "harness" / "py.typed").is_file()


QUICK = [("suites",), ("paper", "all")]
SLOW = [
    ("methods", "welore"),
    ("devices",),
    ("paper", "galore", "--table", "6b"),
    ("paper", "errata", "--format", "md"),
    ("run", "welore", "--dry-run"),
    ("plan", "welore", "--only", "label=full", "--on", "h200"),
]


@pytest.mark.parametrize("command", [*QUICK, *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)])
def test_commands_say_the_same_from_a_wheel_as_from_the_checkout(
    installed: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    for name in ("installed", "checkout"):
        (tmp_path / name).mkdir()
    ours = lorebench(installed, tmp_path / "installed", *command)
    theirs = lorebench(ROOT, tmp_path / "checkout", *command)
    assert ours.replace("/installed/", "/checkout/") == theirs
    assert ours.strip()


def test_the_baselines_of_peak_memory_are_there(installed: Path) -> None:
    assert (installed / "results" / "baselines" / "memory.json").is_file()
