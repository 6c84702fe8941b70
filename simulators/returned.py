"""What a simulator returned, as real tensors of the declared shapes that share none of its memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from simulators.errors import InputError

if TYPE_CHECKING:
    from simulators.protocol import Data, Simulator

KEPT = (torch.float32, torch.float64)
"""Any other real type becomes float64."""


def data_of(simulator: Simulator, given: Any, *, rows: int, device: torch.device, method: str = "simulate") -> Data:
    """Every observable that `method` returned, (N, *shape) each, copied to `device` without gradients.

    Raises:
        InputError: no mapping; an observable is missing, of another shape than declared, complex,
            or no numbers.
    """
    if not isinstance(given, Mapping):
        raise InputError(
            f"simulator {simulator.name!r}: {method} gave {type(given).__name__}, expected a mapping from each observable's "
            f"name to its array: {', '.join(o.name for o in simulator.observables)}"
        )
    x: Data = {}
    for o in simulator.observables:
        expected = (rows, *o.shape)
        if o.name not in given:
            raise InputError(f"simulator {simulator.name!r}: {method} gave nothing for {o.name!r}, expected {expected}")
        values = real_tensor(given[o.name], f"simulator {simulator.name!r}: {method}: {o.name!r}", unit=o.unit)
        if tuple(values.shape) != expected:
            raise InputError(
                f"simulator {simulator.name!r}: {method} gave {tuple(values.shape)} for {o.name!r}, expected {expected}"
            )
        x[o.name] = values.detach().to(device, copy=True)
    return x


def read_of(simulator: Simulator, given: Any, *, rows: int, source: str) -> Data:
    """What `read_observation` returned for N observations, in the dtypes declared.

    Raises:
        InputError: see `data_of`; begins with `source`.
    """
    try:
        x = data_of(simulator, given, rows=rows, device=torch.device("cpu"), method="read_observation")
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    return {o.name: x[o.name].to(getattr(torch, o.dtype)) for o in simulator.observables}


def real_tensor(values: Any, what: str, *, unit: str = "") -> Tensor:
    """`values` as a tensor of float32 or float64; `unit` is that of a Quantity's numbers.

    Raises:
        InputError: complex, ragged, or no numbers.
    """
    tensor = values if isinstance(values, Tensor) else _from_array(values, what, unit)
    if tensor.is_complex():
        raise InputError(_complex(what))
    return tensor if tensor.dtype in KEPT else tensor.double()


def tensor_without_gradient(simulator: Simulator, method: str, values: Any) -> Tensor:
    """What `method` returned as a real tensor that holds no graph."""
    tensor = real_tensor(values, f"simulator {simulator.name!r}: {method}")
    return tensor.detach() if tensor.requires_grad else tensor


def _from_array(values: Any, what: str, unit: str) -> Tensor:
    quantity = getattr(values, "to_value", None)  # of astropy
    if isinstance(values, (list, tuple)) and any(isinstance(v, Tensor) for v in values):
        values = [v.detach().cpu().numpy() if isinstance(v, Tensor) else v for v in values]
    try:
        array = np.ma.asanyarray(values if quantity is None else quantity(unit))
    except (ValueError, TypeError) as error:
        raise InputError(f"{what}: expected an array of numbers ({str(error).splitlines()[0]})") from None
    if array.dtype.kind == "c":
        raise InputError(_complex(what))
    if array.dtype.kind not in "fiub":
        raise InputError(f"{what}: expected an array of numbers, got {array.dtype}")
    dtype = np.float32 if array.dtype.kind == "f" and array.dtype.itemsize == 4 else np.float64
    masked: Any = array.astype(dtype)
    return torch.from_numpy(np.array(masked.filled(np.nan)))  # a masked number is none, as where it failed


def _complex(what: str) -> str:
    return f"{what} is complex, expected real numbers: give real and imaginary part (or modulus and phase) as two observables"
