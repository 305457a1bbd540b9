"""The settings of `diffleak check`. No torch."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from diffleak.config import Flag, Seed, Text, command_line
from diffleak.data.config import DataConfig, Split, refuse_one_side


class CheckConfig(DataConfig):
    """Everything that decides `diffleak check`; the keys of `-C FILE` and, with dashes, its flags."""

    FOLLOW = ["split output"]

    output: Annotated[Path | None, Flag("-o")] = Field(None, description="Folder of check.json and check.html.")
    members: Text | None = Field(None, description="DATA that the model was, or will be, trained on.")
    nonmembers: Text | None = Field(None, description="Held-out DATA from the same source.")
    data: Text | None = Field(None, description="One DATA for both sides, with --split.")
    split: Split = None
    calibrate_fraction: float = Field(0.2, gt=0, lt=1, description="Share of each side that the audit will choose settings on ({default}).")
    resize: int | None = Field(
        None, ge=4, description="Compare the pixels of the sides at this size, as an audit with --resize does; default the commonest size."
    )
    seed: Seed = 0
    limit: int | None = Field(None, ge=1, description="At most this many images per side.")

    @model_validator(mode="after")
    def _two_sides(self) -> "CheckConfig":
        refuse_one_side(self.members, self.nonmembers, self.data, self.split)
        return self

    @property
    def command(self) -> str:
        """The command line that repeats this."""
        return command_line(self, "check", ())
