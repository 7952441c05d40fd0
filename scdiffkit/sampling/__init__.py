"""Sampling: draw labelled cells from a trained run."""
