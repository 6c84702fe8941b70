"""Layout of every file in a run folder, written down once.

Data file (simulations and observations share it), HDF5:

    /x/<observable>     (N, *shape)   attributes: unit, role, label
    /x/signal_<name>    (N, *shape)   noise-free data of simulations, where simulate.signal is set
    /theta              (N, D)        where known; attributes: names, units
    /id                 (N,) UTF-8    observations only
    /failed             (N,) uint8    simulations only: 0, or why the row has no x (`simulators.failures`), which is then NaN
    /failures           row, reason   in a shard with failed simulations: which rows of it, and why in words
    root attributes     schema, schema_version, stage, content_key, settings, inputs, provenance, ...
                        text_crc32: JSON, CRC-32 of units and names, which HDF5 does not check; observations only

inference.h5, netCDF-4/HDF5, one variable a name below:

    posterior           one variable a parameter          (chain, draw, observation)
    proposal            one variable a parameter, and log_q, log_joint, log_weight, log_likelihood
                        (proposal_draw, observation); padded with NaN; absent for large catalogues
    certificate         CERTIFICATE, a value each         (observation)
    observed_data       /x of the observations            (observation, ...)

A catalogue's parts, while it is made, have the same layout, in the folder inference.h5.parts. combined.h5 (`elboscope combine`)
has it with one posterior for N rows of observed_data; population.h5 (`elboscope population`) has group posterior, one variable a hyperparameter.

validation.h5: group `calibration`: theta_true (N, D), theta_draws (L, N, D), ranks (N, D), tarp_alpha,
    tarp_expected_coverage, ess_fraction (N,); comparison.h5: one group a baseline: draws (S, D).

likelihood.safetensors: a learned likelihood (`estimators.likelihood`); posterior.safetensors holds a copy of it, its tensors
under `likelihood.`. What was made with one has the root attributes likelihood = "learned" and summary_hash, the digest of
s(x): evidences are those of s, and are compared under the same digest only.

The attribute `provenance` (versions, host, wall time) is the only content that may differ between two
runs of the same settings.
"""

from __future__ import annotations

SCHEMA = "elboscope"
SCHEMA_VERSION = 1
PROVENANCE = "provenance"
CONTENT_KEY = "content_key"
SETTINGS = "settings"
INPUTS = "inputs"
STAGE = "stage"
SUMMARY_HASH = "summary_hash"

CERTIFICATE: dict[str, str] = {
    "log_evidence": "log p(x), importance-sampling estimate, nats",
    "log_evidence_error": "its standard error, nats",
    "elbo": "evidence lower bound of q itself, refined or amortized, nats",
    "reconstruction": "<log p(x|theta)>_q, nats",
    "regularization": "KL( q(theta|x) || p(theta) ), nats",
    "kl_gap": "log_evidence - elbo = KL( q || posterior ), nats, of q itself: refined, or amortized",
    "gap_of_worst_percent": "nats of kl_gap that come from the 1 % of q's draws with the least weight",
    "mixture_elbo": "evidence lower bound of the mixture that made the weighted draws, q and what defends it, nats",
    "mixture_kl_gap": "log_evidence - mixture_elbo, nats",
    "ess_fraction": "effective sample size of the weights over the number of draws",
    "pareto_k": "shape of the tail of the weights (PSIS)",
    "proposals": "weighted draws behind these figures",
    "refused": "draws whose weight was zero or not a number",
    "largest_weight": "the largest weight over their mean",
    "rounding": "how well a log weight is known: rounding, or noise of the likelihood, nats",
    "distinct_draws": "different values among the weighted draws of the parameter that has the fewest",
    "inputs_held": "numbers that the network reads of x which lay far outside training and were held at a bound",
    "search_starts": "points from which the search for missing modes climbed; NaN: this observation was not searched",
    "search_candidates": "how many of them the simulator named",
    "search_optima": "optima that it found",
    "search_missed": "share of the posterior that q lacked, and that the search made part of the draws",
    "search_uncovered": "share of the posterior that the draws lack, as far as the search knows",
    "likelihood_calls": "values of theta at which the likelihood was evaluated for this observation",
    "repeated_fraction": "share of delivered draws that repeat another one",
    "amortized_elbo": "elbo of the amortized q, nats",
    "amortized_kl_gap": "log_evidence - amortized_elbo, nats",
    "amortized_log_evidence": "log p(x) as estimated with the amortized q, nats",
    "amortized_log_evidence_error": "its standard error, nats",
    "amortized_ess_fraction": "ess_fraction of the amortized q",
    "amortized_pareto_k": "pareto_k of the amortized q",
    "r_hat": "largest rank-normalised R-hat of the Markov chains; NaN where nothing was sampled",
    "surrogate_error": "of a learned likelihood: standard deviation of log_evidence over its networks, nats",
    "surrogate_spread": "of a learned likelihood: mean spread of the log likelihood over its networks, nats",
    "surrogate_check": "of a learned likelihood: p-value of its comparison with the simulator at the delivered draws; NaN: not checked",
    "surrogate_failed": "of a learned likelihood: simulations of that comparison that failed",
    "surrogate_shift": "of a learned likelihood: how far the posterior's mean is off by its error, to first order, standard deviations",
    "surrogate_width": "of a learned likelihood: width of its posterior over the true one, to first order",
    "surrogate_outside": "of a learned likelihood: share of delivered draws outside what was simulated",
    "typicality": "probability that a simulated observation lies as far from the others as this one",
    "predictive_failed": "replicates of the predictive check that the simulator could not make",
    "predictive": "two-sided probability of replicated data under the posterior: log likelihood as far out as the observed",
}
"""Numbers of a certificate, and what each means. Beside them stand `verdict`, one of VERDICTS, `note`, and `atypical`, 0 or 1."""

PREDICTIVE = "predictive_"
"""What the p-value of a data observable's own posterior predictive check begins with."""

VERDICTS: dict[str, str] = {
    "exact": "the weights are good: the delivered draws are the posterior up to Monte Carlo error",
    "corrected": "the network alone is off, but the weighted draws are reliable",
    "refined": "the network was fine-tuned on this observation, and then passed",
    "sampled": "handed to MCMC started from the network, and passed its convergence checks",
    "failed": "no rung of the ladder passed, or a check found the draws wanting: they are delivered, but are not to be trusted",
}
