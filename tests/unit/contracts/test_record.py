"""The record: what is written is read back, and nothing else is."""

import json
import math
import os
import threading
from functools import partial
from pathlib import Path

import pytest

from harness import identity, record, record_index
from harness.errors import UserError
from harness.record import PROTOCOLS, Outcome, Part, Record, Time, Training
from harness.tables import records
from tests.support.gate_records import environment

CONFIG = {"train": {"lr": 1e-3, "clip": None}, "seed": 0, "repeat": 0}
ID = identity.config_id(CONFIG)


def fabricate(**values):
    content = {
        "run_id": f"{ID}-s0-r0",
        "config_id": ID,
        "suite": "demo",
        "label": "full",
        "seed": 0,
        "repeat": 0,
        "tier": "embedded",
        "config": CONFIG,
        "rerun": "lorebench run demo",
        "time": Time(step_s=[0.1, 0.2], refresh_step=[False, True]),
    }
    return Record.model_validate({**content, **values})


def changed(path, **values):
    """Rewrite some keys of a record's file; a value of None takes the key away."""
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "demo" / f"{ID}-s0-r0.json"
    record.write(fabricate(), path)
    return path


# ------------------------------------------------------------------------------------------ writing
def test_a_record_reads_back_as_it_was_written(written):
    assert record.read(written) == fabricate()


def test_folders_are_made_and_nothing_but_the_record_is_left(tmp_path):
    record.write(fabricate(), tmp_path / "machine" / "suite" / "run.json")
    assert [path.name for path in (tmp_path / "machine" / "suite").iterdir()] == ["run.json"]


def test_what_was_not_measured_is_absent(written):
    content = json.loads(written.read_text())
    assert "memory" not in content
    assert "wall_s" not in content["time"]
    assert record.read(written).memory is None


def test_a_method_that_warns_in_a_loop_does_not_fill_the_record(tmp_path):
    item, path = fabricate(), tmp_path / "r.json"
    warn = item.warnings.append  # kept by code that runs between two writes
    for turn in range(2):
        for number in range(1000):
            warn(f"{turn}: {number % 700}")
        record.write(item, path)
    found = record.read(path).warnings
    assert found == [*(f"0: {number}" for number in range(49)), "there were more warnings"]
    item.warnings[:] = ["x" * 10_000_000, "again", "again"]
    record.write(item, path)
    assert path.stat().st_size < 20_000
    assert record.read(path).warnings[1:] == ["again"]


@pytest.mark.parametrize(
    ("perplexity", "possible"), [(0.5, False), (1.0, True), (math.inf, True), (math.nan, True)]
)
def test_a_table_refuses_an_impossible_perplexity(tmp_path, perplexity, possible):
    score = {"nll_nats": 100.0, "tokens": 40, "windows": 1, "dropped_tokens": 0, "text": "world"}
    score["perplexity"] = perplexity
    item, path = fabricate(quality={"perplexity": {"heldout": score}}), tmp_path / f"{ID}-s0-r0.json"
    record.write(item, path)
    assert record.read(path).run_id == item.run_id  # a sweep reads what a run has measured
    if possible:
        record.read(path, limits=True)
    else:
        with pytest.raises(UserError, match="perplexity: is less than 1"):
            record.read(path, limits=True)


def test_losses_of_a_diverged_run_survive(tmp_path):
    training = Training(steps=2, tokens=2, loss=[math.nan, math.inf], lr=[0.1, 0.1])
    record.write(fabricate(training=training), tmp_path / "run.json")
    loss = record.read(tmp_path / "run.json").training.loss
    assert math.isnan(loss[0])
    assert loss[1] == math.inf


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_record(written, monkeypatch, failing):
    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os if failing == "fsync" else Path, failing, crash)
    with pytest.raises(KeyboardInterrupt):
        record.write(fabricate(label="new"), written)
    monkeypatch.undo()
    assert record.read(written).label == "full"
    assert [item.label for item in record_index.read_all(written.parent)] == ["full"]


