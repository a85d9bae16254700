"""Ranks that papers publish for LLaMA-2, by kind of layer and by group of consecutive blocks.

None is a matrix that stays dense. All are multiples of 8, and v_proj is dense in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Row = Mapping[str, int | None]
Preset = Literal["lord", "bolaco_5x1", "bolaco_5x4"]

#: What ranks of these tables are multiples of.
MULTIPLE = 8


@dataclass(frozen=True)
class Llama:
    """Widths of a LLaMA-2 whose heads all have keys of their own, and its number of blocks."""

    hidden: int
    inner: int
    blocks: int

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shape (out, in) of each kind of layer."""
        attention = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (self.hidden, self.hidden))
        up = dict.fromkeys(("gate_proj", "up_proj"), (self.inner, self.hidden))
        return {**attention, **up, "down_proj": (self.hidden, self.inner)}

    def share(self, kind: str, rank: int) -> float:
        """Return what factors of a rank keep of the parameters of a matrix."""
        out, inputs = self.shapes[kind]
        return rank * (out + inputs) / (out * inputs)

    def rank(self, kind: str, share: float) -> int:
        """Return the rank that keeps a share of the parameters, rounded down to a multiple of 8."""
        out, inputs = self.shapes[kind]
        exact = round(share * out * inputs / (out + inputs), 6)  # so that no whole number falls below itself
        return int(exact / MULTIPLE) * MULTIPLE


LLAMA_7B, LLAMA_13B = Llama(4096, 11008, 32), Llama(5120, 13824, 40)


@dataclass(frozen=True)
class Table:
    """Ranks for a model, a row for each group of blocks, at which a share of its linears is removed."""

    model: Llama
    reduction: float
    rows: tuple[Row, ...]

    def shares(self) -> list[dict[str, float]]:
        """Return what each kind keeps of its parameters in each group, 1 where it stays dense."""
        return [
            {kind: 1.0 if rank is None else self.model.share(kind, rank) for kind, rank in row.items()}
            for row in self.rows
        ]


def _lord(model: Llama, reduction: float, attention: float, others: float) -> Table:
    """Return the ranks at which q and k keep one share, and all others but v another."""
    kept = {kind: attention if kind in ("q_proj", "k_proj") else others for kind in model.shapes}
    ranks = {kind: None if kind == "v_proj" else model.rank(kind, share) for kind, share in kept.items()}
    return Table(model, reduction, (ranks,))


def _bolaco(
    reduction: float, *groups: tuple[int | None, int | None, int | None, int | None, int | None]
) -> Table:
    """Return a table whose groups are ranks of q and k, o, gate, up and down, on 7B."""
    rows = tuple(
        {"q_proj": qk, "k_proj": qk, "v_proj": None, "o_proj": o, "gate_proj": gate, "up_proj": up}
        | {"down_proj": down}
        for qk, o, gate, up, down in groups
    )
    return Table(LLAMA_7B, reduction, rows)


def _in_units_of_7b(printed: Table) -> Table:
    """Return the table for 13B of a row that was printed as ranks of 7B with the shares meant for 13B.

    As printed, the rows of 13B keep 0.700 and 0.576 of the linears of 13B (9.21 and 7.63 B parameters), where
    the paper's table 7 has 10.48 and 9.21 B; on the shapes of 7B they keep 0.7986 and 0.6991, as they should.
    """
    rows = tuple(
        {
            kind: None if rank is None else LLAMA_13B.rank(kind, LLAMA_7B.share(kind, rank))
            for kind, rank in row.items()
        }
        for row in printed.rows
    )
    return Table(LLAMA_13B, printed.reduction, rows)


#: LORD (arXiv 2309.14021) as appendix C of Bolaco sets it for LLaMA-2: v dense; of the parameters of q and k
#: 30 % go, of the others 20 %; or 45 and 30 %. Bolaco (arXiv 2405.10616): table 8.
PUBLISHED: Mapping[Preset, tuple[Table, ...]] = {
    "lord": tuple(
        table
        for model in (LLAMA_7B, LLAMA_13B)
        for table in (_lord(model, 0.2, 0.7, 0.8), _lord(model, 0.3, 0.55, 0.7))
    ),
    "bolaco_5x1": (
        _bolaco(0.2, (744, 1616, 2512, 2408, None)),
        _bolaco(0.3, (656, 1392, 2128, 2352, 2312)),
        _in_units_of_7b(_bolaco(0.2, (696, 1920, 2304, None, 2504))),
        _in_units_of_7b(_bolaco(0.3, (512, 1264, 2384, 2328, 2304))),
    ),
    "bolaco_5x4": (
        _bolaco(
            0.2,
            (680, 1728, 2960, None, None),
            (968, 1888, 2536, 2640, 2632),
            (408, 1488, None, 2272, 2864),
            (656, 496, 2824, 2448, 2280),
        ),
        _bolaco(
            0.3,
            (1016, 1632, 2376, 2384, 2384),
            (840, 1632, 2384, 2376, 2384),
            (408, 992, 2376, 2384, 2384),
            (408, 560, 2384, 1896, 1792),
        ),
    ),
}
