"""Random choices with their probability: the only variation of the generators in `grammar.py`.

A generator calls `pick` of a `ChoiceSource` for every decision, so that one grammar can be sampled here and
enumerated by a test. `Sampler` decides at random and adds up the exact log-probability of its decisions.
"""

import hashlib
import math
import random
from collections.abc import Sequence
from typing import Protocol, TypeVar

Option = TypeVar("Option")


class ChoiceSource(Protocol):
    """The interface by which a generator makes its decisions."""

    def pick(self, options: Sequence[Option], weights: Sequence[float] | None = None) -> Option:
        """Return one of `options`; `weights` are relative and positive, uniform where None."""
        ...


def random_stream(*key: object) -> random.Random:
    """Return a random stream that depends on `key` alone.

    The seed is an integer from SHA-256, and `Sampler` calls only `random()`: both are the same in every
    process and every Python version, unlike `hash()` and `random.choice`.
    """
    digest = hashlib.sha256("/".join(str(part) for part in key).encode()).digest()
    return random.Random(int.from_bytes(digest[:16], "big"))


class Sampler:
    """Sample choices, and add up in `log_prob` the log-probability (nats) of what was chosen."""

    def __init__(self, stream: random.Random) -> None:
        self.stream = stream
        self.log_prob = 0.0

    def pick(self, options: Sequence[Option], weights: Sequence[float] | None = None) -> Option:
        """Return a random option."""
        if weights is None:
            self.log_prob -= math.log(len(options))
            return options[int(self.stream.random() * len(options))]
        total = sum(weights)
        threshold = self.stream.random() * total
        index = 0
        while index < len(options) - 1 and threshold >= weights[index]:
            threshold -= weights[index]
            index += 1
        self.log_prob += math.log(weights[index] / total)
        return options[index]


def pick_distinct(source: ChoiceSource, options: Sequence[Option], count: int) -> list[Option]:
    """Return `count` different options in random order, every ordered selection equally likely."""
    left = list(options)
    chosen = []
    for _ in range(count):
        chosen.append(source.pick(left))
        left.remove(chosen[-1])
    return chosen


def pick_choices(source: ChoiceSource, answers: Sequence[Option], right: Option) -> list[Option]:
    """Return the right answer and up to three others, in random order."""
    wrong = [answer for answer in answers if answer != right]
    choices = pick_distinct(source, wrong, min(3, len(wrong)))
    choices.insert(source.pick(range(len(choices) + 1)), right)
    return choices
