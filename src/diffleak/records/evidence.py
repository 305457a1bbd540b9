"""What an audit's record says for the file beside its numbers: who made it, for which release, and which attacks were not run. No torch."""

from typing import Literal

from diffleak.records.base import Record

Release = Literal["weights", "api", "images"]
RELEASED: Release = "weights"  # the most cautious: someone with the weights can do all that the others can

# The access that each form of release gives to an outsider, by the names that attacks have.
GIVES: dict[Release, tuple[str, ...]] = {
    "weights": ("black-box", "grey-box", "white-box"),
    "api": ("black-box",),
    "images": (),
}


class KnownAttack(Record):
    """An attack that the version of diffleak has, or one of the user's own, and whether the audit ran it."""

    attack: str
    """Name of the attack, without parameters."""
    access: str
    """What the attacker needs, as in a result."""
    about: str
    """What the attack looks at, in a sentence."""
    run: bool
    """True where the record has its results."""
    unfit: str | None = None
    """Why the attack cannot be run on this model, in words; null where it can."""


class Evidence(Record):
    """What a reader needs who keeps the report for the file."""

    title: str | None = None
    """Title or reference number of the audit, as the user gave it; null where none was given."""
    auditor: str | None = None
    """Name of who made the audit, as the user gave it; null where none was given."""
    note: str | None = None
    """Note of the user's; null where none was given."""
    release: Release | None = None
    """Form of release that the verdict is for; null where none was given, which counts as weights."""
    started: str | None = None
    """Time in UTC at which the run folder was claimed, as ISO 8601; null where that is not known."""
    training_images: int | None = None
    """Number of images that the model was trained on, by its own split.json; null where none lists the audited ones."""
    training_from: str | None = None
    """Path of that split.json; null where there is none."""
    split_digest: str | None = None
    """SHA-256 of the split file that named the two sides; null where the sides were given as two sources."""
    attacks: tuple[KnownAttack, ...] = ()
    """Each attack that this version has, in the order of `diffleak attacks`, then those of the user's own."""

    @property
    def released(self) -> Release:
        """The form of release that the report counts attacks for."""
        return self.release or RELEASED

    def counts(self, access: str) -> bool:
        """True if an outsider has this access once the model is released in this form."""
        return access in GIVES[self.released]

    @property
    def counting(self) -> tuple[KnownAttack, ...]:
        """The attacks that an outsider can run on this model once it is released in this form."""
        return tuple(each for each in self.attacks if each.unfit is None and self.counts(each.access))
