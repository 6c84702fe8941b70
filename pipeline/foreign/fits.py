"""Tables and images of FITS files."""

from __future__ import annotations

from pathlib import Path

from pipeline.foreign.fields import Field, ForeignFile
from pipeline.foreign.tables import declared, simple_meta
from simulators.reading.fits_columns import FitsColumn
from simulators.reading.fits_files import FitsImage, read_fits


def read_fits_file(path: Path) -> ForeignFile:
    """All tables and images, by EXTNAME or number, `SCI,2` where several share one; `NAME/column` with several tables.

    Raises:
        InputError: damaged, or more than its size allows.
    """
    file = read_fits(path)
    several = len(file.tables) > 1
    columns = [_column(c, f"{t.name}/" if several else "") for t in file.tables for c in t.columns]
    kinds = (("table", file.tables), ("image", file.images))
    kind = " and ".join(kind for kind, there in kinds if there) or "without data"
    return ForeignFile(path, f"FITS {kind}", (*columns, *map(_image, file.images)), simple_meta(file.cards))


def _column(column: FitsColumn, prefix: str) -> Field:
    note = f"astropy Time, {column.time_scale}, as Julian date" if column.time_scale else ""
    unit = declared(column.unit, fits=True)
    return Field(f"{prefix}{column.name}", column.values, unit, column.mask, by_row=True, note=note)


def _image(image: FitsImage) -> Field:
    return Field(image.name, image.values, declared(image.unit, fits=True), image.mask)
