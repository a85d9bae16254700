"""Log to Weights & Biases, on its server or, with WANDB_MODE=offline, on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from harness.engine.loggers.logger import About
from harness.errors import UserError

PROJECT = "lorebench"
#: Modes in which nobody need be logged in.
WITHOUT_SERVER = ("offline", "disabled", "dryrun")
START_S = 60.0


class WeightsAndBiases:
    """One run of W&B for each of ours, in the group of its suite.

    Neither the name of this machine nor its path, user, code or output is sent. WANDB_PROJECT names another
    project.
    """

    def __init__(self) -> None:
        self._wandb: Any = import_module("wandb")
        self._run: Any = None
        offline = os.environ.get("WANDB_MODE", "").lower() in WITHOUT_SERVER
        if not offline and not self._wandb.api.api_key:
            raise UserError("nobody is logged in; run `wandb login`, or set WANDB_MODE=offline")

    def start(self, about: About) -> None:
        """Begin a run, or go on with it."""
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            group=about.suite,
            name=about.name,
            id=about.key,
            resume="allow",
            reinit="finish_previous",
            dir=str(about.folder),
            config=dict(about.config),
            settings=self._wandb.Settings(
                console="off",
                save_code=False,
                disable_code=True,
                disable_git=True,
                init_timeout=START_S,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add values; of updates that an earlier attempt has logged the first are kept."""
        self._run.log(dict(values), step=step)

    def end(self, status: str) -> None:
        """Note the status and finish the run."""
        run, self._run = self._run, None
        run.summary["status"] = status
        run.finish(exit_code=0 if status == "ok" else 1)
