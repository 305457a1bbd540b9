"""The settings of `diffleak split`. No torch."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from diffleak.config import Flag, Seed, Text
from diffleak.data.config import Data, DataConfig, SkipUnreadable

COLUMN = "group"  # the column that is read without --group
FAIR = 0.5


class SplitConfig(DataConfig):
    """Everything that decides `diffleak split`; the keys of `-C FILE` and, with dashes, its flags."""

    ARGUMENT = "data"
    OUTPUTS = {"output": "file", "link": "folder", "copy": "folder"}

    data: Data
    output: Annotated[Path, Flag("-o")] = Field(description="The split file to write, such as split.json.")
    held_out: float | None = Field(
        None, gt=0, lt=1, description="Share of the images to hold out, such as 0.2. An audit needs at least 10 held-out images."
    )
    coin: bool = Field(False, description="Draw the side of each image by a fair coin of its own; only `diffleak epsilon` needs this.")
    seed: Seed = 0
    group: Text | None = Field(
        None, description="Column of the metadata, such as person: images of one value stay on one side. Default 'group', if there is one."
    )
    link: Path | None = Field(None, description="Also lay out DIR/members and DIR/nonmembers, with captions, as links to the files.")
    copy_: Path | None = Field(
        None, alias="copy", description="The same, with copies in place of links; images of arrays and tables become PNG files."
    )
    skip_unreadable: SkipUnreadable = False

    @model_validator(mode="after")
    def _one_way(self) -> "SplitConfig":
        if self.coin and self.held_out not in (None, FAIR):
            raise ValueError("--coin is a fair coin, which holds out about half of the images: leave out --held-out, or --coin")
        if not self.coin and self.held_out is None:
            raise ValueError("how many images to hold out must be given: --held-out 0.2, or --coin for a fair coin each")
        if self.link and self.copy_:
            raise ValueError("--link and --copy lay out the same folders: leave out one of them")
        return self

    @property
    def folder(self) -> Path | None:
        """Where members/ and nonmembers/ are laid out; None for nowhere."""
        return self.link or self.copy_
