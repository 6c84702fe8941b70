"""The linear Gaussian case with its likelihood hidden, through all stages."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pipeline.config import load_case
from pipeline.errors import InputError
from pipeline.estimators.learned_likelihood import learned_part
from pipeline.estimators.posterior import load_posterior
from pipeline.search_settings import SearchSettings
from pipeline.settings import CaseSettings
from pipeline.stages.check import check
from pipeline.stages.infer import infer
from pipeline.stages.ladder import climb_all, one_row
from pipeline.stages.learned_check import check_learned
from pipeline.stages.likelihood import diagnostics_of, likelihood, load_likelihood
from pipeline.stages.report import report
from pipeline.stages.rounds import Found, is_stable, propose, simulate_round
from pipeline.stages.run import Run
from pipeline.stages.simulate import simulate
from pipeline.stages.train import train
from pipeline.stages.validate import validate
from pipeline.store import read_data, read_key, read_safetensors_header
from simulators.linear_gaussian import LinearGaussian
from tests.pipeline.stages.conftest import CASE, write_case

LEARNED: dict[str, Any] = {
    "simulate": {"count": 3_000, "held_out": 700},
    "likelihood": {
        "when": "always",
        "members": 2,
        "steps": 200,
        "check_every": 100,
        "learning_rate": 5e-3,
        "flow": {"transforms": 2, "hidden": 24, "blocks": 1, "bins": 6},
    },
    "train": CASE["train"]
    | {"phases": [{"objective": "forward_kl", "steps": 200, "learning_rate": 3e-3, "batch": 128}, {"objective": "elbo", "steps": 60, "batch": 64}]},
    "infer": {"draws": 500, "refine": {"when": "never"}, "sample": {"when": "never"}, "predictive_draws": 200},
    "validate": {"simulations": 100, "draws": 50, "proposals": 500},
}  # fmt: skip


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a learned likelihood, up to `infer`."""
    folder = tmp_path_factory.mktemp("hidden")
    run = Run(load_case(write_case(folder, LEARNED)), folder / "run")
    for stage in (simulate, likelihood, train, infer):
        stage(run)
    return run


def test_a_run_learns_the_likelihood_where_the_simulator_has_none_or_the_case_hides_it(case: CaseSettings) -> None:
    assert "likelihood" not in Run(case, Path("x")).stages
    always = case.model_copy(update={"likelihood": case.likelihood.model_copy(update={"when": "always"})})
    assert Run(always, Path("x")).stages[:3] == ("simulate", "likelihood", "train")
    with pytest.raises(InputError, match="likelihood.when: always"):
        likelihood(Run(case, Path("x")))


def test_evidence_is_that_of_the_exact_likelihood_within_what_the_certificate_says(hidden: Run) -> None:
    exact = LinearGaussian().log_evidence(hidden.observation().x["x"]).numpy()
    with h5py.File(hidden.output("infer")) as file:
        c: Any = file["certificate"]
        error = c["log_evidence"][:] - exact
        assert (c["surrogate_error"][:] > 0).all()
        assert (c["surrogate_outside"][:] < 0.2).all()
        assert (c["surrogate_spread"][:] < 1.0).all()
    # five numbers learned from 3,000 simulations by small networks: some tenths of a nat
    assert np.abs(error).max() < 0.6


def test_outcomes_are_checked_at_their_draws_each_by_itself(hidden: Run) -> None:
    """The simulator is asked; an observation's figures do not depend on what is beside it; off: nothing changes."""
    posterior = load_posterior(hidden.output("train"))
    settings, x = hidden.case.infer, hidden.observation().x
    unchecked = settings.model_copy(update={"surrogate_check": 0, "search": SearchSettings(when="never")})
    outcomes = climb_all(posterior, x, settings=unchecked, seed=1, index=0)
    both = check_learned(posterior, x, outcomes, settings=settings, seed=1, index=0)
    second = check_learned(posterior, one_row(x, 1), outcomes[1:], settings=settings, seed=1, index=1)
    assert both[1].examined.surrogate == second[0].examined.surrogate
    for before, outcome in zip(outcomes, both, strict=True):
        p_value = outcome.examined.surrogate["surrogate_check"]
        assert 0 < p_value <= 1
        assert outcome.examined.surrogate["surrogate_failed"] == 0
        differs = p_value < settings.surrogate_below
        assert ("differs from the simulator" in outcome.note) == differs
        assert outcome.verdict == ("failed" if differs else before.verdict)
    off = check_learned(
        posterior, x, outcomes, settings=settings.model_copy(update={"surrogate_check": 0}), seed=1, index=0
    )
    assert [o.verdict for o in off] == [o.verdict for o in outcomes]
    assert all(math.isnan(o.examined.surrogate["surrogate_check"]) for o in off)


