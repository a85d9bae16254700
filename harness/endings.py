"""How a file of text is read, by the ending of its name; a name whose ending is not listed is not read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

#: One JSON object a line with the text under a key; a file may also be one array of such objects.
JSON_LINES = (".jsonl", ".ndjson", ".json")
#: The text itself, as names without an ending are read, too.
PLAIN_TEXT = (".txt", ".raw", ".md")
#: May follow each of the others.
COMPRESSED = ".gz"
#: What is read, for messages.
KNOWN = (
    f"{', '.join(JSON_LINES)} as JSON lines, {', '.join(PLAIN_TEXT)} or no ending as text, "
    f"and {COMPRESSED} after each"
)

Kind = Literal["JSON lines", "plain text"]


def kind(path: str | Path) -> Kind | None:
    """Return how a file of this name is read, None for an ending that is not known; case does not matter."""
    ending = Path(Path(path).name.lower().removesuffix(COMPRESSED)).suffix
    if ending in JSON_LINES:
        return "JSON lines"
    return "plain text" if ending in ("", *PLAIN_TEXT) else None


def compressed(path: str | Path) -> bool:
    """Return whether the name says that the file is compressed."""
    return Path(path).name.lower().endswith(COMPRESSED)


def names_a_file(text: str) -> bool:
    """Return whether a name is that of a file rather than of a data set on the hub: it has an ending.

    `OpenHermes-2.5` has none, `notes.csv` has one: an ending begins with a letter.
    """
    return re.fullmatch(r".*\.[A-Za-z][A-Za-z0-9]{0,9}", text) is not None
