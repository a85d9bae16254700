"""The grammar of the embedded worlds: one generator per kind of document.

Every generator returns a `Draft`. Its text reveals every decision of the source of choices, so the text
determines the derivation, and the log-probability of the decisions is that of the text. What is not in the
text (the wrong numbers that a question offers beside the right one) is therefore never chosen here.

A generator that is asked for a question (`held`) makes a text that it never makes as a document. Which texts
are kept for questions depends on whom and what they name. Each name has a number, for people and things their
place in the list. Where the numbers add up to a multiple of `Size.held_out`, the text is a question:

    facts       pairs of options that stand in the reverse of the order of their list, one each
    arithmetic  the person and the goods
    reading     the people
    coins       the people and the side
    shuffle     the people
    twohop      both people

Stories and sums draw names independently of what is told and asked about them, and a list of options has each
option as its answer equally often, so there the rule tells nothing about an answer. In twohop both people
decide it: the rule says which pairs are asked about. Names are drawn at once from all on the right side, so
the probability of each text is exact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations
from typing import Protocol

from benchmarks.embedded.facts import GOODS, MOODS, NUMBERS, OBJECTS, RELATIONS, World
from benchmarks.embedded.sampling import ChoiceSource, pick_distinct

ENDING = "."
YES_NO = ("yes", "no")
OPTIONS = 4
#: Shares of stories with no, one and two swaps.
SWAPS = (0.5, 0.3, 0.2)

_VERBS = {"home": "lives in", "job": "works as a", "pet": "keeps a"}
_QUESTIONS = {
    "home": "in which town does {} live?",
    "job": "which job does {} have?",
    "pet": "which animal does {} keep?",
}
_GAINS = ("finds", "buys", "gets")
_LOSSES = ("loses", "sells", "eats")


@dataclass(frozen=True)
class Draft:
    """The parts of one document.

    `choices` are the answers in the order in which the prompt lists them, or empty where it lists none; then
    `pool` holds all answers that can occur. A statement has no answer: its prompt is the whole text without
    the ending.
    """

    prompt: str
    answer: str = ""
    choices: tuple[str, ...] = ()
    pool: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Return the whole document."""
        return f"{self.prompt} {self.answer}{ENDING}" if self.answer else self.prompt + ENDING


@cache
def _groups(
    people: tuple[str, ...], count: int, known: int, held_out: int, held: bool
) -> list[tuple[str, ...]]:
    """Return all choices of `count` people, in every order, that are on one side together with `known`."""
    number = {person: place for place, person in enumerate(people)}
    return [
        chosen
        for chosen in permutations(people, count)
        if ((known + sum(number[person] for person in chosen)) % held_out == 0) == held
    ]


def _people(source: ChoiceSource, world: World, held: bool, count: int, known: int = 0) -> tuple[str, ...]:
    """Return `count` different people in random order, on the right side together with `known`."""
    return source.pick(_groups(world.people, count, known, world.size.held_out, held))


def statements(source: ChoiceSource, world: World) -> Draft:
    """State stored facts plainly, in one to three sentences."""
    count = source.pick(range(1, world.size.statements + 1))
    return Draft(". ".join(_statement(source, world) for _ in range(count)))


def _statement(source: ChoiceSource, world: World) -> str:
    if source.pick(("person", "town"), (0.9, 0.1)) == "town":
        town = source.pick(world.values["home"])
        return f"The town of {town} lies near the {world.facts['region'][town]}"
    person = source.pick(world.people)
    first, second = pick_distinct(source, RELATIONS, 2)
    parts = [f"{_VERBS[relation]} {world.facts[relation][person]}" for relation in (first, second)]
    return f"{person} {parts[0]} and {parts[1]}"


def facts(source: ChoiceSource, world: World, held: bool = False) -> Draft:
    """Ask a multiple-choice question about one stored fact; the prompt lists the choices."""
    relation = source.pick(RELATIONS)
    person = source.pick(world.people)
    answer = world.facts[relation][person]
    choices = source.pick(_lists(world.values[relation], answer, world.size.held_out, held))
    question = _QUESTIONS[relation].format(person)
    prompt = f"Question: {question} Options: {', '.join(choices)}. Answer:"
    return Draft(prompt, answer, choices=choices)


@cache
def _lists(values: tuple[str, ...], answer: str, held_out: int, held: bool) -> list[tuple[str, ...]]:
    """Return the lists of options on one side that hold the answer: as many for every answer."""
    lists = permutations(values, min(OPTIONS, len(values)))
    return [
        chosen for chosen in lists if answer in chosen and (_reversed(values, chosen) % held_out == 0) == held
    ]


def _reversed(values: Sequence[str], chosen: Sequence[str]) -> int:
    """Return how many pairs of `chosen` stand in the reverse of the order that they have in `values`."""
    return sum(values.index(left) > values.index(right) for left, right in combinations(chosen, 2))


def arithmetic(source: ChoiceSource, world: World, held: bool = False) -> Draft:
    """Ask a one-step word problem.

    The result is drawn first and uniformly, so that no answer is more frequent than another.
    """
    results = range(2, world.size.largest_result + 1)
    listed = list(GOODS)[: world.size.goods]
    one = source.pick(listed)
    [person] = _people(source, world, held, 1, listed.index(one))
    result = source.pick(results)
    if source.pick(("gain", "loss")) == "gain":
        change = source.pick(range(1, result))
        start, verb = result - change, source.pick(_GAINS)
    else:
        change = source.pick(range(1, world.size.largest_loss + 1))
        start, verb = result + change, source.pick(_LOSSES)
    prompt = (
        f"{person} has {NUMBERS[start]} {one if start == 1 else GOODS[one]} and {verb} {NUMBERS[change]}. "
        f"How many {GOODS[one]} does {person} have now? Answer:"
    )
    return Draft(prompt, NUMBERS[result], pool=tuple(NUMBERS[number] for number in results))


