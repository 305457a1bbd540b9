"""Settings of a command that reads images."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from diffleak.config import Config, Flag, Seed, Text
from diffleak.records.images import Alpha, Decoding, Exif

# settings that several commands share
Data = Annotated[Text, Field(description="Image folder, .parquet or .tar file or a folder of them, .npy, .npz, 'digits' or hf:NAME.")]
Split = Annotated[Path | None, Field(description='JSON {"members": IDS, "nonmembers": IDS}, or .csv, .npz, .npy, .txt.')]
Resize = Annotated[bool, Flag("--no-resize"), Field(description="Convert images of another size or colour.")]
SkipUnreadable = Annotated[bool, Flag("--no-skip-unreadable"), Field(description="Leave out damaged files.")]
IgnoreModelSplit = Annotated[bool, Field(description="Go on although the split.json beside MODEL contradicts the two sides.")]
Anonymous = Annotated[bool, Field(description="Write and print keyed ids in place of file names; `reveal` finds the names again.")]
AnonymousKey = Annotated[
    Path | None,
    Field(description="The file of that key, for runs to be compared; made if it is not there. Default anonymous.key in the output."),
]
KeptDrawings = Annotated[
    Path | None,
    Field(
        description="Text-to-image models: a folder of drawings for captions, which extract and the attack black_box share. "
        "What is there is not drawn again."
    ),
]
Shard = Annotated[str | None, Field(description="i/n: do the i-th of n shares of the work.")]


class DataConfig(Config):
    """Settings of a command that reads images: how files become pixels (`diffleak.records.images`)."""

    FOLLOW = ["resize exif alpha white"]

    exif: Exif = Field("apply", description="EXIF orientation: {default} (default), or ignore where the trainer does not turn images.")
    alpha: Alpha = Field("drop", description="Transparency: {default} (default, as convert('RGB') does), or lay it on white or black.")
    white: int | None = Field(
        None, ge=1, lt=2**32, description="What is white in grey images of more than 8 bits, such as 4095; default their range."
    )

    @property
    def decoding(self) -> Decoding:
        """The choices together, as readers take them."""
        return Decoding(self.exif, self.alpha, self.white)


def refuse_one_side(members: str | None, nonmembers: str | None, data: str | None, split: Path | None) -> None:
    """Raises `ValueError` unless both sides of an audit are given, in one of the two ways."""
    pair, single = (members, nonmembers), (data, split)
    if any(pair) and any(single):
        raise ValueError("give --members and --nonmembers, or --data and --split, not both")
    if not all(pair) and not all(single):
        raise ValueError("the two sides must be given as --members and --nonmembers, or as --data with --split")


class CohortConfig(DataConfig):
    """What `diffleak.cohort` takes besides data: how images are read, and how many a side are drawn by which seed."""

    limit: int | None = Field(None, ge=1)
    seed: Seed = 0
