"""Benchmark task gaussian_linear_uniform: the mean of a Gaussian under a uniform prior, in ten dimensions."""

from __future__ import annotations

from simulators.benchmark.gaussian_linear import DIMENSION, GaussianLinear
from simulators.benchmark.numbered_parameters import numbered_parameters
from simulators.priors import distribution_from_spec


class GaussianLinearUniform(GaussianLinear):
    r"""Mean of a Gaussian of known width, uniform prior: D = M = 10.

        x = theta + noise,   noise ~ N(0, s),   s^2 = 0.1,   theta ~ U(-1, 1) in every component

    The posterior is N(x, s) cut to the cube.
    Reference: Lueckmann et al. 2021, https://arxiv.org/abs/2101.04653, appendix T.2.
    """

    name = "gaussian_linear_uniform"

    def __init__(self) -> None:
        super().__init__()
        self.parameters = numbered_parameters([distribution_from_spec({"uniform": [-1, 1]})] * DIMENSION)
