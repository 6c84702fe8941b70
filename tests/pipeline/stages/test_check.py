"""`check`: simulators that break the contract, each refused in one line, and some that do not."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config import case_from_values
from pipeline.errors import InputError
from pipeline.rng import generator
from pipeline.stages.check import check
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.store import read_data
from simulators.priors import distribution_from_spec
from simulators.protocol import Data, Observable, Parameter

HEADER = """
import math, random
import numpy as np
import torch
from torch.distributions import Distribution, Independent, Normal, constraints
from simulators.failures import Failure, FailureCode
from simulators.priors import distribution_from_spec
from simulators.protocol import Observable, Parameter


class Good:
    name = "good"
    parameters = tuple(Parameter(n, distribution_from_spec({"uniform": [0, 1]})) for n in "ab")
    observables = (Observable("y", (3,)),)

    def simulate(self, theta, context=None, *, generator):
        noise = torch.randn(len(theta), 3, generator=generator, dtype=torch.float64)
        return {"y": theta.sum(1, keepdim=True) + 0.3 * noise}

    def log_likelihood(self, theta, x):
        z = (x["y"] - theta.sum(-1, keepdim=True)) / 0.3
        return (-0.5 * z.square() - math.log(0.3 * math.sqrt(2 * math.pi))).sum(-1)


