"""The suites for LLaMA-2 and C4, checked without either: loaded, planned, run on small stand-ins."""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from harness import plugins
from harness.cli import main as cli
from harness.cli import options
from harness.cli import plan as command
from harness.config import HubModel, Run
from harness.engine import runner, worker
from harness.engine.forecast import client
from harness.engine.forecast.cache import ForecastAnswer
from harness.engine.forecast.dry_run import simulate
from harness.engine.models import checkpoint
from harness.engine.process.job import Job
from harness.engine.quality import tasks
from harness.engine.run import checks, record_writer
from harness.engine.sweep import resolution
from harness.errors import UserError
from harness.record import Record, read
from harness.suite import Suite, shipped_suites
from harness.tables.format import DASH
from harness.tables.plan import plan, tables
from tests.support import forked
from tests.support.paper_files import write_paper_files
from tests.support.tiny import sentence, tiny_llama, tiny_tokenizer

SUITES = sorted(name for name in shipped_suites() if name.startswith("llama2/"))
FILES = {
    "c4-train.00000-of-01024.json.gz": "train",
    "c4-validation.00000-of-00008.json.gz": "validation",
    "alpaca_data.jsonl": "instructions",
    "alpaca_gpt4_data.jsonl": "instructions",
    "wiki.test.raw": "wikitext",
    "wiki.train.raw": "wikitext",
}


# --------------------------------------------------------------------------- what a head documents
def documented(name: str, places: dict[str, Path]) -> list[str]:
    """The settings that the head of a suite tells, as a person would give them, with files that are here."""
    lines = shipped_suites()[name].read_text(encoding="utf-8").split("\nsuite:")[0].splitlines()
    text = " ".join(line.removeprefix("#").strip() for line in lines).replace(", …]", "]")
    found = [key + value.strip("'") for key, value in re.findall(r"--set ([\w.]+=)('[^']*'|\S+)", text)]
    for written, place in places.items():
        found = [setting.replace(written, str(place)) for setting in found]
    return found