def test_results_say_that_the_likelihood_is_learned_and_of_what_summary(hidden: Run) -> None:
    digest = diagnostics_of(hidden.output("likelihood"))["summary_hash"]
    with h5py.File(hidden.output("infer")) as file:
        assert file.attrs["likelihood"] == "learned"
        assert file.attrs["summary_hash"] == digest
    assert read_safetensors_header(hidden.output("train"))["summary_hash"] == digest


def test_a_posterior_file_holds_its_likelihood(hidden: Run, tmp_path: Path) -> None:
    copy = tmp_path / "posterior.safetensors"
    copy.write_bytes(hidden.output("train").read_bytes())
    posterior = load_posterior(copy)
    learned = learned_part(posterior.simulator)
    assert learned is not None
    x = hidden.observation().x
    theta = torch.zeros(2, 3, dtype=torch.float64)
    again = load_likelihood(hidden.output("likelihood"), LinearGaussian())
    assert torch.equal(learned.log_likelihood(theta, x), again.log_likelihood(theta, x))
    assert not torch.equal(learned.log_likelihood(theta, x), LinearGaussian().log_likelihood(theta, x))
    assert float(posterior.certificate(x, proposals=500).ess_fraction.min()) > 0.1


def test_nothing_is_learned_twice_and_other_settings_are_noticed(hidden: Run, tmp_path: Path) -> None:
    before = hidden.output("likelihood").stat().st_mtime_ns
    likelihood(hidden)
    assert hidden.output("likelihood").stat().st_mtime_ns == before
    changed = hidden.case.likelihood.model_copy(update={"members": 1})
    other = Run(hidden.case.model_copy(update={"likelihood": changed}), hidden.folder)
    with pytest.raises(InputError, match=r"made with likelihood.members = 2, the case says 1"):
        _ = other.model


def test_another_model_of_the_same_data_uses_the_summary_of_the_first(hidden: Run, tmp_path: Path) -> None:
    """One with another number of parameters, as models that are compared have; other data are refused."""
    quick = {"steps": 20, "check_every": 10, "summary": {"kind": "pca", "size": 2}}
    case = load_case(write_case(tmp_path, LEARNED | {"likelihood": LEARNED["likelihood"] | quick}))
    first = Run(case, tmp_path / "first")
    file = {"file": str(first.output("likelihood"))}

    def second(**options: int) -> Run:
        changed = LEARNED | {"likelihood": LEARNED["likelihood"] | quick | {"summary": file}}
        changed["simulator"] = {"name": "linear_gaussian", "options": options}
        return Run(load_case(write_case(tmp_path, changed)), tmp_path / "second")

    for run in (first, second(dimension=2)):
        simulate(run)
        likelihood(run)
    assert (
        diagnostics_of(first.output("likelihood"))["summary_hash"]
        == diagnostics_of(tmp_path / "second" / "likelihood.safetensors")["summary_hash"]
        != diagnostics_of(hidden.output("likelihood"))["summary_hash"]
    )
    other = second(size=6)
    simulate(other)
    with pytest.raises(InputError, match=r"reads 5 numbers, simulator 'linear_gaussian' gives 6"):
        likelihood(other)


