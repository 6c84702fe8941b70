"""A full disk is one readable line, not a dead process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys, numpy
from pathlib import Path
from pipeline.errors import InputError
from pipeline.stages.netcdf import create_variable, write_netcdf

def fill(file):
    group = file.create_group("a")
    group.dimensions = {"n": 200, "m": 5000}
    variable = group.create_variable("v", ("n", "m"), dtype="f8", chunks=(10, 5000), fletcher32=True)
    for start in range(0, 200, 10):
        variable[start:start + 10] = numpy.random.default_rng(start).random((10, 5000))

try:
    write_netcdf(Path(sys.argv[1]), fill, {})
except InputError as error:
    print(error)
    sys.exit(2)
"""


def test_a_file_that_cannot_grow_is_reported_and_absent(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the write fails in the same place."""
    output = tmp_path / "out.h5"
    command = f'ulimit -f 2000; exec "{sys.executable}" -c "$0" "{output}"'
    done = subprocess.run(["bash", "-c", command, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr[-500:]
    assert "could not be written" in done.stdout
    assert list(tmp_path.iterdir()) == []