class Model(Good):
"""


def run_of(tmp_path: Path, body: str, **settings: Any) -> Run:
    (tmp_path / "model.py").write_text(HEADER + "\n".join(f"    {line}" for line in body.strip("\n").splitlines()))
    simulator = {"name": "Model", "path": str(tmp_path / "model.py")}
    return Run(case_from_values({"name": "case", "simulator": simulator, **settings}, "case"), tmp_path / "run")


DRAW = "def simulate(self, theta, context=None, *, generator):"
LIKELIHOOD = "def log_likelihood(self, theta, x):"
WRONG: dict[str, tuple[str, str]] = {
    "complex": (f"{DRAW}\n    return {{'y': super().simulate(theta, generator=generator)['y'] * (1 + 2j)}}", r"'y' is complex, expected real"),
    "complex list": (f"{DRAW}\n    return {{'y': [[1j, 0, 0]] * len(theta)}}", r"'y' is complex, expected real"),
    "no mapping": (f"{DRAW}\n    return super().simulate(theta, generator=generator)['y']", r"simulate gave Tensor, expected a mapping"),
    "no observable": (f"{DRAW}\n    return {{'z': 1}}", r"simulate gave nothing for 'y', expected \(16, 3\)"),
    "shape": (f"{DRAW}\n    return {{'y': super().simulate(theta, generator=generator)['y'].T}}", r"gave \(3, 16\) for 'y', expected \(16, 3\)"),
    "text": (f"{DRAW}\n    return {{'y': [['a'] * 3] * len(theta)}}", r"expected an array of numbers, got <U1"),
    "ragged": (f"{DRAW}\n    return {{'y': [[1, 2, 3]] * (len(theta) - 1) + [[1]]}}", r"'y': expected an array of numbers"),
    "torch": (f"{DRAW}\n    return {{'y': theta.sum(1, keepdim=True) + torch.randn(len(theta), 3)}}", r"'y' differs .* torch's global generator"),
    "numpy": (f"{DRAW}\n    return {{'y': np.random.normal(size=(len(theta), 3))}}", r"NumPy's global generator"),
    "python": (f"{DRAW}\n    return {{'y': [[random.gauss(0, 1) for _ in 'abc'] for _ in theta]}}", r"Python's global generator"),
    "own": (f"{DRAW}\n    return {{'y': np.random.default_rng().normal(size=(len(theta), 3))}}", r"a generator of its own"),
    "fixed seed": (f"{DRAW}\n    return {{'y': theta.sum(1, keepdim=True) + torch.from_numpy(np.random.default_rng(0).normal(size=(len(theta), 3)))}}", r"'y' is the same for two states of `generator`"),
    "shared noise": (f"{DRAW}\n    return {{'y': theta.sum(1, keepdim=True) + torch.randn(3, generator=generator)}}", r"draw noise for each of the N rows"),
    "x in place": (f"{LIKELIHOOD}\n    x['y'] -= 1\n    return super().log_likelihood(theta, x)", r"log_likelihood changes 'y' in place"),
    "x by numpy": ("def features(self, x):\n    x['y'].numpy()[:] *= 2\n    return x['y']", r"features changes 'y' in place"),
    "not summed": (f"{LIKELIHOOD}\n    return -(x['y'] - theta.sum(-1, keepdim=True)) ** 2", r"log_likelihood gave shape \(16, 3\) for theta \(16, 2\)"),
    "summed": (f"{LIKELIHOOD}\n    return super().log_likelihood(theta, x).sum()", r"gave shape \(\) for theta \(16, 2\) and 16 rows of x, expected \(16,\)"),
    "nan": (f"{LIKELIHOOD}\n    return super().log_likelihood(theta, x) * math.nan", r"log_likelihood is NaN for 16 of 16 of its own"),
    "infinite": (f"{LIKELIHOOD}\n    return super().log_likelihood(theta, x) + math.inf", r"log_likelihood is \+inf for 16"),
    "impossible": (f"{LIKELIHOOD}\n    return super().log_likelihood(theta, x) - math.inf", r"-inf for all of its own simulations"),
    "no draws": (f"{LIKELIHOOD}\n    return super().log_likelihood(theta.reshape(-1, 2)[:len(x['y'])], x)", r"gave shape \(1,\) for theta \(16, 1, 2\) and 1 rows of x, expected \(16, 1\)"),
    "first axis": (f"{LIKELIHOOD}\n    z = x['y'] - theta.sum(1)[:, None]\n    return -z.square().sum(1)", r"log_likelihood"),
    "last draw": (f"{LIKELIHOOD}\n    v = super().log_likelihood(theta, x)\n    return v if v.dim() < 2 else v[-1:].expand_as(v)", r"it may depend on its own row and draw alone"),
    "draws are rows": (f"{LIKELIHOOD}\n    v = super().log_likelihood(theta, x)\n    return v.T if v.dim() == 2 and v.shape[0] == v.shape[1] else v", r"it may depend on its own row and draw alone"),
    "other rows": (f"{LIKELIHOOD}\n    return super().log_likelihood(theta, {{'y': x['y'] - x['y'].mean(0)}})", r"it may depend on its own row and draw alone"),
    "features of others": ("def features(self, x):\n    return x['y'] / x['y'].std(0, correction=0)", r"features .* not finite|features of a row depend on the other rows"),
    "ranked": ("def features(self, x):\n    return x['y'].argsort(0)", r"features of a row depend on the other rows"),
    "flat features": ("def features(self, x):\n    return x['y'].sum(1)", r"features gave \(16,\), expected \(N, F\) with N = 16"),
    "pilot alone": ("def pilot(self, x):\n    return x['y'][:, :2]", r"pilot must give location and scale, got Tensor"),
    "no gradient": (f"{LIKELIHOOD}\n    return super().log_likelihood(theta.detach(), x)", r"log_likelihood has no gradient with theta"),
    "by numpy": (f"{LIKELIHOOD}\n    return torch.from_numpy(super().log_likelihood(theta, x).numpy())", r"log_likelihood fails for theta \(16, 2\)"),
    "gradient nan": (f"{LIKELIHOOD}\n    t = theta.sum(-1)\n    return super().log_likelihood(theta, x) + torch.where(t > -1, 0.0, (-t - 9).sqrt())", r"gradient of log_likelihood is NaN"),
    "canonical": ("def canonical(self, x):\n    return {'y': x['y'] - x['y'].mean(1, keepdim=True)}", r"log_likelihood changes where `canonical`"),
    "ordered": (f"exchangeable = ('y',)\n{LIKELIHOOD}\n    return super().log_likelihood(theta, x) + x['y'][:, 0]", r"changes with the order of points"),
    "outside": (
        "class Off(Distribution):\n    arg_constraints, support = {}, constraints.independent(constraints.unit_interval, 1)\n"
        "    def __init__(self):\n        super().__init__(event_shape=torch.Size([2]), validate_args=False)\n"
        "    def sample(self, shape=()):\n        return 1.2 * torch.rand(*shape, 2, dtype=torch.float64)\n"
        "    def log_prob(self, value):\n        return torch.zeros(value.shape[:-1], dtype=value.dtype)\nprior = Off()",
        r"of 16 draws lie outside the support of the prior, the first at theta = \(",
    ),
    "batch prior": ("prior = Normal(torch.zeros(2), torch.ones(2))", r"prior has batch shape \(2,\) and event shape \(\), expected \(\) and \(2,\)"),
    "vector prior": ("parameters = (Parameter('a', Normal(torch.zeros(1), torch.ones(1))),)", r"expected a prior of one number, got one of shape \(1,\)"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_each_fault_has_its_sentence(fault: str, tmp_path: Path) -> None:
    body, message = WRONG[fault]
    phases = [{"objective": "elbo", "steps": 1}] if "gradient" in message or "fails" in message else []
    with pytest.raises(ValueError, match=message) as error:
        check(run_of(tmp_path, body, **({"train": {"phases": phases}} if phases else {})))
    assert len(str(error.value).splitlines()) == 1


TIMES = "observables = (Observable('t', (3,), role='context'), Observable('y', (3,)))"


def test_conditions_that_are_given_must_be_used(tmp_path: Path) -> None:
    body = f"""
{TIMES}
{DRAW}
    t = torch.rand(len(theta), 3, generator=generator, dtype=torch.float64)
    return super().simulate(theta, generator=generator) | {{"t": t}}
