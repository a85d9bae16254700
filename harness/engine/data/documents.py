"""Read documents from text files, JSONL and `datasets` ids; each error names file and line."""

from __future__ import annotations

import gzip
import json
import math
import re
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import endings, strict_json
from harness.config import DatasetsData, FilesData
from harness.errors import UserError, one_line
from harness.files import LFS_POINTER, from_user

#: First bytes of files that are no text whatever their name, by what they are.
MAGIC = {
    b"\x1f\x8b": "gzip (add .gz to the name)",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"%PDF-": "PDF",
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x00\x05\x16\x07": "attributes of another file, written by macOS",
}
OBJECTS_FIRST = 'write each as {"text": ...} on its line and name it .jsonl'
#: The share of JSON in a prose that quotes some.
MOST_JSON = 0.8
#: Brackets of prose before it is no longer searched for JSON.
MOST_FAILURES = 1000
#: Characters of names from a file in a message.
SHOWN = 200


def read_text(path: Path) -> str:
    """Read a text file: UTF-8 with or without byte-order mark, line ends LF or CRLF, gzip by its ending."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if endings.compressed(path) else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file, though its name says so ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if raw.startswith(LFS_POINTER):
        raise UserError(f"{path}: a pointer of Git LFS instead of the file; run `git lfs pull` there")
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text (byte {error.start}){_looks_like(raw)}; convert it or name a text file"
        ) from error
    if (place := raw.find(b"\0")) >= 0:
        found = _looks_like(raw) or " is NUL, as in UTF-16 and in binary files"
        raise UserError(f"{path}: not UTF-8 text (byte {place}{found}); convert it")
    return text


def _looks_like(raw: bytes) -> str:
    """Return what a file is by its first bytes, in words for a message; empty where that is not known."""
    return next((f": it is {name}" for magic, name in MAGIC.items() if raw.startswith(magic)), "")


def parts_of_file(path: Path, config: FilesData) -> list[str]:
    """Return the texts of a file as they stand there: of its rows, or between separators."""
    if kind(path) == "JSON lines":
        return list(texts_of_json_lines(path, config.field, config.template))
    if config.template is not None:
        raise UserError(
            f"{path}: template {config.template!r} needs the rows of a .jsonl file; leave it out for text"
        )
    text = plain_text(path)
    separator = (config.separator or "").replace("\r\n", "\n")  # as the line ends of the text
    return text.split(separator) if separator else [text]


def kind(path: Path) -> endings.Kind:
    """Return how a file is read; UserError for a name whose ending does not tell."""
    found = endings.kind(path)
    if found is None:
        raise UserError(
            f"{path}: {path.suffix!r} says nothing about how to read it; known are {endings.KNOWN}"
        )
    return found


def plain_text(path: Path) -> str:
    """Return a text as it is; UserError for JSON under the name of a text, which is a mistake."""
    text = read_text(path)
    if not _ends_with(path, ".raw") and (found := _json_within(text)):
        raise UserError(f"{path}: {found}, or .raw to train on its braces and quotes")
    return text


def _json_within(text: str) -> str:
    """Return what JSON a text is and what to name it, in words for a message; empty where it is prose."""
    whole = _json(text) if text.lstrip().startswith("[") else None
    if isinstance(whole, list) and whole:
        kinds = set(map(type, whole))
        if kinds == {dict}:
            return "it is a JSON array of objects; name it .json"
        if kinds <= {dict, str}:
            return f"it is a JSON array of strings; {OBJECTS_FIRST}"
    lines = [line for line in re.split("[\r\n]+", text) if line.strip()]
    parsed = [type(_json(line)) if line.lstrip().startswith(("{", '"')) else None for line in lines]
    # Speech in prose is a JSON string, too: there, nearly all that follows a comment has to be one.
    body = parsed[parsed.index(str) :] if str in parsed else []
    for kind, most, name, advice in (
        (dict, parsed.count(dict) > 0.5 * len(lines), "object", "name it .jsonl"),
        (str, body.count(str) > MOST_JSON * len(body), "string", OBJECTS_FIRST),
    ):
        if most:
            count = parsed.count(kind)
            every = count == len(lines)
            many = "every line" if every else f"{math.floor(100 * count / len(lines))} % of the lines"
            return f"{many} is a JSON {name}; {advice}"
    share = _share_of_json(text)
    if share > MOST_JSON:
        much = "it" if share == 1 else f"{math.floor(100 * share)} % of it"
        return f"{much} is JSON over several lines; write each object on one line and name it .jsonl"
    return ""


def _share_of_json(text: str) -> float:
    """Return which share of the letters of a text, blanks and commas aside, is in JSON objects and arrays."""
    decoder, inside, place, failures = json.JSONDecoder(), 0, 0, 0
    while (found := re.compile(r"[\[{]").search(text, place)) and failures < MOST_FAILURES:
        place = found.start() + 1
        try:
            value, end = decoder.raw_decode(text, found.start())
        except (ValueError, RecursionError):  # prose, or an array that is cut off
            failures += 1
            continue
        if isinstance(value, dict) or any(isinstance(item, dict | list | str) for item in value):
            inside += _letters(text[found.start() : end])
            place = end
    return inside / _letters(text) if inside else 0.0


def _letters(text: str) -> int:
    return len(re.sub(r"[\s\[\],]+", "", text))


def _json(text: str) -> Any:
    """Return the value of a JSON text, None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def texts_of_json_lines(path: Path, field: str, template: str | None = None) -> Iterator[str]:
    """Yield the texts of a JSONL file unchanged, white space and empty ones included."""
    for where, row in _rows(path):
        if template is not None and isinstance(row, dict):
            row = {field: fill(template, row, where)}
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            raise UserError(f"{where}: {_without_text(row, field)}")
        try:
            row[field].encode()
        except UnicodeEncodeError as error:  # a tokenizer would stop there, without saying where
            raise UserError(f"{where}: {field!r} holds half a character: {error.reason}") from error
        yield row[field]


