"""The grammar of the embedded worlds: one generator per kind of document.

Every generator returns a `Draft`. Its text reveals every decision of the source of choices, so the text
determines the derivation, and the log-probability of the decisions is that of the text. What is not in the
text (the wrong numbers that a question offers beside the right one) is therefore never chosen here.

A generator that is asked for a question (`held`) makes a text that it never makes as a document. Each word
has a number, its place in its list. The numbers of a text's main words are added up, and multiples of
`Size.held_out` are kept for questions. The last of these words is drawn from those alone that lead to the
right side, so the probability of each text is still exact. What is added up, and so never meets in a
document as in a question:

    facts       person, relation and the options in their order
    arithmetic  person, goods and both numbers
    reading     the people and their moods
    coins       the people, the side and how many flip
    shuffle     the people and the objects
    twohop      both people and the region

The rule gives something away to those who know it: the other words of a question then tell the parity of the
flips of coins, and the result of a gain in arithmetic modulo `held_out`. A model sees the documents alone,
where the same words point to the other answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Protocol

from benchmarks.embedded.facts import GOODS, MOODS, NUMBERS, OBJECTS, RELATIONS, World
from benchmarks.embedded.sampling import ChoiceSource, Option, pick_distinct

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


def numbers(listed: Sequence[str], words: Sequence[str]) -> int:
    """Return the sum of the places that `words` have in their list."""
    return sum(listed.index(word) for word in words)


def on_side(
    world: World, held: bool, options: Sequence[Option], number: Callable[[Option], int]
) -> list[Option]:
    """Return the options whose number is a multiple of `held_out` (held) or is none (not held)."""
    return [option for option in options if (number(option) % world.size.held_out == 0) == held]


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
    values, answer = world.values[relation], world.facts[relation][person]
    lists = _lists(values, answer)
    known = numbers(world.people, [person]) + RELATIONS.index(relation)
    place = source.pick(on_side(world, held, range(len(lists)), lambda place: known + place))
    choices = lists[place]
    question = _QUESTIONS[relation].format(person)
    prompt = f"Question: {question} Options: {', '.join(choices)}. Answer:"
    return Draft(prompt, answer, choices=choices)


@cache
def _lists(values: tuple[str, ...], answer: str) -> list[tuple[str, ...]]:
    """Return all lists of options that hold the answer."""
    lists = permutations(values, min(OPTIONS, len(values)))
    return [chosen for chosen in lists if answer in chosen]


def arithmetic(source: ChoiceSource, world: World, held: bool = False) -> Draft:
    """Ask a one-step word problem.

    The result is drawn first and uniformly, so that no answer is more frequent than another.
    """
    results = range(2, world.size.largest_result + 1)
    person = source.pick(world.people)
    result = source.pick(results)
    if source.pick(("gain", "loss")) == "gain":
        change = source.pick(range(1, result))
        start, verb = result - change, source.pick(_GAINS)
    else:
        change = source.pick(range(1, world.size.largest_loss + 1))
        start, verb = result + change, source.pick(_LOSSES)
    known = numbers(world.people, [person]) + start + change
    listed = list(GOODS)[: world.size.goods]
    one = source.pick(on_side(world, held, listed, lambda one: known + listed.index(one)))
    prompt = (
        f"{person} has {NUMBERS[start]} {one if start == 1 else GOODS[one]} and {verb} {NUMBERS[change]}. "
        f"How many {GOODS[one]} does {person} have now? Answer:"
    )
    return Draft(prompt, NUMBERS[result], pool=tuple(NUMBERS[number] for number in results))


def _pairs(
    source: ChoiceSource, world: World, held: bool, things: Sequence[str], count: int
) -> dict[str, str]:
    """Return `count` people, each with one of `things`, in random order."""
    people = pick_distinct(source, world.people, count)
    chosen = pick_distinct(source, things, count - 1)
    known = numbers(world.people, people) + numbers(things, chosen)
    left = [thing for thing in things if thing not in chosen]
    last = source.pick(on_side(world, held, left, lambda thing: known + things.index(thing)))
    return dict(zip(people, [*chosen, last], strict=True))


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
    people = pick_distinct(source, world.people, len(flips) - 1)
    known = sides.index(side) + sum(flips) + numbers(world.people, people)
    left = [person for person in world.people if person not in people]
    people.append(source.pick(on_side(world, held, left, lambda person: known + world.people.index(person))))
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
    pairs = [pair for pair in permutations(world.people, 2) if bool(near & {*pair}) == (answer == "yes")]
    known = regions.index(region)
    first, second = source.pick(on_side(world, held, pairs, lambda pair: known + numbers(world.people, pair)))
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
