"""Sizes of models whose matrices became two factors, or lost rows, by published ranks and rules.

The seven matrices of a block are q, k, v, o, gate, up and down; embeddings, head and norms stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt

from benchmarks.papers.calculations.value import Value, in_unit, shape_name
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.engine.models.shapes import Shape

Kept = Annotated[float, Field(gt=0, le=1)]
Removed = Annotated[float, Field(ge=0, lt=1)]
#: All parameters; those of the seven matrices of all blocks over what they were; all over what they were.
Give = Literal["total", "linears", "share"]
#: What a text of ranks names in this order; v stays dense (Bolaco, arXiv 2405.10616, Table 8).
WRITTEN = (("q", "k"), ("o",), ("gate",), ("up",), ("down",))
DENSE = "NA"
Ranks = Mapping[str, int]
LORAP = "the rules of the official code: ranks of attention 3 to 1, channels beyond the lowest 1 %"


def factored_parameters(
    shape: str, ranks: str, biases: bool = True, give: Give = "total", unit: str = "billion"
) -> Value:
    """Count parameters at ranks written as `q and k, o, gate, up, down` with NA for a dense matrix.

    As in `744 1616 2512 2408 NA`; ranks of consecutive groups of blocks are separated by ` / `. The matrix v
    is dense. With `biases` each factored matrix has one more number for each output (Bolaco, equation 4).
    """
    sizes = _shape(shape)
    groups = _groups(ranks)
    if sizes.layers % len(groups):
        raise UserError(f"{len(groups)} groups do not divide {sizes.layers} blocks; give as many as divide")
    blocks = [group for group in groups for _ in range(sizes.layers // len(groups))]
    how = f"k (m + n) numbers for each factored matrix{' and m of its bias' if biases else ''}, v dense"
    return Value(*_counted(sizes, (_block(sizes, block, biases) for block in blocks), give, unit, how))


def uniform_parameters(
    shape: str,
    kept: Kept,
    counted: Literal["parameters", "ranks"] = "parameters",
    head: bool = False,
    give: Give = "total",
    unit: str = "billion",
) -> Value:
    """Count parameters where every matrix keeps the same share: of its own parameters, or of its ranks.

    Ranks are rounded down: kept m n / (m + n), or kept min(m, n). With `head` the head is factored, too.
    """
    sizes = _shape(shape)
    matrices = {**_matrices(sizes), "head": (sizes.vocab, sizes.hidden)}
    rank = {
        name: int(kept * (min(size) if counted == "ranks" else prod(size) / sum(size)))
        for name, size in matrices.items()
    }
    beyond = rank["head"] * sum(matrices["head"]) - prod(matrices["head"]) if head else 0
    blocks = (_block(sizes, rank, biases=False) for _ in range(sizes.layers))
    how = f"each matrix keeps {kept:g} of its {counted}{', the head too' if head else ''}, as two factors"
    return Value(*_counted(sizes, blocks, give, unit, how, beyond))


def uniform_bytes(shape: str, kept: Kept, unit: str, bits: PositiveInt = 16) -> Value:
    """Return the bytes of a model where every matrix of a block keeps this share of its parameters."""
    numbers = uniform_parameters(shape, kept, unit="elements") if kept < 1 else None
    elements = float(numbers.value) if numbers else _dense(_shape(shape))
    return Value(in_unit(elements * bits / 8, unit), unit, f"parameters at {kept:g} kept, in {bits} bits")


def ranks_at_shares(
    shape: str,
    kept: dict[str, Kept],
    multiple: PositiveInt = 8,
    rounding: Literal["down", "nearest"] = "down",
) -> Value:
    """Return ranks as text where matrices keep these shares of their parameters; one not named is dense."""
    sizes = _shape(shape)
    found = {}
    for name, share in kept.items():
        size = _known(sizes, name)
        steps = share * prod(size) / sum(size) / multiple
        found[name] = multiple * (round(steps) if rounding == "nearest" else int(steps))
    how = f"share m n / (m + n), rounded to a multiple of {multiple}, {rounding}"
    return Value(_text(found), "text", how)


def ranks_of_other_shape(shape: str, ranks: str, of: str, multiple: PositiveInt = 8) -> Value:
    """Convert ranks of a shape (`of`) to another where matrices keep the same share of their parameters."""
    ours, theirs = _matrices(_shape(shape)), _matrices(_shape(of))
    written = []
    for group in _groups(ranks):
        exact = {
            name: rank * sum(theirs[name]) / prod(theirs[name]) * prod(ours[name]) / sum(ours[name])
            for name, rank in group.items()
        }
        written.append(_text({name: multiple * int(value / multiple) for name, value in exact.items()}))
    how = f"the share that each rank keeps of {shape_name(of)}, as a rank of {shape_name(shape)}"
    return Value(" / ".join(written), "text", f"{how}, rounded down to a multiple of {multiple}")


def ranks_keep(shape: str, ranks: str, kept: Kept, room: Kept = 0.01) -> Value:
    """Check that ranks keep this share of the seven matrices, up to `room`, each a multiple of 8."""
    found = float(factored_parameters(shape, ranks, biases=False, give="linears").value)
    eights = all(rank % 8 == 0 for group in _groups(ranks) for rank in group.values())
    how = f"they keep {found:.4f} of the seven matrices of {shape_name(shape)}, {kept:g} is said"
    return Value(eights and abs(found - kept) <= room, "truth", how)


# ---------------------------------------------------------------------------------- heads and channels
def lorap_size(shape: str, removed: Removed, of: Literal["q and k", "v and o", "width"]) -> Value:
    """Return a rank of attention, or the width of the feed-forward layer, that LoRAP gives a target."""
    least, most, width = _lorap(_shape(shape), removed)
    found: int | str = {"q and k": least, "v and o": most or "dense", "width": width}[of]
    return Value(found, "text" if isinstance(found, str) else "", LORAP)


def lorap_parameters(shape: str, removed: Removed, give: Give = "total", unit: str = "billion") -> Value:
    """Count parameters at what LoRAP gives a target."""
    sizes = _shape(shape)
    least, most, width = _lorap(sizes, removed)
    ranks = {"q": least, "k": least, **(dict.fromkeys("vo", most) if most else {})}
    channels = 3 * (sizes.intermediate - width) * sizes.hidden
    blocks = (_block(sizes, ranks, biases=False) - channels for _ in range(sizes.layers))
    return Value(*_counted(sizes, blocks, give, unit, LORAP))


def _lorap(shape: Shape, removed: float) -> tuple[int, int | None, int]:
    """Return the rank of q and k, that of v and o, None for dense, and the width that is left.

    Ranks of attention are shared 1 : 3, and v and o stay dense where factors would not be smaller. The lowest
    1 % of channels stay (LoRAP, arXiv 2404.09695; the official code).
    """
    kept, hidden, wide = 1 - removed, shape.hidden, shape.intermediate
    together = int(kept * hidden / 2)
    least, most = int(2 * together / 4), int(2 * 3 * together / 4)
    width = wide - (int((removed + 0.01) * wide) - int(0.01 * wide))
    if most >= hidden / 2:
        return int(kept * hidden) - hidden // 2, None, width
    return least, most, width


# ------------------------------------------------------------------------------------------- counting
def _shape(name: str) -> Shape:
    from harness.config import ShapeModel
    from harness.engine.models.shapes import shape_of

    return shape_of(ShapeModel(source="shape", name=shape_name(name)))


def _matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    """Return (out, in) of the seven matrices of a block."""
    square, wide = (shape.hidden, shape.hidden), (shape.intermediate, shape.hidden)
    return {**dict.fromkeys("qkvo", square), "gate": wide, "up": wide, "down": wide[::-1]}


def _known(shape: Shape, name: str) -> tuple[int, int]:
    matrices = _matrices(shape)
    if name not in matrices:
        raise UserError(f"no matrix {name!r}; a block has {', '.join(matrices)}")
    return matrices[name]


def _groups(text: str) -> list[dict[str, int]]:
    """Return the ranks of each group of blocks by matrix; UserError for a text that is none."""
    groups = []
    for part in text.split("/"):
        words = part.split()
        if len(words) != len(WRITTEN) or not all(word == DENSE or word.isdecimal() for word in words):
            raise UserError(
                f"ranks {part.strip()!r} are not five of q and k, o, gate, up, down; write as 8 8 16 16 NA"
            )
        pairs = zip(WRITTEN, words, strict=True)
        groups.append({name: int(word) for names, word in pairs if word != DENSE for name in names})
    return groups


def _text(ranks: Ranks) -> str:
    return " ".join(str(ranks.get(names[0], DENSE)) for names in WRITTEN)


def _block(shape: Shape, ranks: Ranks, biases: bool) -> int:
    """Count the seven matrices of a block; one without a rank is dense."""
    return sum(
        ranks[name] * sum(size) + (size[0] if biases else 0) if name in ranks else prod(size)
        for name, size in _matrices(shape).items()
    )


def _linears(shape: Shape) -> int:
    return shape.layers * sum(map(prod, _matrices(shape).values()))


def _beside(shape: Shape) -> int:
    """Count embeddings, head and norms."""
    return 2 * shape.vocab * shape.hidden + (2 * shape.layers + 1) * shape.hidden


def _dense(shape: Shape) -> int:
    return _linears(shape) + _beside(shape)


def _counted(
    shape: Shape, blocks: Iterable[int], give: Give, unit: str, how: str, beyond: int = 0
) -> tuple[float, str, str]:
    """Return a count or a share of what the blocks hold, its unit and how; `beyond` is what else changed."""
    linears = sum(blocks)
    if give == "linears":
        return linears / _linears(shape), "ratio", f"{how}; over the dense matrices of all blocks"
    found = linears + _beside(shape) + beyond
    if give == "share":
        return found / _dense(shape), "ratio", f"{how}; over all parameters of the dense model"
    return in_unit(found, unit), unit, f"{how}; with embeddings, head and norms"
