"""The embedded worlds: for a tiny size all texts are enumerated, so probabilities are known exactly."""

import hashlib
import math
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pytest

from benchmarks.embedded.facts import BENCHMARK, GOODS, PEOPLE, RELATIONS, Size, World, build_world
from benchmarks.embedded.grammar import GENERATORS, QUESTIONS
from benchmarks.embedded.sampling import ChoiceSource, Option, Sampler, random_stream
from benchmarks.embedded.world import (
    SCORED_DOCUMENTS,
    SKILLS,
    document_generator,
    document_stream,
    documents,
    question_from,
    questions,
)

Result = TypeVar("Result")
ROOT = Path(__file__).resolve().parents[3]
TINY = Size(
    people=6,
    towns=6,
    regions=3,
    values=5,
    moods=4,
    objects=4,
    goods=2,
    largest_result=3,
    largest_loss=2,
    characters=2,
    flips=2,
    swaps=1,
    statements=2,
    held_out=2,
)

# Written down from version 3. If these change, raise WORLD_VERSION: versions are not comparable.
FIRST_TEXTS = [
    "Question: which job does Bren have? Options: weaver, baker, farmer, tailor. Answer: farmer.",
    "Finn is busy. Dane is sad. Iris is cold. How is Iris? Answer: cold. How is Finn? Answer: busy. "
    "How is Dane? Answer: sad.",
]
FIRST_LOG_PROB = -1560.042795445
#: Hashes of the first 50 questions of each skill.
FIRST_QUESTIONS = {"a": "e4e3b65169e3ef2c", "b": "f96ea6577ae2bb14"}


class Script:
    """Follow given decisions, then take first options, and record how many options each choice had."""

    def __init__(self, decisions: Sequence[int]) -> None:
        self.decisions = list(decisions)
        self.widths: list[int] = []
        self.log_prob = 0.0

    def pick(self, options: Sequence[Option], weights: Sequence[float] | None = None) -> Option:
        """Return the next decided option."""
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
        script = Script(decisions)
        yield generate(script), script.log_prob
        decisions = script.decisions
        while decisions and decisions[-1] + 1 == script.widths[len(decisions) - 1]:
            decisions.pop()
        if not decisions:
            return
        decisions[-1] += 1


@pytest.fixture(scope="module", params=["a", "b"])
def tiny(request: pytest.FixtureRequest) -> dict[str, float]:
    """Every text of a tiny world with its log-probability; a text that occurs twice fails at once."""
    texts: dict[str, float] = {}
    for (_, draft), log_prob in enumerate_derivations(document_generator(build_world(request.param, TINY))):
        assert draft.text not in texts, f"two derivations of {draft.text!r}"
        texts[draft.text] = log_prob
    return texts


def test_probabilities_of_all_texts_of_a_tiny_world_sum_to_one(tiny: dict[str, float]) -> None:
    assert len(tiny) > 1000
    assert abs(math.fsum(math.exp(log_prob) for log_prob in tiny.values()) - 1) < 1e-9


@pytest.mark.parametrize("world", ["a", "b"])
def test_sampled_documents_carry_their_enumerated_probability_and_occur_that_often(world: str) -> None:
    generate = document_generator(build_world(world, TINY))
    exact = {draft.text: log_prob for (_, draft), log_prob in enumerate_derivations(generate)}
    count = 20_000
    sampled = list(islice(document_stream(world, "train", TINY), count))
    for document in sampled:
        assert document.log_prob == pytest.approx(exact[document.text], abs=1e-9)
    seen = Counter(document.text for document in sampled)
    frequent = [text for text, log_prob in exact.items() if count * math.exp(log_prob) >= 10]
    assert len(frequent) > 50
    # Pearson's chi-squared with one cell for all rare texts: mean `cells - 1`, variance twice that.
    expected = {text: count * math.exp(exact[text]) for text in frequent}
    statistic = sum((seen[text] - value) ** 2 / value for text, value in expected.items())
    rare = count - sum(expected.values())
    statistic += (count - sum(seen[text] for text in frequent) - rare) ** 2 / rare
    freedom = len(frequent)
    assert abs(statistic - freedom) < 5 * math.sqrt(2 * freedom)


def test_mean_log_probability_of_samples_matches_the_entropy_of_the_enumeration() -> None:
    generate = document_generator(build_world("a", TINY))
    exact = [log_prob for _, log_prob in enumerate_derivations(generate)]
    entropy = -math.fsum(math.exp(log_prob) * log_prob for log_prob in exact)
    variance = math.fsum(math.exp(log_prob) * log_prob**2 for log_prob in exact) - entropy**2
    count = 20_000
    sampled = [document.log_prob for document in islice(document_stream("a", "test", TINY), count)]
    assert abs(-sum(sampled) / count - entropy) < 5 * math.sqrt(variance / count)


