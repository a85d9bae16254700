"""Answer `lorebench check`: hold one method to every check of the contract, and send a line for each."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import torch

from harness.engine.contract.checks import CHECKS, COMPARING, NotTried
from harness.engine.contract.forecast import forecast
from harness.engine.contract.subject import OPTIM, Subject
from harness.errors import MethodError, UnsupportedError, UserError, one_line
from harness.plugins import build, complete_options, import_libraries, place_of

Send = Callable[[dict[str, Any]], None]
#: Said of a method that changes the model and brings no optimizer.
ALONE = "it has no stepper, so alone it trains nothing; stack a method that trains on it, or return one"
ALL = {**CHECKS, "forecast": forecast}


def answer(request: dict[str, Any], send: Send) -> None:
    """Check the method of a request and send each outcome; UserError where it cannot be built."""
    torch.set_num_threads(1)
    name, options = request["method"], request["options"]
    method = build(name, options)
    complete_options(name, method)
    import_libraries(name, method)
    optim = OPTIM if method.caps.grad_clip else OPTIM.model_copy(update={"clip": None})
    subject = Subject(((name, options),), optim)
    checks = ALL
    if method.caps.stages == {"compress"}:
        checks = {key: check for key, check in checks.items() if key in ("model", "randomness", "export")}
    random = False
    for key, check in checks.items():
        if random and key in COMPARING:
            outcome, said = "not tried", "randomness failed"
        else:
            outcome, said = tried(subject, check)
        random |= key == "randomness" and outcome == "failed"
        send({"check": key, "outcome": outcome, "said": said})
        if outcome == "failed" and key in ("model", "updates"):
            send({"stopped": "the other checks need a model that trains"})
            break
    else:
        if checks is ALL and not subject.trains:
            send({"note": ALONE})
    send({"done": True})


def tried(subject: Subject, check: Callable[[Subject], str]) -> tuple[str, str]:
    """Return the outcome of a check and what was seen."""
    try:
        return "ok", check(subject)
    except NotTried as reason:
        return "not tried", str(reason)
    except (MethodError, UserError, UnsupportedError) as error:
        return "failed", one_line(error)
    except (Exception, SystemExit) as error:
        traceback.print_exception(error)
        return "failed", f"{type(error).__name__}: {one_line(error)}{place_of(error)}"
