"""An encoded image, or one of an array, as the uint8 pixels that a `Decoding` makes of it, with notes on what was done."""

import io
import struct
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from typing import BinaryIO, NamedTuple, final

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageFile, UnidentifiedImageError

from diffleak.errors import UserError
from diffleak.records.images import AS_TRAINERS, PLAIN, Decoding, Notes
from diffleak.work.reading import opened

MAX_PIXELS = 64 * 2**20  # an 8192 x 8192 image; beyond it a small file may be a decompression bomb
SKIP_HINT = ", or leave it out with --skip-unreadable"
EXIF_HINT = "; --exif ignore reads it as stored"
WITHOUT_HINT = lambda error: str(error).replace(SKIP_HINT, "")  # for commands without that flag
WITHOUT_HINTS = lambda error: WITHOUT_HINT(error).replace(EXIF_HINT, "")  # for those that have no choice of how images are read
ORIENTATION = 0x0112
SAMPLE_BITS = 258  # the TIFF tag BitsPerSample
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}  # from the stored image to the upright one, by its orientation

Pixels = UInt8[np.ndarray, "h w c"]


class UnreadableImage(UserError):
    """One image that cannot be decoded; `--skip-unreadable` turns it into a recorded omission."""


@final
class _BombsRaise:
    """Pillow's warning of a decompression bomb as an error while any thread decodes: the filters of warnings are those of all threads."""

    def __init__(self) -> None:
        self._guard, self._inside, self._before = Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._guard:
            if not self._inside:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            self._inside += 1

    def __exit__(self, *raised: object) -> None:
        with self._guard:
            self._inside -= 1
            if not self._inside:
                self._before.__exit__(None, None, None)


BOMBS_RAISE = _BombsRaise()


class Decoded(NamedTuple):
    """The pixels of one image and what was done to it."""

    pixels: Pixels
    notes: Notes


