"""Tasks of the public benchmark of simulation-based inference (Lueckmann et al. 2021).

J.-M. Lueckmann, J. Boelts, D. S. Greenberg, P. J. Goncalves, J. H. Macke, "Benchmarking simulation-based
inference", AISTATS 2021, https://arxiv.org/abs/2101.04653; definitions as in sbibm 1.1.0 (MIT licence,
https://github.com/sbi-benchmark/sbibm), written anew here, batched and with their likelihoods.
"""
