"""Read YAML that people write into values that remember where they stand. No torch.

Numbers, booleans and null are those of YAML 1.2 (core schema): `1e-3` is a number, `yes`, `1_000`, `1:30` and
`2001-01-01` are text. What can be read in two ways is refused: a key given twice, `010`, a tag that is not
known. Sizes are bounded, so that no text of a few lines fills the memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from harness.credentials import refuse_secrets
from harness.errors import UserError, one_line

#: What the name of a file that people write may end in.
ENDINGS = (".yaml", ".yml")
#: Characters of a text once every alias is written out. The largest file that ships has 40,000.
LARGEST = 1 << 21
DEEPEST = 40
#: The largest integer of torch, numpy and Parquet.
LARGEST_INTEGER = (1 << 63) - 1
SHOWN = 60

_CORE = "tag:yaml.org,2002:"
_BOOL, _INT, _FLOAT, _NULL, _TEXT, _MERGE = (
    _CORE + name for name in ("bool", "int", "float", "null", "str", "merge")
)
_REPLACE = "!replace"
_FORMS = {
    _NULL: re.compile(r"~|null|Null|NULL|"),
    _BOOL: re.compile(r"true|True|TRUE|false|False|FALSE"),
    _INT: re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    _FLOAT: re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
}
#: Text that means itself without quotes, also within a list.
_PLAIN = re.compile(r"[A-Za-z_./]([\w./:-]*[\w./])?")


@dataclass(frozen=True, eq=False)
class Written:
    """A value as it was written: text, number, boolean, None, a list of such or a dict of such by name.

    Equal is only what is the same object, so that what was made of one can be looked up by it.

    `where` is the file with the line, or the option of the command line; `keys` are the places of a dict's
    keys. `replaces` marks a section that takes the place of another instead of being merged into it.
    """

    value: Any
    where: str
    keys: dict[str, str] = field(default_factory=dict)
    replaces: bool = False

    def plain(self) -> Any:
        """Return the value without places."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        return [item.plain() for item in self.value] if isinstance(self.value, list) else self.value

    def options(self) -> Iterator[str]:
        """Yield the options of the command line that a part of the value came from."""
        if self.where.startswith("--"):
            yield self.where
        parts = self.value.values() if isinstance(self.value, dict) else self.value
        for part in parts if isinstance(self.value, dict | list) else ():
            yield from part.options()

    def place(self, path: Sequence[str | int], key: bool = False) -> str:
        """Return the place of a value or of its key; of what is around it where the path leads nowhere."""
        found, where = self, self.where
        for part in path:
            held = found.value
            if isinstance(held, dict) and part in held:
                found, where = held[part], found.keys.get(str(part), held[part].where)
            elif isinstance(held, list) and isinstance(part, int) and part < len(held):
                found, where = held[part], held[part].where
            else:
                continue
            if not key:
                where = found.where
        return where


