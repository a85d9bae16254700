"""A repository with commits, and records of each of them, for tests of the history."""

from __future__ import annotations

import math
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.tables.history.build import build
from harness.tables.history.loading import collect
from harness.tables.history.series import History
from tests.support.gate_records import environment, made, put


def load(folders: list[Path], suite: str, committed: bool = False, **options: Any) -> History:
    """The history of a suite from the records below some folders."""
    return build(collect(folders, suite, committed), folders, **options)


@dataclass
class Repository:
    """A git repository in a folder of its own, with results in `results/` below it."""

    place: Path
    commits: list[str] = field(default_factory=list)

    @classmethod
    def at(cls, place: Path) -> Repository:
        """An empty repository."""
        place.mkdir(parents=True, exist_ok=True)
        found = cls(place)
        found.git("init", "-q", "-b", "main")
        return found

    @property
    def results(self) -> Path:
        """The folder of records."""
        return self.place / "results"

    def git(self, *arguments: str) -> str:
        """Ask git, apart from the settings of this user."""
        command = ["git", "-C", str(self.place), "-c", "user.name=a", "-c", "user.email=a@b.c"]
        command += ["-c", "commit.gpgsign=false", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def commit(self, message: str = "change something") -> str:
        """Commit all there is; the full name of the commit."""
        (self.place / "code").write_text(f"{len(self.commits)}")
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        self.commits.append(self.git("rev-parse", "HEAD"))
        return self.commits[-1]

    def record(
        self, sha: str | None = None, label: str = "row", folder: str | None = None, **parts: Any
    ) -> Path:
        """Put a record of a commit (the newest one) into a folder of results that is named after it.

        `stand` replaces values of the environment; the start follows from the number of the commit.
        """
        sha = self.commits[-1] if sha is None else sha
        day = self.commits.index(sha) + 1 if sha in self.commits else 28
        here = environment(**{"git_sha": sha or None, **parts.pop("stand", {})})
        repeat = parts.get("repeat", 0)
        start = f"2026-11-{day:02d}T10:{repeat:02d}:{parts.get('seed', 0):02d}+00:00"
        item = made(label, environment=here, **{"started_at": start, **parts})
        return put(self.results / (sha[:7] if folder is None else folder), item)


def scored(perplexity: float, tokens: int = 600, windows: int = 30) -> dict[str, Any]:
    """The quality of a run with one perplexity."""
    nats = math.log(perplexity) * tokens
    counts = {"tokens": tokens, "windows": windows, "dropped_tokens": 0, "text": "a text"}
    return {"perplexity": {"text": {"perplexity": perplexity, "nll_nats": nats, **counts}}}
