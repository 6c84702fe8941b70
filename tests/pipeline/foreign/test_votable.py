"""VOTables: what is missing, two of one name, and what the XML may not ask for."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.foreign.read import read_foreign


def votable(path: Path, fields: str, rows: str, *, table: str = "", before: str = "", data: str | None = None) -> Path:
    body = f"<TABLEDATA>{rows}</TABLEDATA>" if data is None else data
    text = (
        f'<?xml version="1.0"?>{before}<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3"><RESOURCE>'
        f"<TABLE{table}>{fields}<DATA>{body}</DATA></TABLE></RESOURCE></VOTABLE>"
    )
    path.write_text(text)
    return path


NUMBER = '<FIELD name="y" datatype="double" unit="adu"/>'


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_foreign(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_arrays_with_a_null(tmp_path: Path) -> None:
    field = '<FIELD name="y" datatype="int" arraysize="*" unit="adu"><VALUES null="-99"/></FIELD>'
    path = votable(tmp_path / "a.vot", field, "<TR><TD>10 20</TD></TR><TR><TD>30 -99 50</TD></TR>")
    y = read_foreign(path).get("y")
    assert y.ragged
    assert y.values[0].tolist() == [10, 20]
    np.testing.assert_array_equal(y.values[1], [30, np.nan, 50])


def test_arrays_of_one_length_and_single_numbers_with_a_null(tmp_path: Path) -> None:
    fields = (
        '<FIELD name="a" datatype="short" arraysize="2"><VALUES null="-1"/></FIELD>'
        '<FIELD name="b" datatype="int"><VALUES null="-99"/></FIELD><FIELD name="c" datatype="char" arraysize="*"/>'
    )
    path = votable(tmp_path / "a.vot", fields, "<TR><TD>1 -1</TD><TD>-99</TD><TD>007</TD></TR>")
    file = read_foreign(path)
    masks = [file.get(name).masked for name in "ab"]
    assert [None if m is None else m.tolist() for m in masks] == [[[False, True]], [True]]
    assert file.get("c").values.tolist() == ["007"]


def test_compressed_and_twice_the_same_name(tmp_path: Path) -> None:
    path = votable(tmp_path / "a.vot", NUMBER + NUMBER.replace("adu", "Jy"), "<TR><TD>1</TD><TD>2</TD></TR>")
    with pytest.raises(InputError, match="2 columns or arrays with the name 'y'"):
        read_foreign(path).get("y")
    votable(path, NUMBER, "<TR><TD>1</TD></TR>")
    (tmp_path / "b.xml").write_bytes(gzip.compress(path.read_bytes()))
    assert read_foreign(tmp_path / "b.xml").get("y").values.tolist() == [1]


@pytest.mark.parametrize("text", ["1_5", "１５"])
def test_numbers_of_python_alone(text: str, tmp_path: Path) -> None:
    assert f"row 1: expected a number, got {text!r}" in refused(
        votable(tmp_path / "a.vot", NUMBER, f"<TR><TD>{text}</TD></TR>")
    )


def test_numbers_and_text_that_do_not_fit_their_type(tmp_path: Path) -> None:
    assert "99999" in refused(
        votable(tmp_path / "a.vot", '<FIELD name="y" datatype="short"/>', "<TR><TD>99999</TD></TR>")
    )
    refused(votable(tmp_path / "a.vot", '<FIELD name="n" datatype="char" arraysize="2"/>', "<TR><TD>abc</TD></TR>"))


def test_what_the_xml_may_not_ask_for(tmp_path: Path) -> None:
    path = tmp_path / "a.vot"
    row = "<TR><TD>1</TD></TR>"
    stream = '<BINARY><STREAM href="file:///etc/passwd"/></BINARY>'
    assert "its data lie in 'file:///etc/passwd'" in refused(votable(path, NUMBER, "", data=stream))
    entities = '<!DOCTYPE V [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
    assert "has a DOCTYPE" in refused(votable(path, NUMBER, row, before=entities))
    assert "1000000000000 rows would take" in refused(votable(path, NUMBER, row, table=' nrows="1000000000000"'))
    wide = NUMBER.replace("/>", ' arraysize="1000000000"/>')
    assert "a table of such rows would take" in refused(votable(path, wide, row))
    (tmp_path / "b.vot").write_bytes(gzip.compress(votable(path, NUMBER, row * 400_000).read_bytes()))
    assert "elements would take" in refused(tmp_path / "b.vot")
