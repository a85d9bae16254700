"""The checkpoints of one run: when one is due, how many stay, and which one a process goes on from."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.config import CheckpointConfig
from harness.engine.resume import about, names, stored, tree
from harness.engine.resume.stored import Stored
from harness.errors import UserError, one_line


class Checkpoints:
    """Saves the state of a training where it is due and finds the newest one that is whole.

    A checkpoint that cannot be written is a warning and not the end of a training. That of a GPU is copied to
    the host and written beside the training; the next one is not due before that has ended.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        wanted: Mapping[str, Any],
        warn: Callable[[str], None],
        saved: Callable[[int], None] = lambda step: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep checkpoints below `folder`; `wanted` is what a process must have in common to go on.

        `saved` is called with the number of updates of each checkpoint that is on the disk.
        """
        self.folder, self.config, self.about = folder, config, {"format": stored.FORMAT, **wanted}
        self._broken: set[Path] = set()
        self._warn, self._saved, self._now = warn, saved, now
        self._at = now()
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def due(self, step: int) -> bool:
        """Return whether the state after `step` updates is to be saved."""
        if self._writing is not None and not self._writing.done():
            return False
        if isinstance(self.config.every, int):
            return step % self.config.every == 0
        return self._now() - self._at >= self.config.seconds

    def save(self, step: int, state: Any) -> None:
        """Save a nested state after `step` updates, on the disk at return for a CPU."""
        self.wait()
        try:
            plain, tensors = tree.split(state)
            on_device = [name for name, tensor in tensors.items() if tensor.device.type != "cpu"]
            if not on_device:
                self._write(step, plain, tensors)
                return
            host = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        except Exception as error:
            self._failed(step, error)
            return
        self._writer = self._writer or ThreadPoolExecutor(1, "checkpoint")
        self._writing = self._writer.submit(self._write, step, plain, host, on_device)

    def wait(self) -> None:
        """Return when what is being written is on the disk."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def newest(self, folder: Path | None = None) -> Stored | None:
        """Return the newest checkpoint that is whole, None without any; a broken one is a warning.

        `folder` has those of another run, where it is given. UserError where something else wrote it than
        would go on from it.
        """
        for path in names.below(folder or self.folder):
            try:
                found = stored.read(path)
            except UserError as error:
                self._warn(f"passed over a broken checkpoint: {error}")
                if folder is None:
                    self._broken.add(path)
                continue
            instead = about.OWN if folder is None else about.SHORTER
            if why := about.refusal(path, found.about, self.about, instead):
                raise UserError(why)
            return found
        return None

    def _write(
        self, step: int, plain: Any, tensors: Mapping[str, Any], on_device: Sequence[str] = ()
    ) -> None:
        try:
            stored.write(self.folder, step, plain, tensors, self.about, on_device)
        except Exception as error:  # of many kinds: the library's, the disk's
            self._failed(step, error)
            return
        self._at = self._now()
        whole = [path for path in names.below(self.folder) if path not in self._broken]
        for old in (*whole[self.config.keep :], *self._broken):
            with suppress(OSError):
                stored.remove(old)
        self._saved(step)

    def _failed(self, step: int, error: Exception) -> None:
        self._at = self._now()  # again after the same time, not at each update
        self._warn(f"the checkpoint at update {step} could not be saved: {one_line(error)}")
