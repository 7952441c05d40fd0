"""Evaluation of synthetic cells against real ones: scores, a verdict and a report."""
