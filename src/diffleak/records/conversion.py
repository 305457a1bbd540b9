"""convert.json: where the weights of a converted model come from, and what was assumed of them. No torch."""

from pathlib import Path
from typing import Any, Literal

from diffleak.records.base import Record, Version, read_json

FILE = "convert.json"


class Conversion(Record):
    """A research checkpoint written as a diffusers folder."""

    schema_version: Literal[1] = 1
    """Version of this schema, a number."""
    diffleak: Version
    """Version of the package that wrote this."""
    checkpoint: str
    """Name of the converted file, without its folder."""
    sha256: str
    """SHA-256 of the converted file, hexadecimal."""
    code_base: Literal["pytorch-ddpm", "guided-diffusion"]
    """Code whose layout the network has; improved-diffusion shares that of guided-diffusion."""
    weights: str | None
    """Which of the networks in the file it is, by its key there; null where the file is the weights of one network."""
    step: int | None
    """Training steps that the file says it was saved after; null where it says none."""
    given: dict[str, Any]
    """Settings of --settings, by the names of the original code."""
    assumed: dict[str, Any]
    """Settings that neither the weights nor --settings gave, at the defaults of the original code."""

    def caveat(self) -> str | None:
        """What was assumed, in one line; None where nothing was."""
        if not self.assumed:
            return None
        values = ", ".join(f"{key} {str(value).lower() if isinstance(value, bool) else value}" for key, value in self.assumed.items())
        return (
            f"the {self.code_base} checkpoint does not say all of its settings; assumed, as its code does by default: {values}; "
            "if it was trained otherwise, the scores are wrong: convert it again with --settings"
        )


def conversion_caveats(folder: Path) -> list[str]:
    """What was assumed when the model in a folder was converted; nothing for a folder that was not."""
    path = folder / FILE
    if not path.is_file():
        return []
    return list(filter(None, [read_json(path, Conversion, advice="convert the checkpoint again").caveat()]))
