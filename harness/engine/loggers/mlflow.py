"""Log to an MLflow server, or to whatever place MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from harness.engine.loggers.logger import About
from harness.errors import UserError

#: The tag that tells the run of a training; `history --mlflow` has a tag of its own.
KEY = "lorebench.live"
#: Parameters in one request, and characters of a value.
PARAMS, LONGEST = 100, 500
#: A server that is away is asked again at the next report, so each time need not take minutes.
CLIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
STATUS = {"ok": "FINISHED", "interrupted": "KILLED"}


class MLflow:
    """One run of MLflow for each of ours; MLFLOW_EXPERIMENT_NAME names another experiment."""

    def __init__(self) -> None:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            raise UserError("set MLFLOW_TRACKING_URI to the address of a server, as http://localhost:5000")
        for name, value in CLIENT.items():
            os.environ.setdefault(name, value)
        self._entities: Any = import_module("mlflow.entities")
        self._client: Any = import_module("mlflow").MlflowClient()
        self._run: str | None = None

    def start(self, about: About) -> None:
        """Begin a run, or go on with it."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or f"lorebench/{about.suite}/live"
        known = self._client.get_experiment_by_name(name)
        place = known.experiment_id if known else self._client.create_experiment(name)
        found = self._client.search_runs([place], f"tags.`{KEY}` = '{about.key}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        tags = {KEY: about.key, "suite": about.suite, "run_id": about.run_id}
        self._run = self._client.create_run(place, tags=tags, run_name=about.name).info.run_id
        params = [self._entities.Param(_name(key), text[:LONGEST]) for key, text in about.settings.items()]
        for first in range(0, len(params), PARAMS):
            self._client.log_batch(self._run, params=params[first : first + PARAMS])

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add values."""
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(_name(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def end(self, status: str) -> None:
        """Note the status and end the run."""
        self._client.set_tag(self._run, "status", status)
        self._client.set_terminated(self._run, STATUS.get(status, "FAILED"))


def _name(key: str) -> str:
    """Return a valid name for MLflow."""
    return re.sub(r"[^A-Za-z0-9_.\-/]", "_", key)
