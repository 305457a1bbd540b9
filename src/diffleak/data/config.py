"""Settings of a command that reads images."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from diffleak.config import Config, Flag, Seed, Text
from diffleak.records.images import Alpha, Decoding, Exif

# settings that several commands share
Data = Annotated[Text, Field(description="Image folder, .parquet or .tar file or a folder of them, .npy, .npz, 'digits' or hf:NAME.")]
SPLIT_FILES = (
    '.json {"members": [ID, ...], "nonmembers": [ID, ...]}; .csv with the columns id and member (1 or 0); .txt with the id of a member on '
    "each line; .npy with the row numbers of members; or .npz as SecMI has it"
)
Split = Annotated[Path | None, Field(description=f"The split file: {SPLIT_FILES}.")]
Resize = Annotated[
    bool, Flag("--no-resize"), Field(description="Resize and crop images of another size to that of the model, and convert their colours.")
]
SkipUnreadable = Annotated[bool, Flag("--no-skip-unreadable"), Field(description="Skip files that cannot be read.")]
IgnoreModelSplit = Annotated[bool, Field(description="Go on although the split.json beside MODEL contradicts the two sides.")]
Anonymous = Annotated[bool, Field(description="Replace file names by ids that only your key turns into names again (`reveal`).")]
AnonymousKey = Annotated[
    Path | None,
    Field(
        description="The key file of --anonymous, made if it is missing. Runs to be compared need the same. Default OUTPUT/anonymous.key."
    ),
]
KeptDrawings = Annotated[
    Path | None,
    Field(description="Text-to-image models: a folder in which extract and the attack black_box keep what they draw, to use it again."),
]
Shard = Annotated[str | None, Field(description="i/n: do the i-th of n parts of the work.")]


class DataConfig(Config):
    """Settings of a command that reads images: how files become pixels (`diffleak.records.images`)."""

    FOLLOW = ["resize exif alpha white"]
    DATA = "data members nonmembers"
    INPUTS = {"split": "file"}
    OUTPUTS = {"drawings": "folder", "anonymous_key": "key"}
    PANELS = {"Images": "members nonmembers data split group limit resize exif alpha white buckets skip_unreadable captions"}

    exif: Exif = Field("apply", description="EXIF orientation: {default} (default), or ignore if the trainer does not rotate images.")
    alpha: Alpha = Field(
        "drop",
        description="Transparent images: {default} the alpha channel (default, as convert('RGB') does), or lay them on white or black.",
    )
    white: int | None = Field(
        None,
        ge=1,
        lt=2**32,
        description="The value of white in grey images of more than 8 bits, such as 4095 for 12 bits; default that of the file's type.",
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
