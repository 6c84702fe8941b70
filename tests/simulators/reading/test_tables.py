"""Text tables as they are written: numbers that everybody reads alike, names that are there once, text that stays text."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from simulators.errors import InputError
from simulators.reading.tables import read_text_table
from simulators.reading.words import as_number, as_numbers, as_values, number_rows


@pytest.mark.parametrize("word", ["1", "-1.5", "+.5", "5.", "1e5", "1E-3", "nan", "NaN", "inf", "-Infinity", "007"])
def test_numbers_are_those_of_everybody(word: str) -> None:
    assert as_number(f" {word} ") == pytest.approx(float(word), nan_ok=True)


@pytest.mark.parametrize(
    "word",
    [
        "1_5",
        "1e",
        "e5",
        "0x10",
        "1,5",
        "1,234.5",
        "1 234",
        "１５",
        "٣",
        "1.5D3",
        "nan(0)",
        "-1.#IND",
        "NA",
        "--",
        "",
        "1+1",
    ],
)
def test_what_only_some_read_as_a_number_is_none(word: str) -> None:
    assert as_number(word) is None
    assert as_values(np.array(["1", word or "x"])).dtype.kind == "U"


def test_columns_of_numbers_and_of_text() -> None:
    assert as_values(np.array(["1", "22"])).dtype == np.int64
    assert as_values(np.array(["1", "2.5", ""])).tolist()[:2] == [1.0, 2.5]
    assert as_values(np.array(["0012", "12"])).tolist() == ["0012", "12"]
    large = str(2**63)
    assert as_values(np.array([large])).tolist() == [float(2**63)]
    assert as_numbers(["1", "x", "y"])[1] == 1


def cells(path: Path, text: str | bytes, name: str = "a.csv") -> dict[str, list[str]]:
    (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return {c.name: c.cells.tolist() for c in read_text_table(path / name).columns}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a;b, c\n1;2\n3;4\n", {"a": ["1", "3"], "b, c": ["2", "4"]}),
        ('a,"b;c"\n1,2\n', {"a": ["1"], "b;c": ["2"]}),
        ("a;b\n1,5;2,5\n", {"a": ["1,5"], "b": ["2,5"]}),
        ("a\tb c\n1\t2\n", {"a": ["1"], "b c": ["2"]}),
        ('y [adu]\n"1,234.5"\n"2,345.5"\n', {"y": ["1,234.5", "2,345.5"]}),
        ("id,y\n007,1_5\n07,\n", {"id": ["007", "07"], "y": ["1_5", ""]}),
        ("#a,b\n1,2\n", {"a": ["1"], "b": ["2"]}),
        ("t v\n1 2\n", {"t": ["1"], "v": ["2"]}),
    ],
)
def test_cells_are_what_is_written(text: str, expected: dict[str, list[str]], tmp_path: Path) -> None:
    assert cells(tmp_path, text) == expected
    assert cells(tmp_path, gzip.compress(text.encode()), "b.csv.gz") == expected
    assert cells(tmp_path, gzip.compress(text.encode()), "c.csv") == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n3,4,5\n", "row 2 has 3 cells, the header 2"),
        ('a,b\n"x,1\ny,2\n', "unexpected end of data"),
        ('a,b\n"x,1\ny",2\n', "a quote that is not closed where its line ends"),
        ("a;b, c\n1;2, 3\n", "are its cells separated by"),
        ("just words here\nand more\n", "no format that ingest knows; it begins with 'just words here'"),
        ("# nothing\n", "has no rows"),
        ("y y\n1 2\n3 4\n", "2 columns|two columns with the name 'y'"),
    ],
)
def test_what_is_no_table_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        cells(tmp_path, text, "a.txt")
    assert any(part in str(error.value) for part in said.split("|")), str(error.value)
    assert "\n" not in str(error.value)


def ecsv(columns: str, body: str, meta: str = "") -> str:
    return f"# %ECSV 1.0\n# ---\n# datatype:\n{columns}{meta}# schema: astropy-2.0\n{body}"


def test_ecsv_is_checked_before_astropy_reads_it(tmp_path: Path) -> None:
    number = "# - {name: y, unit: m / s, datatype: float64}\n"
    assert cells(tmp_path, ecsv(number, "y\n1.5\n2.5\n"), "a.ecsv") == {"y": ["1.5", "2.5"]}
    column = read_text_table(tmp_path / "a.ecsv").columns[0]
    assert column.numbers("x", "km / s").tolist() == [0.0015, 0.0025]
    with pytest.raises(InputError, match="y, row 2: expected a number, got '1_5'"):
        cells(tmp_path, ecsv(number, "y\n1\n1_5\n"), "b.ecsv")
    bomb = "# meta:\n#   a0: &a0 [1, 1]\n" + "".join(
        f"#   a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 20)}]\n" for i in range(1, 12)
    )
    with pytest.raises(InputError, match="aliases that stand for more than"):
        cells(tmp_path, ecsv(number, "y\n1\n", bomb), "c.ecsv")
    twice = number + "# - {name: y, unit: km / s, datatype: float64}\n"
    with pytest.raises(InputError, match="two columns with the name 'y'|not a table"):
        cells(tmp_path, ecsv(twice, "y y\n1 2\n"), "d.ecsv")


def test_rows_of_numbers_are_strict(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("% c\n1 2 # and\n3\n")
    assert number_rows(tmp_path / "a.txt") == [[1.0, 2.0], [3.0]]
    (tmp_path / "a.txt").write_text("1\n1_5\n")
    with pytest.raises(InputError, match="line 2: '1_5' is no number"):
        number_rows(tmp_path / "a.txt")
