"""Training: cells in, a run out."""
