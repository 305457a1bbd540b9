"""The geometry that a decoder gives its latent space: how far, and along which coordinates, it stretches."""

from diffleak.geometry.pullback import distortion, influence, keep_mask

__all__ = ["distortion", "influence", "keep_mask"]
