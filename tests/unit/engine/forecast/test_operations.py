"""What an update computes and moves: counts of a simulation beside those of a real run and by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from harness.config import Run
from harness.devices import DeviceProfile
from harness.engine.forecast import dry_run
from harness.engine.forecast.dry_run import _batches, simulate
from harness.engine.forecast.operations import OperationLog
from harness.engine.measure.peak import meter_for
from harness.engine.models.load import DTYPES, load_model
from harness.engine.quality import perplexity
from harness.engine.run import prepare
from harness.forecast import Work
from harness.method import Context
from harness.speed_forecast import forecast_scoring
from tests.unit.engine.forecast.test_dry_run import run_of

CPU = torch.device("cpu")
BATCH, LENGTH = 2, 16


def flops(works: Iterable[Work], *kinds: str) -> int:
    return sum(work.flops * work.count for work in works if not kinds or work.kind in kinds)


# ----------------------------------------------------------------------------------- one operation
class Logged(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.log = OperationLog()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.log.note("forward", func, args, kwargs or {}, result)
        return result


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("call", "given", "moved", "new"),
    [
        (torch.add, [ones(6, 5), ones(6, 5)], 3 * 120, 120),
        (lambda a: a + a, [ones(6, 5)], 2 * 120, 120),  # one tensor is read once
        (Tensor.add_, [ones(6, 5), ones(6, 5)], 3 * 120, 0),
        (Tensor.zero_, [ones(6, 5)], 120, 0),  # written, not read
        (Tensor.copy_, [ones(6, 5), ones(6, 5)], 2 * 120, 0),
        (torch.add, [ones(6, 5), ones(5)], 120 + 20 + 120, 120),
        (torch.add, [ones(6, 5), ones(1, 5).expand(6, 5)], 120 + 20 + 120, 120),  # what is stored is read
        (lambda a: a.to(torch.bfloat16), [ones(6, 5)], 120 + 60, 60),
        (torch.mm, [ones(6, 5), ones(5, 7)], 120 + 140 + 168, 168),
        (lambda a, out: torch.neg(a, out=out), [ones(6, 5), ones(6, 5)], 240, 0),
        (lambda table, rows: table[rows], [ones(100, 8), torch.tensor([3, 4])], 16 + 2 * 64, 64),
        (torch.embedding, [ones(100, 8), torch.tensor([3, 4])], 16 + 2 * 64, 64),
        (lambda t, rows, s: t.index_add_(0, rows, s), [ones(9, 8), torch.tensor([3, 4]), ones(2, 8)], 240, 0),
        (lambda *a: torch._foreach_add_(a, 1.0), [ones(3), ones(4)], 2 * 28, 0),
        (lambda *a: torch._foreach_mul(a, 2.0), [ones(3), ones(4)], 2 * 28, 28),
    ],
)
def test_bytes_are_those_read_once_and_written_once(
    call: Callable[..., object], given: list[Tensor], moved: int, new: int
) -> None:
    with Logged() as logged:
        call(*given)
    (work,) = logged.log.work()
    assert (work.bytes, work.new_bytes) == (moved, new)


@pytest.mark.parametrize(
    ("action", "kind", "size", "count"),
    [
        (lambda: ones(6, 5) @ ones(5, 7), "product", 5, 2 * 6 * 5 * 7),
        (lambda: torch.addmm(ones(7), ones(6, 5), ones(5, 7)), "product", 5, 2 * 6 * 5 * 7),
        (lambda: ones(6, 7).addmm_(ones(6, 5), ones(5, 7)), "product", 5, 2 * 6 * 5 * 7),
        (lambda: ones(3, 6, 5) @ ones(3, 5, 7), "product", 5, 3 * 2 * 6 * 5 * 7),
        (lambda: ones(6, 5) @ ones(5), "product", 1, 2 * 6 * 5),
        (lambda: torch.linalg.svd(ones(6, 4), full_matrices=False), "svd", 4, 6 * 6 * 16 + 20 * 64),
        (lambda: torch.linalg.svd(ones(4, 6), full_matrices=False), "svd", 4, 6 * 6 * 16 + 20 * 64),
        (lambda: torch.linalg.eigh(ones(4, 4)), "eigh", 4, 9 * 64),
        (lambda: torch.linalg.qr(ones(6, 3)), "qr", 3, 4 * 6 * 9 - 4 * 27 // 3),
    ],
)
def test_floating_point_operations_by_hand(
    action: Callable[[], object], kind: str, size: int, count: int
) -> None:
    with Logged() as logged:
        action()
    (work,) = (work for work in logged.log.work() if work.flops)
    assert (work.kind, work.size, work.flops) == (kind, size, count)


def test_a_fused_optimizer_reads_four_tensors_and_writes_three() -> None:
    parameter = torch.nn.Parameter(ones(6, 5))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    parameter.grad = ones(6, 5)
    optimizer.step()
    with Logged() as logged:
        optimizer.step()
    (work,) = (work for work in logged.log.work() if work.operation == "_fused_adamw_")
    assert work.bytes == 7 * 120 + 4  # and the count of steps is read


def test_a_view_is_no_work() -> None:
    given = ones(6, 5)
    with Logged() as logged:
        given.t().reshape(5, 2, 3).detach().unsqueeze(0)
    assert not logged.log.work()


# -------------------------------------------------------------------------------------- an update
def trainer_of(run: Run) -> Any:
    model = load_model(run.model, dtype=DTYPES["float32"], device=CPU, seed=0).model
    methods, _ = prepare.load_stack(run)
    batches = _batches(run.train.batch, run.data.seq_len)
    return prepare.assemble(run, methods, model, lambda *_: Context(seed=0), batches, meter_for(CPU)).trainer


STACKS: dict[str, Any] = {
    "full": "full",
    "lora": {"lora": {"rank": 4}},
    "lisa": {"lisa": {"layers": 1}},
    "owlore": {"owlore": {"layers": 1, "rank": 4}},
    "galore": {"galore": {"rank": 4}},
    "apollo": {"apollo": {"rank": 4}},
    "apollo, by SVD": {"apollo": {"rank": 4, "projector": "svd"}},
    "fira": {"fira": {"rank": 4}},
    "int8 + full": ["int8", "full"],
    "qgalore": {"qgalore": {"rank": 8}},
    "relora": {"relora": {"rank": 4}},
    "velora + full": [{"velora": {"num_groups": 8}}, "full"],
    "sltrain": {"sltrain": {"rank": 4, "delta": 0.03}},
}


@pytest.mark.parametrize("name", STACKS)
def test_operations_are_those_of_a_real_update_to_the_last(name: str) -> None:
    """Both counted by torch's own counter, the real ones while they are carried out."""
    run = run_of(STACKS[name], shape="nano", length=LENGTH, train__stage="pretrain", train__batch=BATCH)
    trainer = trainer_of(run)
    trainer.model.train()
    trainer._update()  # creates the state
    with FlopCounterMode(display=False) as counter:
        trainer._update()
    report = simulate(run)
    known = {str(op).removeprefix("aten.") for op in flop_registry}
    seen = sum(work.flops * work.count for work in report.work if work.operation in known)
    assert seen == counter.get_total_flops() > 0


