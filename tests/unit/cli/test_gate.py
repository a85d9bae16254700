"""The command `lorebench gate`: what it reads, what it prints, how it ends; and records that mean harm."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harness import record
from harness.cli import gate as gate_command
from harness.cli import main as cli
from harness.errors import UserError
from harness.tables.compare.comparison import Cell, Comparison
from harness.tables.compare.judge import compare
from harness.tables.compare.pairing import load
from harness.tables.compare.rendering import FORMATS, MOST_LINES
from tests.support.ending import ended
from tests.support.gate_records import made, memory, put, quality
from tests.support.mutations import mutated

NATS, RIGHT = [20.0 + number / 10 for number in range(30)], [number % 3 > 0 for number in range(60)]
HOSTILE = 'row </testcase><script>alert(1)</script> | ` & "\x1b[31m\u202e'


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


Gate = Callable[..., Said]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Gate:
    """The command line within this process."""

    def call(*arguments: Any) -> Said:
        monkeypatch.setattr("sys.argv", ["lorebench", "gate", *map(str, arguments)])
        code = ended(cli.main)
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return call


@pytest.fixture
def base(tmp_path: Path) -> Path:
    put(tmp_path / "base", made("galore", quality=quality(NATS, RIGHT)), NATS, RIGHT)
    return tmp_path / "base"


@pytest.fixture
def worse(tmp_path: Path) -> Path:
    more = memory(optimizer_bytes=1210 << 20, transient_bytes=102 << 20)
    put(tmp_path / "worse", made("galore", memory=more, quality=quality(NATS, RIGHT)), NATS, RIGHT)
    return tmp_path / "worse"


# ---------------------------------------------------------------------------------------- outcome
def test_equal_records_pass(gate: Gate, base: Path) -> None:
    said = gate(base, base)
    assert (said.code, said.out) == (0, "gate: passed (4 ok)\n")


def test_a_regression_ends_with_1_and_says_row_component_and_size(
    gate: Gate, base: Path, worse: Path
) -> None:
    said = gate(base, worse)
    assert said.code == 1
    cause = "peak +412 MiB: optimizer +410, activations and temporaries +2"
    assert f"regression: demo/galore (seed 0) {cause}\n" in said.out
    assert gate(worse, base).code == 0


def test_a_folder_of_a_suite_and_a_single_file_are_records_too(gate: Gate, base: Path, worse: Path) -> None:
    for path in (base / "machine", base / "machine" / "demo", next(base.rglob("*-s0-r0.json"))):
        assert gate(path, path).code == 0
        assert gate(path, worse).code == 1


def test_the_rows_of_a_side_of_ab_are_records_too(gate: Gate, base: Path, tmp_path: Path) -> None:
    put(tmp_path / "a" / "galore-0a1b2c", made("galore", quality=quality(NATS, RIGHT)), NATS, RIGHT)
    assert gate(base, tmp_path / "a").code == 0


def test_what_a_run_keeps_in_its_own_folder_is_no_record(gate: Gate, base: Path) -> None:
    place = next(base.rglob("*-s0-r0.json")).with_suffix("")
    (place / "weights").mkdir()
    for name in ("job.json", "weights/config.json"):
        (place / name).write_text("{}")
    assert load(base).skipped == ()
    assert gate(base, base).code == 0


def test_nothing_to_judge_ends_with_2(gate: Gate, base: Path, tmp_path: Path) -> None:
    put(tmp_path / "other", made("another row"))
    said = gate(base, tmp_path / "other")
    assert said.code == 2
    assert "nothing could be judged" in said.out


@pytest.mark.parametrize("given", ["nowhere", "empty", "broken"])
def test_a_side_without_records_is_one_line_and_2(gate: Gate, base: Path, tmp_path: Path, given: str) -> None:
    if given != "nowhere":
        (tmp_path / given).mkdir()
    if given == "broken":
        (tmp_path / given / "run.json").write_text("{")
    said = gate(base, tmp_path / given)
    assert said.code == 2
    assert said.err.startswith("lorebench: ")
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize("given", ["x" * 5000, "a file/within", "locked"])
def test_a_path_that_cannot_be_read_is_one_line_and_2(
    gate: Gate, base: Path, tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that may not be read is planted: the user who tests may be root."""
    (tmp_path / "a file").write_text("")
    (tmp_path / "locked").mkdir()
    scan = os.scandir

    def scandir(place: Any) -> Any:
        if str(place).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", scandir)
    for sides in ((base, tmp_path / given), (tmp_path / given, base)):
        said = gate(*sides)
        assert (said.code, said.err.count("\n")) == (2, 1)
        assert len(said.err) < 500
        assert ("Permission denied" in said.err) == (given == "locked")


