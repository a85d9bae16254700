"""Make text of strangers harmless for where it goes: labels, messages and names of files reach a terminal,
logs that a build server reads, and tables that a spreadsheet opens. No torch.
"""

from __future__ import annotations

import functools
import re

#: Access tokens by their form.
TOKENS = (
    r"\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\bsk-[\w-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bxox[abprs]-[\w-]{10,}|\beyJ[\w-]{10,}\.[\w-]{10,}"
)
HIDDEN = "(not shown)"
#: Characters of a text that is kept once it has been made plain.
SHORT = 200
_SECRETS = (
    (re.compile(r"(://)[^/\s?#@]*@"), rf"\1{HIDDEN}@"),  # user:password@ in an address
    (
        re.compile(r"([?&][\w-]*(?:token|key|password|passwd|secret|signature|credential)=)[^&\s\"']+", re.I),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.I), rf"\1 {HIDDEN}"),
    (re.compile(TOKENS, re.I), HIDDEN),
)
#: Text that a spreadsheet takes for a formula begins so, also in full width (OWASP, CSV injection).
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


def without_secrets(text: str) -> str:
    """Return a message of a library without passwords and tokens, which addresses and headers may hold."""
    for form, replacement in _SECRETS:
        text = form.sub(replacement, text)
    return text


def plain(text: str, limit: int | None = None) -> str:
    """Return one line of visible characters, at most `limit`, that gives no command and no secret away.

    Control, format and surrogate code points become spaces. GitHub and Azure carry out `::name::` and
    `##[name]` where a build prints them, so these are parted by a space.
    """
    # Keys and values of every record come here, many times the same; a long one is not worth keeping.
    return _plain(text, limit) if len(text) <= SHORT else _plain.__wrapped__(text, limit)


@functools.lru_cache(maxsize=1 << 15)
def _plain(text: str, limit: int | None) -> str:
    if not text.isprintable():
        text = "".join(char if char.isprintable() else " " for char in text)
    line = " ".join(text.split())
    line = without_secrets(re.sub(r":(?=:)|#(?=#(?:\[|vso\[))", r"\g<0> ", line))
    return line if limit is None or len(line) <= limit else line[: limit - 1].rstrip() + "…"


def cell(value: object) -> object:
    """Return a value for CSV: plain text, with an apostrophe where a spreadsheet would calculate it.

    A carriage return alone would begin another row, which Python's writer does not prevent.
    """
    if not isinstance(value, str):
        return value
    text = plain(value)
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text.startswith(_FORMULA) else text
    return text
