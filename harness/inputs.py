"""Compare runs by the content that they read: weights, tokenizer, text, tasks and plug-ins. No torch.

A record holds a hash by name for each of them (`harness.engine.run.inputs` makes them). Two runs of one
config are the same run only where these agree. What one of them does not know contradicts nothing, so a
record without this part is compared by the hashes that it has.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from harness.config import Run
from harness.identity import paths_of, place_free_id
from harness.record import Record

#: What a model's folder holds.
WEIGHTS, CONFIG, TOKENIZER = "weights", "config", "tokenizer"
OF_MODEL = (WEIGHTS, CONFIG, TOKENIZER)
#: The hash of the training tokens, known once they were made; not of random tokens, which follow the seed.
TOKENS = "training tokens"

#: What the name of a plug-in's source begins with: code, whose effect is what a comparison asks for.
PLUG_IN = "plug-in "

Inputs = Mapping[str, str]


def known_inputs(record: Record) -> dict[str, str]:
    """Return the hashes of what a run has read, by name."""
    found = dict(record.inputs or {})
    data = record.config.get("data")
    if record.data is not None:
        if record.data.model_sha256 is not None:
            found.setdefault(WEIGHTS, record.data.model_sha256)
        if isinstance(data, dict) and data.get("source") != "random":
            found[TOKENS] = record.data.sha256
    return found


def differing(first: Inputs, second: Inputs) -> list[str]:
    """Return the names of what differs, in order."""
    return [name for name, value in first.items() if second.get(name, value) != value]


def changed(record: Record, today: Inputs) -> list[str]:
    """Return the names of what a run has read and is another today."""
    return differing(known_inputs(record), today)


def outdated(found: Mapping[str, Record], today: Mapping[str, Inputs]) -> dict[str, list[str]]:
    """Return the names of what has changed since each run, by its id; runs without a change are left out."""
    names = {key: changed(record, today.get(key, {})) for key, record in found.items()}
    return {key: several for key, several in names.items() if several}


def by_run(
    runs: Sequence[Run], found: Sequence[Record], today: Mapping[str, Inputs] | None = None
) -> dict[str, Record]:
    """Return the record of each run by its id, also where its files are named by other paths.

    Paths are part of an id. A record under another id belongs to a run whose config is equal but for paths,
    where these lead to the same place from here, or where all that both read has the same hashes, those of
    `today` by the id of the run, and each text the same purpose. It is returned as that run's.
    """
    own = {record.run_id: record for record in found}
    result = {run.run_id: own[run.run_id] for run in runs if run.run_id in own}
    wanted = {record.run_id for record in result.values()}
    free: dict[str, list[Record]] = {}
    for record in found:
        if record.run_id not in wanted and paths_of(record.config):
            free.setdefault(place_free_id(record.config), []).append(record)
    for run in runs if free else ():
        if run.run_id in result:
            continue
        config = run.model_dump(mode="json")
        hashes = dict(today.get(run.run_id, {})) if today else {}
        for record in free.get(place_free_id(config), ()):
            alike = bool(hashes) and record.inputs == hashes and _texts(record.config) == _texts(config)
            if alike or _places(record.config) == _places(config):
                ids = {"run_id": run.run_id, "config_id": run.config_id, "config": config}
                result[run.run_id] = record.model_copy(update=ids)
                break
    return result


def as_of(record: Record, run: Run) -> Record:
    """Return a record under the label of a run and with what is known today of its tuning.

    Neither is part of an id: a rate may be tuned after a run with it.
    """
    known = {} if run.tuning is None else {"tuning": run.tuning.model_dump(mode="json")}
    config = {key: item for key, item in record.config.items() if key != "tuning"} | known
    if record.label == run.name and record.config == config:
        return record
    return record.model_copy(update={"label": run.name, "config": config})


def _texts(config: Mapping[str, Any]) -> list[str]:
    """Return the names of texts, which hashes are known by: those trained on, then those scored."""
    return [os.path.basename(path) for path in paths_of(config, ("paths",))]  # noqa: PTH119


def _places(config: Mapping[str, Any]) -> list[str]:
    """Return where the paths of a config lead from here."""
    return [os.path.realpath(os.path.expanduser(path)) for path in paths_of(config)]  # noqa: PTH111


def described(names: list[str], config: Mapping[str, object]) -> str:
    """Return names for people, with the model as the config gives it, as `weights of ./my-llama`."""
    model = config.get("model")
    given = model if isinstance(model, dict) else {}
    place = given.get("path") or given.get("id") or given.get("tokenizer")
    of_model = f" of {place}" if place else ""
    return ", ".join(f"{name}{of_model if name in OF_MODEL else ''}" for name in names)
