r"""HEALPix between the latitudes +-41.8 degrees, where its pixels are squares: positions and pixels on any device.

There HEALPix is a cylindrical equal-area map, and with longitude $\phi$ and $z = \sin b$

    p = nside (1/2 + 2 phi / pi) - (3/4) nside z,      m = nside (1/2 + 2 phi / pi) + (3/4) nside z

the pixel of a direction is (floor p, floor m), and what is uniform within it is uniform in (p, m)
(Gorski et al. 2005, ApJ 622, 759, https://arxiv.org/abs/astro-ph/0409513). `astropy_healpix` has the whole sphere, on the
CPU; it is the oracle of the tests, and gives the centres of pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EDGE = 2 / 3
"""|z| up to which HEALPix is cylindrical."""


def lattice(phi: Tensor, z: Tensor, nside: int) -> tuple[Tensor, Tensor]:
    """(p, m) of longitude phi (rad, in -pi..pi) and z, the sine of latitude."""
    middle = nside * (0.5 + phi * (2 / math.pi))
    height = 0.75 * nside * z
    return middle - height, middle + height


def direction(p: Tensor, m: Tensor, nside: int) -> tuple[Tensor, Tensor]:
    """Longitude (rad) and z of a point (p, m), the inverse of `lattice`."""
    return ((p + m) / (2 * nside) - 0.5) * (math.pi / 2), (m - p) / (1.5 * nside)


@dataclass(frozen=True)
class PixelTable:
    """Which of a set of pixels a direction falls into.

    Attributes:
        nside: of HEALPix.
        first: (p, m) of the table's corner.
        number: (rows, columns), the position of each pixel in the set; its size for what is not in it. Its border is
            such.
    """

    nside: int
    first: tuple[int, int]
    number: Tensor

    def to(self, device: torch.device) -> PixelTable:
        """A copy on `device`."""
        return PixelTable(self.nside, self.first, self.number.to(device))

    def find(self, phi: Tensor, z: Tensor) -> Tensor:
        """Position in the set, its size where there is none, of longitude phi (rad) and z."""
        rows, columns = self.number.shape
        p, m = lattice(phi, z, self.nside)
        p = (p.floor().long() - self.first[0]).clamp_(0, rows - 1)
        m = (m.floor().long() - self.first[1]).clamp_(0, columns - 1)
        return self.number.flatten()[p * columns + m]


def pixel_table(phi: Tensor, z: Tensor, nside: int) -> PixelTable:
    """The table of pixels with centres phi (rad, in -pi..pi) and z, (M,) each.

    Raises:
        ValueError: a pixel lies where HEALPix is not cylindrical.
    """
    if bool((z.abs() >= EDGE - 1 / nside).any()):
        raise ValueError("fermi: pixels beyond 41 degrees of latitude, where this simulator's pixelisation ends")
    p, m = (v.floor().long() for v in lattice(phi, z, nside))
    first = int(p.min()) - 1, int(m.min()) - 1
    shape = int(p.max()) - first[0] + 2, int(m.max()) - first[1] + 2
    number = torch.full(shape, len(phi))
    number[p - first[0], m - first[1]] = torch.arange(len(phi))
    return PixelTable(nside, first, number)