"""
    with pytest.raises(InputError, match=r"simulate was given 't' and returned another"):
        check(run_of(tmp_path, body))
    used = body.replace("    return", "    t = t if context is None else context['t']\n    return")
    check(run_of(tmp_path, used))


ACCEPTED = {
    "numpy": "return {'y': super().simulate(theta, generator=generator)['y'].numpy()}",
    "big endian": "return {'y': super().simulate(theta, generator=generator)['y'].numpy().astype('>f8')[:, ::-1]}",
    "lists": "return {'y': super().simulate(theta, generator=generator)['y'].tolist()}",
    "rows": "return {'y': list(super().simulate(theta, generator=generator)['y'])}",
    "float32": "return {'y': super().simulate(theta, generator=generator)['y'].float()}",
    "integers": "return {'y': (super().simulate(theta, generator=generator)['y'] * 1000).long()}",
    "unsigned": "return {'y': (super().simulate(theta, generator=generator)['y'].numpy() * 1000 + 5000).astype('u2')}",
    "gradient": "return {'y': super().simulate(theta, generator=generator)['y'] * torch.ones(1, requires_grad=True)}",
    "theta by numpy": "y = super().simulate(theta, generator=generator)\ntheta.numpy()[:] = 7\nreturn y",
    "masked": "y = super().simulate(theta, generator=generator)['y'].numpy()\nreturn {'y': np.ma.masked_array(y, mask=np.zeros(y.shape, bool))}",
    "quantity": "from astropy import units\nreturn {'y': super().simulate(theta, generator=generator)['y'].numpy() * 100 * units.percent}",
    "one buffer": "self.b = getattr(self, 'b', torch.zeros(20000, 3).double())\nb = self.b[:len(theta)]\nb.copy_(super().simulate(theta, generator=generator)['y'])\nreturn {'y': b}",
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_arrays_of_any_real_kind_are_accepted_and_stored_beside_their_theta(kind: str, tmp_path: Path) -> None:
    body = DRAW + "".join(f"\n    {line}" for line in ACCEPTED[kind].split("\n"))
    loose = f"\n{LIKELIHOOD}\n    return super().log_likelihood(theta, {{'y': x['y'].double()}})"
    run = run_of(tmp_path, body + loose, simulate={"count": 64, "held_out": 8, "shard": 40, "batch": 16})
    check(run)
    simulate(run)
    data = read_data(run.output("simulate"), observables=run.simulator.observables, parameters=run.simulator.parameters)
    assert data.theta is not None
    assert bool(((data.theta >= 0) & (data.theta <= 1)).all())
    factor, offset = {"integers": (1000, 0), "unsigned": (1000, 5000)}.get(kind, (1, 0))
    residual = (data.x["y"] - offset) / factor - data.theta.sum(1, keepdim=True)
    assert float(residual.std()) == pytest.approx(0.3, abs=4 * 0.3 / np.sqrt(2 * residual.numel()))
    assert abs(float(residual.mean())) < 4 * 0.3 / np.sqrt(residual.numel())


def test_theta_changed_in_place_is_not_what_is_stored(tmp_path: Path) -> None:
    body = f"{DRAW}\n    x = super().simulate(theta, generator=generator)\n    theta *= 3\n    return x"
    tripled = run_of(tmp_path, body, simulate={"count": 64, "held_out": 8})
    simulate(tripled)
    (tmp_path / "plain").mkdir()
    plain = run_of(tmp_path / "plain", "pass", simulate={"count": 64, "held_out": 8})
    simulate(plain)
    ours, theirs = (
        read_data(r.output("simulate"), observables=r.simulator.observables, parameters=r.simulator.parameters)
        for r in (tripled, plain)
    )
    assert torch.equal(ours.theta, theirs.theta)  # pyright: ignore[reportArgumentType]
    assert torch.equal(ours.x["y"], theirs.x["y"])


def test_simulate_refuses_global_random_numbers_and_leaves_them_alone(tmp_path: Path) -> None:
    body = f"{DRAW}\n    return {{'y': np.random.normal(size=(len(theta), 3))}}"
    run = run_of(tmp_path, body, simulate={"count": 64, "held_out": 8})
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    expected = np.random.RandomState(5).normal(), random.Random(5).random()
    with pytest.raises(InputError, match=r"NumPy's global generator"):
        simulate(run)
    assert not run.output("simulate").exists()
    assert (np.random.normal(), random.random()) == expected  # noqa: NPY002


def test_a_seeded_global_generator_is_the_simulators_own_affair(tmp_path: Path) -> None:
    """Two calls with one generator state agree, and that is all that is asked."""
    body = f"{DRAW}\n    np.random.seed(int(torch.randint(2**31, (), generator=generator)))\n    return {{'y': np.random.normal(size=(len(theta), 3))}}"
    check(run_of(tmp_path, body, likelihood={"when": "always"}))


class Scalar:
    """One number of shape () beside a condition of shape ()."""

    name = "scalar"
    parameters = (Parameter("a", distribution_from_spec({"normal": [0, 1]})),)
    observables = (Observable("error", (), role="context"), Observable("y", ()))

    def simulate(
        self, theta: Tensor, context: Mapping[str, Tensor] | None = None, *, generator: torch.Generator
    ) -> Data:
        error = torch.full((len(theta),), 0.5, dtype=torch.float64) if context is None else context["error"]
        return {"error": error, "y": theta[:, 0] + error * torch.randn(len(theta), generator=generator).double()}

    def log_likelihood(self, theta: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        return torch.distributions.Normal(theta[..., 0], x["error"]).log_prob(x["y"])


def test_scalars_stream() -> None:
    assert generator(1, "check").initial_seed() != generator(1, "contract").initial_seed()
