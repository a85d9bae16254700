"""Sources of choices: the only variation of a generator, so that one grammar can be sampled or enumerated.

A generator is a function that takes a source and calls `pick` for every decision. `Sampler` decides at
random and adds up the exact log-probability of what it decided; `enumerate_derivations` runs the same
generator once for every possible sequence of decisions. Nothing here knows what is generated.
"""

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Option = TypeVar("Option")
Result = TypeVar("Result")


class ChoiceSource(Protocol):
    """What a generator needs in order to make its decisions."""

    def pick(self, options: Sequence[Option], weights: Sequence[float] | None = None) -> Option:
        """Return one of `options`; `weights` are relative and positive, uniform where None."""
        ...


def random_stream(*key: object) -> random.Random:
    """Return a random stream that depends on `key` alone.

    The seed is an integer taken from SHA-256, and they call only `random()`: both are the same in
    every process and every Python version, which `hash()` and `random.choice` do not promise.
    """
    digest = hashlib.sha256("/".join(str(part) for part in key).encode()).digest()
    return random.Random(int.from_bytes(digest[:16], "big"))


class Sampler:
    """A source that samples, and adds up in `log_prob` (nats) the probability of its decisions."""

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


class _Script:
    """A source that follows given decisions, then takes first options, and records each width."""

    def __init__(self, decisions: Sequence[int]) -> None:
        self.decisions = list(decisions)
        self.widths: list[int] = []
        self.log_prob = 0.0

    def pick(self, options: Sequence[Option], weights: Sequence[float] | None = None) -> Option:
        """Return the option that the script names."""
        position = len(self.widths)
        if position == len(self.decisions):
            self.decisions.append(0)
        self.widths.append(len(options))
        index = self.decisions[position]
        share = 1 / len(options) if weights is None else weights[index] / sum(weights)
        self.log_prob += math.log(share)
        return options[index]


def enumerate_derivations(generate: Callable[[ChoiceSource], Result]) -> Iterator[tuple[Result, float]]:
    """Yield every possible result of `generate` with its log-probability (nats), each derivation once."""
    decisions: list[int] = []
    while True:
        script = _Script(decisions)
        yield generate(script), script.log_prob
        decisions = script.decisions
        while decisions and decisions[-1] + 1 == script.widths[len(decisions) - 1]:
            decisions.pop()
        if not decisions:
            return
        decisions[-1] += 1


def pick_distinct(source: ChoiceSource, options: Sequence[Option], count: int) -> list[Option]:
    """Return `count` different options in random order, every ordered selection equally likely."""
    left = list(options)
    chosen = []
    for _ in range(count):
        option = source.pick(left)
        left.remove(option)
        chosen.append(option)
    return chosen