def decode(content: bytes | Path, name: str, decoding: Decoding = AS_TRAINERS) -> Decoded:
    """An encoded image as uint8 (h, w, c): grey stays 1 channel, palettes expand, alpha is kept as a 4th channel.

    Where transparency is laid on a colour, the first three channels are the result. Raises `UnreadableImage` for what is no image,
    and `UserError` for a value above `decoding.white`.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: truncated files would be audited as grey areas")
    try:
        with BOMBS_RAISE, _stream(content) as stream, Image.open(stream) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(
                    f"{name}: {image.width} x {image.height} pixels is above the limit of {MAX_PIXELS:,} "
                    f"(a decompression bomb?); shrink it{SKIP_HINT}"
                )
            return _decoded(image, name, decoding)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(f"{name}: {error}; shrink it{SKIP_HINT}") from None
    except UnidentifiedImageError:
        raise UnreadableImage(f"{name} is no image; remove it{SKIP_HINT}") from None
    except UserError:
        raise
    except Exception as error:  # each of Pillow's readers raises its own kinds, and damaged bytes bring out the rarest
        reason = str(error).split("\n")[0] or type(error).__name__
        raise UnreadableImage(f"{name} cannot be decoded ({reason}); replace it{SKIP_HINT}") from None


def _stream(content: bytes | Path) -> AbstractContextManager[BinaryIO]:
    return nullcontext(io.BytesIO(content)) if isinstance(content, bytes) else opened(content, None)


def of_array(pixels: Pixels, decoding: Decoding) -> Decoded:
    """One image of an array: it has no orientation and 8 bits, but it may be transparent."""
    transparent = pixels.shape[2] == 4 and bool(pixels[..., 3].min() < 255)
    return Decoded(_laid(pixels, decoding), Notes(transparent=True)) if transparent else Decoded(pixels, PLAIN)


def _decoded(image: Image.Image, name: str, decoding: Decoding) -> Decoded:
    # the second picture of a phone's MPO is a preview or a depth map, and no page
    several = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    bits = _bits(image)
    by_pillow = image.format == "TIFF" and _orientation(image, decoding) in TURNS  # Pillow turns these itself when it loads them
    image.load()
    orientation = _orientation(image, decoding)
    turn = orientation in TURNS and decoding.exif == "apply"
    whole_numbers = image.mode.startswith("I")
    if whole_numbers:
        pixels, largest = _from_whole_numbers(np.asarray(image), bits, name, decoding)
    else:
        pixels, largest = _from_bytes(image), None
        if bits:
            largest = _largest_of_upper_bits(pixels, bits, name, decoding)
    laid, noted = of_array(pixels, decoding)
    notes = Notes(
        turned=turn,
        by_pillow=by_pillow,
        left_turned=orientation in TURNS and not turn,
        transparent=noted.transparent,
        first_frame=several,
        largest=largest,
        full=2**bits - 1 if bits else None,
        upper=bits is not None and not whole_numbers,
    )
    return Decoded(np.ascontiguousarray(TURNS[orientation](laid)) if turn else laid, PLAIN if notes == PLAIN else notes)


def _orientation(image: Image.Image, decoding: Decoding) -> int:
    """How the stored image is to be turned, 1 for not at all; raises `ValueError` where nobody can know and it matters."""
    try:
        return int(image.getexif().get(ORIENTATION) or 1)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error) as error:
        if decoding.exif == "ignore":
            return 1
        raise ValueError(f"its EXIF is damaged, so that nothing says which way is up{EXIF_HINT}: {error}") from None


def _bits(image: Image.Image) -> int | None:
    """The bits of a sample where the file says that there are more than 8, before it is loaded."""
    tiles = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else None
    bits = 8
    if image.format == "PNG":
        bits = 16 if str(args).endswith(";16B") else 8
    elif image.format == "PPM" and isinstance(args, tuple) and len(args) > 1:
        bits = 16 if args[1] > 255 else 8  # Pillow has stretched them to 16 bits then
    elif image.format == "TIFF" and image.mode != "I":
        bits = max(image.tag_v2.get(SAMPLE_BITS, (8,)))  # type: ignore[attr-defined]
    elif image.mode.startswith("I;16"):
        bits = 16
    return bits if bits > 8 else None


def _from_whole_numbers(values: Integer[np.ndarray, "h w"], bits: int | None, name: str, decoding: Decoding) -> tuple[Pixels, int]:
    """Grey values of more than 8 bits as 8, and the largest of them. Where nothing says what is white, `Tally.refuse` does not let
    the pixels pass."""
    smallest, largest = int(values.min()), int(values.max())
    if smallest < 0:
        raise ValueError(f"integer pixels must be at least 0; got {smallest} to {largest}")
    if decoding.white is None:
        return np.minimum(values.astype(np.int64) >> ((bits or 16) - 8), 255).astype(np.uint8)[..., None], largest
    if largest > decoding.white:
        raise UserError(f"--white must be at least the largest value of the images; {name} has {largest:,}, got {decoding.white:,}")
    return np.rint(values * (255 / decoding.white)).astype(np.uint8)[..., None], largest


def _largest_of_upper_bits(pixels: Pixels, bits: int, name: str, decoding: Decoding) -> int:
    """The largest value that an image may have of whose samples Pillow reads the upper 8 bits."""
    if decoding.white is not None:
        raise UserError(
            f"--white is for grey images; {name} has colours or alpha of {bits} bits, of which Pillow reads the upper 8: "
            "convert it to 8 bits with the white that is meant, and leave --white out"
        )
    colours = pixels[..., :3] if pixels.shape[2] == 4 else pixels
    return ((int(colours.max()) + 1) << (bits - 8)) - 1


def _from_bytes(image: Image.Image) -> Pixels:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    keyed = "transparency" in image.info
    if keyed and image.mode in ("1", "L", "RGB"):  # one colour means transparent, which few images make use of
        laid_out = np.asarray(image.convert("RGBA"))
        if laid_out[..., 3].min() < 255:
            return laid_out
    if image.mode not in ("L", "RGB", "RGBA"):
        transparent = "A" in image.mode.upper() or (keyed and image.mode == "P")
        image = image.convert("RGBA" if transparent and image.mode != "LAB" else "L" if image.mode == "1" else "RGB")
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _laid(pixels: Pixels, decoding: Decoding) -> Pixels:
    """The image with its transparent colours laid on white or black, its alpha kept as the 4th channel."""
    if decoding.alpha == "drop":
        return pixels
    image = Image.fromarray(pixels)
    below = Image.new("RGBA", image.size, decoding.alpha)
    return np.dstack([np.asarray(Image.alpha_composite(below, image))[..., :3], pixels[..., 3]])
