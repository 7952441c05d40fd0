"""Evaluation: real and synthetic cells in, scores, a verdict and a report out."""