def test_bytes_are_on_disk_before_the_name_moves(written, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: (order.append("fsync"), fsync(number)))
    monkeypatch.setattr(Path, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    record.write(fabricate(), written)
    assert order == ["fsync", "replace"]


def test_a_reader_never_sees_half_a_record(written):
    stop, problems = threading.Event(), []

    def keep_reading():
        while not stop.is_set():
            try:
                record.read(written)
            except UserError as error:
                problems.append(error)

    reader = threading.Thread(target=keep_reading)
    reader.start()
    for length in range(60):
        record.write(fabricate(warnings=["x" * 1000] * (length % 7)), written)
    stop.set()
    reader.join()
    assert problems == []


# ------------------------------------------------------------------------------------------ reading
def test_a_record_with_a_key_given_twice_is_refused(written):
    text = written.read_text()
    for key in ("seed", "status"):  # at the top, and in a section
        place = f'"{key}":'
        written.write_text(text.replace(place, f"{place} 0, {place}", 1))
        with pytest.raises(UserError, match=f"{written.name}: not a record: the key '{key}' is given twice"):
            record.read(written)


def test_a_truncated_record_is_refused_wherever_it_is_cut(written):
    whole = written.read_bytes().rstrip()
    for length in range(0, len(whole), 7):
        written.write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a record"):
            record.read(written)


@pytest.mark.parametrize("version", [0, record.SCHEMA_VERSION + 1, "1", None])
def test_another_schema_version_is_refused_with_both_versions(written, version):
    changed(written, schema_version=version)
    with pytest.raises(UserError, match=f"schema version {version}, this lorebench reads") as caught:
        record.read(written)
    assert "--results" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"surprise": 1}, "surprise"),
        ({"time": {"wall_ms": 1}}, "time.wall_ms"),
        ({"outcome": {"status": "fine"}}, "outcome.status"),
        ({"seed": "first"}, "seed"),
        ({"config_id": None}, "config_id"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_and_the_place_is_named(written, change, place):
    changed(written, **change)
    with pytest.raises(UserError, match=rf"{written.name}: not a record: {place}: ") as caught:
        record.read(written)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b"\xff\xfe", b"[" * 100_000])
def test_files_that_are_no_record_at_all_are_refused(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json"):
        record.read(path)


def test_a_missing_file_is_an_error_of_the_user(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        record.read(tmp_path / "nothing.json")


def test_all_records_of_a_folder_are_read_by_name_and_other_files_are_left_alone(tmp_path):
    folder = tmp_path / "demo"
    for seed in (1, 0):
        config = {**CONFIG, "seed": seed}
        record.write(
            fabricate(seed=seed, config=config, run_id=f"{ID}-s{seed}-r0"), folder / f"{ID}-s{seed}-r0.json"
        )
    (folder / "a.log").write_text("no record")
    (folder / ".a.json.1.tmp").write_text("half")
    assert [item.seed for item in record_index.read_all(folder)] == [0, 1]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (f"other/{ID}-s0-r0.json", "a record of suite 'demo' in a folder of suite 'other'; move it away"),
        ("demo/copy.json", f"a copy of run {ID}-s0-r0: named after its run it would be .*; move it away"),
    ],
)
def test_a_record_in_the_place_of_another_is_refused(tmp_path, name, says):
    record.write(fabricate(), tmp_path / name)
    with pytest.raises(UserError, match=says):
        record_index.read_all((tmp_path / name).parent)


@pytest.mark.parametrize(
    "edit",
    [{"train": {"lr": 2e-3, "clip": None}}, {"method": "other"}, {"data": {}}, {"seed": 1}, {"repeat": 2}],
)
def test_a_record_whose_config_was_edited_is_refused_wherever_it_is_read(written, edit):
    changed(written, config={**CONFIG, **edit})
    says = f"config in it is not that of run {ID}-s0-r0: it was changed after the run.* run again"
    for read in (
        record.read,
        partial(record.read, limits=True),
        lambda path: record_index.read_all(path.parent),
    ):
        with pytest.raises(UserError, match=says):
            read(written)
    changed(written, config={**CONFIG, "save_weights": True, "tuning": {"suite": "x"}})  # no part of an id
    assert record.read(written).finished is False


def test_a_record_of_a_run_that_ended_well_without_environment_is_refused_wherever_it_is_read(written):
    changed(written, outcome={"status": "ok"})
    for read in (record.read, records.read, lambda path: record_index.read_all(path.parent)):
        with pytest.raises(UserError, match=f"run {ID}-s0-r0 ended well, but `environment` is missing"):
            read(written)
    changed(written, environment=environment())
    assert record.read(written).finished


# ------------------------------------------------------------------------------------------- meaning
def test_an_unfinished_record_says_that_it_was_interrupted():
    assert fabricate().outcome.status == "interrupted"
    assert not fabricate().finished


@pytest.mark.parametrize("status", ["ok", "oom", "timeout", "diverged", "unsupported", "error"])
def test_every_other_end_is_final(status):
    assert fabricate(outcome=Outcome(status=status)).finished


def test_a_record_of_other_protocol_versions_is_not_finished():
    old = {**PROTOCOLS, "memory": PROTOCOLS["memory"] + 1}
    assert not fabricate(outcome=Outcome(status="ok"), protocols=old).finished


def test_records_do_not_share_what_can_change():
    first, second = fabricate(), fabricate()
    first.protocols["memory"] = 99
    first.warnings.append("mine")
    assert second.protocols == PROTOCOLS
    assert PROTOCOLS["memory"] != 99
    assert second.warnings == []


def test_every_part_refuses_unknown_keys():
    assert Part.__subclasses__()
    assert all(part.model_config["extra"] == "forbid" for part in Part.__subclasses__())
