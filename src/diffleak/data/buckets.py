"""Aspect-ratio buckets: the sizes to which trainers of text-to-image models bring pictures of mixed sizes.

As kohya's scripts make them (`make_bucket_resolutions` and `select_bucket`, with upscaling, which is their default): sides are multiples of
a step from the smallest to the largest, and no area is above side x side. An image goes to the bucket of its own size, else to that of the
nearest aspect ratio (the first of several), is resized until it covers it, and the centre is cropped.

    SD 1             512     step 64, sides 256 to 1024
    SDXL, SD 3, Flux 1024    step 64, sides 256 to 2048
"""

from dataclasses import dataclass
from functools import cached_property

from diffleak.errors import UserError, shown

STEP, SMALLEST = 64, 256
UNSAID = 1024  # side of a model whose settings state none, as Flux and later ones
FORM = "SIDE, or SIDE:STEP:SMALLEST:LARGEST as in 512:64:256:1024"


@dataclass(frozen=True)
class Buckets:
    """Sizes of images: multiples of `step` from `smallest` to `largest`, of at most `side` x `side` pixels."""

    side: int
    step: int = STEP
    smallest: int = SMALLEST
    largest: int = 1024

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of every bucket, sorted, as kohya's scripts sort them."""
        square = self.side // self.step * self.step
        found = {(square, square)}
        for width in range(self.smallest, self.largest + 1, self.step):
            height = min(self.largest, self.side**2 // width // self.step * self.step)
            if height >= self.smallest:
                found |= {(width, height), (height, width)}
        return tuple(sorted(found))

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the bucket of an image."""
        own = (width, height)
        chosen = own if own in self.sizes else min(self.sizes, key=lambda size: abs(size[0] / size[1] - width / height))
        return chosen[1], chosen[0]


def parse_buckets(text: str) -> Buckets:
    """The buckets that a setting means; raises `UserError` for what is none."""
    parts = text.split(":")
    numbers = [int(part) for part in parts if part.isascii() and part.isdecimal() and len(part) < 6]
    if len(numbers) != len(parts) or len(parts) not in (1, 4):
        raise UserError(f"--buckets must be {FORM}; got '{shown(text)}'")
    side, step, smallest, largest = numbers if len(numbers) == 4 else (numbers[0], STEP, SMALLEST, 2 * numbers[0])
    if not 0 < step <= smallest <= side <= largest or smallest % step:
        raise UserError(
            f"--buckets SIDE:STEP:SMALLEST:LARGEST needs STEP <= SMALLEST <= SIDE <= LARGEST, and SMALLEST a multiple of STEP; got "
            f"{side}:{step}:{smallest}:{largest}"
        )
    return Buckets(side, step, smallest, largest)
