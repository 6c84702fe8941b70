"""Delivered draws as chains that GetDist and whoever reads its format take: weight, -log posterior, parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import build_simulator
from pipeline.errors import InputError
from pipeline.schema import SETTINGS
from pipeline.store import complete_or_absent, stored_case, write_text
from pipeline.tables.inference_reader import Array, InferenceFile, open_inference
from simulators.protocol import Parameter
from simulators.units import unit_text

MOST_CHAINS = 200
"""Observations for which three files each are still what somebody wants."""


def write_getdist(path: str | Path, root: Path, *, observations: Sequence[str] | None = None) -> list[Path]:
    r"""Write ROOT.paramnames, ROOT_1.txt and, where the prior has hard bounds, ROOT.ranges.

    Each row of a chain: weight 1, $-\log [p(x|\theta) p(\theta)]$, theta. The second column is known where the file holds
    the weighted draws from which the delivered ones were taken; it is 0 throughout where it does not.
    Format: https://getdist.readthedocs.io/en/latest/intro.html#samples-file-format

    Args:
        path: an `inference.h5`.
        root: path without suffix; with several observations each has its own, ROOT_<id>.
        observations: identifiers; default: all.

    Returns:
        the root of each observation, as `getdist.loadMCSamples` takes it.

    Raises:
        InputError: a file or an identifier that does not fit, or more than 200 observations.
    """
    with open_inference(Path(path)) as inference:
        rows = inference.rows(observations)
        if not 1 <= len(rows) <= MOST_CHAINS:
            raise InputError(
                f"{path}: chains of {len(rows)} observations were asked for; name 1 to {MOST_CHAINS} with --observation"
            )
        ids = [inference.ids[n] for n in rows]
        roots = [root] if len(ids) == 1 else [root.with_name(f"{root.name}_{name}") for name in file_names(ids)]
        names = "".join(f"{p.name}\t{_latex(p.label, p.unit)}\n" for p in inference.parameters)
        ranges = _ranges(inference)
        for row, target in zip(rows, roots, strict=True):
            draws = inference.draws(int(row))
            chain = np.column_stack([np.ones(len(draws)), _minus_log_posterior(inference, int(row), draws), draws])
            with complete_or_absent(target.with_name(f"{target.name}_1.txt")) as temporary:
                np.savetxt(temporary, chain, fmt="%.17g")  # every digit of a float64
            write_text(target.with_name(f"{target.name}.paramnames"), names)
            if ranges:
                write_text(target.with_name(f"{target.name}.ranges"), ranges)
        return roots


def file_names(ids: Sequence[str]) -> list[str]:
    """Identifiers as parts of file names: whatever is not a letter, digit, dot, plus or minus becomes an underscore.

    >>> file_names(["HD 164922", "a/b"])
    ['HD_164922', 'a_b']

    Raises:
        InputError: two of them would be the same file.
    """
    names = [re.sub(r"[^\w.+-]", "_", i) for i in ids]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        same = [i for i, n in zip(ids, names, strict=True) if n == twice]
        raise InputError(
            f"observations {', '.join(map(repr, same))} would go to the same file {twice!r}; export them one by one"
        )
    return names


def _minus_log_posterior(inference: InferenceFile, row: int, draws: Array) -> Array:
    """-log_joint of each delivered draw, (S,): delivered draws are copies of weighted ones; 0 where one is not."""
    stored = inference.proposals(row)
    if stored is None or "log_joint" not in stored[1]:
        return np.zeros(len(draws))
    theta, densities = stored
    group: Any = inference.file["posterior"]
    delivered_as = group[inference.parameters[0].name].dtype  # may be coarser than that of the weighted draws
    known = {r.tobytes(): v for r, v in zip(theta.astype(delivered_as), densities["log_joint"], strict=True)}
    values = np.array([-known.get(r.tobytes(), math.nan) for r in draws.astype(delivered_as)])
    return values if np.isfinite(values).all() else np.zeros(len(draws))


def _latex(label: str, unit: str) -> str:
    """A label as GetDist has it, without dollar signs."""
    plain = "$" not in label
    symbol = rf"\mathrm{{{label}}}".replace("_", r"\_") if plain else label.replace("$", "")
    return symbol + (rf"\,[{unit_text(unit, latex=True).strip('$')}]" if unit else "")


def _ranges(inference: InferenceFile) -> str:
    """Hard bounds of the prior, a line a parameter; "" where there are none, or the simulator is a file of the user's."""
    lines = []
    names = {p.name for p in inference.parameters}
    for p in _declared(inference):
        if p.name not in names:
            continue
        support: Any = getattr(p.prior, "support", None)
        low, high = (_bound(support, name) for name in ("lower_bound", "upper_bound"))
        if low != "N" or high != "N":
            lines.append(f"{p.name} {low} {high}" + (" periodic" if p.periodic else "") + "\n")
    return "".join(lines)


def _bound(support: Any, name: str) -> str:
    value = getattr(support, name, None)
    return f"{float(value):.17g}" if value is not None and math.isfinite(float(value)) else "N"


def _declared(inference: InferenceFile) -> tuple[Parameter, ...]:
    """The simulator's parameters; none where its code is a user's own, which is run only if a config names it."""
    text = inference.file.attrs.get(SETTINGS)
    if text is None:
        return ()
    try:
        case = stored_case(str(text), inference.path)
        if case.simulator.path is not None:
            return ()
        return tuple(build_simulator(case.simulator).parameters)
    except InputError:  # a simulator or a setting of another version: the draws are what they are
        return ()
