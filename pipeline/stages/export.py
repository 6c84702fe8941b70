"""`elboscope export`: posteriors of `inference.h5` as tables and chains for other programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pipeline.errors import InputError
from pipeline.progress import console
from pipeline.store import complete_or_absent
from pipeline.tables.chains import write_getdist
from pipeline.tables.posterior_table import draws_table, posterior_table

if TYPE_CHECKING:
    from astropy.table import QTable

ExportFormat = Literal["ecsv", "fits", "csv", "draws", "getdist"]
TableFormat = Literal["ecsv", "fits", "csv"]
SUFFIXES: dict[str, TableFormat] = {".ecsv": "ecsv", ".fits": "fits", ".fit": "fits", ".csv": "csv"}


def export(
    path: Path, output: Path, *, format: str | None = None, observations: Sequence[str] | None = None
) -> list[Path]:
    """Write posteriors in the format that `format` or else the suffix of `output` names; print what was written.

    Args:
        path: an `inference.h5`.
        output: file to write; for getdist the root of its files.
        format: ecsv, fits, csv: one row an observation; draws: one row a draw, in the format of the suffix; getdist.
        observations: identifiers; default: all.

    Returns:
        the files written; the roots for getdist.

    Raises:
        InputError: an unknown format or suffix, or input that does not fit.
    """
    if format is not None and format not in get_args(ExportFormat):
        raise InputError(f"export: unknown format {format!r}; expected one of {', '.join(get_args(ExportFormat))}")
    if output.resolve() == path.resolve():
        raise InputError(f"export: --out {output} is the file that is to be read; choose another name")
    if format == "getdist":
        roots = write_getdist(path, output, observations=observations)
        shown = ", ".join(map(str, roots[:5])) + (", ..." if len(roots) > 5 else "")
        console.print(f"export: chains of {len(roots)} observations; roots for getdist.loadMCSamples: {shown}")
        return roots
    kind = SUFFIXES.get(output.suffix.lower()) if format in (None, "draws") else format
    if kind is None:
        raise InputError(
            f"export: --out {output}: expected a name that ends in {', '.join(SUFFIXES)}, or --format {'|'.join(get_args(ExportFormat))}"
        )
    table = (draws_table if format == "draws" else posterior_table)(path, observations=observations)
    write_table(table, output, kind)  # pyright: ignore[reportArgumentType]
    console.print(f"export: {output} {len(table)} rows, {len(table.columns)} columns")
    return [output]


def write_table(table: QTable, output: Path, format: str | None = None) -> None:
    """Write a table, complete or absent.

    ECSV keeps everything. FITS has units as TUNIT, those that its standard does not know converted to SI, and, of `meta`,
    the cards SOURCE, CONTKEY (content key) and INPUTS (digests, JSON). CSV has units in the names of the columns,
    `velocity [m / s]`, and no metadata.

    Raises:
        InputError: a suffix that names no format, or text or units that FITS cannot hold.
    """
    kind = format or SUFFIXES.get(output.suffix.lower())
    if kind is None:
        raise InputError(f"{output}: expected a name that ends in {', '.join(SUFFIXES)}")
    with complete_or_absent(output) as temporary:
        if kind == "fits":
            _write_fits(table, output, temporary)
        elif kind == "csv":
            _units_in_names(table).write(temporary, format="ascii.csv")
        else:
            table.write(temporary, format="ascii.ecsv")


def _write_fits(table: Any, output: Path, temporary: Path) -> None:
    plain = table.copy(copy_data=False)
    foreign = {n: c.unit for n, c in table.columns.items() if c.unit is not None and not _fits_knows(c.unit)}
    for name in foreign:
        plain[name] = _in_si(table[name], name, output)
    meta: Any = table.meta
    cards = {
        "SOURCE": meta.get("file"),
        "CONTKEY": meta.get("content_key"),
        "INPUTS": json.dumps(meta["inputs"], sort_keys=True) if "inputs" in meta else None,
    }
    plain.meta = {k: v for k, v in cards.items() if v}
    try:
        plain.write(temporary, format="fits")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{output}: FITS holds ASCII only, and {str(error.object)!r} is not; export as .ecsv instead"
        ) from None
    if foreign:
        units = ", ".join(sorted({str(unit) for unit in foreign.values()}))
        console.print(f"export: {output}: the FITS standard does not know the units {units}: converted to SI")


def _in_si(column: Any, name: str, output: Path) -> Any:
    from astropy.units import UnitConversionError

    try:
        converted = column.si
    except UnitConversionError:  # one that cannot be decomposed, such as electron
        converted = column
    if not _fits_knows(converted.unit):
        raise InputError(
            f"{output}: FITS cannot hold {name} in {column.unit}, nor in SI units; export as .ecsv instead"
        )
    return converted


def _fits_knows(unit: object) -> bool:
    try:
        unit.to_string("fits")  # pyright: ignore[reportAttributeAccessIssue]
    except ValueError:
        return False
    return True


def _units_in_names(table: Any) -> QTable:
    from astropy.table import QTable

    names = [n if c.unit is None else f"{n} [{c.unit}]" for n, c in table.columns.items()]
    return QTable([c if c.unit is None else c.value for c in table.itercols()], names=names)
