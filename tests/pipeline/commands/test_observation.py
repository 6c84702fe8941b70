"""An observation that is missing, or does not fit, is said before anything is simulated."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import InputError


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--observation", "missing.h5"], "--observation missing.h5: no such file"),
        (["--set", "observation=/missing.h5"], "/missing.h5: no such file"),
        (["--observation", "other.csv"], "other.csv: no column time or t; it has a, b"),
    ],
)
def test_run_reads_the_observation_first(
    options: list[str], option: list[str], said: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.csv").write_text("a,b\n1,2\n")
    arguments = ["run", str(root / "configs/k2_24.yaml"), "--run-dir", "there", *option, *options]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, InputError)
    assert str(result.exception).endswith(said)
    assert not Path("there").exists()
