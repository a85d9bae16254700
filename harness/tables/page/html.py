"""Text of records on its way into a page: it can be read there and can do nothing.

Records hold what people, models and other programs wrote. Here is the one place where it is made harmless
for HTML, for the labels of charts, which know a few tags and links of their own, and for embedded JSON.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from typing import Any

from harness.tables.format import plain

#: What could end the element that holds JSON, or begin one inside it.
_UNSAFE = {char: f"\\u{ord(char):04x}" for char in "<>&\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}"}


def escape(text: str) -> str:
    """One line of text for the content of an element or a quoted attribute."""
    return html.escape(plain(text))


def lines(text: str) -> str:
    """The same with line breaks kept, for preformatted text."""
    return html.escape("\n".join(plain(line) for line in text.splitlines()))


def chart_text(text: str, limit: int | None = None) -> str:
    """One line for a label of a chart, where `<` and `&` would be read as markup."""
    return html.escape(plain(text, limit), quote=False)


def json_block(value: Any) -> str:
    """JSON for a script element that is data; ValueError for NaN and infinity, which JSON does not have."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return "".join(_UNSAFE.get(char, char) for char in text)


def script_hash(source: str) -> str:
    """The source expression by which a Content-Security-Policy allows exactly this script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def tag(name: str, content: str = "", /, **attributes: str | None) -> str:
    """An element around content that is HTML already; values of attributes are escaped here, None leaves out.

    An underscore at the end of a name is dropped and one within it is a hyphen: `class_`, `aria_sort`.
    """
    return f"<{name}{_written(attributes)}>{content}</{name}>"


def _written(attributes: Mapping[str, str | None]) -> str:
    known = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    return "".join(f' {key}="{html.escape(value)}"' for key, value in known.items() if value is not None)
