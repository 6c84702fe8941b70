"""Settings of `elboscope ingest`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.network_settings import Settings


class IngestSettings(Settings):
    """`elboscope ingest`: how a foreign file becomes observations; what the command line says comes on top."""

    columns: dict[str, str] = Field(
        default_factory=dict,
        description="column or array of the file for an observable: rv, rv[km/s], or [km/s!] where the file declares a wrong unit; several columns, one an element: f1,f2,f3 or f*; default: those of the observables' names",
    )
    arrays: dict[str, str] = Field(
        default_factory=dict,
        description="an observable from a file of its own, the same for all observations or one a row: covariance.txt[mag2], psf.fits:PSF; relative to this file",
    )
    diagonal: dict[str, str] = Field(
        default_factory=dict,
        description="column of 1-sigma errors whose squares are added to the diagonal of a covariance: {covariance: dmb[mag]}",
    )
    codes: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="texts that stand for 0, 1, 2, ... in an observable: {instrument: [k, j, a]}"
    )
    id: str | None = Field(
        default=None, description="column or header card with the identifiers; default: the file's name, and the row"
    )
    group: str | None = Field(default=None, description="column whose equal values make rows points of one observation")
    rows: Literal["auto", "observations", "points"] = Field(
        default="auto", description="what a row of a table is; auto: points where an observable wants many numbers"
    )
    drop_missing: bool = Field(
        default=False,
        description="missing values become absent points under a mask, else their observation is left out; both are counted",
    )
