"""Measures how good a model's images are and how many are copies, by features of them (torch); the statistics are in `stats.images`."""
