"""The invented worlds: their vocabulary and their stored facts.

The vocabulary is the same in every world, and no word is part of two lists.

The facts are drawn once from the world's name. Every relation is balanced: each value belongs to equally many
people (as nearly as the counts allow), so no answer is more frequent than another. World "b" changes every
single fact of world "a", so what world "a" teaches about people never helps in world "b".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from benchmarks.embedded.sampling import random_stream

WORLD_VERSION = 3
WORLDS = ("a", "b")

RELATIONS = ("home", "job", "pet")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _words("Mara Tom Anna Bren Cleo Dane Elsa Finn Gwen Hugo Iris Jack")
TOWNS = _words("Arlen Borvik Celm Dorrin Esker Fallow")
REGIONS = _words("coast forest hills")
JOBS = _words("baker farmer sailor smith tailor weaver")
PETS = _words("cat dog goat hen horse rabbit")
MOODS = _words("angry brave busy calm cold happy hungry late proud sad sick tired")
OBJECTS = _words("bread clay coal corn gold honey milk rice salt silk tea wool")
#: What people count in the word problems: one, and several.
GOODS = {
    "apple": "apples",
    "bean": "beans",
    "berry": "berries",
    "bun": "buns",
    "carrot": "carrots",
    "egg": "eggs",
    "lemon": "lemons",
    "nut": "nuts",
    "onion": "onions",
    "peach": "peaches",
    "pear": "pears",
    "radish": "radishes",
}
NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen"
)


@dataclass(frozen=True)
class Size:
    """How many words of each list a world uses: by default the benchmark; tests take fewer.

    One in `held_out` stories, sums and lists of options is kept for the questions.
    """

    people: int = len(PEOPLE)
    towns: int = len(TOWNS)
    regions: int = len(REGIONS)
    values: int = len(JOBS)
    moods: int = len(MOODS)
    objects: int = len(OBJECTS)
    goods: int = len(GOODS)
    largest_result: int = 12
    largest_loss: int = 6
    characters: int = 3
    flips: int = 3
    swaps: int = 2
    statements: int = 3
    held_out: int = 4


BENCHMARK = Size()


@dataclass(frozen=True)
class World:
    """One world: its name, its size, and its facts by relation ("home", "job", "pet", "region")."""

    name: str
    size: Size
    people: tuple[str, ...]
    values: dict[str, tuple[str, ...]]
    facts: dict[str, dict[str, str]]


@cache
def build_world(name: str, size: Size = BENCHMARK) -> World:
    """Return world "a" or "b" with its facts, the same in every process and Python version."""
    if name not in WORLDS:
        raise ValueError(f"unknown world {name!r}: choose one of {', '.join(WORLDS)}")
    people = PEOPLE[: size.people]
    values = {
        "home": TOWNS[: size.towns],
        "job": JOBS[: size.values],
        "pet": PETS[: size.values],
        "region": REGIONS[: size.regions],
    }
    facts = {}
    for relation in values:
        subjects = values["home"] if relation == "region" else people
        first = _balanced(subjects, values[relation], relation, "a")
        facts[relation] = first if name == "a" else _different(first, values[relation], relation, name)
    return World(name, size, people, values, facts)


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
