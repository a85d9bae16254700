"""A job as a file: what the parent writes, the worker reads."""

from __future__ import annotations

import os
from pathlib import Path

from harness.config import Run
from harness.engine.process.job import Job


def test_a_job_is_read_as_it_was_written_in_a_folder_whose_name_is_no_utf8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"runs\xff") / "id"
    folder.mkdir(parents=True)
    run = Run.model_validate(
        {
            "model": {"source": "shape", "name": "nano"},
            "data": {"source": "random", "seq_len": 16},
            "method": ["full"],
            "seed": 2,
        }
    )
    job = Job(run, "stubs", folder, "cpu", folder / "cache", "lorebench run")
    job.write()
    assert Job.read(job.file) == job
