"""A ruler that changes asks for a new version of its protocol, so that old and new values never mix."""

from __future__ import annotations

import json

import pytest

from harness.record import PROTOCOLS
from tests.docs import rulers


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_changed_ruler_has_a_new_version(protocol: str) -> None:
    noted = json.loads(rulers.FILE.read_text(encoding="utf-8"))[protocol]
    assert rulers.current()[protocol] == noted, (
        f"the ruler of {protocol!r} has changed: raise its version in harness/record.py unless no measured "
        "value can have changed, then run python -m tests.docs.rulers"
    )


def test_what_does_not_act_is_no_part_of_a_ruler() -> None:
    shown = rulers.code("harness/engine/run/train.py:WARMUP_STEPS")
    assert shown == "WARMUP_STEPS = 2"
    assert '"""' not in rulers.code("harness/engine/measure/speed.py:tokens_per_s")
    assert "#" not in rulers.code("harness/engine/measure/peak.py")
