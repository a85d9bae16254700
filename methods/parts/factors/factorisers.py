"""How a layer is factored: which statistics of its inputs weight its errors.

Each is a choice of the metric M of `kernel.py`, so all of them are exact minima, of different errors.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from harness.method import MethodConfig
from methods.parts.calibration.statistics import InputStatistics
from methods.parts.factors.kernel import Decomposition, Factors, Metric, decompose

#: What a factoriser reads of the inputs: nothing, sums for each feature, or of products of features too.
Need = Literal["nothing", "features", "products"]


class Factoriser(MethodConfig):
    """Options of a factoriser; a subclass says what it needs and how it weights errors."""

    need: ClassVar[Need] = "nothing"
    centred: ClassVar[bool] = False
    """Whether factors come with an addition to the bias."""

    @property
    def pooled(self) -> int:
        """How many groups of sequences the statistics keep apart."""
        return 1

    def metric(self, inputs: InputStatistics | None) -> Metric:
        """Return the weights of errors: None for all alike, (in,) or (in, in)."""
        return None

    def decompose(
        self,
        weight: Tensor,
        inputs: InputStatistics | None,
        most: int | None = None,
        damping: float = 0.0,
        name: str = "",
    ) -> Decomposition:
        """Decompose a weight (out, in) up to rank `most`; `inputs` are there where `need` asks for any.

        `damping` times its mean is added to the diagonal of a metric (in, in).
        """
        metric = self.metric(inputs)
        if metric is not None and metric.dim() == 2 and damping:
            metric.diagonal().add_(damping * metric.diagonal().mean())
        mean = inputs.mean if self.centred and inputs is not None else None
        return decompose(weight, metric, most, mean, name)


class Svd(Factoriser):
    """Truncated SVD of the weight: all inputs are taken to be alike."""

    type: Literal["svd"] = "svd"


class Asvd(Factoriser):
    """Features weighted by their mean magnitude (Yuan et al., ASVD, 2023, arXiv 2312.05821, equation 7)."""

    type: Literal["asvd"] = "asvd"
    need = "features"

    alpha: Annotated[float, Field(ge=0)] = 0.5
    """The metric is mean(|x|)^(2 alpha); 0 is the plain SVD."""

    def metric(self, inputs: InputStatistics | None) -> Metric:
        """Return diag(mean |x|)^(2 alpha)."""
        assert inputs is not None
        return inputs.mean_magnitude ** (2 * self.alpha)


class Awsvd(Factoriser):
    """Features weighted by their norm (Li et al., LoRAP, ICML 2024, arXiv 2404.09695, section 3.2)."""

    type: Literal["awsvd"] = "awsvd"
    need = "features"

    def metric(self, inputs: InputStatistics | None) -> Metric:
        """Return the mean squares of the features."""
        assert inputs is not None
        return inputs.mean_square


class Whiten(Factoriser):
    """The error of the output itself (Wang et al., SVD-LLM, ICLR 2025, arXiv 2403.07378, section 3.1)."""

    type: Literal["whiten"] = "whiten"
    need = "products"

    def metric(self, inputs: InputStatistics | None) -> Metric:
        """Return the mean of x x^T."""
        assert inputs is not None
        return inputs.second_moment()


class Pca(Factoriser):
    """The error of the output about its mean, which the bias keeps: principal components of the outputs
    (Kaushal et al., LORD, 2023, arXiv 2309.14021; Ji et al., Bolaco, 2024, arXiv 2405.10616, equations
    2-4)."""

    type: Literal["pca"] = "pca"
    need = "products"
    centred = True

    groups: Annotated[int, Field(gt=0)] = 1
    """Average the covariances of so many groups of consecutive sequences (Bolaco: 32, equation 2), each about
    its own mean; the bias keeps the mean of all. Group sizes differ by at most one sequence and none is left
    out, where the paper's code drops what does not fill a group. 1 is the covariance itself."""

    @property
    def pooled(self) -> int:
        """How many groups of sequences the statistics keep apart."""
        return self.groups

    def metric(self, inputs: InputStatistics | None) -> Metric:
        """Return the covariance of the inputs, or the average of those of the groups."""
        assert inputs is not None
        return inputs.pooled_covariance() if self.groups > 1 else inputs.covariance()


#: Every factoriser that ships.
FACTORISERS: tuple[type[Factoriser], ...] = (Svd, Asvd, Awsvd, Whiten, Pca)
AnyFactoriser = Annotated[Svd | Asvd | Awsvd | Whiten | Pca, Field(discriminator="type")]


def relative_error(weight: Tensor, factors: Factors, inputs: InputStatistics) -> float:
    """Return |Y - Y'| / |Y| of the outputs Y = W X of a layer and of its factors, on the text of the
    statistics.

    These hold products of features.
    """
    dense, moments = weight.detach().double(), inputs.second_moment()
    missed = dense - factors.up.double() @ factors.down.double()
    error = ((missed @ moments) * missed).sum()
    if factors.offset is not None:
        offset = factors.offset.double()
        error += offset @ offset - 2 * offset @ (missed @ inputs.mean)
    whole = ((dense @ moments) * dense).sum()
    return 0.0 if whole == 0 else float((error.clamp(min=0) / whole).sqrt())
