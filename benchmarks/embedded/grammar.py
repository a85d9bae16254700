"""The grammar of the embedded worlds: one generator per kind of document.

Every generator returns a `Draft`. Its text reveals every decision of the source of choices, so the text
determines the derivation, and the log-probability of the decisions is that of the text. What is not in the
text (the wrong numbers that a question offers beside the right one) is therefore never chosen here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.embedded.facts import GOODS, NUMBERS, OBJECTS, PLACES, RELATIONS, World
from benchmarks.embedded.sampling import ChoiceSource, pick_choices, pick_distinct

ENDING = "."
YES_NO = ("yes", "no")

_VERBS = {"home": "lives in", "job": "works as a", "pet": "keeps a", "colour": "likes the colour"}
_QUESTIONS = {
    "home": "in which town does {} live?",
    "job": "which job does {} have?",
    "pet": "which animal does {} keep?",
    "colour": "which colour does {} like?",
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


def facts(source: ChoiceSource, world: World) -> Draft:
    """Ask a multiple-choice question about one stored fact; the prompt lists the choices."""
    relation = source.pick(RELATIONS)
    person = source.pick(world.people)
    answer = world.facts[relation][person]
    choices = pick_choices(source, world.values[relation], answer)
    question = _QUESTIONS[relation].format(person)
    prompt = f"Question: {question} Options: {', '.join(choices)}. Answer:"
    return Draft(prompt, answer, choices=tuple(choices))


def arithmetic(source: ChoiceSource, world: World) -> Draft:
    """Ask a one-step word problem.

    The result is drawn first and uniformly, so that no answer is more frequent than another.
    """
    results = range(2, world.size.largest_result + 1)
    person = source.pick(world.crowd)
    goods = source.pick(GOODS[: world.size.goods])
    result = source.pick(results)
    if source.pick(("gain", "loss")) == "gain":
        change = source.pick(range(1, result))
        start, verb = result - change, source.pick(_GAINS)
    else:
        change = source.pick(range(1, world.size.largest_loss + 1))
        start, verb = result + change, source.pick(_LOSSES)
    held = goods.removesuffix("s") if start == 1 else goods
    prompt = (
        f"{person} has {NUMBERS[start]} {held} and {verb} {NUMBERS[change]}. "
        f"How many {goods} does {person} have now? Answer:"
    )
    return Draft(prompt, NUMBERS[result], pool=tuple(NUMBERS[number] for number in results))


def reading(source: ChoiceSource, world: World) -> Draft:
    """Give a passage, then ask a yes/no question; for "no" it names any other place."""
    people = pick_distinct(source, world.crowd, 3)
    places = pick_distinct(source, PLACES[: world.size.places], 3)
    passage = " ".join(f"{person} is at the {place}." for person, place in zip(people, places, strict=True))
    asked = source.pick(range(3))
    answer = source.pick(YES_NO)
    others = [place for place in PLACES[: world.size.places] if place != places[asked]]
    place = places[asked] if answer == "yes" else source.pick(others)
    return Draft(f"{passage} Is {people[asked]} at the {place}? Answer:", answer, pool=YES_NO)


def coins(source: ChoiceSource, world: World) -> Draft:
    """Let some people flip a coin and some not: does it still show the same side?"""
    side = source.pick(("heads", "tails"))
    people = pick_distinct(source, world.crowd, source.pick(range(1, world.size.flips + 1)))
    sentences, flips = [f"The coin shows {side}."], 0
    for person in people:
        flipped = source.pick((True, False))
        sentences.append(f"{person} {'flips' if flipped else 'keeps'} the coin.")
        flips += flipped
    answer = "no" if flips % 2 else "yes"
    return Draft(f"{' '.join(sentences)} Does the coin still show {side}? Answer:", answer, pool=YES_NO)


def shuffle(source: ChoiceSource, world: World) -> Draft:
    """Let three people with an object each swap: what does one of them have at the end?"""
    people = pick_distinct(source, world.crowd, 3)
    objects = pick_distinct(source, OBJECTS[: world.size.objects], 3)
    held = dict(zip(people, objects, strict=True))
    sentences = [f"{person} has the {thing}." for person, thing in held.items()]
    for _ in range(source.pick(range(world.size.swaps + 1))):
        left, right = pick_distinct(source, people, 2)
        held[left], held[right] = held[right], held[left]
        sentences.append(f"{left} and {right} swap.")
    asked = source.pick(people)
    prompt = f"{' '.join(sentences)} What does {asked} have now? Answer:"
    return Draft(prompt, held[asked], pool=tuple(objects))


def twohop(source: ChoiceSource, world: World) -> Draft:
    """Ask a yes/no question that needs two stored facts, the first of them where somebody lives."""
    homes, person = world.facts["home"], source.pick(world.people)
    answer = source.pick(YES_NO)
    if source.pick(("region", "neighbour")) == "region":
        region = world.facts["region"][homes[person]]
        if answer == "no":
            region = source.pick([other for other in world.values["region"] if other != region])
        return Draft(f"Question: does {person} live near the {region}? Answer:", answer, pool=YES_NO)
    same = answer == "yes"
    others = [other for other in world.people if other != person and (homes[other] == homes[person]) == same]
    question = f"Question: do {person} and {source.pick(others)} live in the same town? Answer:"
    return Draft(question, answer, pool=YES_NO)


GENERATORS: dict[str, Callable[[ChoiceSource, World], Draft]] = {
    "facts": facts,
    "arithmetic": arithmetic,
    "reading": reading,
    "coins": coins,
    "shuffle": shuffle,
    "twohop": twohop,
    "statements": statements,
}
