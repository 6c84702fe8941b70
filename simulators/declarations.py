"""What a simulator declares of itself: its parameters and its observables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch.distributions import Distribution

from simulators.units import check_unit


@dataclass(frozen=True)
class Parameter:
    """One component of theta.

    Attributes:
        name: identifier used in files and on the command line.
        prior: univariate torch distribution, or None where the simulator declares a joint `prior`.
        unit: astropy unit string; "" is dimensionless.
        label: LaTeX for plots; the name where empty.
        periodic: the ends of the prior's support are one point, as of an angle in [0, 2 pi): q is then
            continuous there. The prior's support must be an interval, which is one period.
    """

    name: str
    prior: Distribution | None = None
    unit: str = ""
    label: str = ""
    periodic: bool = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"parameter name {self.name!r}: expected an identifier such as 'mass_1'")
        check_unit(self.unit, f"parameter {self.name!r}")
        if self.prior is not None and (self.prior.batch_shape or self.prior.event_shape):
            shape = tuple(self.prior.batch_shape + self.prior.event_shape)
            raise ValueError(
                f"parameter {self.name!r}: expected a prior of one number, got one of shape {shape}: {self.prior}"
            )
        support = None if self.prior is None else self.prior.support
        if self.periodic and not (hasattr(support, "lower_bound") and hasattr(support, "upper_bound")):
            raise ValueError(
                f"parameter {self.name!r}: periodic needs a prior of its own on one period, such as Uniform(0, 2 pi); got {self.prior}"
            )


@dataclass(frozen=True)
class Observable:
    """One named array of x.

    Attributes:
        name: identifier; the dataset is `/x/<name>`.
        shape: shape for one observation, without the leading N.
        unit: astropy unit string; "" is dimensionless.
        role: `data` is random given theta; `context` is known before the observation (times, error
            bars, masks, PSDs) and is never predicted.
        dtype: dtype in files, `float32` or `float64`.
        label: LaTeX for plots; the name where empty.
        against: the context observable that is this one's abscissa in plots, if any.
        error: the context observable that is this one's 1-sigma error, or its covariance, if any.
        present: the context observable that is 1 where this one's numbers are there and 0 where they are absent, if any.
        scale: of an axis in plots.
        discrete: whole numbers, some or all of them: counts have no density, and a learned likelihood treats them
            as such.
        default: the observable of the same shape and unit whose numbers stand in where a foreign file has none, if any.
    """

    name: str
    shape: tuple[int, ...]
    unit: str = ""
    role: Literal["data", "context"] = "data"
    dtype: Literal["float32", "float64"] = "float64"
    label: str = ""
    against: str | None = None
    error: str | None = None
    present: str | None = None
    scale: Literal["linear", "log"] = "linear"
    discrete: bool = False
    default: str | None = None

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"observable name {self.name!r}: expected an identifier such as 'velocity'")
        if self.role not in ("data", "context"):
            raise ValueError(f"observable {self.name!r}: role must be 'data' or 'context', got {self.role!r}")
        if self.scale not in ("linear", "log"):
            raise ValueError(f"observable {self.name!r}: scale must be 'linear' or 'log', got {self.scale!r}")
        check_unit(self.unit, f"observable {self.name!r}")
