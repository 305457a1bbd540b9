"""The parts of a diffusion model that an attack may see: schedule, denoiser, keyed noise, and models with known answers."""
