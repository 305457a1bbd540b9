"""The statistics of membership, on numpy arrays. No torch."""
