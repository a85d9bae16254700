"""Check values of a config.json that transformers takes as they are: numbers, activations, positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers.activations import ACT2FN

from harness.credentials import shown
from harness.errors import UserError, nearest

_COUNT = ("a whole number from 1", lambda value: value >= 1 and value == int(value))
_SHARE = ("from 0 to below 1", lambda value: 0 <= value < 1)
_UP_TO_ONE = ("from 0 to 1", lambda value: 0 <= value <= 1)
_FROM_ZERO = ("a number from 0", lambda value: value >= 0)
_ABOVE = ("a number above 0", lambda value: value > 0)
_FINITE = ("a finite number", lambda value: True)
#: Sections of config.json about rotary positions; of two, transformers reads the first.
ROPE = ("rope_scaling", "rope_parameters")
#: What values of config.json may be where they are given, by setting.
VALUES: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(("max_position_embeddings", "sliding_window"), _COUNT),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "factor"), _ABOVE),
    # a base below 0, as a divisor of 0, gives NaN
    **dict.fromkeys(("rope_theta", "rope_local_base_freq", "rotary_emb_base"), _ABOVE),
    **dict.fromkeys(("attention_factor", "low_freq_factor", "high_freq_factor"), _ABOVE),
    **dict.fromkeys(("query_pre_attn_scalar", "logits_scaling"), _ABOVE),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), _ABOVE),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), _UP_TO_ONE),
    **dict.fromkeys(("attention_multiplier", "residual_multiplier", "embedding_multiplier"), _FINITE),
    **dict.fromkeys(("logit_scale", "routed_scaling_factor"), _FINITE),
    "initializer_range": _FROM_ZERO,
    **dict.fromkeys(
        ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"), _SHARE
    ),
}


def refuse_values(folder: Path, said: Mapping[str, Any], name: str = "config.json") -> None:
    """Raise UserError for a value that transformers takes, or trips over later, though none can be meant."""
    for key, (allowed, fits) in VALUES.items():
        unused = key == "sliding_window" and said.get("use_sliding_window") is False  # saved as 0
        value = None if unused else said.get(key)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not (number and fits(value)):
            raise UserError(f"{folder}: {name} gives {key} {shown(value)}; it must be {allowed}: correct it")
    for key in ("hidden_act", "activation_function"):
        act = said.get(key)
        if act is not None and (not isinstance(act, str) or act not in ACT2FN):
            raise UserError(f"{folder}: {name}: no {key} {shown(act)}; {nearest(str(act), ACT2FN)}")
    for key in ("text_config", *ROPE):
        if isinstance(inner := said.get(key), dict):
            refuse_values(folder, inner, f"{name}: {key}")
    for place, section in _rope_sections(said):
        if place not in ROPE:
            refuse_values(folder, section, f"{name}: {place}")
    _refuse_idle_rope(folder, said, name)


def _rope_sections(said: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the sections about rotary positions by place: one, or one for each kind of layer."""
    whole = [(key, said[key]) for key in ROPE if isinstance(said.get(key), dict)]
    kinds = [(f"{key}: {kind}", part) for key, section in whole for kind, part in section.items()]
    return [(place, part) for place, part in kinds if isinstance(part, dict)] or whole


def _refuse_idle_rope(folder: Path, said: Mapping[str, Any], name: str) -> None:
    """Raise UserError for a value on rotary positions that transformers passes over for another, unsaid."""
    base = {"rope_theta": said.get("rope_theta")}
    both = [said[key] for key in ROPE if isinstance(said.get(key), dict) and said[key]]
    full = [{**base, "rope_type": part.get("type"), **part, "type": None} for part in both]
    if len(full) > 1 and full[0] != full[1]:
        raise UserError(f"{folder}: {name} gives {' and '.join(ROPE)}, which differ; remove one of them")
    sections = _rope_sections(said)
    for key in ("rope_theta", "partial_rotary_factor"):
        inner = {place: part.get(key) for place, part in sections}
        value = said.get(key)
        if value is None or not inner or None in inner.values() or value in inner.values():
            continue
        place, other = next(iter(inner.items()))
        raise UserError(
            f"{folder}: {name} gives {key} {shown(value)}, and {shown(other)} in {place}; "
            "only the second would be used: remove the wrong one"
        )
