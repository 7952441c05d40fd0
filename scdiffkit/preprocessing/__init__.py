"""Preprocessing of raw counts to training data."""
