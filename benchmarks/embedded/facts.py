"""The stored facts of the invented worlds.

A world is a vocabulary (the same in every world) and an assignment of facts, drawn once from the world's
name. Every relation is balanced: each value belongs to equally many people (as nearly as the counts allow),
so no answer is more frequent than another. World "b" has another value than world "a" for every single fact,
so what world "a" teaches about people never helps in world "b".
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.embedded.sampling import random_stream
from benchmarks.embedded.vocabulary import (
    COLOURS,
    GOODS,
    JOBS,
    OBJECTS,
    PEOPLE,
    PETS,
    PLACES,
    REGIONS,
    STRANGERS,
    TOWNS,
)

WORLD_VERSION = 1
WORLDS = ("a", "b")

RELATIONS = ("home", "job", "pet", "colour")


@dataclass(frozen=True)
class Size:
    """How many words of each list a world uses: by default the benchmark; tests take fewer."""

    people: int = 16
    strangers: int = len(STRANGERS)
    towns: int = 8
    regions: int = 4
    values: int = 8
    places: int = len(PLACES)
    objects: int = len(OBJECTS)
    goods: int = len(GOODS)
    largest_result: int = 12
    largest_loss: int = 6
    flips: int = 3
    swaps: int = 2
    statements: int = 3


@dataclass(frozen=True)
class World:
    """One world: its name, its size, and its facts by relation ("home", "job", "pet", "colour", "region").

    Facts are stored about `people`; `crowd` is these and the strangers, about whom only stories are told.
    """

    name: str
    size: Size
    people: tuple[str, ...]
    crowd: tuple[str, ...]
    values: dict[str, tuple[str, ...]]
    facts: dict[str, dict[str, str]]


def build_world(name: str, size: Size | None = None) -> World:
    """Return world "a" or "b" with its facts, the same in every process and Python version."""
    if name not in WORLDS:
        raise ValueError(f"unknown world {name!r}: choose one of {', '.join(WORLDS)}")
    size = size or Size()
    people = PEOPLE[: size.people]
    values = {
        "home": TOWNS[: size.towns],
        "job": JOBS[: size.values],
        "pet": PETS[: size.values],
        "colour": COLOURS[: size.values],
        "region": REGIONS[: size.regions],
    }
    facts = {}
    for relation in values:
        subjects = values["home"] if relation == "region" else people
        first = _balanced(subjects, values[relation], relation, "a")
        facts[relation] = first if name == "a" else _different(first, values[relation], relation, name)
    return World(name, size, people, people + STRANGERS[: size.strangers], values, facts)


def _balanced(subjects: Sequence[str], values: Sequence[str], relation: str, name: str) -> dict[str, str]:
    """Assign values to subjects at random, each value equally often."""
    stream = random_stream("facts", WORLD_VERSION, name, relation)
    assigned = [values[index % len(values)] for index in range(len(subjects))]
    for last in range(len(assigned) - 1, 0, -1):
        other = int(stream.random() * (last + 1))
        assigned[last], assigned[other] = assigned[other], assigned[last]
    return dict(zip(subjects, assigned, strict=True))


def _different(first: dict[str, str], values: Sequence[str], relation: str, name: str) -> dict[str, str]:
    """Assign values again, balanced, redrawn until no subject keeps its value of `first`."""
    for attempt in range(100_000):
        again = _balanced(list(first), values, relation, f"{name}{attempt}")
        if all(again[subject] != first[subject] for subject in first):
            return again
    raise ValueError(f"found no assignment of {relation} for world {name!r} that changes every fact")
