"""Keep passwords and tokens out of records, commands and messages. No torch.

What is given as a setting or an argument is stored, so a value that looks like a secret is refused, and its
text is repeated nowhere.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from harness.errors import UserError
from harness.plain_text import HIDDEN, TOKENS

_SECRETS = {
    "a user name or password": re.compile(
        r"://[^/\s?#]*@"  # https://user:pass@host, https://token@host
        r"|(?:^|[=\s'\"\[{,])//[^/\s?#:@]*:[^/\s?#@]*@"  # //user:pass@host
        r"|://\S*:\S*@"  # a password that holds a slash
        r"|(?:^|[=\s'\"\[{,])[^\s/:@=\[\]{},'\"]+:(?!//)[^\s@]*@[^\s@]",  # user:pass@host/x
    ),
    "an access token": re.compile(
        TOKENS
        + r"|(?:^|[=\s'\"\[{,])hf_[A-Za-z0-9]{8,}$"
        + r"|[?&][\w-]*(token|key|password|passwd|secret|signature|credential)="
        r"|--[\w-]*(token|password|passwd|secret|api[_-]?key)[=\s]\S",
        re.IGNORECASE,
    ),
}


def kind_of_secret(text: str) -> str | None:
    """Return in words what kind of secret a text holds, None where it holds none."""
    spellings = (text, unquote(text)) if "%" in text else (text,)  # https://user%3Apass%40host
    return next((kind for kind, form in _SECRETS.items() if any(map(form.search, spellings))), None)


def refuse_secrets(text: str, where: str) -> None:
    """Raise UserError for a text that holds a secret; the message does not repeat it."""
    kind = kind_of_secret(text)
    if kind is not None:
        place = where if kind_of_secret(where) is None else where.partition(" ")[0]
        raise UserError(
            f"{place}: the value holds {kind}, which every record would show; log in by `hf auth login` or "
            "HF_TOKEN instead, and give a folder or a hub id"
        )


def shown(value: object, most: int = 60) -> str:
    """Return a value for a message: short, on one line, and hidden where it holds a secret."""
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list | tuple):
        return "a list"
    text = value if isinstance(value, str) else repr(value)
    if kind_of_secret(text) is not None:
        return HIDDEN
    text = repr(value) if isinstance(value, str) else text
    return text if len(text) <= most else f"{text[:most]}…"