def lift(value: Any, where: str) -> Written:
    """Return plain values as if they had been written at a place."""
    if isinstance(value, dict):
        value = {key: lift(item, where) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        value = [lift(item, where) for item in value]
    return Written(value, where)


def in_line(value: Any) -> str:
    """Return a value as it may be written here on one line: `[a, b]`, `{a: 1}`, `null`, `true`, `1e-06`."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{in_line(key)}: {in_line(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple | set | frozenset):
        return f"[{', '.join(map(in_line, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    if isinstance(value, str):
        means_itself = _PLAIN.fullmatch(value) and not any(form.fullmatch(value) for form in _FORMS.values())
        return value if means_itself else json.dumps(value, ensure_ascii=not value.isprintable())
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def read(path: Path) -> Written:
    """Read a YAML file; UserError in one line that names the file and, where one is to blame, the line."""
    try:
        raw = path.read_bytes() if path.stat().st_size <= LARGEST else None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if raw is None:
        raise UserError(f"{path}: too large to be settings: at most {LARGEST:,} bytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not valid YAML: byte {error.start} is not UTF-8 text") from error
    return _Reading(text, str(path), lines=True).result()


def parse(text: str, where: str) -> Written:
    """Read YAML from the command line; `where` names the option in messages. UserError as for `read`."""
    if len(text) > LARGEST:
        raise UserError(f"{where}: too long: at most {LARGEST:,} characters")
    return _Reading(text, where, lines=False).result()


class _Nodes(Reader, Scanner, Parser, Composer, BaseResolver):
    """The grammar of PyYAML with the tags of YAML 1.2, down to a bounded depth."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self.depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=f"nested more than {DEEPEST} deep", problem_mark=mark)
        found: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return found

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        """Return the tag of an untagged node."""
        if kind is not ScalarNode:
            return _CORE + ("map" if kind is MappingNode else "seq")
        if not implicit[0]:  # in quotes
            return _TEXT
        if value == "<<":
            return _MERGE
        return next((tag for tag, form in _FORMS.items() if form.fullmatch(value)), _TEXT)


@dataclass(frozen=True)
class _Built:
    """A value with its depth and its size once every alias in it is written out."""

    written: Written
    size: int
    depth: int


class _Reading:
    """The reading of one text: nodes of its grammar in, values with places out."""

    def __init__(self, text: str, where: str, lines: bool) -> None:
        self.text, self.where, self.lines = text, where, lines
        self.built: dict[int, _Built] = {}
        self.open: set[int] = set()

    def result(self) -> Written:
        """Return the one value of the text."""
        try:
            node = _Nodes(self.text).get_single_node()
        except yaml.MarkedYAMLError as error:
            raise self._wrong_grammar(error) from error
        except yaml.reader.ReaderError as error:
            line = f":{self.text[: error.position].count(chr(10)) + 1}" if self.lines else ""
            character = f"the control character U+{int(error.character):04X}"
            raise UserError(f"{self.where}{line}: not valid YAML: {character} is not allowed") from error
        except Exception as error:  # PyYAML raises others at odd escapes and directives
            raise UserError(f"{self.where}: not valid YAML: {one_line(error)}") from error
        if node is None:
            return Written(None, f"{self.where}:1" if self.lines else self.where)
        return self._build(node).written

    def _wrong_grammar(self, error: yaml.MarkedYAMLError) -> UserError:
        problem = one_line(error) if error.problem is None else " ".join(error.problem.split())
        if "single document" in str(error.context):
            problem = "a second document begins here; keep one"
        mark = error.problem_mark or error.context_mark
        if not self.lines:
            return UserError(f"{self.where}: the value is not valid YAML: {problem}")
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        return UserError(f"{self.where}{place}: not valid YAML: {problem}")

    def _place(self, node: Node) -> str:
        return f"{self.where}:{node.start_mark.line + 1}" if self.lines else self.where

    def _refuse(self, node: Node, problem: str) -> UserError:
        return UserError(f"{self._place(node)}: {problem}")

    def _build(self, node: Node) -> _Built:
        """Return the value of a node, the same object wherever an alias repeats it."""
        if (known := self.built.get(id(node))) is not None:
            return known
        if id(node) in self.open:
            raise self._refuse(node, "an alias stands inside the value that it repeats; write the value out")
        self.open.add(id(node))
        if isinstance(node, ScalarNode):
            value = self._scalar(node)
            found = _Built(Written(value, self._place(node)), 1 + len(node.value), 1)
        elif isinstance(node, SequenceNode):
            self._check_tag(node, "seq")
            found = self._together(node, [self._build(item) for item in node.value])
        else:
            assert isinstance(node, MappingNode)
            found = self._mapping(node)
        if found.size > LARGEST or found.depth > DEEPEST:
            raise self._refuse(node, "the aliases in it write out to more than can be settings; use fewer")
        self.open.discard(id(node))
        self.built[id(node)] = found
        return found

    def _together(self, node: Node, items: list[_Built]) -> _Built:
        written = Written([item.written for item in items], self._place(node))
        return _Built(
            written, 1 + sum(item.size for item in items), 1 + max((i.depth for i in items), default=0)
        )

    def _check_tag(self, node: Node, kind: str) -> None:
        if node.tag == _CORE + kind or (node.tag == _REPLACE and kind == "map"):
            return
        if node.tag == _REPLACE:
            raise self._refuse(
                node, "!replace belongs before a section in braces; other values replace anyway"
            )
        tag = node.tag.replace(_CORE, "!!")[:SHOWN]
        raise self._refuse(node, f"the tag {tag} is not known; leave it out")

    def _mapping(self, node: MappingNode) -> _Built:
        self._check_tag(node, "map")
        content: dict[str, _Built] = {}
        keys: dict[str, str] = {}
        merged: list[_Built] = []
        for name, value in node.value:
            if name.tag == _MERGE:
                if merged:
                    raise self._refuse(name, "the key '<<' is given twice; list the aliases: <<: [*a, *b]")
                merged = list(self._merged(value))
                continue
            key = self._key(name)
            if key in content:
                raise self._refuse(name, f"the key {key[:SHOWN]!r} is given twice, first at {keys[key]}")
            content[key], keys[key] = self._build(value), self._place(name)
        items = {key: item.written for key, item in content.items()}
        replaces = node.tag == _REPLACE
        for part in merged:  # the first of several wins
            self._check_nothing_dropped(items, keys, part.written)
            replaces |= part.written.replaces
            items = part.written.value | items
            keys = part.written.keys | keys
        parts = [*content.values(), *merged]
        size = 1 + sum(map(len, content)) + sum(part.size for part in parts)
        depth = 1 + max((part.depth for part in parts), default=0)
        return _Built(Written(items, self._place(node), keys, replaces), size, depth)

    def _check_nothing_dropped(self, own: dict[str, Written], keys: dict[str, str], merged: Written) -> None:
        """Refuse a section that would take the place of one merged by `<<`, where others are merged by key.

        An entry of `method` replaces another whole everywhere.
        """
        for key, item in own.items():
            under = merged.value.get(key)
            if key == "method" or item.replaces or under is None or under is item:
                continue
            if isinstance(item.value, dict) and isinstance(under.value, dict):
                self._check_nothing_dropped(item.value, item.keys, under)
                lost = [name for name in under.value if name not in item.value]
                if lost:
                    raise UserError(
                        f"{keys[key]}: '<<' merges no sections within {key[:SHOWN]!r}, so this drops "
                        f"{lost[0][:SHOWN]!r} of {under.where}: merge that section too, by an alias of its "
                        "own, or write !replace before the braces"
                    )

    def _merged(self, node: Node) -> Iterator[_Built]:
        """Yield the mappings that `<<` merges."""
        for item in node.value if isinstance(node, SequenceNode) else [node]:
            if not isinstance(item, MappingNode):
                raise self._refuse(item, "'<<' merges mappings: give an alias of one, as <<: *name")
            yield self._build(item)

    def _key(self, node: Node) -> str:
        if not isinstance(node, ScalarNode) or node.tag != _TEXT:
            shown = f"{node.value[:SHOWN]!r}" if isinstance(node, ScalarNode) else "a list or a section"
            raise self._refuse(node, f"a key is text, not {shown}; a number or boolean needs quotes")
        key = self._scalar(node)
        assert isinstance(key, str)
        return key

    def _scalar(self, node: ScalarNode) -> str | int | float | bool | None:
        text, tag = node.value, node.tag
        if tag in (_TEXT, _MERGE):
            return self._text(node)
        if tag not in _FORMS:
            self._check_tag(node, "str")
        if not _FORMS[tag].fullmatch(text):
            raise self._refuse(node, f"{text[:SHOWN]!r} is no {tag.removeprefix(_CORE)}; leave the tag out")
        if tag == _BOOL:
            return text.lower() == "true"
        if tag == _INT:
            return self._integer(node)
        return self._float(node) if tag == _FLOAT else None

    def _integer(self, node: ScalarNode) -> int:
        text = node.value
        if re.fullmatch(r"[-+]?0[0-9]+", text):
            short = text.lstrip("+-0")[:SHOWN] or "0"
            raise self._refuse(
                node,
                f"{text[:SHOWN]} begins with 0, which some read as octal: write {short}, or quotes for text",
            )
        value = int(text, 0) if len(text) <= len(str(LARGEST_INTEGER)) + 1 else LARGEST_INTEGER + 1
        if abs(value) > LARGEST_INTEGER:
            shown = text if len(text) <= SHOWN else f"an integer of {len(text):,} digits"
            raise self._refuse(node, f"{shown} is too large; the largest integer is {LARGEST_INTEGER}")
        return value

    def _float(self, node: ScalarNode) -> float:
        text = node.value.lower()
        if re.match(r"[-+]?0[0-9]", text):
            raise self._refuse(node, f"{text[:SHOWN]} begins with 0: leave that out, or use quotes for text")
        value = float(text.replace(".inf", "inf").replace(".nan", "nan"))
        if abs(value) == float("inf") and "inf" not in text:
            raise self._refuse(node, f"{text[:SHOWN]} is too large for a number")
        return value + 0.0  # -0.0 becomes 0.0: two ids for one number otherwise

    def _text(self, node: ScalarNode) -> str:
        text: str = node.value
        try:  # JSON writes a character beyond U+FFFF as two escapes
            text = text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise self._refuse(
                node, "half a character: an escape \\uD800 to \\uDFFF without its other half"
            ) from error
        if "\0" in text:
            raise self._refuse(node, "the character \\0 is not allowed")
        refuse_secrets(text, self._place(node))
        return text