def load(
    name: str, settings: Sequence[str] = (), only: Sequence[str] = (), model: str | None = None
) -> Suite:
    return options.Selection(name, model, settings=list(settings), only=list(only)).load()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small files in the formats of C4, of Alpaca, of WikiText-2 and of the papers' tasks."""
    folder = tmp_path_factory.mktemp("texts")
    texts = [" ".join(sentence(number + step) for step in range(10)) for number in range(60)]
    rows = [{"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "https://a.b"} for text in texts]
    asked = [
        {"instruction": "say it", "input": text[:20] * (n % 2), "output": text}
        for n, text in enumerate(texts)
    ]
    for name, kind in FILES.items():
        lines = asked if kind == "instructions" else rows
        content = "".join(json.dumps(line) + "\n" for line in lines)
        content = " \n".join(texts) + " \n" if kind == "wikitext" else content
        raw = content.encode()
        (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    tasks = write_paper_files(folder / "tasks")
    return {**{name: folder / name for name in FILES}, "FOLDER": tasks}


@pytest.mark.parametrize("name", SUITES)
def test_the_settings_in_a_head_change_where_text_comes_from_and_nothing_else(
    name: str, places: dict[str, Path]
) -> None:
    settings = documented(name, places)
    keys = {setting.partition("=")[0] for setting in settings}
    assert keys & {"data", "data.folder", "evaluate.perplexity"}, "a head says how text is given offline"
    where = {"source", "id", "name", "revision", "split", "limit", "paths", "separator", "folder"}
    before, after = load(name).runs, load(name, [s for s in settings if s != "evaluate.tasks=[]"]).runs
    assert len(before) == len(after)
    for asked, given in zip(before, after, strict=True):
        old, new = (run.data.model_dump(exclude=where) for run in (asked, given))
        assert {key: new.get(key) for key in old} == old
        assert given.train == asked.train
        assert given.method == asked.method
        assert given.evaluate.tasks == asked.evaluate.tasks
        scored = {item.name for item in given.evaluate.perplexity}
        assert scored <= {item.name for item in asked.evaluate.perplexity}
        assert bool(scored) == bool(asked.evaluate.perplexity)


# ----------------------------------------------------------------------------- resolved and planned
@pytest.mark.parametrize("name", SUITES)
def test_a_suite_resolves_and_its_methods_build_with_neither_network_nor_files(name: str) -> None:
    runs = load(name).runs
    resolved = checks.resolve(runs, text=False)  # neither texts nor tokenizers are here
    assert [run.name for run in resolved] == [run.name for run in runs]
    for asked, run in zip(runs, resolved, strict=True):
        assert checks.supported(run, checks.stack(run)).stages
        for given, complete in zip(asked.method, run.method, strict=True):
            assert within(given.options, complete.options)
            assert complete.options or not plugins.find(given.name).Config.model_fields


def within(given: Any, complete: Any) -> bool:
    """Whether options are among the complete ones; a section may be given by its type alone."""
    if isinstance(given, dict) and isinstance(complete, dict):
        return all(key in complete and within(value, complete[key]) for key, value in given.items())
    return bool(given == complete or (isinstance(complete, dict) and given == complete.get("type")))


def test_a_task_without_its_files_is_refused_before_anything_starts_and_says_how_to_give_them() -> None:
    runs = load("llama2/welore_downstream", only=["data.task=paper_svamp"]).runs
    with pytest.raises(UserError) as caught:
        checks.resolve(runs)
    assert "data.folder to train" in str(caught.value)
    assert "\n" not in str(caught.value)


#: One row of each suite: millions of parameters of the dense model, updates, tokens an update by the papers.
PLANNED = {
    "llama2/apollo_c4": ("60m apollo", 58.07, 10_000, 512 * 256),
    "llama2/compression_alpaca": ("7b svd-llm 20 %", 6738.42, 1592, 64 * 256),
    "llama2/compression_c4": ("7b lord 20 %", 6738.42, None, None),
    "llama2/compression_wikitext": ("7b svd-llm 20 %", 6738.42, None, None),
    "llama2/galore_c4": ("60m galore", 58.07, 10_000, 512 * 256),
    "llama2/lqlora_c4": ("7b lora", 6738.42, 1000, 128 * 1024),
    "llama2/owlore_alpaca": ("7b owlore", 6738.42, 3186, 16 * 512),
    "llama2/sltrain_c4": ("60m sltrain", 58.07, 11_000, 512 * 256),
    "llama2/velora_alpaca": ("7b lora", 6738.42, 12_744, 16 * 512),
    "llama2/welore_compress": ("7b 50 % welore", 6738.42, None, None),
    "llama2/welore_continual": ("7b 50 % welore", 6738.42, 10_000, 4 * 1024),
    "llama2/welore_downstream": ("0 % lora", 6738.42, 1000, 8 * 512),
}


@pytest.fixture
def resolved_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are completed within this process, which has imported what that takes seconds to import."""

    def resolve(
        runs: Sequence[Run], device: str, command: Sequence[str] = (), text: bool = True, **reads: Any
    ) -> resolution.Plan:
        return resolution.Plan(tuple(checks.resolve(runs, text=text)), device, "cpu-1t")

    monkeypatch.setattr(resolution, "resolve", resolve)


@pytest.fixture
def planned_here(monkeypatch: pytest.MonkeyPatch, resolved_here: None) -> None:
    """So are forecasts made."""

    class FromSimulation(client.ForecastClient):
        def ask(self, requests: Any, *_: Any) -> list[ForecastAnswer]:
            return [ForecastAnswer(kind="report", report=simulate(request.run)) for request in requests]

    monkeypatch.setattr(client, "ForecastClient", FromSimulation)


@pytest.mark.usefixtures("planned_here")
@pytest.mark.parametrize("name", SUITES)
def test_a_suite_is_planned_at_its_real_size_with_neither_network_nor_files(
    name: str, tmp_path: Path
) -> None:
    label, millions, steps, tokens = PLANNED[name]
    only = [f"label={label}", *(["data.task=paper_svamp"] if "downstream" in name else [])]
    sizes: Any = ((80.0,), 1.0)
    made = command.plan_suite(load(name, only=only), "cpu", tmp_path, sizes)
    (row,) = made.rows
    assert row.report is not None
    dense = 2e6 * millions  # bytes in bfloat16
    assert row.report.phase_peak_allocated_bytes["load"] == pytest.approx(dense, rel=0.01)
    assert row.report.peak_allocated_bytes > dense
    assert ("train" in row.report.phase_peak_allocated_bytes) == (steps is not None)
    (shown,) = plan.as_dict(made)["rows"]
    assert (shown["steps"], shown["tokens_per_step"]) == (steps, tokens)
    assert shown["tokens"] == (None if steps is None else steps * tokens)
    columns = {column.name: column.cells for column in tables.build(made).tables[0].all_columns}
    written = (f"{steps:,}", f"{tokens:,}") if steps else (DASH, DASH)
    assert (columns["steps"], columns["tokens/step"]) == tuple((cell,) for cell in written)


# -------------------------------------------------------------------------- from end to end, tiny
@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the hub's library with a small LLaMA under each id and revision that the suites name."""
    cache = tmp_path_factory.mktemp("hub")
    model = tiny_llama(hidden=64)
    model.config.max_position_embeddings = 1024
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    checkpoint.save(model, tokenizer, cache / "model")
    named = {run.model for name in SUITES for run in load(name).runs if isinstance(run.model, HubModel)}
    for config in named:
        place = cache / f"models--{config.id.replace('/', '--')}" / "snapshots" / config.revision
        shutil.copytree(cache / "model", place)
    assert len(named) == 4
    return cache


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of T5's kind: it has no begin mark and ends each text itself."""
    core = tiny_tokenizer().backend_tokenizer
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="</s>", pad_token="<unk>"
    )
    folder = tmp_path_factory.mktemp("t5-base")
    tokenizer.save_pretrained(folder)
    return folder


#: Sizes that VeLoRA's 64 and 86 groups divide, so that the row runs as it stands.
SMALL = ["name=nano", "hidden=128", "intermediate=172", "heads=4", "layers=1", "context=256"]
#: Calibration text that small files have.
LITTLE_TEXT = [f"calibration.{part}" for part in ("sequences=4", "validation=2", "data.seq_len=16")]
#: A task that is here.
EASY = ["evaluate.tasks=[embedded_a_facts]", "evaluate.limit=2"]
#: One run of each suite, with the settings that make it small beside those of the head.
SMALL_RUNS: dict[str, tuple[str, list[str]]] = {
    "llama2/apollo_c4": ("60m apollo mini", [f"model.{size}" for size in SMALL]),
    "llama2/compression_alpaca": ("7b svd-llm 20 %", ["train.grad_accum=2", *LITTLE_TEXT, *EASY]),
    "llama2/compression_c4": ("7b bolaco 20 %, searched 5x1", [*LITTLE_TEXT, *EASY]),
    "llama2/compression_wikitext": ("7b asvd 20 %", LITTLE_TEXT),
    "llama2/galore_c4": ("60m velora", [f"model.{size}" for size in SMALL]),
    "llama2/lqlora_c4": ("7b lq-lora 2.75 bits, rank 256", ["train.grad_accum=2"]),
    "llama2/owlore_alpaca": (
        "7b lisa, states reset",
        ["evaluate.tasks=[embedded_a_facts]", "evaluate.shots=2", "evaluate.limit=3"],
    ),
    "llama2/sltrain_c4": ("60m sltrain", [f"model.{size}" for size in SMALL]),
    "llama2/velora_alpaca": (
        "7b lora + velora",
        ["evaluate.tasks=[embedded_a_facts]", "evaluate.shots=2", "evaluate.limit=3"],
    ),
    "llama2/welore_compress": ("7b 50 % welore", []),
    "llama2/welore_continual": ("7b 50 % galore", []),
    "llama2/welore_downstream": ("30 % lora", ["evaluate.limit=2"]),
}
FEW = ["train.steps=2", "train.batch=2", "train.warmup=0"]


@pytest.fixture
def from_hub(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Suite], tuple[int, Record]]:
    """The worker within this process: its exit code and the record of a suite's only run."""
    monkeypatch.setattr(record_writer, "take_stdout", io.StringIO)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)

    def carry_out(suite: Suite) -> tuple[int, Record]:
        (run,) = suite.runs
        job = Job(run, suite.name, tmp_path / "run", "cpu", tmp_path / "cache", "lorebench run")
        job.folder.mkdir()
        job.write()
        return worker.run_job(job.file), read(job.record)

    return carry_out


