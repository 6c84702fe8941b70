"""The examples of docs/sbi.md run, in order, and give what the page says."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "sbi.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (config,) = blocks("yaml")
    (tmp_path / "case.yaml").write_text(config, encoding="utf-8")
    names: dict[str, Any] = {}
    examples = blocks("python")
    assert len(examples) == 6
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Maximum number of epochs")  # sbi's, of a training this short
        warnings.filterwarnings("ignore", "weighted posterior: .* effective draws")  # the page says so
        for number, example in enumerate(examples):
            exec(compile(example, f"{PAGE.name}, block {number}", "exec"), names)
            if number == 1:
                error = names["certificate"].log_evidence - names["simulator"].log_evidence(names["x"][:4])
                assert float((error / names["certificate"].log_evidence_error).abs().max()) < 5
    assert (tmp_path / "sbi_npe.safetensors").is_file()
    assert names["ranks"].shape == (200, 1)
    assert names["found"].theta.shape == (100, 200, 3)
    assert int(names["tested"].sum()) > 150
