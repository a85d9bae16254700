"""What the runner asks of a worker, as a file that one writes and the other reads. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from harness.config import Run
from harness.record import Record
from harness.validation import validate


@dataclass(frozen=True)
class Job:
    """One run, its folder for artefacts, the device it is for and the command that repeats it."""

    run: Run
    suite: str
    folder: Path
    device: str
    cache: Path
    rerun: str

    @property
    def record(self) -> Path:
        """The record stands beside the folder of the run's artefacts."""
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def log(self) -> Path:
        """All that the worker printed."""
        return self.folder / "log.txt"

    @property
    def file(self) -> Path:
        """The job itself."""
        return self.folder / "job.json"

    def write(self) -> None:
        """Write the job where the worker reads it."""
        content = {
            "run": self.run.model_dump(mode="json"),
            "suite": self.suite,
            "record": str(self.record),
            "folder": str(self.folder),
            "device": self.device,
            "cache": str(self.cache),
            "rerun": self.rerun,
        }
        self.file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        """Undo `write`."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            run=validate(Run, content["run"], where=str(path)),
            suite=content["suite"],
            folder=Path(content["folder"]),
            device=content["device"],
            cache=Path(content["cache"]),
            rerun=content["rerun"],
        )

    def blank(self) -> Record:
        """The record before anything was measured; it reads `interrupted`."""
        run = self.run
        return Record(
            run_id=run.run_id,
            config_id=run.config_id,
            suite=self.suite,
            label=run.name,
            seed=run.seed,
            repeat=run.repeat,
            tier=run.tier,
            config=run.model_dump(mode="json", exclude={"label"}),
            rerun=self.rerun,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
