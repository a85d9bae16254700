"""Escape text of records for a page, so that it is displayed and never executed.

Records hold text of people, models and other programs. This is the only place that escapes it: for HTML, for
labels of charts, which interpret a few tags and links, and for embedded JSON.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from typing import Any

from harness.tables.format import plain

#: Characters that could end the element that holds JSON, or begin one inside it.
_UNSAFE = {char: f"\\u{ord(char):04x}" for char in "<>&\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}"}


def escape(text: str) -> str:
    """Escape one line of text for the content of an element or a quoted attribute."""
    return html.escape(plain(text))


def lines(text: str) -> str:
    """Escape text with its line breaks, for preformatted text."""
    return html.escape("\n".join(plain(line) for line in text.splitlines()))


def chart_text(text: str, limit: int | None = None) -> str:
    """Escape one line for a label of a chart, where `<` and `&` would be markup."""
    return html.escape(plain(text, limit), quote=False)


def json_block(value: Any) -> str:
    """Return JSON for a script element of data; ValueError for NaN and infinity, which JSON lacks."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return "".join(_UNSAFE.get(char, char) for char in text)


def script_hash(source: str) -> str:
    """Return the source expression of a Content-Security-Policy that allows exactly this script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def tag(name: str, content: str = "", /, **attributes: str | None) -> str:
    """Return an element around content that is HTML already; attributes are escaped, those of None left out.

    A trailing underscore of a name is dropped and one within it becomes a hyphen: `class_`, `aria_sort`.
    """
    known = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    texts = (f' {key}="{html.escape(value)}"' for key, value in known.items() if value is not None)
    return f"<{name}{''.join(texts)}>{content}</{name}>"
