"""The pictures of the page on prompts as files of its folder, so that `diffleak report` writes the page again without the model.

pictures/001-image.npy is what the model drew for the highest prompt, uint8, left out where that is no image; pictures/001-map.npy is its
map, float32. They are as private as the page, which shows the same. No torch.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffleak.errors import WHY, refusing
from diffleak.records.prompts import PICTURES, PromptsRecord
from diffleak.report.sections.prompts import Picture
from diffleak.work.reading import Unreadable, load_npy


def as_files(pictures: Sequence[Picture]) -> dict[str, bytes]:
    """The content of each file by its path in the folder."""
    found: dict[str, bytes] = {}
    for rank, picture in enumerate(pictures, 1):
        found |= {} if picture.image is None else {_path(rank, "image"): _written(picture.image)}
        found[_path(rank, "map")] = _written(picture.map)
    return found


def read_pictures(folder: Path, record: PromptsRecord) -> tuple[Picture, ...]:
    """The pictures of the highest prompts; none in a folder without, such as one of an earlier version.

    Raises `UserError` for a file that cannot be read.
    """
    with refusing(Unreadable, f"a picture in {folder / PICTURES} cannot be read ({WHY}); repeat the prompts command"):
        return tuple(
            Picture(score, load_npy(image) if (image := folder / _path(rank, "image")).is_file() else None, load_npy(place))
            for rank, score in enumerate(record.prompts, 1)
            if (place := folder / _path(rank, "map")).is_file()
        )


def _path(rank: int, what: str) -> str:
    return f"{PICTURES}/{rank:03d}-{what}.npy"


def _written(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
