"""Device profiles: how fast a named device computes and moves data, for forecasts of speed. No torch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from harness import strict_yaml
from harness.errors import UserError, nearest
from harness.files import ROOT, from_user
from harness.validation import validate

FOLDER = ROOT / "benchmarks" / "devices"

Decomposition = Literal["svd", "eigh", "qr"]
DECOMPOSITIONS: tuple[Decomposition, ...] = get_args(Decomposition)
#: The dtypes, by torch's names, that products and attention are computed in; one is a method's name, too.
DTYPES = tuple("float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int8".split())  # noqa: SIM905
#: No figure of a device is beyond these, and within them no forecast is infinite, or takes no time.
LEAST, MOST = 1e-9, 1e15


def _dtype(name: str) -> str:
    if name not in DTYPES:
        raise ValueError(f"unknown dtype; {nearest(name, DTYPES)}")
    return name


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("give the name of the device, not an empty one")
    return text


Dtype = Annotated[str, AfterValidator(_dtype)]
Positive = Annotated[float, Field(ge=LEAST, le=MOST)]
#: Pairs of a size and a value, such as the rate at that size.
Curve = Annotated[list[tuple[Positive, Positive]], Field(min_length=1), AfterValidator(sorted)]


def at(curve: Sequence[tuple[float, float]], size: float) -> float:
    """Return the value at a size: linear between points in the logarithm of both, constant beyond them."""
    place = bisect_left(curve, (size,))
    if place == 0 or place == len(curve):
        return curve[min(place, len(curve) - 1)][1]
    (low, before), (high, after) = curve[place - 1 : place + 1]
    share = log(size / low) / log(high / low)
    return exp((1 - share) * log(before) + share * log(after))


class DeviceProfile(BaseModel):
    """The speed of one device.

    Rates are TFLOP/s, where a multiplication with an addition counts two: `products` of matrices by dtype and
    the smallest of their three sides, `attention` and `attention_backward` by dtype and length,
    `decompositions` of float32 matrices by their smaller side. `peak` is the rate by dtype that utilisation
    refers to. `bandwidth` is GB/s by the bytes that an operation moves, `new_memory` GB/s by the bytes that
    it allocates, at which the system clears their pages; absent where freed memory is kept, as on a GPU.
    `latency_us` are the microseconds that every operation takes at least. `sources` says where each figure
    comes from, and `assumed` names those that nobody measured. Figures are finite, dtypes those of `DTYPES`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    title: Annotated[str, AfterValidator(_not_blank)]
    memory_gib: Positive
    peak: dict[Dtype, Positive]
    products: dict[Dtype, Curve]
    attention: dict[Dtype, Curve]
    attention_backward: dict[Dtype, Curve]
    decompositions: dict[Decomposition, Curve]
    bandwidth: Curve
    new_memory: Curve | None = None
    latency_us: Annotated[float, Field(ge=0, le=MOST)]
    sources: dict[str, str]
    assumed: list[str] = []


def names() -> list[str]:
    """Return the names of the profiles that ship, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def profile(given: str) -> DeviceProfile:
    """Return the profile of a name, or of a file's path; UserError for neither, or a wrong file."""
    path = FOLDER / f"{given}.yaml"
    if given not in names():
        path = from_user(given)
        if not (path.suffix in strict_yaml.ENDINGS and path.is_file()):
            raise UserError(
                f"--on {given}: neither a device profile nor a file of one; {nearest(given, names())}"
            )
    return read(path)


def read(path: Path) -> DeviceProfile:
    """Read a profile; UserError for what it does not allow."""
    return validate(DeviceProfile, strict_yaml.read(path), where=str(path))
