"""Templates that make one text of a row with several: an instruction, what it is about, and the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.errors import UserError

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
    """The text of a row; UserError naming the place when one of its parts is missing or no text."""
    assert template == "alpaca", template
    parts = {key: row.get(key, "" if key == "input" else None) for key in ("instruction", "input", "output")}
    wrong = [key for key, text in parts.items() if not isinstance(text, str)]
    if wrong:
        raise UserError(
            f"{where}: template {template!r} needs text under {' and '.join(map(repr, wrong))}; "
            f"there is: {', '.join(sorted(row))}"
        )
    return (ALPACA_WITH_INPUT if parts["input"].strip() else ALPACA).format(**parts)
