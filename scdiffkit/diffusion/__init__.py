"""The diffusion process: noise schedules, the denoiser and its samplers."""