def test_documents_are_prefix_stable_and_the_same_in_another_process() -> None:
    first = documents("b", "train", 50)
    assert documents("b", "train", 200)[:50] == first
    assert questions("b", "facts", "test", 30)[:10] == questions("b", "facts", "test", 10)
    program = "from benchmarks.embedded.world import documents; print(documents('b', 'train', 50)[-1].text)"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == first[-1].text


def test_the_first_documents_of_world_version_3_never_change() -> None:
    assert [document.text for document in documents("a", "train", 2)] == FIRST_TEXTS
    assert math.fsum(document.log_prob for document in documents("a", "train", 100)) == pytest.approx(
        FIRST_LOG_PROB
    )
    assert SCORED_DOCUMENTS == 300


@pytest.mark.parametrize("world", ["a", "b"])
def test_the_first_questions_of_world_version_3_never_change(world: str) -> None:
    asked = [str(question) for skill in SKILLS for question in questions(world, skill, "test", 50)]
    assert hashlib.sha256("\n".join(asked).encode()).hexdigest()[:16] == FIRST_QUESTIONS[world]


def test_splits_and_worlds_are_different_streams() -> None:
    streams = {
        tuple(document.text for document in documents(world, split, 20))
        for world in "ab"
        for split in ("train", "validation", "test")
    }
    assert len(streams) == 6
    asked = {tuple(questions("a", "facts", split, 20)) for split in ("train", "validation", "test")}
    assert len(asked) == 3


def test_both_worlds_have_the_same_vocabulary() -> None:
    def words(world: str) -> set[str]:
        return {
            word.strip(".,:?")
            for document in documents(world, "train", 15_000)
            for word in document.text.split()
        }

    assert words("a") == words("b")


def test_world_b_changes_every_fact() -> None:
    before, after = build_world("a"), build_world("b")
    changed = [
        before.facts[relation][subject] != after.facts[relation][subject]
        for relation, facts in before.facts.items()
        for subject in facts
    ]
    assert len(changed) == 12 * 3 + 6
    assert all(changed)


@pytest.mark.parametrize("name", ["a", "b"])
def test_every_value_of_a_relation_belongs_to_equally_many_subjects(name: str) -> None:
    world = build_world(name)
    for relation, facts in world.facts.items():
        counts = Counter(facts.values())
        assert len(counts) == len(world.values[relation])
        assert len(set(counts.values())) == 1, relation


@pytest.mark.parametrize("world", ["a", "b"])
@pytest.mark.parametrize("skill", SKILLS)
def test_exactly_one_answer_is_right_and_no_question_is_a_document(world: str, skill: str) -> None:
    """The tiny grammar is enumerable; the same code asks the questions of the full one."""
    built = build_world(world, TINY)
    told = {draft.text for draft, _ in enumerate_derivations(lambda source: GENERATORS[skill](source, built))}
    asked = dict(enumerate_derivations(lambda source: QUESTIONS[skill](source, built, True)))
    texts = {draft.text for draft in asked}
    assert not told & texts
    starts = "\n".join(["", *told])
    assert not any(f"\n{draft.prompt}" in starts for draft in asked)
    assert math.fsum(math.exp(log_prob) for log_prob in asked.values()) == pytest.approx(1)
    source = Sampler(random_stream("test"))
    for _ in range(50):
        question = question_from(QUESTIONS[skill](source, built, True), skill, source)
        right = question.choices[question.answer]
        assert f"{question.prompt} {right}." in texts
        for wrong in set(question.choices) - {right}:
            assert f"{question.prompt} {wrong}." not in texts


