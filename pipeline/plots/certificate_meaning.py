"""What each number of a certificate is called, and what it means in a sentence or two."""

from __future__ import annotations

BLIND_SPOT = (
    "No weight can see a mode of the posterior that q lacks: they are computed from draws of q. The search looks for such "
    "modes from the prior, and may still miss one whose basin is less than a few thousandths of it. "
    "Calibration on held-out simulations, where the true parameters are one exact draw from the posterior, bounds "
    "how often that happens, but for the population of simulations only, not for this observation."
)
SURROGATE = (
    "The likelihood here is a learned one: evidence and weights speak of that surrogate, and so does every sampler that "
    "ran on it. What speaks of the simulator itself is the check of the learned likelihood above, made at these draws, "
    "and calibration on held-out simulations."
)

NOT_CHECKED = "the learned likelihood was not compared with its simulator at these draws"

MEANING: dict[str, tuple[str, str]] = {
    "log_evidence": (
        "Log evidence, log p(x)",
        "Probability of the data under the model, averaged over the prior; what Bayes factors are made of. "
        "Estimated by importance sampling.",
    ),
    "log_evidence_error": ("its standard error", "Monte Carlo error from the scatter of the weights."),
    "elbo": ("ELBO", "Lower bound of the log evidence, reached only if q is the posterior."),
    "reconstruction": ("Reconstruction", "Mean log likelihood over q: how well draws of q fit the data."),
    "regularization": (
        "Regularization",
        "KL divergence of q from the prior: how much was learned from the data.",
    ),
    "kl_gap": (
        "Gap to the evidence",
        "Log evidence minus ELBO: KL divergence of q from the posterior. Small means that q is the posterior wherever "
        "q puts its draws; it says nothing of places where q puts none.",
    ),
    "gap_of_worst_percent": (
        "Gap from the lightest 1 %",
        "Nats of the gap that come from the 1 % of q's draws with the least weight: draws in places that the posterior "
        "all but rules out. They cost the ELBO; weighted draws do not notice them.",
    ),
    "mixture_elbo": (
        "ELBO of the mixture",
        "That of q with its defensive components, from which the weighted draws were taken.",
    ),
    "mixture_kl_gap": (
        "Gap of the mixture",
        "Log evidence minus its ELBO. Its wide components are there so that no weight is large: they cost nats here, "
        "and the delivered draws nothing.",
    ),
    "ess_fraction": (
        "Effective sample size of the weights",
        "Share of the draws that the weights leave effective; 100 % if q is the posterior.",
    ),
    "pareto_k": (
        "Pareto k of the weights",
        "Shape of the tail of the weights: below 0.5 their variance is finite, above 0.7 no estimate made from them "
        "is reliable.",
    ),
    "proposals": ("Weighted draws", "Draws behind these numbers; few where the weights are nearly equal."),
    "largest_weight": (
        "Largest weight",
        "Over the mean weight. Where no draw counts for more than three, the shape of the tail, Pareto k, says nothing.",
    ),
    "rounding": (
        "Rounding of the weights",
        "What floating point may add to the difference of two log weights. Above 0.01 nats the weights are noise.",
    ),
    "distinct_draws": (
        "Distinct draws",
        "Weighted draws that differ from one another. Draws that coincide count once, whatever their weights say.",
    ),
    "search_starts": (
        "Starts of the search",
        "Points of the prior, never of q, from which the annealed posterior density was climbed for what q lacks.",
    ),
    "search_candidates": ("Candidates of the simulator", "Further starts, which the simulator itself has listed."),
    "search_optima": ("Optima that it found", "Those that matter, after equal ones were merged."),
    "search_missed": (
        "Posterior that q lacked",
        "Share of the posterior that q did not have and the search has added to the delivered draws.",
    ),
    "search_uncovered": (
        "Posterior still not covered",
        "Share of the posterior that the search found and that the delivered draws do not cover.",
    ),
    "refused": ("Refused draws", "Draws whose weight was zero or not a number; they count as weight zero."),
    "likelihood_calls": (
        "Likelihood calls",
        "Values of theta at which the likelihood was evaluated for this observation.",
    ),
    "repeated_fraction": (
        "Repeated draws",
        "Share of delivered draws that repeat another one, from resampling by weight.",
    ),
    "amortized_elbo": ("ELBO of the amortized q", "The same network before it was tuned to this observation."),
    "amortized_kl_gap": ("Gap of the amortized q", "Log evidence minus its ELBO."),
    "amortized_log_evidence": ("Log evidence from the amortized q", "Must agree with the log evidence above."),
    "amortized_log_evidence_error": ("its standard error", "Monte Carlo error from the scatter of its weights."),
    "amortized_ess_fraction": ("Effective sample size of the amortized q", "Share of its draws left effective."),
    "amortized_pareto_k": ("Pareto k of the amortized q", "As above."),
    "r_hat": ("R-hat of the Markov chains", "Rank-normalised; 1 where they have mixed."),
    "surrogate_check": (
        "Check of the learned likelihood",
        "Probability that simulations at the delivered draws, under the conditions of this observation, and draws of the "
        "learned likelihood differ as much as they do if it is right.",
    ),
    "surrogate_shift": (
        "Shift that it causes",
        "By how many of its standard deviations the mean of the worst parameter is off, as those simulations have it: to "
        "first order.",
    ),
    "surrogate_width": (
        "Width that it causes",
        "Delivered over true width of the posterior, of the worst parameter: to first order. Below 1 it is too narrow.",
    ),
    "surrogate_failed": (
        "Failed simulations of that check",
        "Simulations at the delivered draws that gave no data; they are left out.",
    ),
    "surrogate_error": (
        "Log evidence between networks",
        "Standard deviation of the log evidence over the networks of the learned likelihood: what it does not know of itself.",
    ),
    "surrogate_spread": (
        "Spread of the learned likelihood",
        "Mean standard deviation of its log likelihood over its networks, at the delivered draws.",
    ),
    "surrogate_outside": (
        "Draws outside what was simulated",
        "Share of the delivered draws at which the networks disagree more, or simulations are rarer, than at nearly all "
        "held-out simulations. There the learned likelihood is lowered, and is a guess.",
    ),
    "typicality": (
        "Typicality",
        "Probability that a simulated observation lies as far from the others as this one. A small one says that "
        "nothing like it was simulated: the network had no example, and the model may be wrong.",
    ),
    "predictive_failed": (
        "Failed replicates",
        "Replicated data of the posterior predictive check that the simulator failed to give; they are left out.",
    ),
    "inputs_held": (
        "Inputs held at a bound",
        "Numbers of this observation so far outside what training saw that the network was shown the bound in their place.",
    ),
    "predictive": (
        "Posterior predictive check",
        "Probability, on both sides, that data replicated under this posterior have a log likelihood as far out as "
        "the observed ones. A small one says that the model does not describe these data.",
    ),
}
"""Name and meaning of each number, in the order of the table."""
