"""The geometry that a decoder gives its latent space: how far, and along which coordinates, it stretches."""
