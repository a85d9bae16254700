"""A disk that is full when a sweep starts: one line, nothing half written, and the same command goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import record
from harness.files import ROOT
from tests.support import forked
from tests.support.small_disk import small_disk

SUITE = """
suite: nano
base:
  model: {source: shape, name: nano}
  data: {source: random, seq_len: 16}
  train: {stage: pretrain, steps: 4, batch: 2}
rows:
- {label: full, method: full}
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB in memory."""
    with small_disk(tmp_path / "disk", "size=256k") as place:
        yield place


@pytest.mark.parametrize("pages", [4])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(pages: int, disk: Path, tmp_path: Path) -> None:
    suite = tmp_path / "nano.yaml"
    suite.write_text(SUITE)
    with (disk / "fill").open("wb") as fill:
        fill.write(bytes(256 * 1024 - 4096 * pages))

    def run() -> subprocess.CompletedProcess[str]:
        command = [*forked.command("harness.cli"), "run", str(suite), "--results", str(disk / "runs")]
        environment = {**os.environ, "LOREBENCH_CACHE": str(tmp_path / "cache")}
        return subprocess.run(
            [*command, "--device", "cpu"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    full = run()
    assert full.returncode == 2
    assert "Traceback" not in full.stdout + full.stderr
    assert "No space left on device" in full.stderr.splitlines()[-1]
    assert not list(disk.rglob(".*.tmp"))
    (disk / "fill").unlink()
    assert run().returncode == 0
    (path,) = (disk / "runs").glob("*/nano/*.json")
    assert record.read(path).outcome.status == "ok"
