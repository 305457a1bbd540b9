"""The sections of the page on images and copies, and the images that they show."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Pictures:
    """PNGs: `generated` by number, and `training` by id, which is private and None unless asked for."""

    generated: Callable[[int], bytes]
    training: Callable[[str], bytes] | None
