"""The invented worlds: their vocabulary and their stored facts.

The vocabulary is the same in every world, and no word is part of two lists. Facts are stored about `PEOPLE`
alone; `STRANGERS` occur only in the short stories of the other skills: they are many, so a model that cannot
look back into the text pays for each of them.

The facts are drawn once from the world's name. Every relation is balanced: each value belongs to equally many
people (as nearly as the counts allow), so no answer is more frequent than another. World "b" changes every
single fact of world "a", so what world "a" teaches about people never helps in world "b".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from benchmarks.embedded.sampling import random_stream

WORLD_VERSION = 1
WORLDS = ("a", "b")

RELATIONS = ("home", "job", "pet", "colour")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _words("Mara Tom Anna Bren Cleo Dane Elsa Finn Gwen Hugo Iris Jack Kara Liam Nora Otto")
STRANGERS = _words(
    "Abel Adam Agnes Alan Albert Alice Alma Amos Amy Arthur Asa Astrid Basil Beatrix Ben Bertha Blake "
    "Boris Brian Bruno Carl Carmen Casper Cecil Celia Chloe Clara Clive Colin Conrad Cora Cyril Daisy "
    "Daphne David Della Denis Diana Dora Doris Drew Duncan Edgar Edith Edna Edwin Eli Ellen Elmer Emil "
    "Emma Enid Erica Ernest Esther Ethan Eunice Eva Evan Faith Felix Fiona Flora Floyd Frank Freda "
    "Gavin Gemma George Gerald Gilda Giles Gina Gloria Grace Grant Greta Gustav Hannah Harold Harriet "
    "Harvey Hazel Hector Heidi Helen Henry Herbert Hilda Homer Hope Horace Howard Ida Inga Irene Isaac "
    "Ivan Ivor Ivy Jacob James Jane Jasper Jean Jerome Jesse Joan Joel John Jonas Joyce Judith Julian "
    "June Karen Keith Kenneth Kevin Kirsten Kurt Laura Lawrence Leah Lena Leo Leonard Lester Lewis "
    "Lilian Linda Lionel Lois Louis Lucas Lucy Luther Lydia Mabel Magnus Marcus Margot Marion Martha "
    "Martin Mavis Max Melvin Mercy Michael Mildred Milo Miriam Molly Morris Moses Muriel Myra Nadia "
    "Nathan Ned Nellie Nigel Nina Noel Norman Olaf Olga Oliver Olivia Oscar Oswald Owen Pamela Pearl "
    "Percy Peter Philip Phoebe Piers Polly Quentin Rachel Ralph Ramona Raymond Rex Rhoda Richard Robin "
    "Roland Rosalind Ruby Rufus Rupert Ruth Sally Samuel Sandra Saul Sarah Selma Seth Sidney Silas "
    "Simon Sonia Stella Stephen Susan Sven Sybil Thelma Theodore Thomas Tilda Tobias Ursula Vera Victor "
    "Vincent Viola Wallace Walter Wanda Wendy Wilfred William Winifred Yolanda Yvonne Zelda"
)
TOWNS = _words("Arlen Borvik Celm Dorrin Esker Fallow Gorse Hythe")
REGIONS = _words("coast forest hills plain")
JOBS = _words("baker farmer miller sailor smith tailor teacher weaver")
PETS = _words("cat dog fox goat hen horse rabbit sheep")
COLOURS = _words("red blue green white black brown yellow purple")
PLACES = _words(
    "bridge garden harbour market mill school abbey arena barn beach cabin camp canal castle cave "
    "chapel church clinic college cottage court dam depot dock factory farm ferry fort fountain gallery "
    "gate hall hotel inn island kitchen lake library lighthouse meadow mine museum office orchard "
    "palace park pier pond port prison quarry river shop stable stadium station studio temple theatre "
    "tower tunnel university valley well wharf"
)
OBJECTS = _words(
    "ball book cup drum hat key basket bell belt bottle bowl box brush bucket candle chain chair clock "
    "coat comb crown doll feather flag flute fork glove hammer harp helmet jar jug kettle knife ladder "
    "lamp letter map mask mirror needle pan pen pillow pipe plate purse ribbon ring rope sack scarf "
    "shield shoe spoon stamp stick stone sword ticket torch towel trumpet umbrella vase violin wallet "
    "whistle"
)
GOODS = _words(
    "apples eggs nuts pears beans biscuits buns cakes carrots dates figs grapes lemons limes melons "
    "mushrooms olives onions oranges peaches peppers pies plums pumpkins rolls sweets tarts turnips"
)
NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen"
)


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


BENCHMARK = Size()


@dataclass(frozen=True)
class World:
    """One world: its name, its size, and its facts by relation ("home", "job", "pet", "colour", "region").

    Facts are stored about `people`; `crowd` adds the strangers, who occur only in stories.
    """

    name: str
    size: Size
    people: tuple[str, ...]
    crowd: tuple[str, ...]
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
