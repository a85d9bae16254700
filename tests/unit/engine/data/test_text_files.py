"""Files of text: read as their ending says, refused in one line where it does not tell or tells wrongly."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import endings
from harness.cli.options import Selection
from harness.config import EmbeddedData, FilesData, PerplexityConfig
from harness.engine.data.documents import documents_of_files, existing_file
from harness.engine.quality import protocols
from harness.errors import UserError

ROWS = [{"text": "one"}, {"text": "two words"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TEXTS = ["one", "two words"]


def files(*paths: Path, **settings: Any) -> FilesData:
    return FilesData(source="files", paths=tuple(map(str, paths)), **settings)


def read(config: FilesData) -> list[str]:
    return list(documents_of_files(config))


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if name.lower().endswith(".gz") else raw)
    return path


def refusal(*paths: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        list(documents_of_files(files(*paths, **settings)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --------------------------------------------------------------------------------------------- endings
AS_LINES = "a.jsonl a.ndjson a.json a.JSONL a.NDJson a.Json a.jsonl.gz a.jsonl.GZ a.JSONL.gz a.x.ndjson.Gz"
AS_TEXT = "a.txt a.TXT a.raw a.md a wiki.test.raw a.txt.gz a.MD.GZ a.gz .txt"


@pytest.mark.parametrize("name", AS_LINES.split())
def test_json_lines_are_read_as_such_however_their_ending_is_written(name: str, tmp_path: Path) -> None:
    assert read(files(written(tmp_path, name, LINES))) == TEXTS


@pytest.mark.parametrize("name", AS_TEXT.split())
def test_text_is_one_document_however_its_ending_is_written(name: str, tmp_path: Path) -> None:
    assert read(files(written(tmp_path, name, "one\ntwo words\n"))) == ["one\ntwo words"]


UNKNOWN = "csv tsv parquet arrow zst bz2 xz zip tar tgz html xml pdf docx yaml tokens text jsonlines json5 v2"


@pytest.mark.parametrize("ending", [*UNKNOWN.split(), "jsonl.zst", "txt.bz2", "csv.gz", "jsonl~", "txt "])
def test_another_ending_is_refused_with_those_that_are_known(ending: str, tmp_path: Path) -> None:
    said = refusal(written(tmp_path, f"a.{ending}", LINES))
    assert "says nothing about how to read it" in said
    assert all(known in said for known in (*endings.JSON_LINES, *endings.PLAIN_TEXT, endings.COMPRESSED))


@pytest.mark.parametrize(
    ("item", "source"), [("x.csv", "files"), ("x.JSONL.zst", "files"), ("x.md", "files")]
)
def test_a_name_with_an_ending_is_never_asked_of_the_hub(item: str, source: str) -> None:
    (run, *_) = Selection("welore", data=[item]).load().runs
    assert (run.data.source, getattr(run.data, "paths", None)) == (source, (item,))


@pytest.mark.parametrize("item", ["teknium/OpenHermes-2.5", "allenai/c4@v1.0", "Salesforce/wikitext"])
def test_a_name_without_an_ending_is_a_data_set(item: str) -> None:
    (run, *_) = Selection("welore", data=[item]).load().runs
    assert run.data.source == "datasets"


@pytest.mark.parametrize(
    ("protocol", "name", "says"),
    [
        ("wikitext2-2048", "wiki.test.tokens", "says nothing about how to read it"),
        ("wikitext2-2048", "test.parquet", "says nothing about how to read it"),
        ("wikitext2-2048", "test.jsonl", "WikiText-2 comes as plain text"),
        ("c4-256", "c4.txt", "comes as JSON lines"),
        ("c4-joined", "c4.parquet", "says nothing about how to read it"),
    ],
)
def test_the_files_of_a_protocol_are_told_by_their_ending_too(
    protocol: str, name: str, says: str, tmp_path: Path
) -> None:
    config = PerplexityConfig(protocol=protocol, paths=(str(written(tmp_path, name, LINES)),))
    with pytest.raises(UserError, match=says):
        protocols.check(config, EmbeddedData())


# ------------------------------------------------------------------------------------- what a file holds
def test_one_array_in_a_json_file_is_its_rows(tmp_path: Path) -> None:
    for indent in (None, 2):
        assert read(files(written(tmp_path, "a.json", json.dumps(ROWS, indent=indent)))) == TEXTS
    assert "a.json: row 2: no text under 'text'" in refusal(written(tmp_path, "a.json", '[{"text": "a"}, 3]'))
    assert "a.json: not valid JSON" in refusal(written(tmp_path, "a.json", '[{"text": "a"}\n{"text": "b"}'))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": null}', "'text' holds null, not text; correct the line or leave it out"),
        ('{"text": 3}', "'text' holds a number, not text"),
        ('{"text": ["a"]}', "'text' holds a list, not text"),
        ('{"txt": "a"}', "no text under 'text'; the line has: txt"),
        ('{"text": "a", "text": "b"}', "the key 'text' is given twice"),
        ('{"text": "a", "more": {"x": 1, "x": 2}}', "the key 'x' is given twice"),
    ],
)
def test_a_row_without_one_text_says_what_it_has(line: str, says: str, tmp_path: Path) -> None:
    said = refusal(written(tmp_path, "a.jsonl", f'{{"text": "a"}}\n{line}\n'))
    assert "a.jsonl:2: " in said
    assert says in said


def test_one_object_over_several_lines_is_refused_with_what_is_meant(tmp_path: Path) -> None:
    said = refusal(written(tmp_path, "a.json", json.dumps(ROWS[0], indent=2)))
    assert "a.json:1: not valid JSON" in said
    assert "one whole object a line" in said


@pytest.mark.parametrize("name", ["a.txt", "a", "a.md.gz"])
def test_json_lines_under_the_name_of_a_text_are_refused_unless_it_says_raw(
    name: str, tmp_path: Path
) -> None:
    assert "every line is a JSON object; name it .jsonl, or .raw" in refusal(written(tmp_path, name, LINES))
    assert read(files(written(tmp_path, "a.raw", LINES))) == [LINES.strip()]
    assert " % of the lines is a JSON object" in refusal(written(tmp_path, name, LINES + '{"text": "cut\n'))
    prose = "and prose\n" * LINES.count("\n")
    mixed = written(tmp_path, name, LINES + prose)
    assert read(files(mixed)) == [(LINES + prose).strip()]
    deep = written(tmp_path, name, "{" * 100_000)
    assert read(files(deep)) == ["{" * 100_000]


STRINGS = [row["text"] for row in ROWS]
AS_STRINGS = "\n".join(map(json.dumps, STRINGS))


@pytest.mark.parametrize("name", ["a.txt", "a", "a.md.gz"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (json.dumps(ROWS), "it is a JSON array of objects; name it .json, or .raw"),
        ("\n" + json.dumps(ROWS, indent=2), "it is a JSON array of objects; name it .json, or .raw"),
        (
            json.dumps(ROWS[0], indent=2),
            "it is JSON over several lines; write each object on one line",
        ),
        ("\n".join(json.dumps(row, indent=1) for row in ROWS), "it is JSON over several lines"),
        (",\n".join(json.dumps(row, indent=1) for row in ROWS), "it is JSON over several lines"),
        (json.dumps(ROWS, indent=1)[:-2], "it is JSON over several lines"),
        (json.dumps(ROWS)[:-1] + ",]", "it is JSON over several lines"),
        ("\n".join(json.dumps([row["text"], 0]) for row in ROWS), "it is JSON over several lines"),
        (json.dumps(ROWS[:1]) + "\n" + json.dumps(ROWS[1:]), "it is JSON over several lines"),
        ("# by a script\n" + "\n".join(json.dumps(row, indent=1) for row in 9 * ROWS), "% of it is JSON"),
        ("".join(f"{n}\t{json.dumps(row)}\n" for n, row in enumerate(ROWS)), "% of it is JSON"),
        (json.dumps(STRINGS), 'it is a JSON array of strings; write each as {"text": ...}'),
        ("# a comment\n\n" + LINES, "66 % of the lines is a JSON object; name it .jsonl"),
        (LINES.replace("\n", "\r"), "every line is a JSON object; name it .jsonl"),
        (AS_STRINGS, 'every line is a JSON string; write each as {"text": ...}'),
        ("// a comment\n" + AS_STRINGS, "66 % of the lines is a JSON string"),
        (9 * (AS_STRINGS + "\n") + '"cut', "94 % of the lines is a JSON string"),
    ],
)
def test_any_json_under_the_name_of_a_text_is_refused(
    content: str, says: str, name: str, tmp_path: Path
) -> None:
    assert says in refusal(written(tmp_path, name, content))
    assert read(files(written(tmp_path, "a.raw", content))) == [content.strip()]


@pytest.mark.parametrize(
    "content",
    [
        '[Enter ADA] "Hello," she said. [Exit]',
        '"Hello."\n"Who is there?" he asked.\nNobody.',
        '"Hello."\n"Who is there?"\n"Ada."\nHe opened.',
        "[1, 2]",
        "[]",
        "{ADA}\n{BEN}",
        LINES + "prose\n" * 2,
        "[" * 100_000,
    ],
)
def test_prose_that_begins_like_json_is_read_as_it_stands(content: str, tmp_path: Path) -> None:
    assert read(files(written(tmp_path, "a.txt", content))) == [content.strip()]


def test_json_lines_separated_by_cr_alone_are_refused_with_what_to_do(tmp_path: Path) -> None:
    said = refusal(written(tmp_path, "a.jsonl", LINES.replace("\n", "\r")))
    assert "its lines end in CR alone: convert them to LF" in said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (gzip.compress(b"text", mtime=0), "it is gzip (add .gz to the name)"),
        (gzip.compress(gzip.compress(b"text", mtime=0), mtime=0), "it is gzip"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "it is Zstandard"),
        (b"PK\x03\x04\xff\xff", "it is zip"),
        (b"PAR1\x15\x04\xff", "it is Parquet"),
        (b"%PDF-1.4\n%\xe2\xe3", "it is PDF"),
        ("text".encode("utf-16"), "it is UTF-16"),
        ("text".encode("utf-32"), "it is UTF-32"),
        (b"\x00\x00\xfe\xff" + "text".encode("utf-32-be"), "it is UTF-32"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "run `git lfs pull`"),
        ("text".encode("utf-16-be"), "is NUL, as in UTF-16"),
        ("text".encode("utf-16-le"), "is NUL, as in UTF-16"),
        (b"text\0", "byte 4 is NUL"),
    ],
)
def test_what_is_no_text_is_refused_with_what_it_is(content: bytes, says: str, tmp_path: Path) -> None:
    assert says in refusal(written(tmp_path, "a.txt", content))
    inside = tmp_path / "a.txt.gz"
    inside.write_bytes(gzip.compress(content))
    assert says in refusal(inside)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path)


def resource_fork(path: Path) -> None:
    path.with_name("._a.txt").write_bytes(b"\0\5\x16\7")


@pytest.mark.parametrize(
    ("make", "name", "says"),
    [
        (pipe, "a.txt", "is a pipe or a device"),
        (folder, "a.txt", "is a folder: name its files"),
        (loop, "a.txt", r"no file at .*a\.txt \(Too many levels of symbolic links\)"),
        (resource_fork, "._a.txt", "attributes of another file"),
        (Path.touch, "a.txt/b", r"no file at .*a\.txt/b;"),
        (Path.touch, "b" * 300, r"no file at .* \(File name too long\)"),
        (Path.touch, "b\0", r"a path cannot hold the character \\0"),
    ],
)
def test_what_is_no_file_is_refused_with_what_it_is(
    make: Callable[[Path], None], name: str, says: str, tmp_path: Path
) -> None:
    make(tmp_path / "a.txt")
    with pytest.raises(UserError, match=says):
        existing_file(str(tmp_path / name))
    with pytest.raises(UserError, match="no such user"):
        existing_file("~nosuchuser/a.txt")


def test_a_file_given_twice_is_refused_under_whatever_name(tmp_path: Path) -> None:
    path, other = written(tmp_path, "a.jsonl", LINES), tmp_path / "b.jsonl"
    other.symlink_to(path)
    hard = tmp_path / "c.jsonl"
    hard.hardlink_to(path)
    for again in (path, other, hard, tmp_path / "." / "x" / ".." / "a.jsonl"):
        (tmp_path / "x").mkdir(exist_ok=True)
        assert "the same file as" in refusal(path, again)


def test_an_empty_file_beside_others_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", LINES)
    for name, content in (
        ("b.txt", " \n"),
        ("b.jsonl", ""),
        ("b.json", "[]"),
        ("c.jsonl", '{"text": " "}\n'),
    ):
        assert f"no text in {tmp_path / name}: the file is empty" in refusal(
            path, written(tmp_path, name, content)
        )


# ------------------------------------------------------------------------------- settings without effect
@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("a.txt", {"separator": "\r\n\r\n\r\n"}, "occurs nowhere"),
        ("a.txt", {"separator": "----"}, "occurs nowhere"),
        ("a.txt", {"separator": ""}, "is empty"),
        ("a.jsonl", {"separator": "\n"}, "splits plain text"),
        ("a.txt", {"field": "content"}, "is a key of JSON lines"),
        ("a.jsonl", {"field": "content", "template": "alpaca"}, "is not read with data.template"),
        ("a.txt", {"template": "alpaca"}, "needs the rows of a .jsonl file"),
        ("a.jsonl", {"field": "content"}, "no text under 'content'; the line has: text"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(
    name: str, settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    content = LINES if name.endswith("jsonl") else "one\n\ntwo\n"
    assert says in refusal(written(tmp_path, name, content), **settings)


def test_a_separator_need_occur_in_one_text_only(tmp_path: Path) -> None:
    text, other = written(tmp_path, "a.txt", "one--two"), written(tmp_path, "b.txt", "three")
    lines = written(tmp_path, "c.jsonl", LINES)
    assert read(files(text, other, lines, separator="--")) == ["one", "two", "three", *TEXTS]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", ["\n\n", "\r\n\r\n"])
def test_a_separator_is_found_whatever_the_ends_of_lines(tmp_path: Path, ends: str, separator: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(f"one{ends}more{ends}{ends}two{ends}".encode())
    assert read(files(path, separator=separator)) == ["one\nmore", "two"]


def test_keys_of_a_row_are_shown_on_one_bounded_line(tmp_path: Path) -> None:
    row = {"\ud83d": 1, "a\nb": 2, "k" * 5000: 3}
    said = refusal(written(tmp_path, "a.jsonl", json.dumps(row)))
    assert len(said.encode()) < 500
