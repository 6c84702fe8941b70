"""Parameters of the models of the inner Galaxy: names, units, labels, uniform priors from the data file."""

from __future__ import annotations

from simulators.fermi.sky import Sky
from simulators.priors import distribution_from_spec
from simulators.protocol import Parameter

_SYMBOLS = {"S_ps": "S", "n1": "n_1", "n2": "n_2", "n3": "n_3", "Sb1": "S_{b,1}", "Sb2": "S_{b,2}"}


def parameters_of(sky: Sky, names: tuple[str, ...]) -> tuple[Parameter, ...]:
    """The parameters `names`. S_*: mean photons a pixel in `mask_normalisation`; Sb*: photons at the mean exposure."""
    return tuple(
        Parameter(
            name,
            distribution_from_spec({"uniform": [sky.low[name], sky.high[name]]}, name),
            unit=_unit(name),
            label=_label(name),
        )
        for name in names
    )


def _unit(name: str) -> str:
    if name.startswith("Sb"):
        return "ph"
    return "ph / pix" if name.startswith("S_") else ""


def _label(name: str) -> str:
    head, _, template = name.rpartition("_")
    if name == "S_gce_poiss":
        return r"$S_{\rm GCE}$"
    if head == "A":
        return rf"$A_{{\rm {template}}}$"
    return rf"${_SYMBOLS[head]}^{{\rm {'PS' if template == 'gce' else 'disk'}}}$"
