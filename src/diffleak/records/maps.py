"""maps.npy: where in the most exposed images a model and its reference differ. No torch."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from diffleak.work.folder import Folder, damaged
from diffleak.work.reading import Unreadable, parsing

FILE = "maps.npy"
FIELDS = {"id": "U", "timestep": "i", "map": "f"}  # of a row, with the kinds of their numbers


class Maps(NamedTuple):
    """Squared differences of two predictions at `timestep`, summed over channels, by the id of the image; NaN where they are not finite."""

    timestep: int
    of: dict[str, Float32[np.ndarray, "h w"]]


def write_maps(folder: Path, maps: Maps) -> None:
    """Writes maps.npy, a row an image, with a checksum at its end."""
    longest, shape = max(1, *map(len, maps.of)), next(iter(maps.of.values())).shape
    kind = np.dtype([("id", f"U{longest}"), ("timestep", "<i4"), ("map", "<f4", shape)])
    Folder(folder).save(FILE, np.array([(image_id, maps.timestep, squares) for image_id, squares in maps.of.items()], kind))


def read_maps(folder: Path) -> Maps | None:
    """The maps of a run folder, None where it has none; raises `UserError` for damaged ones, which are moved aside."""
    path = folder / FILE
    if not path.exists():
        return None
    rows = Folder(folder).load(FILE)
    try:
        kinds = {name: rows[name].dtype.kind for name in rows.dtype.names or ()}
        if kinds != FIELDS or rows["map"].ndim != 3 or not rows["map"].size or (rows["map"] < 0).any() or np.isinf(rows["map"]).any():
            raise Unreadable("it holds no maps")
        with parsing():
            found = {str(row["id"]): row["map"] for row in rows}
            return Maps(int(rows["timestep"][0]), found)
    except Unreadable as error:
        raise damaged(path, error) from None