def without_names(text: str) -> tuple[tuple[str, ...], str]:
    """Return the people, goods and sides that a text names, and the text with their order in their place."""
    singular = {several: one for one, several in GOODS.items()}
    named = dict.fromkeys([*PEOPLE, *GOODS, *singular, "heads", "tails"])
    names: list[str] = []

    def place(word: re.Match[str]) -> str:
        name = singular.get(word[0], word[0])
        if word[0] not in named:
            return word[0]
        if name not in names:
            names.append(name)
        return f"<{names.index(name)}>"

    told = re.sub("[A-Za-z]+", place, text)
    return tuple(names), told


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("skill", ["arithmetic", "reading", "coins", "shuffle"])
def test_names_tell_nothing_about_an_answer(skill: str, held: bool) -> None:
    """What a text tells and asks about its people, goods or sides is as likely as about any others."""
    built = build_world("a", TINY)
    found: dict[tuple[str, ...], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for draft, log_prob in enumerate_derivations(lambda source: QUESTIONS[skill](source, built, held)):
        names, told = without_names(draft.text)
        found[names][told] += math.exp(log_prob)
    assert len(found) > 1
    of_length: dict[int, dict[str, float]] = {}
    for names, texts in found.items():
        shares = {told: share / sum(texts.values()) for told, share in texts.items()}
        assert shares == pytest.approx(of_length.setdefault(len(names), shares))


@pytest.mark.parametrize("held", [False, True])
def test_a_list_of_options_tells_nothing_about_its_answer(held: bool) -> None:
    """Of the relation that is asked for, each option is right equally often."""
    found: dict[tuple[str, tuple[str, ...]], Counter[str]] = defaultdict(Counter)
    built = build_world("a", BENCHMARK)
    for draft, _ in enumerate_derivations(lambda source: QUESTIONS["facts"](source, built, held)):
        found[draft.prompt.split()[3], draft.choices][draft.answer] += 1
    for choices, right in found.items():
        assert len(right) == len(choices[1])
        assert len(set(right.values())) == 1


@pytest.mark.parametrize("world", ["a", "b"])
def test_no_scored_question_occurs_in_what_is_trained_on(world: str) -> None:
    """Not with any answer, and not as a part of a longer text."""
    trained = "\n".join(document.text for document in documents(world, "train", 10_000))
    for skill in SKILLS:
        for question in questions(world, skill, "test", 200):
            assert question.prompt not in trained


@pytest.mark.parametrize("world", ["a", "b"])
@pytest.mark.parametrize("held", [False, True])
def test_documents_and_questions_ask_for_every_fact(world: str, held: bool) -> None:
    """In the world of full size: these two skills can be enumerated."""
    built = build_world(world, BENCHMARK)

    def texts(skill: str) -> list[str]:
        drafts = enumerate_derivations(lambda source: QUESTIONS[skill](source, built, held))
        return [draft.text for draft, _ in drafts]

    assert len({text.split(" Options")[0] for text in texts("facts")}) == len(built.people) * len(RELATIONS)
    joint = [text for text in texts("twohop") if " or " in text]
    for person in built.people:
        region = built.facts["region"][built.facts["home"][person]]
        about = [text for text in joint if person in text]
        assert {text.rsplit(" ", 1)[1] for text in about} == {"yes.", "no."}
        assert all(text.endswith("yes.") for text in about if region in text)


def test_goods_are_counted_in_correct_english() -> None:
    """By the rules of the plural: -es after a hiss, -ies for -y, else -s."""
    for one, several in GOODS.items():
        hiss = one.endswith(("s", "x", "z", "ch", "sh"))
        ending = one[:-1] + "ies" if one.endswith("y") else one + ("es" if hiss else "s")
        assert several == ending


@pytest.mark.parametrize("world", ["a", "b"])
@pytest.mark.parametrize("skill", SKILLS)
def test_guessing_strategies_score_chance(world: str, skill: str) -> None:
    """Neither a fixed position nor a fixed word is right more often than guessing."""
    count = 4000
    asked = questions(world, skill, "train", count)
    choices = len(asked[0].choices)
    assert all(len(question.choices) == len(set(question.choices)) == choices for question in asked)
    margin = 5 * math.sqrt((1 / choices) * (1 - 1 / choices) / count)
    for position in range(choices):
        share = sum(question.answer == position for question in asked) / count
        assert abs(share - 1 / choices) < margin
    offered = Counter(word for question in asked for word in question.choices)
    right = Counter(question.choices[question.answer] for question in asked)
    for word, times in offered.items():
        assert abs(right[word] / times - 1 / choices) < 5 * math.sqrt(
            (1 / choices) * (1 - 1 / choices) / times
        )


@pytest.mark.parametrize(
    ("skill", "rule", "share"),
    [
        ("reading", lambda prompt: f"{prompt.split()[-2][:-1]}." in prompt, 10 / 11),
        ("coins", lambda prompt: "flips" not in prompt, 19 / 24),
    ],
)
@pytest.mark.parametrize("world", ["a", "b"])
def test_what_simple_rules_score_is_as_documented(
    world: str, skill: str, rule: Callable[[str], bool], share: float
) -> None:
    """Reading: 1/2 + 1/2 x 9/11, as "no" takes 11 moods, 2 of them of the story; coins: 1, 3/4, 5/8."""
    asked = questions(world, skill, "train", 4000)
    right = sum(
        question.choices[question.answer] == ("yes" if rule(question.prompt) else "no") for question in asked
    )
    assert abs(right / len(asked) - share) < 4 * math.sqrt(share * (1 - share) / len(asked))


def test_answers_follow_from_the_world() -> None:
    """The right answer to a question about a fact is the fact that the world stores."""
    signs = {"town": "home", "job": "job", "animal": "pet"}
    for name in ("a", "b"):
        world: World = build_world(name)
        for question in questions(name, "facts", "test", 100):
            words = re.findall("[A-Za-z]+", question.prompt.split("Options")[0])
            relation = next(signs[word] for word in words if word in signs)
            person = next(word for word in words if word in world.people)
            assert question.choices[question.answer] == world.facts[relation][person]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: documents("c", "train", 1), "unknown world 'c'"),
        (lambda: documents("a", "dev", 1), "unknown split 'dev'"),
        (lambda: questions("a", "sums", "test", 1), "unknown skill 'sums'"),
        (lambda: documents("a", "train", -1), "count is -1"),
    ],
)
def test_wrong_arguments_are_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
