"""What the headers of the released files give away: of a model in one file, and of its adapters."""

import os
from collections.abc import Sequence
from pathlib import Path

from diffleak.records.headers import GivenAway, given_away

ENDING = ".safetensors"


def headers_of(model: str | Path, adapters: Sequence[tuple[str | Path, Path]] = ()) -> tuple[GivenAway, ...]:
    """What each header gives away; `adapters` are what the user named and the file that it is. A model in a folder has no one header."""
    file = Path(model)
    whole = [given_away(file, "model")] if file.suffix == ENDING and file.is_file() else []
    name = lambda given, file: str(file if os.path.exists(given) else given)  # of the Hub, not where its copy lies here
    return (*whole, *(given_away(file, "adapter", name(given, file)) for given, file in adapters if file.suffix == ENDING))
