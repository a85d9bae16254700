"""Find the files that define tasks, without loading them: YAML, the code beside it, and data that these name.

Whatever else lies in a folder of tasks is no part of them, so results written there change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

LARGEST_DEFINITION = 1 << 20
#: A word that may be the name of a file.
WORD = re.compile(r"[\w./+~-]*\w")


class _Loader(yaml.SafeLoader):
    """Safe YAML in which an unknown tag, as lm-eval's `!function`, leaves the text that follows."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: getattr(node, "value", None))


def files_of_tasks(names: Sequence[str], folders: Iterable[Path]) -> dict[str, Path]:
    """Return the files that define tasks or groups of these names, by their path below their folder."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in _definitions(names, folder.absolute()):
            for file in _with_neighbours(path):
                inside = file.is_relative_to(folder.absolute())
                found[file.relative_to(folder.absolute()).as_posix() if inside else file.name] = file
    return found


def data_sets_of_tasks(names: Sequence[str], folder: Path) -> set[str]:
    """Return the values of `dataset_kwargs.dataset` of the tasks of these names in a folder."""
    kwargs = [_content(path).get("dataset_kwargs") for path in _definitions(names, folder)]
    return {str(each["dataset"]) for each in kwargs if isinstance(each, dict) and "dataset" in each}


def _definitions(names: Sequence[str], folder: Path) -> list[Path]:
    """Return the YAML files of tasks and groups, members of groups and tags included."""
    contents = {path: _content(path) for path in sorted(folder.rglob("*.y*ml")) if _is_ours(path, folder)}
    wanted, found = set(names), dict[Path, None]()
    while True:
        new = [path for path, content in contents.items() if path not in found and wanted & _names(content)]
        if not new:
            return list(found)
        for path in new:
            found[path] = None
            wanted |= set(_members(contents[path]))


def _is_ours(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.is_file() and path.stat().st_size <= LARGEST_DEFINITION


def _content(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, OSError, ValueError, RecursionError):
        return {}  # loading the task says what is wrong
    return content if isinstance(content, dict) else {}


def _names(content: Mapping[str, Any]) -> set[str]:
    """Return the names by which a file can be asked for: of its task, its group or its tags."""
    own = [content.get("group"), content.get("tag")]
    own += [content["task"]] if isinstance(content.get("task"), str) else []
    several = (name for each in own for name in (each if isinstance(each, list) else [each]))
    return {name for name in several if isinstance(name, str)}


def _members(content: Mapping[str, Any]) -> Iterator[str]:
    members = content.get("task")
    for member in members if isinstance(members, list) else ():
        named = member.get("task", member.get("group")) if isinstance(member, dict) else member
        if isinstance(named, str):
            yield named


def _with_neighbours(path: Path) -> Iterator[Path]:
    """Yield a definition, what it includes, all code beside it, and the files that any of these mention."""
    waiting, seen = [path, *sorted(path.parent.glob("*.py"))], set[Path]()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        yield file
        if file.suffix not in (".py", ".yaml", ".yml") and "yaml" not in file.name:
            continue
        with suppress(OSError, UnicodeDecodeError):
            text = file.read_text(encoding="utf-8")
            waiting += [other for word in set(WORD.findall(text)) for other in _named(word, file.parent)]


def _named(word: str, folder: Path) -> list[Path]:
    """Return the file that a word names, beside a definition or from the working directory."""
    found = []
    for place in (folder, Path()):
        with suppress(OSError, ValueError):
            file = (place / word).expanduser().absolute()
            found += [file] if file.is_file() else []
    return found[:1]