@pytest.mark.parametrize("name", ["full", "uniform", "int8"])
def test_operations_of_scoring_are_those_of_a_real_forward_pass_to_the_last(name: str) -> None:
    train = {"stage": "compress", "batch": BATCH}
    run = run_of(name, shape="nano", length=LENGTH, train=train)
    model = load_model(run.model, dtype=DTYPES["float32"], device=CPU, seed=0).model
    methods, _ = prepare.load_stack(run)
    model = prepare.prepare(run, methods, model, lambda *_: Context(seed=0)).model
    sequences = list(next(_batches(BATCH, LENGTH)))
    with FlopCounterMode(display=False) as counter:
        perplexity.score(model, sequences, BATCH, CPU)
    scored = simulate(run).scoring
    assert scored is not None
    known = {str(op).removeprefix("aten.") for op in flop_registry}
    seen = sum(work.flops * work.count for work in scored.work if work.operation in known)
    assert seen == counter.get_total_flops() > 0
    config: Any = model.config
    layers, width = config.num_hidden_layers, config.hidden_size
    assert flops(scored.work, "attention") == 4 * BATCH * (LENGTH - 1) ** 2 * width * layers  # torch has none


def test_scoring_by_factors_takes_two_operations_for_each_of_their_weights_and_tokens() -> None:
    """And the forecast of its speed follows, where only products take time."""
    train = {"stage": "compress", "batch": BATCH}
    method = {"uniform": {"err": 0.75}}
    report = simulate(run_of(method, shape="nano", length=LENGTH, train=train))
    scored = report.scoring
    assert scored is not None
    rank, width, inner, vocabulary, layers = 32 - 24, 32, 88, 64, 2
    attention, feed_forward = 4 * rank * (width + width), 3 * rank * (width + inner)
    weights = layers * (attention + feed_forward) + vocabulary * width
    tokens = BATCH * (LENGTH - 1)
    assert (scored.tokens, flops(scored.work, "product")) == (tokens, 2 * weights * tokens)
    dense = layers * (4 * width**2 + 3 * width * inner) + vocabulary * width
    assert scored.flops_per_token == 2 * dense + 4 * layers * width * (LENGTH - 1)
    free: Any = {"bandwidth": [[1, 1e9]], "attention": {"float32": [[1, 1e9]]}, "latency_us": 0}
    rates: Any = {"products": {"float32": [[1, 2.0]]}, "peak": {"float32": 4.0}, "decompositions": {}}
    device = DeviceProfile.model_validate(
        {"title": "d", "memory_gib": 1, "attention_backward": {}, "sources": {}, **free, **rates}
    )
    found = forecast_scoring(scored, device, "float32")
    assert found.tokens_per_s == pytest.approx(2e12 / (2 * weights), rel=1e-3)
    assert found.mfu == pytest.approx(scored.flops_per_token * found.tokens_per_s / 4e12)


