"""Invariant 35: the lm-eval bridge counts the answers of a model whose every answer is known beforehand."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.engine.data.tasks import EMBEDDED_TASKS, check_room, existing_folder, load_tasks
from harness.engine.quality.tasks import evaluate_tasks
from harness.errors import UserError
from harness.record import Accuracy

CPU = torch.device("cpu")
PROMPTS = [f"question{i}" for i in range(10)]
WORDS = ["<s>", "</s>", "<unk>", "<pad>", "red", "blue", "mumble", *PROMPTS]
#: What the model says after each prompt and what the tasks want: seven are right, two cannot be parsed.
SAYS = ["red"] * 4 + ["blue"] * 4 + ["mumble"] * 2
WANTED = ["red"] * 4 + ["blue"] * 3 + ["red"] * 3

DATA = """
import datasets

def load(**unused):
    rows = {rows}
    return {{"test": datasets.Dataset.from_list(rows)}}
"""
CHOICE = """
task: local_choice
custom_dataset: !function data.load
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}]
metadata: {version: 3}
"""
GENERATE = """
task: local_generate
custom_dataset: !function data.load
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{wanted}}"
generation_kwargs: {until: ["</s>"], max_gen_toks: 2}
filter_list:
  - {name: strict, filter: [{function: regex, regex_pattern: "(red|blue)"}, {function: take_first}]}
  - {name: anything, filter: [{function: take_first}]}
