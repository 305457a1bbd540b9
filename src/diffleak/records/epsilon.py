"""The record of a lower bound on epsilon: epsilon.json in a run folder. Field names are its keys. No torch here."""

from pathlib import Path

from diffleak.records.base import Written, read_json

FILE = "epsilon.json"


class EpsilonRecord(Written):
    """epsilon.json: how much epsilon one training run gives away, at least (see `diffleak.stats.epsilon`)."""

    run: str
    """Run folder as the user wrote it."""
    model: str
    """The audited model as the user named it."""
    model_fingerprint: str
    """Hash of the model's weights and settings."""
    epsilon: float
    """Lower bound on epsilon, at least 0; 0 where the guesses are no better than guessing at random may be."""
    delta: float
    """The delta that the bound is for, in (0, 1)."""
    level: float
    """Probability, in (0, 1), with which the bound lies below the epsilon of the training, whatever that is."""
    guesses: int
    """Number of units of the test part whose coin was guessed."""
    right: int
    """Number of right guesses."""
    promised: float | None
    """Scale of the promise: the epsilon of DP-SGD for each image; null without a promise that the bound can be compared with."""
    promised_delta: float | None
    """The delta of that promise, in (0, 1); null without one."""
    exceeds: bool
    """True where the bound is above the promise, so that the promise does not hold."""
    reason: str | None
    """Why epsilon is 0, in words; null where it is above 0."""
    attack: str
    """Label of the attack that guesses, chosen on the calibrate part."""
    timestep: int | None
    """Timestep that was chosen, in [0, T); null where the attack has a rule."""
    setting: str | None
    """Setting of the rule that was chosen; null where there is nothing to choose."""
    candidates: tuple[str, ...]
    """Labels of the attacks that were chosen from."""
    top: int
    """Number of units of the highest scores, which were guessed to be members."""
    bottom: int
    """Number of units of the lowest scores, which were guessed to be held out."""
    units: int
    """Number of units of the test part: images, or groups, with a coin of their own, guessed or not."""
    calibrate_units: int
    """Number of units that everything was chosen on."""
    shared_coins: int
    """Number of images left out since they shared their coin with others."""
    near_duplicates: int = 0
    """Number of images left out since they are near-duplicates of others, on whichever side, though their coins were thrown apart."""
    group: str | None = None
    """Column of the metadata whose groups the guesses, and so the bound, are of; null where they are of images."""
    split: str
    """Path of the split.json that says that coins were thrown."""
    seed: int
    """Seed of the division into calibrate and test part, and of the order of equal scores."""
    warnings: tuple[str, ...]
    """What a reader must know of the bound, a sentence each."""


def read_epsilon(folder: Path) -> EpsilonRecord | None:
    """The bound in a run folder, None where there is none; raises `UserError` for a file that cannot be read."""
    path = folder / FILE
    return read_json(path, EpsilonRecord, advice="repeat diffleak epsilon, which writes it again") if path.is_file() else None