def small(name: str, places: dict[str, Path], t5: Path) -> Suite:
    label, settings = SMALL_RUNS[name]
    task = ["data.task=paper_svamp"] if "downstream" in name else []
    shape = any(setting.startswith("model.name=") for setting in settings)
    borrowed = [f"model.tokenizer={t5}", "train.grad_accum=2"] if shape else []
    every = [*documented(name, places), *FEW, *borrowed, *settings]
    by_key = {setting.partition("=")[0]: setting for setting in every}  # each is given once
    return load(name, list(by_key.values()), [f"label={label}", *task])


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a model is asked by the tasks."""
    real, heard = tasks._language_model, []

    def listening(*given: Any) -> Any:
        lm = real(*given)
        answer = lm.loglikelihood
        lm.loglikelihood = lambda asked: (heard.extend(asked), answer(asked))[1]
        return lm

    monkeypatch.setattr(tasks, "_language_model", listening)
    return heard


@pytest.mark.usefixtures("from_hub")
@pytest.mark.parametrize("name", SUITES)
def test_a_suite_runs_from_end_to_end_on_a_small_model_and_files_in_the_same_formats(
    name: str, places: dict[str, Path], t5: Path, work: Callable[..., Any], requests: list[Any]
) -> None:
    suite = small(name, places, t5)
    code, record = work(suite)
    (run,) = suite.runs
    assert (code, record.outcome.status) == (0, "ok"), record.outcome
    assert record.data is not None
    assert record.memory is not None
    assert record.quality is not None
    if isinstance(run.model, HubModel):
        assert record.data.model == f"{run.model.id}@{run.model.revision}"
    assert min(record.memory.phase_peak_allocated_bytes.values()) > 0
    assert record.quality.perplexity.keys() == {item.name for item in run.evaluate.perplexity}
    assert record.quality.tasks.keys() == set(run.evaluate.tasks)
    assert record.quality.perplexity or record.quality.tasks
    for scored in record.quality.perplexity.values():
        assert 1 < scored.perplexity < 640  # of 64 pieces, by a model that knows nothing
    for found in record.quality.tasks.values():
        assert found.documents == run.evaluate.limit
    if name == "llama2/welore_compress":
        assert {key.partition("(")[0] for key in record.quality.perplexity} == {"c4-joined", "wikitext2-4096"}
    if run.calibration is not None:
        assert record.data.calibration.counts["sequences"] == 4
    if run.train.stage == "compress":
        assert record.training is None
        assert record.parameters.ranks
    else:
        assert record.training.steps == 2
        assert record.training.tokens == 2 * 2 * run.train.grad_accum * run.data.seq_len
        assert record.data.documents > 2
    if name == "llama2/velora_alpaca":
        check_shots(requests, shots=2, documents=3)


def check_shots(requests: list[Any], shots: int, documents: int) -> None:
    """Each question comes after as many others with their answers, and never after itself."""
    assert {request.doc_id for request in requests} == set(range(documents))
    for request in requests:
        *solved, question = request.args[0].split("\n\n")
        assert question == request.doc["prompt"]
        assert len(solved) == shots
        assert all(example.rpartition(" ")[0] and question not in example for example in solved)


# ------------------------------------------------------------------------------- what lacks is said
GATED = """
import sys

