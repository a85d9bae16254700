"""The shipped base checkpoint, its tokenizer, its manifest, how it is built, and its lm-eval tasks."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.embedded import build, evaluate
from benchmarks.embedded.recipe import Recipe
from benchmarks.embedded.tokenizer import encode_documents
from benchmarks.embedded.training import ANSWER_CUES, answers, batches, new_model, windows
from benchmarks.embedded.world import SKILLS, WORLD_VERSION, document_stream, documents, questions
from harness.files import sha256

TASKS = Path(build.__file__).parent / "tasks"
TINY = Recipe(
    tokenizer_documents=200,
    vocabulary=400,
    hidden=16,
    intermediate=32,
    layers=1,
    heads=2,
    steps=3,
    batch=2,
    window=32,
    short_window=16,
    warmup_steps=1,
    test_documents=20,
    test_questions=5,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """More threads than free cores slow small matrices down a hundredfold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((build.BASE / build.MANIFEST).read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(build.BASE)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(build.BASE).eval()


def test_manifest_names_the_files_and_the_data_that_are_there(manifest: dict[str, Any]) -> None:
    weights = build.BASE / build.WEIGHTS
    assert manifest["model_sha256"] == sha256(weights)
    assert manifest["data_sha256"] == build.data_sha256()
    assert sum(path.stat().st_size for path in build.BASE.iterdir()) <= 8 * 2**20


def test_manifest_was_built_with_the_shipped_recipe(manifest: dict[str, Any]) -> None:
    assert Recipe(**manifest["recipe"]) == Recipe()
    assert manifest["tokens_seen"] == Recipe().tokens


def test_base_has_all_seven_kinds_of_matrices_and_an_untied_head(model: LlamaForCausalLM) -> None:
    names = dict(model.named_parameters())
    assert "lm_head.weight" in names
    assert model.config.num_key_value_heads == model.config.num_attention_heads
    assert set(evaluate.kept_ranks(model, 0.5)) == set(evaluate.KINDS)


def test_base_is_within_ten_percent_of_the_floor_of_world_a_and_far_from_that_of_b(
    manifest: dict[str, Any], model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert manifest["worlds"]["a"]["ratio"] < 1.1
    assert manifest["worlds"]["b"]["ratio"] > 1.25
    for world in "ab":
        stored = manifest["worlds"][world]
        perplexity, floor = evaluate.perplexity_and_floor(
            model, tokenizer, documents(world, "test", manifest["recipe"]["test_documents"])
        )
        assert perplexity == pytest.approx(stored["test_perplexity"], rel=1e-3)
        assert floor == pytest.approx(stored["floor"], rel=1e-9)


def test_base_knows_at_least_five_skills_of_world_a_and_no_fact_of_b(manifest: dict[str, Any]) -> None:
    skills = manifest["worlds"]["a"]["skills"]
    assert sorted(skills) == sorted(SKILLS)
    assert sum(skill["accuracy"] >= skill["chance"] + 0.2 for skill in skills.values()) >= 5
    new = manifest["worlds"]["b"]["skills"]
    assert all(new[skill]["accuracy"] <= new[skill]["chance"] + 0.1 for skill in ("facts", "twohop"))


def test_stored_accuracies_are_those_of_the_checkpoint(
    manifest: dict[str, Any], model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    count = manifest["recipe"]["test_questions"]
    for world in "ab":
        for skill in ("facts", "coins"):
            stored = manifest["worlds"][world]["skills"][skill]
            asked = questions(world, skill, "test", count)
            # One question may flip where two processors round differently.
            assert abs(evaluate.accuracy(model, tokenizer, asked) - stored["accuracy"]) <= 1 / count + 1e-9
            assert evaluate.chance(asked) == pytest.approx(stored["chance"])


def test_singular_values_are_not_uniform(manifest: dict[str, Any], model: LlamaForCausalLM) -> None:
    ranks = evaluate.kept_ranks(model, 0.5)
    assert ranks == manifest["kept_ranks_at_err_0.5"]
    means = {kind: sum(values) / len(values) for kind, values in ranks.items()}
    assert max(means.values()) > 1.2 * min(means.values())


def test_kept_ranks_of_known_spectra() -> None:
    """Of three matrices two decay and one is flat: the flat one must keep its full rank."""

    class Known(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for kind, values in {
                "q_proj": [1.0, 0.5, 0.02, 0.01, 0.005, 0.0, 0.0, 0.0],
                "v_proj": [1.0, 0.9, 0.8, 0.03, 0.02, 0.01, 0.0, 0.0],
                "up_proj": [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.0],
            }.items():
                layer = torch.nn.Linear(8, 8, bias=False)
                layer.weight.data = torch.diag(torch.tensor(values))
                setattr(self, kind, layer)

    nested = torch.nn.ModuleDict({"layer": Known()})
    assert evaluate.kept_ranks(nested, 11 / 24) == {"q_proj": [2], "v_proj": [3], "up_proj": [8]}


def test_tokenizer_adds_one_bos_and_cuts_before_the_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    """lm-eval scores `prompt + " " + answer`: the answer's tokens must not depend on the prompt."""
    assert tokenizer("Mara")["input_ids"][0] == tokenizer.bos_token_id
    for world in "ab":
        for skill in SKILLS:
            for question in questions(world, skill, "test", 50):
                alone = tokenizer(question.prompt)["input_ids"]
                assert alone.count(tokenizer.bos_token_id) == 1
                for choice in question.choices:
                    answer = tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
                    assert tokenizer(f"{question.prompt} {choice}")["input_ids"] == alone + answer
                    assert len(answer) == 1


def test_encoded_documents_decode_to_their_text(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [document.text for document in documents("b", "test", 200)]
    for ids, text in zip(encode_documents(tokenizer, texts), texts, strict=True):
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids[1:-1]) == text


def test_windows_start_with_a_document(tokenizer: PreTrainedTokenizerFast) -> None:
    source = windows(document_stream("a", "train"), tokenizer, 64)
    for _, window in zip(range(20), source, strict=False):
        assert len(window) == 64
        assert window[0] == tokenizer.bos_token_id


def test_a_recipe_counts_the_tokens_of_its_short_and_long_windows(tokenizer: PreTrainedTokenizerFast) -> None:
    recipe = replace(TINY, steps=10, short_share=0.6, short_window=12)
    shapes = [tuple(tokens.shape) for tokens in batches(document_stream("a", "train"), tokenizer, recipe)]
    assert shapes == [(4, 12)] * 6 + [(2, 32)] * 4
    assert recipe.tokens == 6 * 4 * 12 + 4 * 2 * 32


def test_answers_follow_their_cues(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Mara has milk. Tom has tea. At the end Tom has tea. How is Tom? Answer: sad."
    tokens = torch.tensor([tokenizer(text)["input_ids"]])
    found = [
        tokenizer.decode(
            tokens[answers(tokens, tokenizer(cue, add_special_tokens=False)["input_ids"], between)]
        )
        for cue, between in ANSWER_CUES
    ]
    assert [answer.strip() for answer in found] == ["sad", "tea"]


def test_perplexity_does_not_depend_on_padding(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = documents("a", "test", 30)
    alone = evaluate.perplexity_and_floor(model, tokenizer, texts, batch=1)
    assert evaluate.perplexity_and_floor(model, tokenizer, texts, batch=30) == pytest.approx(alone, rel=1e-5)


def test_perplexity_of_a_uniform_model_is_the_vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> None:
    uniform = new_model(Recipe(hidden=16, intermediate=32, layers=1, heads=2), tokenizer).eval()
    torch.nn.init.zeros_(uniform.lm_head.weight)
    texts = documents("a", "test", 10)
    perplexity, floor = evaluate.perplexity_and_floor(uniform, tokenizer, texts)
    assert perplexity == pytest.approx(len(tokenizer), rel=1e-6)
    tokens = sum(len(ids) - 1 for ids in encode_documents(tokenizer, [text.text for text in texts]))
    assert floor == pytest.approx(math.exp(-sum(text.log_prob for text in texts) / tokens))


def test_two_builds_write_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        build.build(tmp_path / name, TINY)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert {build.MANIFEST, build.WEIGHTS, "tokenizer.json", "config.json"} <= set(files)
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_a_build_depends_on_its_seed_and_its_steps(tmp_path: Path) -> None:
    base = build.build(tmp_path / "base", TINY)["model_sha256"]
    assert build.build(tmp_path / "seed", replace(TINY, seed=2))["model_sha256"] != base
    assert build.build(tmp_path / "steps", replace(TINY, steps=4))["model_sha256"] != base


def test_shipped_tokenizer_is_what_a_build_trains(tmp_path: Path) -> None:
    build.build(
        tmp_path, replace(TINY, tokenizer_documents=Recipe.tokenizer_documents, vocabulary=Recipe.vocabulary)
    )
    assert (tmp_path / "tokenizer.json").read_bytes() == (build.BASE / "tokenizer.json").read_bytes()


def test_build_refuses_zero_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build.main(["--steps", "0"])
    assert "--steps is 0" in capsys.readouterr().err


def test_every_task_file_loads_and_declares_its_chance() -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    names = {f"embedded_{world}_{skill}" for world in "ab" for skill in SKILLS}
    assert {path.stem for path in TASKS.glob("*.yaml")} == names | {"embedded_a", "embedded_b"}
    assert set(manager.all_tasks) == names | {"embedded_a", "embedded_b"}
    for world in "ab":
        loaded = manager.load([f"embedded_{world}"])["tasks"]
        assert set(loaded) == {name for name in names if name.startswith(f"embedded_{world}")}
        for name, task in loaded.items():
            skill = name.rsplit("_", 1)[1]
            asked = questions(world, skill, "test", 200)
            rows = list(task.test_docs())
            assert [row["prompt"] for row in rows] == [question.prompt for question in asked]
            assert task.config.metadata["chance"] == pytest.approx(evaluate.chance(asked), abs=1e-4)
            assert task.config.metadata["version"] == WORLD_VERSION


def test_tasks_load_outside_the_repository(tmp_path: Path) -> None:
    program = (
        "import sys; from lm_eval.tasks import TaskManager; "
        "manager = TaskManager(include_path=sys.argv[1], include_defaults=False); "
        "task = manager.load(['embedded_b_coins'])['tasks']['embedded_b_coins']; "
        "print(task.test_docs()[0]['prompt'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(
        [sys.executable, "-I", "-c", program, str(TASKS)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip().endswith(questions("b", "coins", "test", 1)[0].prompt)


def test_lm_eval_finds_the_accuracy_that_the_manifest_measures(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=64, device="cpu", max_length=512)
    context, answer = wrapped._encode_pair("Mara keeps a", " cat")
    assert [*context, *answer].count(tokenizer.bos_token_id) == 1
    names = ["embedded_a_facts", "embedded_b_shuffle"]
    results = lm_eval.simple_evaluate(
        model=wrapped, tasks=names, task_manager=manager, bootstrap_iters=10, log_samples=False
    )["results"]
    for name in names:
        _, world, skill = name.split("_")
        mine = evaluate.accuracy(model, tokenizer, questions(world, skill, "test", 200))
        assert results[name]["acc,none"] == pytest.approx(mine, abs=1 / 200 + 1e-9)
        share = results[name]["acc,none"]
        exact = math.sqrt(share * (1 - share) / (200 - 1))
        assert results[name]["acc_stderr,none"] == pytest.approx(exact, abs=1e-9)
