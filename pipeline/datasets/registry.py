"""Public datasets that `elboscope fetch` knows: where they are, at which commit, and their SHA-256."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from pipeline.errors import InputError

GITHUB = "https://raw.githubusercontent.com"
RADVEL = f"{GITHUB}/California-Planet-Search/radvel/23b05f1f2aa1c7d4131e3a49963819ca47a7dfcd/example_data"
PANTHEON = f"{GITHUB}/dscolnic/Pantheon/7eb29dc87ba223b4ec8457cd3cccba1216c36fb7/Binned_data"
EVENT_TUTORIAL = f"{GITHUB}/losc-tutorial/LOSC_Event_tutorial/afa5231c993f0279a9e59edc8b52a63af5c25997"
GWOSC = "https://gwosc.org/s/events/GW150914"


@dataclass(frozen=True)
class RemoteFile:
    """One file of a dataset.

    Attributes:
        name: under which it is kept.
        sha256: of its bytes.
        addresses: where it can be had; tried in order.
    """

    name: str
    sha256: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """What a name stands for.

    Attributes:
        summary: one line, units included.
        licence: under which it is public.
        reference: the publication to cite.
        files: all of its files.
    """

    summary: str
    licence: str
    reference: str
    files: tuple[RemoteFile, ...]


def _file(name: str, sha256: str, *folders: str) -> RemoteFile:
    return RemoteFile(name, sha256, tuple(f"{folder}/{name}" for folder in folders))


DATASETS: dict[str, Dataset] = {
    "k2_24": Dataset(
        "K2-24: 32 radial velocities (m/s) at BJD - 2454833 (d)",
        "MIT (radvel)",
        "Petigura et al. 2016, ApJ 818, 36",
        (
            _file(
                "epic203771098.csv",
                "a4fe8d3eac9066630cf5c1e6f23336a5f8286c952941802ab6670ee480cb4390",
                RADVEL,
            ),
        ),
    ),
    "hd164922": Dataset(
        "HD 164922: 401 radial velocities (m/s) of three instruments at BJD (d)",
        "MIT (radvel)",
        "Fulton et al. 2016, ApJ 830, 46",
        (
            _file(
                "164922_fixed.txt",
                "98b23e3931d202be8a84a576115fdda42ca1229b33f73b9952504e687669879d",
                RADVEL,
            ),
        ),
    ),
    "pantheon": Dataset(
        "Pantheon supernovae in 40 redshift bins: magnitudes (mag) and systematic covariance (mag2)",
        "MIT",
        "Scolnic et al. 2018, ApJ 859, 101",
        (
            _file(
                "lcparam_DS17f.txt",
                "085daafcc4ae19ece72e69d69ac84fb0a4a1f52626ac4782e46571e6d679b000",
                PANTHEON,
            ),
            _file(
                "sys_DS17f.txt",
                "642391b0a56ee4f0c3275e85376fbdb880c1c289503520fd32b3920c19f4d7d9",
                PANTHEON,
            ),
        ),
    ),
    "gw150914": Dataset(
        "GW150914: 32 s of strain at 4096 Hz, Hanford and Livingston",
        "LIGO open data (CC BY 4.0)",
        "Abbott et al. 2016, PRL 116, 061102",
        (
            _file(
                "H-H1_LOSC_4_V2-1126259446-32.hdf5",
                "fa170ebc577652bfeb5c4b9d2a2d713eef8a4b2996b198b749692446fa7a163c",
                EVENT_TUTORIAL,
                GWOSC,
            ),
            _file(
                "L-L1_LOSC_4_V2-1126259446-32.hdf5",
                "3fccf5c091b3542ff348e36da217afa3220ced2137a53a2838f5a3d41d622e72",
                EVENT_TUTORIAL,
                GWOSC,
            ),
        ),
    ),
}


def dataset(name: str) -> Dataset:
    """The dataset of that name.

    Raises:
        InputError: there is none.
    """
    if name not in DATASETS:
        near = get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(DATASETS)}"
        raise InputError(f"no dataset {name!r}; {hint}")
    return DATASETS[name]