def _pairs(
    source: ChoiceSource, world: World, held: bool, things: Sequence[str], count: int
) -> dict[str, str]:
    """Return `count` people, each with one of `things`, in random order."""
    people = _people(source, world, held, count)
    return dict(zip(people, pick_distinct(source, things, count), strict=True))


def reading(source: ChoiceSource, world: World, held: bool = False) -> Draft:
    """Say how people are, then ask whether one is so; for "no" the question names any other mood.

    A document may have fewer people, may ask about several, and may ask how they are.
    """
    listed = MOODS[: world.size.moods]
    most = world.size.characters
    moods = _pairs(source, world, held, listed, most if held else source.pick(range(2, most + 1)))
    asked = [source.pick(list(moods))] if held else _some(source, list(moods))
    how = not held and source.pick(("how", "whether")) == "how"
    text, answer = " ".join(f"{person} is {mood}." for person, mood in moods.items()), ""
    for person in asked:
        before = f"{text} {answer}{ENDING}" if answer else text
        if how:
            text, answer = f"{before} How is {person}? Answer:", moods[person]
        else:
            answer = source.pick(YES_NO)
            others = [mood for mood in listed if mood != moods[person]]
            mood = moods[person] if answer == "yes" else source.pick(others)
            text = f"{before} Is {person} {mood}? Answer:"
    return Draft(text, answer, pool=listed if how else YES_NO)


def _some(source: ChoiceSource, people: Sequence[str]) -> list[str]:
    """Return one or more of the people in random order."""
    return pick_distinct(source, people, source.pick(range(1, len(people) + 1)))


def coins(source: ChoiceSource, world: World, held: bool = False) -> Draft:
    """Let some people flip a coin and some not: does it still show the same side?"""
    sides = ("heads", "tails")
    side = source.pick(sides)
    flips = [source.pick((True, False)) for _ in range(source.pick(range(1, world.size.flips + 1)))]
    people = _people(source, world, held, len(flips), sides.index(side))
    sentences = [
        f"{person} {'flips' if flip else 'keeps'} the coin."
        for person, flip in zip(people, flips, strict=True)
    ]
    answer = "no" if sum(flips) % 2 else "yes"
    prompt = f"The coin shows {side}. {' '.join(sentences)} Does the coin still show {side}? Answer:"
    return Draft(prompt, answer, pool=YES_NO)


def shuffle(source: ChoiceSource, world: World, held: bool = False) -> Draft:
    """Let people with an object each swap: what does one of them have at the end?

    A document may also say after each swap who has what, and may end with several people.
    """
    listed = OBJECTS[: world.size.objects]
    things = _pairs(source, world, held, listed, world.size.characters)
    people, objects = list(things), tuple(things.values())
    sentences = [f"{person} has {thing}." for person, thing in things.items()]
    swaps = source.pick(range(world.size.swaps + 1), SWAPS[: world.size.swaps + 1])
    told = not held and swaps > 0 and source.pick((True, False))
    for _ in range(swaps):
        left, right = pick_distinct(source, people, 2)
        things[left], things[right] = things[right], things[left]
        sentences.append(f"{left} and {right} swap.")
        if told:
            sentences.append(f"Now {left} has {things[left]} and {right} has {things[right]}.")
    *before, last = [source.pick(people)] if held else _some(source, people)
    sentences += [f"At the end {person} has {things[person]}." for person in before]
    return Draft(f"{' '.join(sentences)} At the end {last} has", things[last], pool=objects)


def twohop(source: ChoiceSource, world: World, held: bool = False) -> Draft:
    """Ask a yes/no question about where either of two people lives, which needs facts about people and towns.

    A document may also ask about one person.
    """
    regions = world.values["region"]
    region, answer = source.pick(regions), source.pick(YES_NO)
    homes = world.facts["home"]
    near = {person for person in world.people if world.facts["region"][homes[person]] == region}
    if not held and source.pick(("one", "two")) == "one":
        person = source.pick([person for person in world.people if (person in near) == (answer == "yes")])
        return Draft(f"Question: does {person} live near the {region}? Answer:", answer, pool=YES_NO)
    pairs = _groups(world.people, 2, 0, world.size.held_out, held)
    first, second = source.pick([pair for pair in pairs if bool(near & {*pair}) == (answer == "yes")])
    question = f"Question: does {first} or {second} live near the {region}? Answer:"
    return Draft(question, answer, pool=YES_NO)


class Skill(Protocol):
    """A generator of one kind of document that has questions, too."""

    def __call__(self, source: ChoiceSource, world: World, held: bool = False) -> Draft:
        """Return a document, or a question that is no document (`held`)."""
        ...


QUESTIONS: dict[str, Skill] = {
    "facts": facts,
    "arithmetic": arithmetic,
    "reading": reading,
    "coins": coins,
    "shuffle": shuffle,
    "twohop": twohop,
}
GENERATORS: dict[str, Callable[[ChoiceSource, World], Draft]] = {**QUESTIONS, "statements": statements}