def test_one_side_alone_is_one_line_and_2(gate: Gate, base: Path) -> None:
    wanted = "give two sets of records, BASE and CAND, or --baselines"
    for *arguments, says in ((wanted,), (base, wanted), (base, base, "--write", "add --baselines")):
        said = gate(*arguments)
        assert (said.code, said.err.count("\n")) == (2, 1)
        assert says in said.err


def test_an_unknown_control_is_one_line_with_the_known_labels(gate: Gate, base: Path) -> None:
    said = gate(base, base, "--control", "ful")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "known: galore" in said.err


def test_labels_in_an_error_are_no_commands_to_a_terminal(base: Path) -> None:
    put(base, made(HOSTILE + "\nlorebench: passed"))
    with pytest.raises(UserError) as refused:
        gate_command._controls([load(base)], "ful")
    assert "known: galore, row </testcase>" in str(refused.value)
    assert str(refused.value).isprintable()


def test_a_place_that_cannot_be_written_is_one_line(gate: Gate, base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = gate(base, base, "--out", tmp_path / "file" / "gate.md")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "file" in refused.err


def test_one_call_prints_in_one_format_and_writes_files_in_others(
    gate: Gate, base: Path, worse: Path, tmp_path: Path
) -> None:
    xml, text = tmp_path / "gate.xml", tmp_path / "gate.txt"
    said = gate(base, worse, "--format", "github", "--out", xml, "--out", text)
    assert said.code == 1
    assert said.out.startswith("### gate: failed (1 regression, 3 ok)")
    assert ElementTree.fromstring(xml.read_text()).get("failures") == "1"
    assert text.read_text() == gate(base, worse).out


# --------------------------------------------------------------------------------------- formats
def hostile() -> Comparison:
    verdicts = ("regression", "improvement", "ok", "x", "withheld", "missing")
    cells = tuple(Cell(HOSTILE, HOSTILE, "seed 0", HOSTILE, verdict, HOSTILE) for verdict in verdicts)
    return Comparison(cells, ("base: a <b> | file",))


def test_junit_has_a_case_for_each_cell_and_file_and_its_counts_are_right() -> None:
    root = ElementTree.fromstring(FORMATS["junit"](hostile()))
    cases = root.findall(".//testcase")
    assert len(cases) == int(root.get("tests", "")) == 7
    assert len(root.findall(".//failure")) == int(root.get("failures", "")) == 1
    assert len(root.findall(".//skipped")) == int(root.get("skipped", "")) == 4
    assert not root.findall(".//script")
    assert "<script>" in (cases[0].get("name") or "")


@pytest.mark.parametrize("form", ["md", "github"])
def test_text_of_records_is_no_markup(form: str) -> None:
    text = FORMATS[form](hostile())
    assert "<script>" not in text
    assert not any(ord(char) < 32 and char != "\n" for char in text)
    rows = [line for line in text.splitlines() if line.startswith("| ") and "verdict" not in line]
    assert rows
    assert all(line.replace("\\|", "").count("|") == 7 for line in rows)


def test_json_holds_every_cell_with_its_differences(base: Path, tmp_path: Path) -> None:
    put(tmp_path / "b", made("galore", environment={**made().environment.model_dump(), "device": "new"}))  # type: ignore[union-attr]
    found = json.loads(FORMATS["json"](compare(load(base), load(tmp_path / "b"))))
    assert (found["exit_code"], found["counts"]) == (2, {"x": 3, "ok": 1})
    cell = next(cell for cell in found["cells"] if cell["quantity"] == "peak memory")
    assert {"field": "device", "base": "a CPU", "candidate": "new"} in cell["differences"]


def test_regressions_are_never_cut_and_other_lines_are() -> None:
    many = [
        Cell("s", f"row {n}", "seed 0", "q", v, f"why {n}") for n in range(50) for v in ("regression", "x")
    ]
    text = FORMATS["text"](Comparison(tuple(many)))  # type: ignore[arg-type]
    assert text.count("regression: ") == 50
    assert text.count("not comparable: s/") == MOST_LINES
    assert f"not comparable: {50 - MOST_LINES} more" in text


# ----------------------------------------------------------------------------------- hostile files
def test_what_is_no_sound_record_is_set_aside_and_counted(gate: Gate, base: Path) -> None:
    folder = base / "machine" / "demo"
    good = json.loads(next(folder.glob("*.json")).read_text())
    for name, content in {
        "truncated": json.dumps(good)[:300],
        "future": json.dumps({**good, "schema_version": 99}),
        "digits": '{"schema_version": ' + "9" * 5000 + "}",
        "deep": "[" * 100_000,
        "bytes": "\x00\x01",
        "twin": json.dumps(good),
        "renamed": json.dumps({**good, "seed": 3}),
    }.items():
        (folder / f"{name}.json").write_text(content)
    (folder / "folder.json").mkdir()
    os.mkfifo(folder / "pipe.json")
    (folder / "link.json").symlink_to("link.json")
    broken = {**good, "memory": memory(), "seed": 7, "run_id": f"{good['config_id']}-s7-r0"}
    broken["memory"]["train"]["peak_allocated_bytes"] += 1
    (folder / "sum.json").write_text(json.dumps(broken))
    side = load(base)
    assert len(side.records) == 1
    assert len(side.skipped) == 10
    assert "do not add up" in next(note for note in side.skipped if note.startswith("machine/demo/sum.json"))
    said = gate(base, base)
    assert said.code == 0
    assert "20 files skipped" in said.out


def test_a_name_that_leads_out_of_the_folder_of_samples_is_not_followed(tmp_path: Path) -> None:
    """What a record calls its protocols and tasks becomes the name of a file."""
    sides = []
    for name, nats in (("a", NATS), ("b", [value + 1 for value in NATS])):
        item = quality(nats)
        item["perplexity"] = {"../../windows/text": item["perplexity"]["text"]}
        place = put(tmp_path / name, made(quality=item), nats)
        (place.parent / "windows").mkdir()
        (place.with_suffix("") / "windows" / "text.jsonl").rename(place.parent / "windows" / "text.jsonl")
        sides.append(load(tmp_path / name))
    cell = next(cell for cell in compare(*sides).cells if cell.quantity.startswith("perplexity"))
    assert cell.verdict == "x"
    assert "not a file name" in cell.cause


@pytest.mark.parametrize("line", ["{", "[]", "null", '{"sha256": 1}', "\udcff", "9" * 5000, "[" * 9999])
def test_broken_windows_are_no_windows(tmp_path: Path, line: str) -> None:
    for name, nats in (("a", NATS), ("b", [value + 1 for value in NATS])):
        place = put(tmp_path / name, made(quality=quality(nats)), nats)
    windows = place.with_suffix("") / "windows" / "text.jsonl"
    windows.write_bytes(windows.read_bytes() + line.encode("utf-8", "surrogateescape") + b"\n")
    cell = next(c for c in compare(load(tmp_path / "a"), load(tmp_path / "b")).cells if "text" in c.quantity)
    assert cell.verdict == "x"


def test_ten_thousand_mutated_records_are_compared_or_set_aside(tmp_path: Path) -> None:
    dice = random.Random(0)
    item = made(quality=quality(NATS, RIGHT), time={"tokens_per_s": 1000.0, "step_s": [0.1]})
    base, text = load(put(tmp_path / "a", item, NATS, RIGHT)), item.model_dump_json(exclude_none=True)
    file = tmp_path / "b" / "run.json"
    file.parent.mkdir()
    read, verdicts = 0, set()
    for number in range(10_000):
        file.write_text(mutated(text, dice), encoding="utf-8", errors="surrogatepass")
        side = load(file)
        read += len(side.records)
        assert len(side.records) + len(side.skipped) == 1
        found = compare(base, side)
        verdicts |= set(found.counts)
        form = list(FORMATS)[number % len(FORMATS)]
        FORMATS[form](found).encode()
    assert 500 < read < 9000
    assert {"regression", "x", "missing", "new", "ok"} <= verdicts


def test_a_record_of_thousands_of_digits_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"seed": ' + "9" * 5000 + "}")
    with pytest.raises(record.UserError, match="not a record"):
        record.read(path)


def test_a_terminal_gets_long_lines_broken_at_blanks(
    gate: Gate, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe gets them whole, so that programs find a sentence in one line."""
    label = "a row whose name is so long that the sentence on it takes several lines of a terminal"
    for name, factor in (("a", 1.0), ("b", 1.5)):
        put(tmp_path / name, made(label, quality=quality([each * factor for each in NATS], RIGHT)))
    whole = gate(tmp_path / "a", tmp_path / "b").out
    assert max(map(len, whole.splitlines())) > 100
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    found = gate(tmp_path / "a", tmp_path / "b").out
    assert max(map(len, found.splitlines())) <= 80
    assert found.split() == whole.split()
