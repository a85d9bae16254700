"""Read documents from text files, JSONL and `datasets` ids; each error names file and line.

Documents are yielded one by one, so a text may be larger than memory. What is one piece is held as one: a
document, a text file without a separator, an array of JSON.
"""

from __future__ import annotations

import codecs
import gzip
import json
import math
import re
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

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
#: Bytes that are read at a time.
BLOCK = 1 << 20
#: Characters of a text in which JSON is looked for: all of most texts, the beginning of a very long one.
SEARCHED = 16 << 20


def read_text(path: Path) -> str:
    """Read a text file: UTF-8 with or without byte-order mark, line ends LF or CRLF, gzip by its ending."""
    return "".join(blocks_of(path))


def blocks_of(path: Path) -> Iterator[str]:
    """Yield the text of `read_text` in pieces; UserError where the file is none, once that shows."""
    held = ""
    for block in _decoded(path):
        text = (held + block).replace("\r\n", "\n")
        held = "\r" if text.endswith("\r") else ""  # its line feed may begin the next block
        yield text.removesuffix("\r") if held else text
    yield held


def _decoded(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    head, seen, mark = b"", 0, 0
    for raw in chain(_bytes_of(path), [b""]):
        if not seen:
            head = raw[: len(LFS_POINTER)]
            if head == LFS_POINTER:
                raise UserError(f"{path}: a pointer of Git LFS instead of the file; run `git lfs pull` there")
            mark = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(raw[mark:] if not seen else raw, final=not raw)
        except UnicodeDecodeError as error:
            place = (seen - mark if seen else 0) - waiting + error.start
            raise UserError(
                f"{path}: not UTF-8 text (byte {place}){_looks_like(head)}; convert it or name a text file"
            ) from error
        if (place := raw.find(b"\0")) >= 0:
            found = _looks_like(head) or " is NUL, as in UTF-16 and in binary files"
            raise UserError(f"{path}: not UTF-8 text (byte {seen + place}{found}); convert it")
        seen += len(raw)
        yield text


def _bytes_of(path: Path) -> Iterator[bytes]:
    try:
        with cast(IO[bytes], gzip.open(path) if endings.compressed(path) else path.open("rb")) as file:
            size = max(BLOCK, len(LFS_POINTER))  # the first block shows what the file is
            while block := file.read(size):
                yield block
                size = BLOCK
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file, though its name says so ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _looks_like(raw: bytes) -> str:
    """Return what a file is by its first bytes, in words for a message; empty where that is not known."""
    return next((f": it is {name}" for magic, name in MAGIC.items() if raw.startswith(magic)), "")


def parts_of_file(path: Path, config: FilesData) -> Iterator[str]:
    """Yield the texts of a file as they stand there: of its rows, or between separators."""
    if kind(path) == "JSON lines":
        yield from texts_of_json_lines(path, config.field, config.template)
        return
    if config.template is not None:
        raise UserError(
            f"{path}: template {config.template!r} needs the rows of a .jsonl file; leave it out for text"
        )
    separator = (config.separator or "").replace("\r\n", "\n")  # as the line ends of the text
    if separator:
        yield from _pieces(plain_text(path), separator)
    else:
        yield "".join(plain_text(path))


def _pieces(blocks: Iterable[str], separator: str) -> Iterator[str]:
    """Yield what `str.split` gives of the whole text."""
    before: list[str] = []
    rest = ""  # so much of the end of what has come that a separator may begin there
    for block in blocks:
        *ended, last = (rest + block).split(separator)
        for part in ended:
            yield "".join((*before, part))
            before = []
        place = max(0, len(last) - len(separator) + 1)
        before.append(last[:place])
        rest = last[place:]
    yield "".join((*before, rest))


def kind(path: Path) -> endings.Kind:
    """Return how a file is read; UserError for a name whose ending does not tell."""
    found = endings.kind(path)
    if found is None:
        raise UserError(
            f"{path}: {path.suffix!r} says nothing about how to read it; known are {endings.KNOWN}"
        )
    return found


def plain_text(path: Path) -> Iterator[str]:
    """Yield a text as it is; UserError for JSON under the name of a text, which is a mistake."""
    blocks = blocks_of(path)
    if _ends_with(path, ".raw"):
        return blocks
    begin: list[str] = []
    for block in blocks:
        begin.append(block)
        if sum(map(len, begin)) >= SEARCHED:
            break
    if found := _json_within("".join(begin)):
        raise UserError(f"{path}: {found}, or .raw to train on its braces and quotes")
    return chain(begin, blocks)


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
    blocks = blocks_of(path)
    if _ends_with(path, ".json"):
        begin = ""
        while not begin.strip() and (block := next(blocks, None)) is not None:
            begin += block
        blocks = chain([begin], blocks)
        if begin.lstrip().startswith("["):
            for number, row in enumerate(_parsed("".join(blocks), str(path)), start=1):
                yield f"{path}: row {number}", row
            return
    for number, line in enumerate(_pieces(blocks, "\n"), start=1):
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


def documents_of_files(config: FilesData) -> Iterator[str]:
    """Yield all documents of all files in the given order, stripped, without empty ones.

    UserError for files that cannot be read, hold no text or are given twice, and for idle settings, once
    that shows: what is in the last file, at the end.
    """
    paths = [existing_file(path) for path in config.paths]
    _check_settings(config, paths)
    split = False
    for path in paths:
        parts = documents = 0
        for part in parts_of_file(path, config):
            parts += 1
            if document := part.strip():
                documents += 1
                yield document
        split = split or (kind(path) == "plain text" and parts > 1)
        if not documents:
            raise UserError(f"no text in {path}: the file is empty; leave it out")
    if config.separator and not split:
        raise UserError(
            f"data.separator {config.separator!r} occurs nowhere in {', '.join(config.paths)}: "
            "give what stands between documents, or leave it out"
        )


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


def documents_of_dataset(config: DatasetsData) -> Iterator[str]:
    """Yield the documents of a `datasets` id; UserError when it cannot be loaded or has no text."""
    import datasets

    empty = True
    try:
        loaded = datasets.load_dataset(
            config.id, config.name, split=config.split, revision=config.revision, streaming=True
        )
        for row in loaded.take(config.limit) if config.limit else loaded:
            if text := _text_of(row, config).strip():
                empty = False
                yield text
    except UserError:
        raise
    except Exception as error:  # the library raises many kinds; each is a wrong id, split or no network
        raise UserError(
            f"data set {config.id!r} at {config.revision!r} cannot be loaded: {one_line(error)}"
        ) from error
    if empty:
        raise UserError(f"data set {config.id!r} has no text under {config.field!r}")


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
