"""Answers about the memory of runs, and the folder that keeps them. No torch.

An answer is kept under a hash of all that decides it: the config, the ranks, the code, its libraries and what
matters of a model's folder. So nothing kept is ever stale, and nothing has to be thrown away by hand.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.config import Run
from harness.engine.models.shapes import model_folder
from harness.files import installed
from harness.forecast import FORECAST_VERSION, Capacity, MemoryReport, Setting
from harness.registry import check_name

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
#: What of a model's folder decides memory: its architecture and the ranks of its factors.
FOLDER_FILES = ("config.json", "factors.json")

#: The name of an approximation, {"layers": {layer: rank}}, {"methods": {method: {layer: rank}}}, or defaults.
RankSource = str | dict[str, Any] | None
Say = Callable[[str], None]


@dataclass(frozen=True)
class ForecastRequest:
    """A run's memory, or with `setting` the largest value of it whose peak is at most `limit` bytes."""

    run: Run
    setting: Setting | None = None
    limit: int | None = None


class ForecastAnswer(BaseModel):
    """A report, a capacity, or why there is none.

    `unsupported` and `refused` are what the run itself would say, `failed` a fault of the simulation alone.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["report", "capacity", "unsupported", "refused", "failed"]
    report: MemoryReport | None = None
    capacity: Capacity | None = None
    reason: str = ""

    @property
    def lasting(self) -> bool:
        """Whether the same question gets this answer again; a user may have mended the rest meanwhile."""
        return self.kind not in ("refused", "failed")

    def fits(self, request: ForecastRequest) -> bool:
        """Whether it answers this question, as far as it says."""
        if self.kind == "report":
            return self.report is not None and self.report.config_id == request.run.config_id
        if self.kind == "capacity":
            found, asked = self.capacity, (request.setting, request.limit)
            return found is not None and (found.setting, found.limit_bytes) == asked
        return bool(self.reason)


@dataclass(frozen=True)
class ForecastCache:
    """The folder of answers, by key; `note` tells a person what is wrong with it."""

    folder: Path
    note: Say

    def read(self, key: str, request: ForecastRequest) -> ForecastAnswer | None:
        """What was kept; a file that is no answer to this question counts as none."""
        path = self.folder / f"{key}.json"
        try:
            answer = ForecastAnswer.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            answer = None
        if answer is not None and answer.lasting and answer.fits(request):
            return answer
        self.note(f"{path}: not a forecast of this run; computed again")
        return None

    def write(self, key: str, answer: ForecastAnswer) -> None:
        """Keep an answer so that a reader sees all of it or nothing; a folder that refuses is only noted."""
        path = self.folder / f"{key}.json"
        half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            half.write_text(answer.model_dump_json(exclude_none=True) + "\n", encoding="utf-8")
            half.replace(path)
        except OSError as error:
            self.note(f"{path}: the forecast is not kept: {error.strerror}")


class Keys:
    """Hashes of all that decides an answer; each source file is read once, and none is imported."""

    def __init__(self, ranks: RankSource) -> None:
        self._ranks = ranks
        self._files: dict[Path, str] = {}
        self._code: dict[str, str] = {}

    def of(self, request: ForecastRequest) -> str:
        """What the answer to a question is kept under."""
        run = request.run
        content = {
            "config": run.config_id,
            "ranks": self._ranks,
            "search": [request.setting, request.limit],
            "version": FORECAST_VERSION,
            "sources": self.sources(run),
            "packages": {name: installed(name) for name in PACKAGES},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def sources(self, run: Run) -> dict[str, str]:
        """The code of the harness and of a run's methods, and what of its model's folder matters."""
        own = {check_name(choice.name).partition(":")[0].partition(".")[0] for choice in run.method}
        found = {name: self._package(name) for name in sorted({"harness", "methods", *own})}
        if folder := model_folder(run.model):
            found["model"] = self._all(folder, (folder / name for name in FOLDER_FILES))
        return found

    def _package(self, name: str) -> str:
        """All modules of a top-level package, or the one module; to find it does not import it."""
        if name not in self._code:
            spec = importlib.util.find_spec(name)
            folders = (spec and spec.submodule_search_locations) or ()
            hashes = [self._all(Path(folder), Path(folder).rglob("*.py")) for folder in folders]
            if spec and spec.origin and not folders:
                hashes = [self._all(Path(spec.origin).parent, [Path(spec.origin)])]
            self._code[name] = " ".join(hashes)
        return self._code[name]

    def _all(self, folder: Path, paths: Iterable[Path]) -> str:
        digest = hashlib.sha256()
        for path in sorted(paths):
            if path not in self._files:
                there = path.is_file()
                self._files[path] = hashlib.sha256(path.read_bytes()).hexdigest() if there else "absent"
            digest.update(f"{path.relative_to(folder)}\0{self._files[path]}\0".encode())
        return digest.hexdigest()
