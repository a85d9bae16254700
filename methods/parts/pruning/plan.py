"""What a pruning by masks will take away: which parts, how many groups of each, and what can be exported."""

from __future__ import annotations

from torch import nn

from harness.errors import UserError
from harness.method import Context
from methods.parts.factors.method import parameters
from methods.parts.pruning.masks import Groups
from methods.parts.pruning.removal import ROWS, Part, parts_of, refusal
from methods.parts.pruning.schedule import Ramp
from methods.parts.sampling.schedule import layers_of


class Plan:
    """Masks for all parts of a model but those of the first and last blocks.

    `exempt_first` is a share of the blocks, rounded down, `exempt_last` a number of them. UserError where
    nothing of a part would be left.
    """

    def __init__(self, model: nn.Module, ramp: Ramp, exempt_first: float, exempt_last: int) -> None:
        self.model, self.ramp = model, ramp
        self.parts = parts_of(model)
        self.parameters = parameters(model)
        blocks = {id(block): number for number, block in enumerate(layers_of(model))}
        names = {name: blocks[id(module)] for name, module in model.named_modules() if id(module) in blocks}
        first, last = int(exempt_first * len(blocks)), len(blocks) - exempt_last
        self.exempt = [number for number in range(len(blocks)) if not first <= number < last]
        self.masked = [part for part in self.parts if names[part.name.rpartition(".")[0]] not in self.exempt]
        for part in self.masked:
            if self.pruned(part) == part.groups:
                raise UserError(
                    f"ratio {ramp.last:g} leaves none of {part.groups} {part.kind} of {part.name}; "
                    "ask for less"
                )

    def pruned(self, part: Part) -> int:
        """Return how many groups of a part that is not exempt are pruned in the end."""
        return round(self.ramp.last * part.groups)

    def hide(self) -> None:
        """Put masks behind the layers of the parts, in place."""
        for part in self.masked:
            Groups(part, self.ramp).watch(part.module)

    def report(self, context: Context) -> None:
        """Record what goes, what it is of the parameters, and as what the model can be exported."""
        linears = sum(part.parameters * part.groups for part in self.parts)
        removed = sum(part.parameters * self.pruned(part) for part in self.masked)
        if not self.masked:
            context.warn(f"all {len(self.exempt)} blocks are exempt, so nothing is pruned")
        exported = {}
        for kind in ROWS:
            alike = [part for part in self.parts if part.kind == kind]
            kept = {part.name: part.groups - self.pruned(part) for part in self.masked if part.kind == kind}
            reason = refusal(self.model, alike, kept)
            exported[kind] = f"zeros: {reason}" if reason else "removed"
            if reason:
                context.warn(f"pruned {kind} are exported as zeros: {reason}")
        context.facts.update(
            target_reduction=self.ramp.last,
            counted="groups of each block that is not exempt",
            measured_reduction={"linears": removed / linears, "all": removed / self.parameters},
            pruned_groups={part.name: self.pruned(part) for part in self.masked},
            exempt_blocks=self.exempt,
            exported=exported,
        )