metric_list: [{metric: exact_match}]
metadata: {version: 1.5, chance: 0.25}
"""
ROLLING = """
task: local_rolling
custom_dataset: !function data.load
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{prompt}}"
metric_list: [{metric: word_perplexity}]
metadata: {version: 1}
"""
GROUP = """
group: local
task: [local_choice, local_generate]
metadata: {version: 1}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {
            "prompt": prompt,
            "choices": ["red", "blue"],
            "answer": ["red", "blue"].index(wanted),
            "wanted": wanted,
        }
        for prompt, wanted in zip(PROMPTS, WANTED, strict=True)
    ]
    (tmp_path / "data.py").write_text(DATA.format(rows=rows))
    for number, content in enumerate([CHOICE, GENERATE, ROLLING, GROUP]):
        (tmp_path / f"task{number}.yaml").write_text(textwrap.dedent(content))
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """A LLaMA that knows only which word follows which: its layer adds nothing to the one-hot embedding."""
    size = len(WORDS) + len(WORDS) % 2
    shape = {"hidden_size": size, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    rigged = LlamaForCausalLM(
        LlamaConfig(vocab_size=size, bos_token_id=0, eos_token_id=1, pad_token_id=3, **shape)
    )
    follows = dict(zip(PROMPTS, SAYS, strict=True)) | dict.fromkeys(["red", "blue", "mumble"], "</s>")
    with torch.no_grad():
        for parameter in rigged.model.layers.parameters():
            parameter.zero_()
        rigged.model.embed_tokens.weight.copy_(torch.eye(size))
        rigged.lm_head.weight.zero_()
        for word, after in follows.items():
            rigged.lm_head.weight[WORDS.index(after), WORDS.index(word)] = 1.0
    return rigged.train()


def evaluate(
    model: Any, tokenizer: Any, tasks: list[str], folder: Path, **options: Any
) -> dict[str, Accuracy]:
    defaults: dict[str, Any] = {"limit": None, "batch": 4, "max_length": 64, "samples_to": None}
    return evaluate_tasks(model, tokenizer, load_tasks(tasks, [folder]), device=CPU, **(defaults | options))


def test_invariant_35_a_known_number_of_right_choices_is_the_accuracy(
    model: Any, tokenizer: Any, folder: Path
) -> None:
    # "mumble" gives both choices the same likelihood; the first of them, "red", is taken and wanted
    found = evaluate(model, tokenizer, ["local_choice"], folder)["local_choice"]
    assert (found.correct, found.documents, found.accuracy) == (9, 10, 0.9)
    assert found.stderr == pytest.approx(math.sqrt(0.9 * 0.1 / 9))
    assert found.chance == 0.5
    assert found.version == "3"
    assert model.training


def test_scores_that_are_no_number_are_counted_and_said(model: Any, tokenizer: Any, folder: Path) -> None:
    """Six of ten prompts are followed by a word whose score is NaN, the others by one that is not."""
    said: list[str] = []
    broken = copy.deepcopy(model)
    with torch.no_grad():
        for prompt in PROMPTS[:6]:
            broken.model.embed_tokens.weight[WORDS.index(prompt)] *= math.nan
    evaluate(broken, tokenizer, ["local_choice"], folder, warn=said.append)
    assert said == ["answers to local_choice: the scores of 6 of 10 are not finite, so they are chance"]


def test_invariant_35_an_answer_that_cannot_be_parsed_is_wrong_and_stays_in_the_denominator(
    model: Any, tokenizer: Any, folder: Path, tmp_path: Path
) -> None:
    found = evaluate(model, tokenizer, ["local_generate"], folder, samples_to=tmp_path / "samples")
    result = found["local_generate"]
    assert (result.correct, result.documents, result.accuracy) == (7, 10, 0.7)
    assert result.chance == 0.25
    assert result.version == "1.5"
    lines = (tmp_path / "samples" / "local_generate.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert [sample["doc_id"] for sample in samples] == list(range(10))
    assert [sample["correct"] for sample in samples] == [True] * 7 + [False] * 3
    assert samples[9]["responses"] == ["[invalid]"]


def test_invariant_35_a_group_is_its_tasks_and_a_repeat_gives_the_same(
    model: Any, tokenizer: Any, folder: Path
) -> None:
    first = evaluate(model, tokenizer, ["local", "local_choice"], folder)
    assert list(first) == ["local_choice", "local_generate"]
    assert first == evaluate(model, tokenizer, ["local", "local_choice"], folder, batch=3)
    for result in first.values():
        assert (result.accuracy * result.documents).is_integer()


def test_a_limit_cuts_to_the_first_documents(model: Any, tokenizer: Any, folder: Path) -> None:
    found = evaluate(model, tokenizer, ["local_generate"], folder, limit=8)["local_generate"]
    assert (found.correct, found.documents) == (7, 8)
    alone = evaluate(model, tokenizer, ["local_generate"], folder, limit=1)["local_generate"]
    assert (alone.accuracy, alone.stderr) == (1.0, None)


def test_evaluation_is_silent_and_starts_no_process(
    model: Any,
    tokenizer: Any,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Any] = []  # as lm-eval does for a report on the machine
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **named: started.append(given))
    evaluate(model, tokenizer, ["local_choice"], folder)
    assert started == []
    assert [record for record in caplog.records if record.name.startswith("lm_eval")] == []


def test_shots_are_those_that_lm_eval_draws_for_the_same_seed(
    model: Any, tokenizer: Any, folder: Path
) -> None:
    ours, theirs = (load_tasks(["local_choice"], [folder], shots=2) for _ in range(2))
    evaluate_tasks(model, tokenizer, ours, limit=None, batch=4, device=CPU, max_length=64, samples_to=None)
    seeds = [f"{who}random_seed" for who in ("", "numpy_", "torch_", "fewshot_")]
    lm_eval.simple_evaluate(
        HFLM(model, tokenizer=tokenizer, batch_size=4, max_length=64),
        tasks=list(theirs.values()),
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        **dict.fromkeys(seeds, 0),
    )
    asked = [[(one.args, one.resps) for one in tasks["local_choice"].instances] for tasks in (ours, theirs)]
    assert asked[0] == asked[1]
    assert all(prompt.count("blue") + prompt.count("red") >= 2 for (prompt, _), _ in asked[0])


def test_a_task_without_accuracy_is_refused_before_it_runs(model: Any, tokenizer: Any, folder: Path) -> None:
    with pytest.raises(UserError, match=r"local_rolling.* word_perplexity.*acc or exact_match"):
        evaluate(model, tokenizer, ["local_rolling"], folder)


def test_an_unknown_task_is_refused_with_the_nearest_names(
    model: Any, tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    real = lm_eval.tasks.TaskManager  # reading the thousands of tasks of lm-eval takes long: leave them out
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **kw: real(**(kw | {"include_defaults": False})))
    with pytest.raises(UserError, match="unknown task 'local_choise'; did you mean 'local_choice'"):
        evaluate(model, tokenizer, ["local_choise"], folder)


@pytest.mark.slow
def test_the_tasks_of_lm_eval_are_known_beside_the_local_ones(
    model: Any, tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(UserError, match="'arc_easy' cannot be loaded: ConnectionError: offline"):
        evaluate(model, tokenizer, ["local_choice", "arc_easy"], folder)
    with pytest.raises(UserError, match=r"did you mean 'arc_easy'|did you mean .*'arc_easy'"):
        evaluate(model, tokenizer, ["arc_eazy"], folder)


def test_a_task_whose_data_cannot_be_had_is_refused(model: Any, tokenizer: Any, folder: Path) -> None:
    (folder / "data.py").write_text("def load(**unused):\n    raise ConnectionError('offline')\n")
    with pytest.raises(UserError, match=r"'local_choice' cannot be loaded: .*offline"):
        evaluate(model, tokenizer, ["local_choice"], folder)


def test_the_embedded_tasks_are_found_and_scored(model: Any, tokenizer: Any) -> None:
    found = evaluate(model, tokenizer, ["embedded_b"], EMBEDDED_TASKS, limit=3)
    assert len(found) == 6
    assert all(name.startswith("embedded_b_") and result.documents == 3 for name, result in found.items())
    assert found["embedded_b_coins"].chance == 0.5


def test_a_folder_of_tasks_must_exist(tmp_path: Path) -> None:
    assert existing_folder(str(tmp_path)) == tmp_path.resolve()
    with pytest.raises(UserError, match="no folder"):
        existing_folder(tmp_path / "nowhere")


# ------------------------------------------------------------------------------- prompts that do not fit
@pytest.fixture
def long_prompts(folder: Path) -> Path:
    """Ten prompts of one to ten words."""
    answers = [{"choices": ["red", "blue"], "answer": 0, "wanted": "red"} for _ in PROMPTS]
    rows = [{"prompt": " ".join(PROMPTS[: n + 1]), **answer} for n, answer in enumerate(answers)]
    (folder / "data.py").write_text(DATA.format(rows=rows))
    return folder


@pytest.mark.parametrize("context", [4, 8, 64])
def test_prompts_that_lost_their_beginning_are_counted_and_said(
    context: int, model: Any, tokenizer: Any, long_prompts: Path
) -> None:
    said: list[str] = []
    tasks = ["local_choice", "local_generate"]
    found = evaluate(model, tokenizer, tasks, long_prompts, max_length=context, warn=said.append)
    words = range(1, 11)
    # `<s>`, the words and the choice, which is only predicted; or `<s>`, the words and room for two more
    expected = {
        "local_choice": sum(1 + n + 1 > context + 1 for n in words),
        "local_generate": sum(1 + n > context - 2 for n in words),
    }
    assert {name: result.truncated or 0 for name, result in found.items()} == expected
    assert (context == 64) == (not any(expected.values()))
    for name, count in expected.items():
        line = (
            f"prompts of {name}: {count} of 10 are longer than the model's context and lost their beginning"
        )
        assert (line in said) == (count > 0)
        assert ("truncated" in found[name].model_dump(exclude_none=True)) == (count > 0)


@pytest.mark.parametrize(
    ("most", "until", "expected"),
    [
        (1, "</s>", len(SAYS)),  # one word each, and no room for the end mark
        (1, "blue", sum(word != "blue" for word in SAYS)),
        (2, "</s>", 0),
        (3, "mumble", 0),  # the batch is padded to its longest answer
    ],
)
def test_answers_cut_at_the_limit_of_tokens_are_counted_and_said(
    most: int, until: str, expected: int, model: Any, tokenizer: Any, folder: Path
) -> None:
    task = GENERATE.replace('until: ["</s>"], max_gen_toks: 2', f'until: ["{until}"], max_gen_toks: {most}')
    (folder / "task1.yaml").write_text(task)
    said: list[str] = []
    found = evaluate(model, tokenizer, ["local_generate"], folder, warn=said.append)["local_generate"]
    assert (found.unfinished or 0) == expected
    line = f"answers to local_generate: {expected} of 10 were cut at the task's limit of tokens"
    assert (line in said) == (expected > 0)


def test_letters_of_prompts_that_the_tokenizer_lacks_are_said(
    model: Any, tokenizer: Any, folder: Path
) -> None:
    rows = [{"prompt": "what is this", "choices": ["red", "blue"], "answer": 0, "wanted": "red"}] * 3
    (folder / "data.py").write_text(DATA.format(rows=rows))
    said: list[str] = []
    evaluate(model, tokenizer, ["local_choice"], folder, warn=said.append)
    assert said[0].startswith("prompts of local_choice: 60% of the tokens are <unk>"), "3 of `<s>`, 3 and 1"


def test_a_task_whose_answers_leave_no_room_is_refused_before_training(folder: Path) -> None:
    tasks = load_tasks(["local_choice", "local_generate"], [folder])
    check_room(tasks, 3)
    with pytest.raises(UserError, match=r"'local_generate': an answer may have 2 tokens .* context 2"):
        check_room(tasks, 2)


def test_an_evaluation_leaves_the_tokenizer_as_it_was(model: Any, folder: Path) -> None:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bare = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")
    before = (bare.backend_tokenizer.to_str(), bare.special_tokens_map, len(bare), bare.padding_side)
    evaluate(model, bare, ["local_choice", "local_generate"], folder)
    assert (bare.backend_tokenizer.to_str(), bare.special_tokens_map, len(bare), bare.padding_side) == before
