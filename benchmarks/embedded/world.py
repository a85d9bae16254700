"""Short English documents about two small invented worlds, each with its exact probability.

World "a" is for pre-training. World "b" has the same people and words, but every stored fact differs
and the kinds of documents have other shares: it is what fine-tuning must learn. Six skills mirror
the downstream tasks that papers on memory-efficient training report:

    facts       multiple-choice questions about stored facts      (as CommonsenseQA)
    arithmetic  one-step word problems with small numbers         (as SVAMP)
    reading     how some people are, then a yes/no question       (as BoolQ)
    coins       is a coin that people flip still the same way up  (as CoinFlip)
    shuffle     who has what after people swap objects            (as BIG-bench tracking shuffled objects)
    twohop      yes/no questions that need several stored facts   (as StrategyQA)

A seventh kind of document, "statements", states facts plainly. Documents are drawn independently from one
distribution in every split, so a test document may repeat a training document: the facts are few, and a split
that forbade it would no longer follow the distribution. Scored questions are never documents: `grammar` tells
which people, goods and lists of options are kept for them. With other names, the same sum, flips or moods may
be in a document. The facts themselves are in documents, and so is every kind of question. Documents have
easier forms beside it: of several questions about one story, of what people have after each swap, of one
person's region.

Two skills ask for less than they seem to. In a reading question whose answer is "no" the mood is any other,
seldom one of the story, so "yes if the story has the mood" is right in 10 of 11 questions; and "no if anybody
flips" is right for 19 of 24 coins. Read accuracies of these skills against that, not against chance.

The lower bound is the floor: no model can have a lower expected
loss than the generator, whose log-probability comes with every document. The perplexity floor of a set of
documents is `exp(-sum(log_prob) / tokens)`, for the same number of tokens as the model's
perplexity counts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from benchmarks.embedded.facts import BENCHMARK, WORLD_VERSION, Size, World, build_world
from benchmarks.embedded.grammar import GENERATORS, QUESTIONS, Draft
from benchmarks.embedded.sampling import ChoiceSource, Sampler, pick_choices, random_stream

__all__ = [
    "SCORED_DOCUMENTS",
    "SKILLS",
    "SPLITS",
    "WORLD_VERSION",
    "Document",
    "Question",
    "documents",
    "questions",
]

SKILLS: tuple[str, ...] = ("facts", "arithmetic", "reading", "coins", "shuffle", "twohop")
SPLITS: tuple[str, ...] = ("train", "validation", "test")
#: How many documents of a split are scored: another number is another text, so raise WORLD_VERSION with it.
SCORED_DOCUMENTS = 300

# Shares of the kinds of documents; the skills that take longest to learn have most of world "a", and what
# states the new facts has most of world "b".
MIXTURES: dict[str, dict[str, float]] = {
    "a": {
        "statements": 0.06,
        "facts": 0.07,
        "arithmetic": 0.12,
        "reading": 0.30,
        "coins": 0.07,
        "shuffle": 0.26,
        "twohop": 0.12,
    },
    "b": {
        "statements": 0.62,
        "facts": 0.20,
        "arithmetic": 0.04,
        "reading": 0.04,
        "coins": 0.03,
        "shuffle": 0.03,
        "twohop": 0.04,
    },
}


@dataclass(frozen=True)
class Document:
    """A text, its exact log-probability under the generator (nats), and its kind: a skill or "statements"."""

    text: str
    log_prob: float
    skill: str


@dataclass(frozen=True)
class Question:
    """A prompt, its possible answers, and the index of the right one.

    `prompt + " " + choices[answer] + "."` is never the text of a document, nor the start of one.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int
    skill: str


def documents(world: str, split: str, count: int) -> list[Document]:
    """Return the first `count` documents of a split ("train", "validation", "test") of world "a" or "b".

    Each split is an endless random stream, independent of the others; a larger `count` only adds
    to the end. Raises ValueError for an unknown world or split.
    """
    return list(islice(document_stream(world, split), _checked(count)))


def document_stream(world: str, split: str, size: Size = BENCHMARK) -> Iterator[Document]:
    """Yield the documents of a split without end; `size` makes the world smaller for tests."""
    generate = document_generator(build_world(world, size))
    stream = random_stream("documents", WORLD_VERSION, world, _split(split))
    while True:
        sampler = Sampler(stream)
        kind, draft = generate(sampler)
        yield Document(draft.text, sampler.log_prob, kind)


def document_generator(world: World) -> Callable[[ChoiceSource], tuple[str, Draft]]:
    """Return the generator of a world's documents: it draws a kind, then a draft of that kind."""
    kinds, shares = tuple(MIXTURES[world.name]), tuple(MIXTURES[world.name].values())

    def generate(source: ChoiceSource) -> tuple[str, Draft]:
        kind = source.pick(kinds, shares)
        return kind, GENERATORS[kind](source, world)

    return generate


def questions(world: str, skill: str, split: str, count: int) -> list[Question]:
    """Return the first `count` questions of one skill, from one random stream for every split.

    The order of the choices is random (where the prompt lists them: as listed there), so that no position is
    right more often than another. Raises ValueError for an unknown world, skill or split.
    """
    if skill not in SKILLS:
        raise ValueError(f"unknown skill {skill!r}: choose one of {', '.join(SKILLS)}")
    built = build_world(world)
    source = Sampler(random_stream("questions", WORLD_VERSION, world, skill, _split(split)))
    return [
        question_from(QUESTIONS[skill](source, built, True), skill, source) for _ in range(_checked(count))
    ]


def question_from(draft: Draft, skill: str, source: ChoiceSource) -> Question:
    """Turn a draft into a question; answers that the prompt does not list are completed to four at random."""
    choices = draft.choices or tuple(pick_choices(source, draft.pool, draft.answer))
    return Question(draft.prompt, choices, choices.index(draft.answer), skill)


def _split(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    return split


def _checked(count: int) -> int:
    if count < 0:
        raise ValueError(f"count is {count}: give zero or more")
    return count
