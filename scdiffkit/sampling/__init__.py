"""Sampling: a run in, labelled cells out."""
