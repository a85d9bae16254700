"""Hash all that a run reads and its config only names: model, text, tasks and the source of plug-ins.

What ships is left out where the commit in the record names it; the weights of the embedded model are not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from harness.config import (
    DataConfig,
    DatasetsData,
    EvaluateConfig,
    FilesData,
    HubModel,
    Run,
    ShapeModel,
    TaskData,
)
from harness.digests import Digests
from harness.engine.data.task_files import data_sets_of_tasks, files_of_tasks
from harness.engine.data.tasks import PAPER_TASKS
from harness.engine.models.shapes import model_folder
from harness.engine.models.weights import FACTORS_MANIFEST, visible, weight_files
from harness.engine.run.environment import PACKAGES
from harness.errors import UserError
from harness.files import installed
from harness.inputs import CONFIG, PLUG_IN, TOKENIZER, WEIGHTS, differing
from harness.plugin_source import package_of, source_files
from harness.registry import check_name

CONFIG_FILES = ("config.json", "generation_config.json", FACTORS_MANIFEST, "*.index.json")
TOKENIZER_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges*"),
    *("*.model", "*.tiktoken"),
)
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_TIMEOUT_S = 10.0

Named = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class InputHashes:
    """Hashes of the inputs of runs. With `ask_hub`, the hub is asked for the commit that a branch names."""

    digests: Digests
    ask_hub: bool = False
    _known: dict[str, dict[str, str]] = field(default_factory=dict)

    def of(self, run: Run) -> dict[str, str]:
        """Return the hashes of a run by name, none of a missing file; UserError for an unreadable one."""
        scratch = run.train.stage == "pretrain"
        key = repr((run.model, scratch, run.data, run.calibration, run.evaluate, run.method))
        if key not in self._known:
            found: dict[str, str] = {}
            for name, value in self._all(run):
                twins = sum(other.partition(" #")[0] == name for other in found)
                found[f"{name} #{twins + 1}" if twins else name] = value
            self._known[key] = found
        return dict(self._known[key])

    def _all(self, run: Run) -> Named:
        yield from self._model(run)
        yield from self._data(run.data)
        if run.calibration is not None and run.calibration.data is not None:
            yield from self._data(run.calibration.data)
        yield from self._evaluation(run.evaluate)
        yield from self._code(run)

    def _code(self, run: Run) -> Named:
        """Yield hashes of methods that do not ship and of classes that options name; versions of packages."""
        for choice in run.method:
            for package in filter(None, map(package_of, choice.named_modules)):
                if package not in PACKAGES:  # whose versions a record holds
                    yield f"package {package}", installed(package)
        own = [check_name(choice.name).partition(":")[0] for choice in run.method]
        named = [module for choice in run.method for module in choice.named_modules if not package_of(module)]
        for module in dict.fromkeys([*own, *named]):
            if source := source_files(module):
                yield f"{PLUG_IN}{module}", self.digests.of_each(source.items())

    def _model(self, run: Run) -> Named:
        model, read = run.model, run.train.stage != "pretrain"
        if isinstance(model, HubModel):
            if commit := self._commit("model", model.id, model.revision):
                yield "model", commit
        elif isinstance(model, ShapeModel):
            if model.tokenizer:
                folder = _place(model.tokenizer)
                yield TOKENIZER, self._matching(folder, ("config.json", *TOKENIZER_FILES))
        elif (place := model_folder(model)) is not None:
            if read:
                yield WEIGHTS, self.digests.of(*weight_files(place))
            yield CONFIG, self._matching(place, CONFIG_FILES)
            yield TOKENIZER, self._matching(place, TOKENIZER_FILES)

    def _data(self, data: DataConfig) -> Named:
        if isinstance(data, FilesData):
            yield from self._texts(data.paths)
        elif isinstance(data, DatasetsData):
            if (folder := Path(data.id)).is_dir():
                yield f"text {folder.resolve().name}", self._below([folder], folder)
            elif commit := self._commit("dataset", data.id, data.revision):
                yield f"text {data.id}", commit
        elif isinstance(data, TaskData) and data.folder is not None:
            yield from self._task_data([data.task], data.folder)

    def _evaluation(self, wanted: EvaluateConfig) -> Named:
        for protocol in wanted.perplexity:
            yield from self._texts(protocol.paths or ())
        folders = [_place(path) for path in wanted.task_paths]
        for name in wanted.tasks:
            if defined := files_of_tasks([name], folders):
                yield f"task {name}", self.digests.of_each(defined.items())
        if wanted.task_data is not None and wanted.tasks:
            yield from self._task_data(wanted.tasks, wanted.task_data)

    def _texts(self, paths: Sequence[str]) -> Named:
        for path in map(_place, paths):
            if path.is_file() and os.access(path, os.R_OK):
                yield f"text {path.name}", self.digests.of(path)

    def _task_data(self, tasks: Sequence[str], place: str) -> Named:
        """Yield the hash of the files of each task; all of the folder where none is named after its task."""
        folder = _place(place)
        for name in sorted(data_sets_of_tasks(tasks, PAPER_TASKS)):
            own = [path for path in sorted(folder.glob("[!.]*")) if path.stem.endswith(name)]
            if own:
                yield f"data of task {name}", self._below(own, folder)

    def _below(self, places: Sequence[Path], folder: Path) -> str:
        """Hash all files below some places by their paths from a folder, but hidden ones."""
        found = []
        for place in places:
            for path in [place] if place.is_file() else sorted(place.rglob("*")):
                parts = path.relative_to(folder).parts
                if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in parts):
                    found.append((path.relative_to(folder).as_posix(), path))
        return self.digests.of_each(found)

    def _matching(self, folder: Path, patterns: Sequence[str]) -> str:
        """Hash the files of a folder with these names; where it has none, that is a hash, too."""
        paths = {path for pattern in patterns for path in visible(folder, pattern) if path.is_file()}
        return self.digests.of_each((path.name, path) for path in paths)

    def _commit(self, kind: Literal["model", "dataset"], name: str, revision: str) -> str | None:
        """Return the commit that a revision names: itself, as the hub says, else that of the local cache."""
        if COMMIT.fullmatch(revision):
            return revision
        import huggingface_hub

        if self.ask_hub and not os.environ.get("HF_HUB_OFFLINE"):
            with suppress(Exception):  # of many kinds; without a network each means the same
                found = huggingface_hub.HfApi().repo_info(
                    name, repo_type=kind, revision=revision, timeout=HUB_TIMEOUT_S
                )
                return found.sha
        if kind == "model":
            with suppress(Exception):
                cached = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
                return Path(cached).parent.name if isinstance(cached, str) else None
        return None


def _place(path: str) -> Path:
    """Return a path with its `~` replaced, unchanged where there is no such user."""
    with suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def verify(run: Run, expected: dict[str, str], digests: Digests) -> dict[str, str]:
    """Return the hashes of what a run has just read; UserError where they differ from the expected ones."""
    found = InputHashes(digests).of(run)
    if names := differing(expected, found):
        raise UserError(
            f"{', '.join(names)}: changed while the run was starting; wait until it is complete and run again"
        )
    return expected | found
