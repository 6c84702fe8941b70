"""How to read each kind of figure, in a few words for somebody who has not seen one."""

from __future__ import annotations

from pipeline.plots.report_content import FigureKind

READING: dict[FigureKind, str] = {
    "catalogue": (
        "All observations, coloured by verdict. An ESS fraction near one and a small gap mean that q needed no help. "
        "Typicality of data like the simulations is flat, along the dashed line; a pile near zero means that some "
        "observations are unlike anything simulated."
    ),
    "predictive": (
        "Points are the data with their errors. The shaded bands hold 68 % and 95 % of what posterior draws predict. "
        "Below, residuals from the posterior median; bars show where data simulated anew would fall. About one point "
        "in twenty should lie outside the wider bar; many more, or a trend, mean that the model is wrong, which no "
        "certificate of the posterior can tell."
    ),
    "corner": (
        "Diagonal: distribution of each parameter. Below it: contours that hold 68 % and 95 % of each pair. Where the "
        "weighted draws, MCMC and nested sampling lie on top of each other they agree; the distance of the unweighted "
        "q from them is what the weights had to correct. Ranges hold 99.8 % of the weighted draws."
    ),
    "weights": (
        "Left: log of each weight over the mean weight; a narrow peak at zero means that q is the posterior. A tail to "
        "the right means that a few draws carry the answer. Right: share of the total weight carried by the largest "
        "weights; the closer to the diagonal, the better."
    ),
    "training": (
        "Grey marks every second phase. The ELBO is reconstruction minus regularization. Held-out curves come from "
        "simulations never trained on. log q of the true parameters is the one curve that falls when a mode is "
        "lost. Early values off the scale are cut."
    ),
    "rank_ecdf": (
        "For each held-out simulation the true value is ranked among the posterior draws; ranks are uniform if the "
        "posterior is calibrated, and the curve then stays inside the grey band (99 % of the time, all along). A "
        "curve first above and then below the band: posteriors too narrow. First below and then above: too wide. "
        "On one side only: biased."
    ),
    "rank_histogram": (
        "The same ranks as a histogram over its expectation. Each bar is outside the grey band one time in a hundred "
        "by chance. Like a valley: too narrow. Like a hill: too wide. Sloping: biased."
    ),
    "tarp": (
        "How often a region of given credibility, around a random point of parameter space, holds the truth, over all "
        "parameters at once. On the diagonal: calibrated. Below it at the right: too narrow. It is nearly blind to a "
        "common shift of all posteriors; read it beside the ranks."
    ),
    "comparison": "The same likelihood and prior, sampled by other means.",
    "other": "",
}

SURROGATE_READING: dict[FigureKind, str] = {
    "catalogue": "Verdicts, gap and weights are those of the learned likelihood.",
    "corner": (
        "All of these, MCMC and nested sampling too, are posteriors of the learned likelihood: that they agree does not "
        "say that it is right."
    ),
    "weights": "Weights are those of the learned likelihood.",
    "comparison": "That likelihood is the learned one.",
    "rank_ecdf": "The true values come from the simulator itself: a learned likelihood that is wrong shows here.",
}
"""What is added where the likelihood is a learned one."""

SECTION: dict[FigureKind, str] = {
    "catalogue": "catalogue",
    "predictive": "posterior",
    "corner": "posterior",
    "weights": "certificate",
    "training": "training",
    "rank_ecdf": "calibration",
    "rank_histogram": "calibration",
    "tarp": "calibration",
    "comparison": "comparison",
    "other": "training",
}
"""Section of the report in which a kind of figure stands."""
