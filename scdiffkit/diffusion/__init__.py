"""The diffusion process: noise schedules, the denoiser and the samplers."""