def _without_text(row: Any, field: str) -> str:
    """Return in words why a row has no text under a key."""
    if not isinstance(row, dict):
        return f"no text under {field!r}; the line has: {type(row).__name__}"
    if field not in row:
        return f"no text under {field!r}; the line has: {_listed(row)}"
    kinds = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    held = kinds.get(type(row[field]), "null")
    return f"{field!r} holds {held}, not text; correct the line or leave it out"


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each row with its place for messages, from a line each, or from one array of all."""
    text = read_text(path)
    if text.lstrip().startswith("[") and _ends_with(path, ".json"):
        for number, row in enumerate(_parsed(text, str(path)), start=1):
            yield f"{path}: row {number}", row
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _parsed(line, f"{path}:{number}")


def _parsed(text: str, where: str) -> Any:
    try:
        return strict_json.parse(text)
    except (ValueError, RecursionError) as error:
        hint = "; JSON lines have one whole object a line" if text.strip() in ("{", "[") else ""
        if "\r" in text.strip() and "Extra data" in str(error):
            hint = "; its lines end in CR alone: convert them to LF"
        raise UserError(f"{where}: not valid JSON: {getattr(error, 'msg', error)}{hint}") from error


def _ends_with(path: Path, ending: str) -> bool:
    return path.name.lower().removesuffix(endings.COMPRESSED).endswith(ending)


def _listed(keys: Iterable[str]) -> str:
    """Return keys for a message: on one line, bounded, and encodable whatever they hold."""
    text = " ".join(", ".join(sorted(keys)).split())
    return text.encode(errors="replace").decode()[:SHOWN]


def documents_of_files(config: FilesData) -> list[str]:
    """Return all documents of all files in the given order, stripped, without empty ones.

    UserError for files that cannot be read, hold no text or are given twice, and for idle settings.
    """
    paths = [existing_file(path) for path in config.paths]
    _check_settings(config, paths)
    found: list[str] = []
    split = False
    for path in paths:
        parts = parts_of_file(path, config)
        split = split or (kind(path) == "plain text" and len(parts) > 1)
        documents = list(filter(None, map(str.strip, parts)))
        if not documents:
            raise UserError(f"no text in {path}: the file is empty; leave it out")
        found += documents
    if config.separator and not split:
        raise UserError(
            f"data.separator {config.separator!r} occurs nowhere in {', '.join(config.paths)}: "
            "give what stands between documents, or leave it out"
        )
    return found


def _check_settings(config: FilesData, paths: Sequence[Path]) -> None:
    """Raise UserError for idle settings and for a file given twice, whose text would be held out, too."""
    seen: dict[tuple[int, int], Path] = {}
    for path in paths:
        state = path.stat()
        first = seen.setdefault((state.st_dev, state.st_ino), path)
        if first is not path:
            raise UserError(f"{path}: the same file as {first}; give each file once")
    kinds = {kind(path) for path in paths}
    default = FilesData.model_fields["field"].default
    if config.separator == "":
        raise UserError("data.separator is empty; give what stands between documents, or leave it out")
    if config.separator is not None and "plain text" not in kinds:
        raise UserError("data.separator splits plain text, and all files are JSON lines: leave it out")
    if config.field != default and "JSON lines" not in kinds:
        raise UserError(
            f"data.field {config.field!r} is a key of JSON lines, and all files are text: leave it out"
        )
    if config.field != default and config.template is not None:
        raise UserError(f"data.field {config.field!r} is not read with data.template: leave one of them out")


def existing_file(path: str | Path) -> Path:
    """Return the path of a file; UserError when it does not exist or is something else."""
    try:
        file = from_user(path)
        mode = file.stat().st_mode
    except (OSError, RuntimeError, ValueError) as error:  # no such user, a NUL in the name
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        why = "" if missing else f" ({getattr(error, 'strerror', None) or one_line(error)})"
        raise UserError(
            f"no file at {str(Path(path))[:SHOWN]}{why}; "
            "give a .txt or .jsonl file (several: repeat the option)"
        ) from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{file} is a folder: name its files (several: repeat the option)")
    if not stat.S_ISREG(mode):
        raise UserError(f"{file} is a pipe or a device, which can be read only once: write it to a file")
    if file.name.startswith("._"):
        raise UserError(f"{file}: macOS keeps attributes of another file in it, not text: leave it out")
    return file


def documents_of_dataset(config: DatasetsData) -> list[str]:
    """Return the documents of a `datasets` id; UserError when it cannot be loaded or has no text."""
    import datasets

    try:
        loaded = datasets.load_dataset(
            config.id, config.name, split=config.split, revision=config.revision, streaming=True
        )
        rows = loaded.take(config.limit) if config.limit else loaded
        texts = [text for row in rows if (text := _text_of(row, config).strip())]
    except UserError:
        raise
    except Exception as error:  # the library raises many kinds; each is a wrong id, split or no network
        raise UserError(
            f"data set {config.id!r} at {config.revision!r} cannot be loaded: {one_line(error)}"
        ) from error
    if not texts:
        raise UserError(f"data set {config.id!r} has no text under {config.field!r}")
    return texts


def _text_of(row: Mapping[str, Any], config: DatasetsData) -> str:
    """Return the text of a row, empty where it has none."""
    if config.template is not None:
        return fill(config.template, row, f"data set {config.id!r}")
    if config.field not in row:
        raise UserError(
            f"data set {config.id!r} has no field {config.field!r}: set data.field to one of {_listed(row)}"
        )
    text = row[config.field]
    if text is not None and not isinstance(text, str):
        kind = type(text).__name__
        raise UserError(f"data set {config.id!r}: {config.field!r} holds {kind}, not text: set data.field")
    return text or ""


#: Stanford Alpaca's prompt (Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca), with and without input.
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n{output}"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n{output}"
)


def fill(template: str, row: Mapping[str, Any], where: str) -> str:
    """Fill a template from a row; UserError naming the place when a part is missing or no text."""
    assert template == "alpaca", template
    parts = {key: row.get(key, "" if key == "input" else None) for key in ("instruction", "input", "output")}
    wrong = [key for key, text in parts.items() if not isinstance(text, str)]
    if wrong:
        raise UserError(
            f"{where}: template {template!r} needs text under {' and '.join(map(repr, wrong))}; "
            f"there is: {_listed(row)}"
        )
    return (ALPACA_WITH_INPUT if parts["input"].strip() else ALPACA).format(**parts)
