"""Damage to every kind of file that is read, and what comes of it: `python -m fuzz`, or `make fuzz`."""

from fuzz import data, models, runs
from fuzz.trial import Kind

KINDS: tuple[Kind, ...] = (*data.KINDS, *runs.KINDS, *models.KINDS)
