"""Commands that bring observed data in: `fetch` and `ingest`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.options import case_of_model
from pipeline.errors import InputError

NO_SIMULATOR = "none"
Pairs = list[str] | None


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("fetch")(fetch_command)
    app.command("ingest")(ingest_command)


def fetch_command(
    names: Annotated[list[str] | None, typer.Argument(help="datasets; --list says which", metavar="[NAME ...]")] = None,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", help="folder (default: $ELBOSCOPE_CACHE, or elboscope in the user's cache)"),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="what there is, and what is in the cache already")] = False,
) -> None:
    """Download public datasets, checked by SHA-256; a download that stopped goes on.

    In a config, `observation: fetch:NAME` is the file in the cache.

    Examples: elboscope fetch --list

    elboscope fetch k2_24
    """
    from pipeline.datasets.cache import cache_folder
    from pipeline.datasets.download import fetch
    from pipeline.datasets.registry import DATASETS, dataset

    if show:
        for name, known in DATASETS.items():
            there = all(((cache or cache_folder()) / name / f.name).is_file() for f in known.files)
            typer.echo(
                f"{name:<10} {known.summary}\n{'':<10} {known.reference}; {known.licence}{'; in the cache' if there else ''}"
            )
        return
    if not names:
        raise InputError(f"fetch: expected a dataset: {', '.join(DATASETS)}; or --list")
    for name in names:
        dataset(name)
    for name in names:
        for path in fetch(name, cache=cache):
            typer.echo(path)


Source = Annotated[
    str,
    typer.Argument(
        help="what wants the data: a case, a trained posterior.safetensors, the name of a simulator, or none",
        metavar="CONFIG|POSTERIOR|SIMULATOR|none",
    ),
]
Inputs = Annotated[
    list[str] | None, typer.Argument(help="files, or fetch:NAME; one observation a file or many", metavar="[INPUT ...]")
]
Columns = Annotated[
    Pairs, typer.Option("--column", help="where an observable comes from", metavar="OBSERVABLE=COLUMN[UNIT]")
]
Arrays = Annotated[
    Pairs,
    typer.Option("--array", help="an observable from a file of its own", metavar="OBSERVABLE=FILE[:NAME][UNIT]"),
]
Diagonal = Annotated[
    Pairs,
    typer.Option("--diagonal", help="errors to square and add to a covariance", metavar="OBSERVABLE=COLUMN[UNIT]"),
]
Codes = Annotated[
    Pairs, typer.Option("--codes", help="texts that stand for 0, 1, 2, ...", metavar="OBSERVABLE=A,B,...")
]
Rows = Annotated[
    str | None, typer.Option(help="a row is one of: observations, points; default: as the simulator wants")
]
DropMissing = Annotated[
    bool | None,
    typer.Option(
        "--drop-missing/--keep-missing", help="leave NaN and masked values out, and count them; default: refuse"
    ),
]


def ingest_command(
    source: Source,
    inputs: Inputs = None,
    out: Annotated[Path | None, typer.Option(help="file of observations to write")] = None,
    columns: Columns = None,
    arrays: Arrays = None,
    diagonal: Diagonal = None,
    codes: Codes = None,
    id_column: Annotated[
        str | None, typer.Option("--id", help="column or header card with the identifiers", metavar="COLUMN")
    ] = None,
    group: Annotated[str | None, typer.Option(help="equal values make rows one observation", metavar="COLUMN")] = None,
    rows: Rows = None,
    drop_missing: DropMissing = None,
    show: Annotated[bool, typer.Option("--list", help="what the files have and what is wanted; write nothing")] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="override a setting of the case", metavar="KEY=VALUE")
    ] = None,
) -> None:
    """Foreign files (FITS, CSV, ECSV, VOTable, text, HDF5, GWOSC, NumPy) to a file of observations, units converted.

    Units are those that the file declares, or given in brackets. The block `ingest:` of a case says the same as the
    options. With `none` in place of a simulator every array is kept under its own name.

    Examples: elboscope ingest case.yaml star.fits --list

    elboscope ingest case.yaml star.csv --column 'time=bjd[d]' --column 'velocity=rv[km/s]' --column 'velocity_error=e_rv[km/s]' --out star.h5

    elboscope ingest posterior.safetensors survey.vot --group star --out stars.h5

    elboscope ingest none H-H1.hdf5 L-L1.hdf5 --out strain.h5
    """
    from pipeline.datasets.cache import fetched_or_path
    from pipeline.stages.ingest import ingest
    from pipeline.stages.ingest_list import list_inputs

    case = _case(source, list(overrides or []))
    said = {
        "columns": _pairs(columns, "--column"),
        "arrays": _pairs(arrays, "--array"),
        "diagonal": _pairs(diagonal, "--diagonal"),
        "codes": {k: tuple(v.split(",")) for k, v in _pairs(codes, "--codes").items()},
        "id": id_column,
        "group": group,
        "rows": rows,
        "drop_missing": drop_missing,
    }
    settings = _settings(case, said)
    paths = [fetched_or_path(text) for text in inputs or []]
    if show:
        list_inputs(case, paths, settings=settings)
        return
    if out is None:
        raise InputError("ingest: expected --out FILE, or --list")
    ingest(case, paths, out, settings=settings)


def _case(source: str, overrides: list[str]) -> Any:
    """The case that names the simulator; None for `none`."""
    from pipeline.config import case_from_values, load_case, override_values

    if source == NO_SIMULATOR:
        return None
    if source.endswith(".safetensors"):
        from pipeline.store import refuse_own_code

        case = case_of_model(Path(source), overrides)
        refuse_own_code(case, Path(source), overrides, how="in place of the model")
        return case
    if Path(source).is_file() or source.endswith((".yaml", ".yml")):
        return load_case(Path(source), overrides)
    return case_from_values(override_values({"simulator": {"name": source}}, overrides), source)


def _pairs(options: Pairs, flag: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for option in options or []:
        name, separator, value = option.partition("=")
        if not separator or not name.strip() or not value.strip():
            raise InputError(f"{flag} {option}: expected OBSERVABLE=..., such as velocity=rv[km/s]")
        if name.strip() in pairs:
            raise InputError(f"{flag} {option}: {name.strip()} is given twice")
        pairs[name.strip()] = value.strip()
    return pairs


def _settings(case: Any, said: dict[str, Any]) -> Any:
    """The case's settings, with what the command line says on top."""
    from pydantic import ValidationError

    from pipeline.ingest_settings import IngestSettings

    values = (IngestSettings() if case is None else case.ingest).model_dump()
    for key, value in said.items():
        if isinstance(value, dict):
            values[key] = values[key] | value
        elif value is not None:
            values[key] = value
    try:
        return IngestSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"ingest: {'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}"
        ) from None
