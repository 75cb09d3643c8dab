"""Scores of a model's replies, with confidence intervals and baselines."""
