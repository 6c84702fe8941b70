"""Judgements on posteriors: two-sample tests, distances of marginals, calibration."""
