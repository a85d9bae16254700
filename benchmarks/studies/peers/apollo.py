"""APOLLO and APOLLO-Mini beside their authors' optimizer (PyPI: apollo-torch): a step between two refreshes.

Ours projects as the peer does; with `projector: seed` it also draws that projection in each step. The package
is licensed for non-commercial use (CC BY-NC 4.0), so nothing depends on it: install it to run these cases.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from benchmarks.studies.peers.bench import Case, Duel, peer_package
from benchmarks.studies.peers.galore import EPS, LR, NEVER, SHAPES, TINY, side_by_side

PEER = "apollo_torch"
TARGET = 0.9
#: What a paper calls by a name: the options of both that differ from ours as they are elsewhere.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain step": {"scaling": "channel", "scale": 1.0},
    "plain step, Mini": {"rank": 1, "scaling": "tensor", "scale": 128.0},
}


def cases(quick: bool) -> Iterator[Case]:
    """Yield a step of each variant for each shape of GaLore's cases."""
    for name, (out, inputs, full) in (TINY if quick else SHAPES).items():
        for work, options in VARIANTS.items():
            chosen = {"rank": full, **options}
            shape = f"{name}: {out} x {inputs}, rank {chosen['rank']}, float32"
            heavy = out * inputs > 2**23
            yield Case("apollo", work, shape, PEER, partial(plain_step, out, inputs, chosen), TARGET, heavy)


def plain_step(out: int, inputs: int, options: dict[str, Any]) -> Duel:
    """Project, apply Adam, scale the gradient and update one matrix, by the projection of the peer."""
    ours = {"method": "apollo", "arithmetic": "official", "projector": "stored", **options}
    both = side_by_side((out, inputs), partial(peer_optimizer, options=options), **ours)
    return Duel(both.stepper.step, both.peer.step, both.facts)


def peer_optimizer(weight: nn.Parameter, options: dict[str, Any]) -> Any:
    """Return their AdamW, which draws a projection in the first step alone."""
    package = peer_package(PEER, "apollo-torch")
    theirs = {"rank": options["rank"], "scale": options["scale"], "scale_type": options["scaling"]}
    common = {"proj": "random", "proj_type": "std", "update_proj_gap": NEVER}
    groups = [{"params": []}, {"params": [weight], **theirs, **common}]
    return package.APOLLOAdamW(groups, lr=LR, eps=EPS)
