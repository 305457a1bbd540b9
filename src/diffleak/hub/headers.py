"""What the headers of released files give away: those of a model or denoiser in one file, of adapters and of embeddings."""

import os
from collections.abc import Sequence
from pathlib import Path

from diffleak.records.headers import GivenAway, Role, given_away

ENDING = ".safetensors"

Named = Sequence[tuple[str | Path, Path]]  # what the user named, and the file that it is


def headers_of(model: str | Path, network: str | Path | None = None, adapters: Named = (), embeddings: Named = ()) -> tuple[GivenAway, ...]:
    """What the header of each .safetensors file gives away. A model or network in a folder is skipped: it has no single header."""
    files: list[tuple[Role, str | Path, Path]] = [("model", model, Path(model))]
    files += [] if network is None else [("network", network, Path(network))]
    files += [("adapter", *each) for each in adapters] + [("embedding", *each) for each in embeddings]
    name = lambda given, file: str(file if os.path.exists(given) else given)  # of the Hub, not where its copy lies here
    return tuple(given_away(file, what, name(given, file)) for what, given, file in files if file.suffix == ENDING and file.is_file())
