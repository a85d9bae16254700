"""A job: the file in which the runner describes one run to a worker. No torch."""

from __future__ import annotations

import json
from dataclasses import field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from harness import strict_json
from harness.config import CheckpointConfig, Run
from harness.engine.process import progress_file
from harness.engine.resume import names
from harness.files import private
from harness.record import Record


@dataclass(frozen=True)
class Job:
    """One run, its folder for artefacts, the device and caches to use, and the command that repeats it.

    `inputs` are hashes of what it will read, by name; empty where they are not known. `kept` is where its
    checkpoints are, beside its folder where that is None. `extends` are the checkpoints of a shorter run that
    it goes on from where it has none.
    """

    run: Run
    suite: str
    folder: Path
    device: str
    cache: Path
    rerun: str
    inputs: dict[str, str] = field(default_factory=dict)
    kept: Path | None = None
    extends: Path | None = None

    @property
    def run_id(self) -> str:
        """The id of the run, without hashing its config again."""
        return self.folder.name

    @property
    def record(self) -> Path:
        """The path of the record, beside the folder of the run's artefacts."""
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def log(self) -> Path:
        """The path of everything that the worker prints."""
        return self.folder / "log.txt"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints of its training, which outlives an attempt."""
        return self.kept or self.folder.with_name(f"{self.folder.name}{names.SUFFIX}")

    @property
    def saving(self) -> CheckpointConfig | None:
        """How the state of its training is saved, None for never; one that is extended always saves it."""
        return self.run.train.checkpoint or (CheckpointConfig() if self.extends else None)

    @property
    def progress(self) -> Path:
        """The file that tells how far the run is, beside its checkpoints."""
        return self.checkpoints.with_name(f"{self.folder.name}{progress_file.SUFFIX}")

    @property
    def file(self) -> Path:
        """The path of the job file itself."""
        return self.folder / "job.json"

    def write(self) -> None:
        """Write the job file."""
        paths = {"folder": str(self.folder), "cache": str(self.cache)}  # may hold bytes that are no UTF-8
        others = {"kept": self.kept, "extends": self.extends}
        paths |= {name: str(path) for name, path in others.items() if path is not None}
        content = {"run": self.run.model_dump(mode="json"), "suite": self.suite, "device": self.device}
        content |= {**paths, "rerun": self.rerun, "inputs": self.inputs}
        with open(self.file, "w", encoding="utf-8", opener=private) as file:
            file.write(strict_json.text(content, indent=1))

    @classmethod
    def read(cls, path: Path) -> Job:
        """Undo `write`."""
        return TypeAdapter(Job).validate_python(json.loads(path.read_text(encoding="utf-8")))

    def blank(self) -> Record:
        """Return the record before anything is measured; its status is `interrupted`."""
        run = self.run
        return Record(
            run_id=run.run_id,
            config_id=run.config_id,
            suite=self.suite,
            label=run.name,
            seed=run.seed,
            repeat=run.repeat,
            tier=run.tier,
            config=run.canonical,
            rerun=self.rerun,
            inputs=self.inputs or None,
            started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