def test_an_update_is_six_operations_per_weight_and_token() -> None:
    """Forward two, backward four: nothing else is a product but attention, whose formula is below."""
    run = run_of(shape="nano", length=LENGTH, train__batch=BATCH)
    report = simulate(run)
    model: Any = load_model(run.model, dtype=DTYPES["float32"], device=CPU, seed=0).model
    weights = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    assert flops(report.work, "product") == 6 * weights * BATCH * LENGTH
    config = model.config
    one = 2 * BATCH * LENGTH**2 * config.hidden_size * config.num_hidden_layers
    assert flops(report.work, "attention") == 2 * one  # scores, and their product with values
    assert flops(report.work, "attention backward") == 5 * one  # scores once more, and four gradients
    assert report.flops_per_token == pytest.approx(6 * weights + 3 * 2 * one / (BATCH * LENGTH))


def test_recomputation_counts_in_the_backward_pass() -> None:
    plain = simulate(run_of(shape="nano", length=LENGTH))
    again = simulate(run_of(shape="nano", length=LENGTH, train__activation_checkpointing=True))

    def by_part(works: list[Work]) -> Counter[str]:
        return Counter({part: flops(w for w in works if w.part == part) for part in ("forward", "backward")})

    before, after = by_part(plain.work), by_part(again.work)
    assert after["forward"] == before["forward"]
    head, last = 64 * 32, 2 * 88 * 32  # not computed again: the head, and what ends each of two layers
    again_flops = before["forward"] - 2 * 2 * LENGTH * (head + last)
    assert after["backward"] == before["backward"] + again_flops


@pytest.mark.parametrize("number", [2, 5])
def test_accumulated_batches_are_work_of_one_update(number: int) -> None:
    """As many passes of each kind, more additions to gradients, and one update."""
    once = simulate(run_of(shape="nano", length=LENGTH))
    more = simulate(run_of(shape="nano", length=LENGTH, train__grad_accum=number))
    assert flops(more.work) == number * flops(once.work)
    assert [work for work in more.work if work.part == "update"] == [
        work for work in once.work if work.part == "update"
    ]


@pytest.mark.parametrize("stack", ["full", "galore", "velora + full"])
def test_the_third_micro_batch_counts_for_those_after_it(stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(STACKS[stack], shape="nano", length=LENGTH, train__grad_accum=5)
    short = simulate(run)
    monkeypatch.setattr(dry_run, "MICRO_BATCHES", 5)
    assert simulate(run) == short


def test_a_refresh_is_work_of_its_own() -> None:
    report = simulate(run_of({"galore": {"rank": 4, "period": 50}}, shape="nano", length=LENGTH))
    assert report.period == 50
    assert flops(report.work, "svd") == 0
    # seven matrices of two layers: 4 of 32 x 32, 3 of 32 x 88
    each = 4 * (6 * 32 * 32**2 + 20 * 32**3) + 3 * (6 * 88 * 32**2 + 20 * 32**3)
    assert flops(report.refresh_work, "svd") == 2 * each
    assert simulate(run_of(shape="nano", length=LENGTH)).refresh_work == []


@pytest.mark.parametrize("name", STACKS)
def test_model_flops_are_those_of_the_dense_model_whatever_trains_it(name: str) -> None:
    run = run_of(STACKS[name], shape="nano", length=LENGTH, train__stage="pretrain")
    assert simulate(run).flops_per_token == simulate(run_of(shape="nano", length=LENGTH)).flops_per_token


def test_refreshes_at_times_of_their_own_are_spread_over_the_mean_period_and_that_is_said() -> None:
    """Staggered, each matrix refreshes once a period, as when all do together: the work is the same."""
    together = simulate(run_of({"galore": {"rank": 4, "period": 50}}, shape="nano", length=LENGTH))
    apart = simulate(
        run_of({"galore": {"rank": 4, "period": 50, "stagger": True}}, shape="nano", length=LENGTH)
    )
    assert (apart.period, apart.refresh_work) == (50, together.refresh_work)
    assert apart.work == together.work
    assert [text for text in apart.warnings if text.startswith("speed:")] == [
        "speed: a refresh of each matrix is counted once in 50 updates; training decides when they come"
    ]
    assert not [text for text in together.warnings if text.startswith("speed:")]
    varying = simulate(run_of({"adarankgrad": {"rank": 4, "period": 30}}, shape="nano", length=LENGTH))
    assert varying.period == 30
    assert varying.refresh_work
    stacked = [{"velora": {}}, {"galore": {"rank": 4, "period": 50, "stagger": True}}]
    assert simulate(run_of(stacked, shape="nano", length=LENGTH)).period == 50
