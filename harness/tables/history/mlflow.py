"""Upload the runs of a suite to MLflow, each once: a tag identifies it, so a second upload adds nothing.

One record is one MLflow run: seeds and repeats are grouped there by parameters, and a mean made here
could not be taken apart. `mlflow-skinny` suffices as the client.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any
from urllib.parse import quote, unquote

from harness import series
from harness.errors import UserError, counted
from harness.plain_text import HIDDEN, without_secrets
from harness.record import Record
from harness.tables.format import plain
from harness.tables.history.commits import started
from harness.tables.history.loading import Collection, Found, Selection, identity
from harness.tables.history.quantities import STATUS, values

#: Limits of MLflow: parameters and metrics in one request, characters of a value and of a name.
PARAMS, METRICS = 100, 900
LONGEST_VALUE, LONGEST_KEY = 500, 200
#: Short timeouts, since a missing server would block for minutes; the environment may set others.
CLIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
#: The user name and password in an address; the password may hold any character.
LOGIN = re.compile(r"://(\S*)@")
KEY = "lorebench.key"
#: The tag of a run whose series could not be read, with the reason.
WITHOUT = "losses"


@dataclass(frozen=True)
class Metric:
    """A metric; `step` counts updates from 1 in a series, else it is 0."""

    key: str
    value: float
    step: int = 0


@dataclass(frozen=True)
class Run:
    """A record as MLflow stores it; times in milliseconds since 1970."""

    key: str
    name: str
    status: str
    start_ms: int
    end_ms: int
    params: Mapping[str, str]
    metrics: tuple[Metric, ...]
    tags: Mapping[str, str] = field(default_factory=dict)


def upload(collection: Collection, uri: str, experiment: str, only: Sequence[str] = ()) -> str:
    """Send the records that a server does not have yet; return a line on the result.

    UserError where the package is missing, where nothing answers, or where the server refuses.
    """
    selection = Selection.of(only)
    chosen = [each for each in collection.found if selection.takes(each.record)]
    added = {key: value for key, value in CLIENT.items() if key not in os.environ}
    os.environ.update(added)
    try:
        sent, there, lost = _sent(uri, chosen, experiment)
    finally:
        for key in added:
            del os.environ[key]
    without = f"; {len(lost)} without their losses: {lost[0]}" if lost else ""
    uploaded = f"{counted(sent, 'run')} uploaded to experiment {experiment!r}"
    return f"mlflow: {uploaded}, {there} were there already{without}"


def _sent(uri: str, chosen: Sequence[Found], experiment: str) -> tuple[int, int, list[str]]:
    """Connect and send; UserError for whatever fails on the way."""
    server, failures = connect(uri)
    try:
        return send(server, chosen, experiment)
    except failures as error:
        raise UserError(
            f"--mlflow {_address(uri)}: upload failed: {_reason(error, uri)}; check that an MLflow server "
            "answers there; the same command resumes the upload"
        ) from error


def send(server: Server, found: Sequence[Found], experiment: str) -> tuple[int, int, list[str]]:
    """Send records; return how many were sent, how many were there, and why some have no losses."""
    place = server.experiment(experiment)
    known = server.uploaded(place)
    new = [each for each in found if identity(each.record) not in known]
    lost = []
    for each in new:  # one at a time: the losses of all would fill the memory
        run = mapped(each)
        server.send(place, run)
        lost += [run.tags[WITHOUT]] if WITHOUT in run.tags else []
    return len(new), len(found) - len(new), lost


def _address(uri: str) -> str:
    """Return the address of a server for a message, without the user name, the password and other secrets."""
    return without_secrets(LOGIN.sub("://", uri, count=1))


def _message(error: Exception, uri: str) -> str:
    """Return the message of a library on one line, without the login that the address of its server holds."""
    text = str(error)
    login = LOGIN.search(uri)
    given = login[1] if login else ""
    for secret in (given, given.partition(":")[2]):
        for form in (secret, unquote(secret), quote(unquote(secret), safe="")):
            text = text.replace(form, HIDDEN) if form else text
    return " ".join(without_secrets(text).split())[:2000] or type(error).__name__


def _reason(error: Exception, uri: str) -> str:
    """Return the cause of an error without the addresses that wrap a failed request."""
    text = _message(error, uri)
    return text.rpartition("(Caused by ")[2].rstrip(")")[:200] if "(Caused by " in text else text[:200]


# ----------------------------------------------------------------------------------------- mapping
def mapped(found: Found) -> Run:
    """Convert a record: its config to parameters, its values to metrics with units in their names.

    A tag says why there are no losses where the series cannot be read.
    """
    item = found.record
    losses, tags = list[Metric](), _tags(found)
    try:
        losses += _losses(item)
    except UserError as error:
        tags[WITHOUT] = str(error)
    when = started(item)
    start = max(0, int(when.timestamp() * 1000)) if when else 0
    wall = item.time.wall_s if item.time and item.time.wall_s and 0 < item.time.wall_s < 1e9 else 0.0
    return Run(
        key=identity(item),
        name=plain(f"{item.label} s{item.seed}" + (f" r{item.repeat}" if item.repeat else ""), LONGEST_KEY),
        status="FINISHED" if item.outcome.status == "ok" else "FAILED",
        start_ms=start,
        end_ms=start + int(wall * 1000),
        params=dict(_params(item)),
        metrics=(*_metrics(item), *losses),
        tags={key: plain(str(value), LONGEST_VALUE) for key, value in tags.items() if value},
    )


def _params(item: Record) -> Iterator[tuple[str, str]]:
    """Yield the config in dotted keys, without unset ones."""
    config = {key: value for key, value in item.config.items() if key not in ("seed", "repeat", "label")}
    content = {"label": item.label, "seed": item.seed, "repeat": item.repeat, "config_id": item.config_id}
    for key, value in _flat({**config, **content}):
        yield _name(key), plain(str(value), LONGEST_VALUE)


def _flat(content: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
            value = {str(place): part for place, part in enumerate(value)}
        if isinstance(value, dict) and depth < 8:  # no config of ours is nested deeper
            yield from _flat(value, f"{prefix}{key}.", depth + 1)
        elif value is not None:
            yield f"{prefix}{key}", value if not isinstance(value, dict) else "…"


def _metrics(item: Record) -> Iterator[Metric]:
    for quantity, value in values(item).items():
        if quantity != STATUS and quantity.usable(value):
            yield Metric(_name(quantity.key), value)


def _losses(item: Record) -> Iterator[Metric]:
    for step, loss in enumerate(series.losses(item), start=1):
        if abs(loss) < float("inf"):
            yield Metric("train_loss_nats", loss, step)


def _tags(found: Found) -> dict[str, Any]:
    item, here = found.record, found.record.environment
    return {
        KEY: identity(item),
        "suite": item.suite,
        "label": item.label,
        "run_id": item.run_id,
        "status": item.outcome.status,
        "tier": item.tier,
        "machine": here.device if here else None,
        "torch": here.packages.get("torch") if here else None,
        "commit": here.git_sha if here else None,
        "mlflow.source.git.commit": here.git_sha if here else None,
        "dirty": "true" if here and here.git_dirty_sha256 else None,
        "source": found.source,
    }


def _name(key: str) -> str:
    """Return a valid name for MLflow: letters, digits, `_`, `-` and `.`."""
    return re.sub(r"[^A-Za-z0-9_.\-]", "_", plain(key))[:LONGEST_KEY].strip(".") or "_"


# ------------------------------------------------------------------------------------------ server
def connect(uri: str) -> tuple[Server, tuple[type[Exception], ...]]:
    """Return a client of a server, and the exceptions that it raises."""
    try:
        # By name, since it is an optional dependency.
        mlflow, exceptions = import_module("mlflow"), import_module("mlflow.exceptions")
        entities = import_module("mlflow.entities")
    except ImportError as error:
        raise UserError(
            "--mlflow needs the package mlflow-skinny: pip install 'lorebench[mlflow]'"
        ) from error
    failures = (exceptions.MlflowException, OSError, ValueError)  # requests' exceptions are OSErrors
    try:
        return Server(mlflow.MlflowClient(tracking_uri=uri), entities), failures
    except (*failures, ImportError) as error:
        raise UserError(
            f"--mlflow {_address(uri)}: {_message(error, uri)[:200]}; give for example http://localhost:5000"
        ) from error


class Server:
    """A server through MLflow's client."""

    def __init__(self, client: Any, entities: Any) -> None:
        self.client, self.entities = client, entities

    def experiment(self, name: str) -> str:
        """Return the id of an experiment, created if missing."""
        known = self.client.get_experiment_by_name(name)
        return str(known.experiment_id if known else self.client.create_experiment(name))

    def uploaded(self, experiment: str) -> set[str]:
        """Return the keys of complete runs, and delete those of an unfinished upload."""
        found: set[str] = set()
        token, ours = None, f"tags.`{KEY}` LIKE '%'"
        while True:
            page = self.client.search_runs([experiment], ours, max_results=1000, page_token=token)
            for run in page:
                if run.info.status == "RUNNING":
                    self.client.delete_run(run.info.run_id)
                else:
                    found.add(run.data.tags[KEY])
            token = page.token
            if not token:
                return found

    def send(self, experiment: str, run: Run) -> None:
        """Write one run, which is complete once it is terminated."""
        made = self.client.create_run(
            experiment, start_time=run.start_ms, tags=dict(run.tags), run_name=run.name
        )
        name = made.info.run_id
        params = [self.entities.Param(key, value) for key, value in run.params.items()]
        metrics = [self.entities.Metric(m.key, m.value, run.start_ms, m.step) for m in run.metrics]
        for turn in range(max(1, math.ceil(len(params) / PARAMS), math.ceil(len(metrics) / METRICS))):
            these = params[turn * PARAMS : (turn + 1) * PARAMS]
            those = metrics[turn * METRICS : (turn + 1) * METRICS]
            self.client.log_batch(name, metrics=those, params=these)
        self.client.set_terminated(name, run.status, end_time=run.end_ms)