@pytest.mark.slow
def test_a_killed_stage_takes_up_its_finished_members(
    hidden: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learned anew, and stopped after the first member: equal to the uninterrupted one in the end."""
    from pipeline.training import likelihood as learning

    run = Run(hidden.case, tmp_path / "run")
    simulate(run)
    few = hidden.case.likelihood.model_copy(update={"steps": 20, "check_every": 10})
    run = Run(hidden.case.model_copy(update={"likelihood": few}), run.folder)
    likelihood(run)
    whole = run.output("likelihood").read_bytes()
    run.output("likelihood").unlink()
    original, calls = learning.fit, []

    def stops(*arguments: Any, **options: Any) -> Any:
        calls.append(options["purpose"])
        if options["purpose"] == "member 1" and calls.count("member 1") == 1:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(learning, "fit", stops)
    with pytest.raises(KeyboardInterrupt):
        likelihood(run)
    assert not run.output("likelihood").exists()
    likelihood(run)
    assert calls.count("member 0") == 1
    again = run.output("likelihood").read_bytes()
    header = int.from_bytes(whole[:8], "little")
    assert again[8 + int.from_bytes(again[:8], "little") :] == whole[8 + header :]
    assert not list((run.folder / "checkpoints").glob("likelihood-*"))


def test_the_report_says_that_the_certificate_speaks_of_a_surrogate(hidden: Run) -> None:
    validate(hidden)
    page = report(hidden).read_text(encoding="utf-8")
    assert "The likelihood is learned from 3000 simulations" in page
    assert "speak of that surrogate" in page
    assert "Draws outside what was simulated" in page
    assert 'class="badge good"' not in page
    found = diagnostics_of(hidden.output("likelihood"))
    assert ('role="alert">The learned likelihood is NOT calibrated' in page) == (not found["calibrated"])
    assert ("Not checked: the learned likelihood" in page) != ("Simulated anew at the delivered draws" in page)


def test_check_says_that_it_will_be_learned(hidden: Run, capsys: pytest.CaptureFixture[str]) -> None:
    check(hidden)
    assert "is learned from 3000 simulations" in capsys.readouterr().err


# ------------------------------------------------------------ rounds


def test_simulations_of_a_round_lie_where_q_has_its_mass(hidden: Run) -> None:
    from dataclasses import replace

    one = hidden.case.model_copy(update={"rounds": 2})
    run = replace(hidden, case=one, round=1)
    draws = torch.randn(400, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.1 + 2.0
    theta = propose(run, draws, 5_000, torch.Generator().manual_seed(2))
    near = ((theta - 2.0).abs() < 0.6).all(1)
    # a fifth comes from the prior N(0, 1), of which 1 in 300 lies there
    assert float(near.double().mean()) == pytest.approx(0.8, abs=0.02)
    spread = theta[near].std(0)
    # 0.1 and half of that beside it: 0.1 sqrt(1.25), with 400 draws good to a twentieth
    assert torch.allclose(spread, torch.full((3,), 0.1 * 1.25**0.5, dtype=torch.float64), rtol=0.15)


def test_new_simulations_of_a_narrow_posterior_are_as_narrow(hidden: Run) -> None:
    """A thousandth of a millionth of the prior: a floor of 1e-6 on the width, in any unit, would be a thousand times too wide."""
    draws = torch.randn(400, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 1e-9 + 2.0
    theta = propose(hidden, draws, 1_000, torch.Generator().manual_seed(2))[:700]
    spread = (theta - 2.0).std(0)
    assert torch.allclose(spread, torch.full((3,), 1e-9 * 1.25**0.5, dtype=torch.float64), rtol=0.15)


def test_a_round_is_stable_where_the_evidence_stays_and_draws_lie_inside() -> None:
    before = Found(-3.0, 0.1, 0.01, "exact")
    assert is_stable(before, Found(-3.2, 0.1, 0.01, "exact"), 0.05)
    assert not is_stable(before, Found(-3.5, 0.1, 0.01, "exact"), 0.05)
    assert not is_stable(before, Found(-3.0, 0.1, 0.2, "exact"), 0.05)
    assert not is_stable(before, Found(-3.0, 0.1, 0.01, "failed"), 0.05)


@pytest.mark.slow
def test_rounds_end_and_leave_the_last_as_the_run(tmp_path: Path) -> None:
    from pipeline.stages.rounds import learn_in_rounds

    path = write_case(tmp_path, LEARNED | {"rounds": 2})
    case = load_case(path)
    run = Run(case, tmp_path / "run")
    simulate(run)
    with pytest.raises(InputError, match="expected one observation, got 2"):
        learn_in_rounds(run)
    data = read_data(case.observation or path, observables=run.simulator.observables)
    from pipeline.store import write_data

    write_data(tmp_path / "one.h5", observables=run.simulator.observables, x=data.rows(0, 1).x, ids=["one"])
    run = Run(case.model_copy(update={"observation": tmp_path / "one.h5"}), tmp_path / "run")
    learn_in_rounds(run)
    added = run.round_simulations(1)
    assert len(read_data(added, observables=run.simulator.observables)) == 3_000
    for stage in ("likelihood", "train", "infer"):
        assert read_key(run.output(stage)) == read_key(run.folder / "rounds" / "2" / run.output(stage).name)
        assert read_key(run.output(stage)) != read_key(run.folder / "rounds" / "1" / run.output(stage).name)
    assert diagnostics_of(run.output("likelihood"))["simulations"] == 6_000
    before = run.output("infer").stat().st_mtime_ns
    for stage in (likelihood, train, infer):
        stage(run)  # the run as it ends is up to date
    assert run.output("infer").stat().st_mtime_ns == before
    assert simulate_round(Run(run.case, run.folder, 1)) == added
    exact = float(LinearGaussian().log_evidence(data.x["x"])[0])
    with h5py.File(run.output("infer")) as file:
        c: Any = file["certificate"]
        assert float(c["log_evidence"][0]) == pytest.approx(exact, abs=0.4)


def test_both_sides_trained_together_from_the_config(tmp_path: Path) -> None:
    joint = LEARNED | {"likelihood": LEARNED["likelihood"] | {"joint": {"enabled": True}}}
    joint["train"] = {k: v for k, v in LEARNED["train"].items() if k != "phases"} | {"steps": 40}
    run = Run(load_case(write_case(tmp_path, joint)), tmp_path / "run")
    for stage in (simulate, likelihood, train, infer):
        stage(run)
    exact = LinearGaussian().log_evidence(run.observation().x["x"]).numpy()
    with h5py.File(run.output("infer")) as file:
        c: Any = file["certificate"]
        assert np.abs(c["log_evidence"][:] - exact).max() < 0.6
        # q came trained: 40 steps from a network at random leave a gap of nats
        assert c["amortized_kl_gap"][:].max() < 0.6
    with pytest.raises(ValueError, match="theta from the prior"):
        load_case(write_case(tmp_path, joint), ["rounds=2"])
