"""The example of docs/own_simulator.md is a simulator, and its likelihood is that of its data."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from simulators.priors import prior_of, sample
from simulators.protocol import has_likelihood, log_likelihood
from simulators.registry import create

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own_simulator.md"


def test_the_torch_example_simulates_and_weighs(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    (tmp_path / "line.py").write_text(code, encoding="utf-8")
    line = create("Line", path=tmp_path / "line.py")
    assert has_likelihood(line)
    stream = torch.Generator().manual_seed(1)
    theta = sample(prior_of(line), 2_000, stream)
    x = line.simulate(theta, generator=stream)
    values = log_likelihood(line, theta[None], x)
    assert values.shape == (1, 2_000)
    # <log N> = -n (log s + log sqrt(2 pi) + 1/2), n = 20; its scatter sqrt(n / 2)
    expected = -20 * (theta[:, 1].log() + 0.5 * torch.log(torch.tensor(2 * torch.pi)) + 0.5)
    assert abs(float((values[0] - expected).mean())) < 4 * 10**0.5 / 2_000**0.5


def test_files_and_settings_that_the_page_names_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for path in re.findall(r"configs/examples/\w+\.(?:py|yaml)", text):
        assert (PAGE.parents[1] / path).is_file()
