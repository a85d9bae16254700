"""Requests for forecasts of memory, their answers, and the folder that caches answers. No torch.

The key of an answer is a hash of all that decides it: the config, the ranks, the code, its libraries and the
relevant files of a model's folder. So no entry is ever stale, and none has to be deleted by hand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness import files
from harness.config import HubModel, Run
from harness.engine.models.shapes import model_folder
from harness.forecast import FORECAST_VERSION, Capacity, MemoryReport, Setting
from harness.plugin_source import package_of, source_files
from harness.registry import check_name

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
#: The files of a model's folder that decide memory: its architecture and the ranks of its factors.
FOLDER_FILES = ("config.json", "factors.json")

#: The name of an approximation, {"layers": {layer: rank}} or {"methods": {method: {layer: rank}}}.
#: None: the default of each method.
RankSource = str | dict[str, Any] | None
Notify = Callable[[str], None]


@dataclass(frozen=True)
class ForecastRequest:
    """A request for the memory of a run, or for the largest `setting` whose peak is at most `limit` bytes.

    `meter` says how memory is found: `cuda` simulates with tensors rounded up as on a GPU, `exact` without
    rounding, and `live` counts the tensors of a few updates on the CPU.
    """

    run: Run
    setting: Setting | None = None
    limit: int | None = None
    meter: Literal["cuda", "exact", "live"] = "cuda"


class ForecastAnswer(BaseModel):
    """A report, a capacity, or the reason why there is none.

    `unsupported` and `refused` are errors that the run itself would raise, `failed` is a defect of the
    simulation alone.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["report", "capacity", "unsupported", "refused", "failed"]
    report: MemoryReport | None = None
    capacity: Capacity | None = None
    reason: str = ""

    @property
    def lasting(self) -> bool:
        """Return whether the same request gets this answer again; a user may repair what causes others."""
        return self.kind not in ("refused", "failed")

    def fits(self, request: ForecastRequest) -> bool:
        """Return whether this answer belongs to a request, as far as its content shows."""
        if self.kind == "report":
            return self.report is not None and self.report.config_id == request.run.config_id
        if self.kind == "capacity":
            found, wanted = self.capacity, (request.setting, request.limit)
            return found is not None and (found.setting, found.limit_bytes) == wanted
        return bool(self.reason)


@dataclass(frozen=True)
class ForecastCache:
    """A folder of answers by key; `notify` receives what is wrong with it."""

    folder: Path
    notify: Notify

    def read(self, key: str, request: ForecastRequest) -> ForecastAnswer | None:
        """Return a cached answer; None without a file, or with one that does not answer this request."""
        path = self.folder / f"{key}.json"
        try:
            answer = ForecastAnswer.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            answer = None
        if answer is not None and answer.lasting and answer.fits(request):
            return answer
        self.notify(f"{path}: not a forecast of this run; computed again")
        return None

    def write(self, key: str, answer: ForecastAnswer) -> None:
        """Store an answer atomically; report a folder that cannot be written to instead of raising."""
        path = self.folder / f"{key}.json"
        try:
            files.replace(path, answer.model_dump_json(exclude_none=True) + "\n")
        except OSError as error:
            self.notify(f"{path}: the forecast is not stored: {error.strerror}")


def _cached_config(model: HubModel) -> Path | None:
    """Return the architecture that a revision of a hub model names here; None before it was downloaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model.id, "config.json", revision=model.revision)
    return Path(found) if isinstance(found, str) else None


class Keys:
    """Hashes of all that decides an answer; reads each source file once and imports none."""

    def __init__(self, ranks: RankSource) -> None:
        self._ranks = ranks
        self._files: dict[Path, str] = {}
        self._code: dict[str, str] = {}

    def of(self, request: ForecastRequest) -> str:
        """Return the key under which the answer to a request is cached."""
        run = request.run
        content = {
            "config": run.config_id,
            "ranks": self._ranks,
            "search": [request.setting, request.limit],
            "meter": request.meter,
            "version": FORECAST_VERSION,
            "sources": self.sources(run),
            "packages": {name: files.installed(name) for name in PACKAGES},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def sources(self, run: Run) -> dict[str, str]:
        """Return hashes of the harness, a run's methods and the relevant files of its model's folder."""
        found = {name: self._package(name) for name in ("harness", "methods")}
        for choice in run.method:
            own = check_name(choice.name).partition(":")[0]
            found[own] = self._plugin(own)
            for module in choice.named_modules:
                package = package_of(module)
                found[module] = files.installed(package) if package else self._plugin(module)
        if folder := model_folder(run.model):
            found["model"] = self._all(folder, (folder / name for name in FOLDER_FILES))
        elif isinstance(run.model, HubModel) and (config := _cached_config(run.model)):
            found["model"] = self._all(config.parent, [config])
        return found

    def _plugin(self, module: str) -> str:
        """Return a hash of all files of a plug-in, empty for a method that ships."""
        if module not in self._code:
            files_of = source_files(module)
            content = {name: self._all(path.parent, [path]) for name, path in sorted(files_of.items())}
            self._code[module] = json.dumps(content) if content else ""
        return self._code[module]

    def _package(self, name: str) -> str:
        """Return a hash of all modules of a package of ours."""
        if name not in self._code:
            self._code[name] = self._all(files.ROOT / name, (files.ROOT / name).rglob("*.py"))
        return self._code[name]

    def _all(self, folder: Path, paths: Iterable[Path]) -> str:
        digest = hashlib.sha256()
        for path in sorted(paths):
            if path not in self._files:
                self._files[path] = files.sha256(path) if path.is_file() else files.ABSENT
            digest.update(f"{path.relative_to(folder)}\0{self._files[path]}\0".encode())
        return digest.hexdigest()
