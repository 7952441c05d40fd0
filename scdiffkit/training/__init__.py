"""Training: fit a codec and a diffusion model to cells and save them as a run."""