import transformers
from huggingface_hub.errors import GatedRepoError

def refuse(*_, **__):
    raise OSError("You are trying to access a gated repo.\\nAsk.") from GatedRepoError.__new__(GatedRepoError)

transformers.AutoConfig.from_pretrained = refuse
from harness.engine import worker

sys.exit(worker.main(sys.argv[1:]))
"""


@pytest.mark.usefixtures("resolved_here")
def test_a_gated_model_ends_a_run_with_one_line_that_says_how_to_get_access(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(runner, "Settings", partial(runner.Settings, command=forked.script(GATED)))
    monkeypatch.setenv("LOREBENCH_CACHE", str(tmp_path / "cache"))
    command = ["lorebench", "run", "llama2/welore_compress", "--only", "label=7b dense", "--force"]
    monkeypatch.setattr(sys, "argv", [*command, "--device", "cpu", "--results", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert end.value.code == 2
    (line,) = [line for line in said.err.splitlines() if line.startswith("lorebench: ")]
    assert "https://huggingface.co/meta-llama/Llama-2-7b-hf" in line
    assert "hf auth login" in line
    assert "--model FOLDER" in line
    assert "Traceback" not in said.out + said.err


@pytest.mark.parametrize("name", [name for name in SUITES if "_c4" not in name])
def test_weights_that_are_not_here_end_a_run_with_one_line_that_names_the_option(
    name: str,
    places: dict[str, Path],
    t5: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[..., Any],
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    code, record = work(small(name, places, t5))
    assert code == worker.EXIT_BAD_INPUT
    assert record.outcome.message is not None
    assert re.match(r"hub model '\S+/\S+' at '\w{40}' cannot be loaded: ", record.outcome.message)
    assert record.outcome.message.endswith("--model FOLDER")
    assert "\n" not in record.outcome.message


def test_a_tokenizer_that_is_not_here_ends_a_run_with_one_line_that_names_the_setting(
    places: dict[str, Path], tmp_path: Path, work: Callable[..., Any]
) -> None:
    code, record = work(small("llama2/galore_c4", places, tmp_path / "t5-base"))
    assert code == worker.EXIT_BAD_INPUT
    assert record.outcome.message is not None
    assert re.match(r"no folder '\S+/t5-base' with a tokenizer: ", record.outcome.message)
    assert record.outcome.message.endswith("--set model.tokenizer=FOLDER")
