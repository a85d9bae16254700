"""Read documents from text files, JSONL and `datasets` ids; each error names file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.config import DatasetsData, FilesData
from harness.errors import UserError, one_line

JSON_LINES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


def read_text(path: Path) -> str:
    """Read a text file: UTF-8 with or without byte-order mark, line ends LF or CRLF, gzip by its suffix."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text (byte {error.start}); convert it or name a text file"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file, though its name says so ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def documents_of_file(
    path: Path, field: str, separator: str | None, template: str | None = None
) -> Iterator[str]:
    """Yield the documents of a file, stripped, without empty ones."""
    if path.name.endswith(JSON_LINES):
        parts: Iterable[str] = texts_of_json_lines(path, field, template)
    elif template is not None:
        raise UserError(
            f"{path}: template {template!r} needs the rows of a .jsonl file; leave it out for text"
        )
    else:
        text = read_text(path)
        parts = text.split(separator) if separator else [text]
    yield from filter(None, map(str.strip, parts))


def texts_of_json_lines(path: Path, field: str, template: str | None = None) -> Iterator[str]:
    """Yield the texts of a JSONL file unchanged, white space and empty ones included."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not valid JSON: {getattr(error, 'msg', error)}") from error
        if template is not None and isinstance(row, dict):
            row = {field: fill(template, row, f"{path}:{number}")}
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            keys = ", ".join(sorted(row)) if isinstance(row, dict) else type(row).__name__
            raise UserError(f"{path}:{number}: no text under {field!r}; the line has: {keys}")
        try:
            row[field].encode()
        except UnicodeEncodeError as error:  # a tokenizer would stop there, without saying where
            raise UserError(f"{path}:{number}: {field!r} holds half a character: {error.reason}") from error
        yield row[field]


def documents_of_files(config: FilesData) -> list[str]:
    """Return all documents of all files in the given order; UserError when they are empty."""
    found = [
        text
        for path in config.paths
        for text in documents_of_file(existing_file(path), config.field, config.separator, config.template)
    ]
    if not found:
        raise UserError(f"no text in {', '.join(config.paths)}: the files are empty")
    return found


def existing_file(path: str) -> Path:
    """Return the path of a file; UserError when it does not exist."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"no file at {file}; give a .txt or .jsonl file (several: repeat the option)")
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
        fields = ", ".join(sorted(row))
        raise UserError(
            f"data set {config.id!r} has no field {config.field!r}: set data.field to one of {fields}"
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
            f"there is: {', '.join(sorted(row))}"
        )
    return (ALPACA_WITH_INPUT if parts["input"].strip() else ALPACA).format(**parts)
