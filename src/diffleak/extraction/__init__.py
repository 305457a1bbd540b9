"""Looks for training images among the images that a model draws (torch); the statistics are in `stats.extraction`."""
