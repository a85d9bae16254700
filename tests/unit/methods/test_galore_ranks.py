"""GaLore on two processes that see different data: one subspace, one course (invariant 18)."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from harness.config import OptimConfig
from harness.errors import UnsupportedError
from harness.method import Context
from harness.plugins import build
from methods.parts.optim.adamw import AdamWStepper
from methods.parts.projection.projector import Finder
from tests.docs.sources import ROOT
from tests.support import forked

WORLD = 2
UPDATES = 5
VARIANTS: dict[str, dict[str, Any]] = {
    **{how: {"refresh": how} for how in get_args(Finder)},
    "both sides": {"projection": "full", "moments": "rotate"},
    "staggered": {"stagger": True},
}

Result = dict[str, Any]


class Network(nn.Module):
    """Two linear layers that are found as targets: a tall and a wide one."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(6, 10), nn.Linear(10, 6)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 3

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 6) to (batch, 6)."""
        return self.down_proj(torch.tanh(self.up_proj(x)))


def with_signs_of_its_own(rank: int) -> None:
    """What another machine's LAPACK might answer: on the second process all singular vectors are flipped."""
    svd, eigh = torch.linalg.svd, torch.linalg.eigh
    sign = 1 - 2 * rank

    def other_svd(matrix: Tensor, full_matrices: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        left, values, right = svd(matrix, full_matrices=full_matrices)
        return sign * left, values, sign * right

    def other_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = eigh(matrix)
        return values, sign * vectors

    torch.linalg.svd, torch.linalg.eigh = other_svd, other_eigh


def course(rank: int, options: dict[str, Any]) -> Result:
    """Train the network on data of this process; the states, the weights and a gradient of its own."""
    network = Network()
    method = build("galore", {"targets": ["up_proj", "down_proj"], "rank": 3, "period": 2, **options})
    method.prepare(network, Context(seed=4))
    stepper = method.stepper(network, OptimConfig(weight_decay=0.1))
    assert stepper is not None
    replica = DistributedDataParallel(network)
    refreshes, losses = [], []
    for update in range(UPDATES):
        stepper.set_lr(0.01)
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(100 * rank + update))
        loss = (replica(x) - x.roll(1, dims=1)).square().mean()
        loss.backward()
        refreshes.append(stepper.step().refreshes)
        losses.append(loss.item())
        stepper.zero_grad()
    tensors = {name: tensor.detach().clone() for name, tensor in stepper.state_tensors()}
    weights = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}
    return {"states": tensors, "weights": weights, "refreshes": refreshes, "losses": losses}


def refusal() -> str:
    """What is said to updates inside the backward pass."""
    try:
        AdamWStepper(Network(), OptimConfig(per_layer=True))
    except UnsupportedError as error:
        return str(error)
    return ""


PROCESS = """
import sys
from pathlib import Path
from tests.unit.methods.test_galore_ranks import process
process(int(sys.argv[1]), Path(sys.argv[2]))
"""


def process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=(folder / "meeting").as_uri(), rank=rank, world_size=WORLD
    )
    with_signs_of_its_own(rank)
    results: Result = {name: course(rank, options) for name, options in VARIANTS.items()}
    torch.save({**results, "refusal": refusal()}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """What each of two processes ended with."""
    if not distributed.is_available():
        pytest.skip("this build of torch has no torch.distributed")
    folder = tmp_path_factory.mktemp("ranks")
    processes = [subprocess.Popen(forked.script(PROCESS, rank, folder), cwd=ROOT) for rank in range(WORLD)]
    assert [one.wait(timeout=300) for one in processes] == [0] * WORLD
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_invariant_18_bases_moments_and_weights_are_the_same_on_both_ranks(
    variant: str, ranks: list[Result]
) -> None:
    one, other = (result[variant] for result in ranks)
    assert one["losses"] != other["losses"]  # each saw data of its own
    assert one["refreshes"] == other["refreshes"]
    assert sum(one["refreshes"]) > 2
    for kind in ("states", "weights"):
        assert one[kind].keys() == other[kind].keys()
        for name, tensor in one[kind].items():
            assert tensor.equal(other[kind][name]), name
    assert [name for name in one["states"] if name.endswith((".left", ".right"))]


def test_per_layer_updates_are_refused_on_more_than_one_process(ranks: list[Result]) -> None:
    """Each would update from its own gradient, before they are averaged."""
    for result in ranks:
        assert result["refusal"].startswith("per_layer updates before gradients are averaged over processes")
        assert "use one process" in result["refusal"]
        assert "\n" not in result["refusal"]


def test_on_one_process_nothing_is_sent_and_per_layer_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def sent(*_: Any, **__: Any) -> None:
        raise AssertionError("a tensor was sent")

    monkeypatch.setattr(distributed, "broadcast", sent)
    network = Network()
    stepper = build("galore", {"targets": ["up_proj"]}).stepper(network, OptimConfig(per_layer=True))
    assert stepper is not None
    network(torch.ones(2, 6)).sum().backward()
    assert stepper.step().refreshes == 1
