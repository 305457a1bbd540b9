"""Where images come from: one locator string, one lazy `ImageSource`.

DATA is an image folder (the Hugging Face imagefolder convention), a Parquet file with an image column, a .npy/.npz of
uint8 (N, H, W[, C]), `digits`, or `hf:NAME[:SPLIT]`. Pixels stay uint8 and are decoded one image at a time, so a source
of a million files costs only its list of ids.
"""

import json
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffleak.data.decoding import SKIP_HINT, Decoded, Pixels, UnreadableImage, decode, of_array
from diffleak.data.handling import AS_TRAINERS, NOTHING, Decoding, LeftOut
from diffleak.data.listing import list_images, opened_suffixes, path_id
from diffleak.errors import UserError, pip_install

IMAGE_COLUMNS = ("image", "img", "images", "pixels")
CAPTION_COLUMNS = ("text", "caption")

Texts = tuple[str, ...]


@dataclass(frozen=True)
class Labels:
    """The class of every image, as a number; where they number folders, `names` are those folders."""

    numbers: tuple[int, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageSource:
    """A named, ordered set of images that are read one at a time.

    `ids` are unique: the path below an image folder, or the row number (as text) of an array or table.
    `read(i)` returns image i as uint8 (height, width, channels) with 1, 3 or 4 channels. `labels()` reads
    their classes, `captions()` the texts of each image, its own caption first and none where it has none; both return
    None where the data has none at all. `decoded(i)` is image i with what was done to it by the choices of `decoding`;
    `left_out` counts the files of a folder that were not read.
    """

    name: str
    ids: tuple[str, ...]
    read: Callable[[int], Pixels]
    labels: Callable[[], Labels | None] = lambda: None
    captions: Callable[[], tuple[Texts, ...] | None] = lambda: None
    look: Callable[[int], Decoded] | None = None  # as `read`, with notes
    decoding: Decoding = AS_TRAINERS
    left_out: LeftOut = NOTHING

    def __len__(self) -> int:
        return len(self.ids)

    def decoded(self, i: int) -> Decoded:
        """The pixels of image i, with notes on what was done to it."""
        return self.look(i) if self.look else of_array(self.read(i), AS_TRAINERS)


def open_source(data: "str | Path | np.ndarray | ImageSource", decoding: Decoding = AS_TRAINERS) -> ImageSource:
    """The image source behind a DATA argument, read as `decoding` says.

    Raises `UserError` when there is none or it is empty, and for a source that was opened with other choices.
    """
    if isinstance(data, ImageSource):
        if data.decoding != decoding:
            raise UserError(f"{data.name} was opened with {data.decoding}; open it with the same exif, alpha and white, or leave them out")
        return data
    if isinstance(data, np.ndarray):
        return _array_source("array", data, decoding)
    text = str(data)
    if text == "digits":
        return _digits(decoding)
    if text.startswith("hf:"):
        return _hugging_face(text, decoding)
    path, key = Path(text), None
    if not path.exists() and ":" in text:
        path, key = Path(text.rpartition(":")[0]), text.rpartition(":")[2]
    if not path.exists():
        raise UserError(f"DATA must be a folder, a .npy, .npz or .parquet file, 'digits' or 'hf:NAME'; found nothing at {text}")
    if path.is_dir():
        return _folder(path, decoding)
    readers = {".npy": _numpy_file, ".npz": _numpy_file, ".parquet": _parquet}
    if path.suffix not in readers:
        raise UserError(f"DATA must be a folder, .npy, .npz or .parquet; {path} has the ending '{path.suffix}'")
    return readers[path.suffix](path, key, decoding)


def _folder(path: Path, decoding: Decoding) -> ImageSource:
    listing = list_images(path)
    files, left_out = listing.files, listing.left_out
    if not files:
        others = "".join(
            f"; {count} {what} (first: {first})"
            for count, what, first in (
                (left_out.unopened, "look like images and are of a kind that is not opened", left_out.first_unopened),
                (left_out.hidden, "are hidden", left_out.first_hidden),
            )
            if count
        )
        raise UserError(f"{path} must contain images ({', '.join(sorted(opened_suffixes()))}); found none{others}")
    ids = tuple(path_id(f, path) for f in files)
    look = lambda i: decode(files[i], str(files[i]), decoding)
    read = lambda i: look(i).pixels
    return ImageSource(
        str(path), ids, read, lambda: _folder_labels(path, ids), lambda: _folder_captions(path, ids), look, decoding, left_out
    )


def _folder_labels(path: Path, ids: tuple[str, ...]) -> Labels | None:
    """The `label`s of metadata.jsonl, else the folder of every image where all are in folders."""
    metadata = path / "metadata.jsonl"
    labels = _metadata_labels(metadata, ids) if metadata.is_file() else None
    folders = [image_id.rpartition("/")[0] for image_id in ids]
    if labels or not all(folders):
        return labels
    names = sorted(set(folders))
    number = {name: i for i, name in enumerate(names)}
    return Labels(tuple(number[name] for name in folders), tuple(names))


def _metadata_labels(metadata: Path, ids: tuple[str, ...]) -> Labels | None:
    try:
        labels = {str(row["file_name"]): _whole(row["label"]) for row in read_lines(metadata) if "label" in row}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{metadata} must hold a JSON object with file_name per line, labels as whole numbers ({error})") from None
    missing = [i for i in ids if i not in labels]
    if labels and missing:
        raise UserError(f"{metadata} must give every image a label; {len(missing)} have none (first: {missing[0]})")
    return Labels(tuple(labels[i] for i in ids)) if labels else None


def _whole(label: object) -> int:
    if not isinstance(label, int) or isinstance(label, bool) or abs(label) >= 2**63:
        raise ValueError(f"got the label {json.dumps(label)}")
    return label


def _folder_captions(path: Path, ids: tuple[str, ...]) -> tuple[Texts, ...] | None:
    """`text`, then the `captions`, of metadata.jsonl; None where no line has any."""
    metadata, found = path / "metadata.jsonl", dict[str, Texts]()
    if not metadata.is_file():
        return None
    try:
        for row in read_lines(metadata):
            if "text" in row or "captions" in row:
                name, text = str(row["file_name"]), row.get("text")
                if not (text is None or isinstance(text, str)):
                    raise ValueError(f"got the text {json.dumps(text)}")
                found[name] = not_blank((*found.get(name, ()), *texts_of(text), *texts_of(row.get("captions"))))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{metadata} must hold a JSON object with file_name per line, text as a string and captions as a list of them ({error})"
        ) from None
    return tuple(found.get(i, ()) for i in ids) if any(found.values()) else None


def read_lines(path: Path) -> list[Any]:
    """The JSON values in the lines of a file; raises `OSError`, or `ValueError` for what is no JSON."""
    # not splitlines: it would also cut at the other line separators of Unicode, which JSON has inside its texts
    return [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]


def texts_of(value: Any) -> Texts:
    """One text, a list of them, or None, as the distinct texts in their order; raises `ValueError` for anything else."""
    texts = [] if value is None else [value] if isinstance(value, str) else value
    texts = [text for text in texts if text is not None] if isinstance(texts, list | tuple) else [texts]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"got the text {json.dumps(value, default=str)}")
    return tuple(dict.fromkeys(texts))


def not_blank(texts: Any) -> Texts:
    """The texts of an image that say something: a blank one is what many tables hold where there is no caption."""
    return tuple(text for text in texts_of(texts) if text.strip())


def _array_source(name: str, images: np.ndarray, decoding: Decoding, read: Callable[[int], Pixels] | None = None) -> ImageSource:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3, 4)):
        raise UserError(f"{name} must hold uint8 images (N, H, W) or (N, H, W, 1|3|4); got {images.dtype} {images.shape}")
    if len(images) == 0:
        raise UserError(f"{name} must hold at least one image; it is empty")
    images = images if images.ndim == 4 else images[..., None]
    stored = read or (lambda i: np.asarray(images[i]))
    look = lambda i: of_array(stored(i), decoding)
    return ImageSource(name, tuple(map(str, range(len(images)))), lambda i: look(i).pixels, look=look, decoding=decoding)


def _numpy_file(path: Path, key: str | None, decoding: Decoding) -> ImageSource:
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.memmap):
            return _array_source(str(path), loaded, decoding, _mapped(path, loaded))
        with loaded:
            images = loaded[key or _image_key(path, loaded)]
            source = _array_source(f"{path}:{key}" if key else str(path), images, decoding)
            labels = _array_labels(loaded, len(images))
            return replace(source, labels=lambda: labels)
    except KeyError:
        raise UserError(f"{path} has no array '{key}'; it holds {', '.join(loaded.files)}") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as numpy data without pickle ({error})") from None


def _mapped(path: Path, images: np.memmap) -> Callable[[int], Pixels]:
    """Reads each image of a .npy file through a mapping of its own: one that stayed open would keep every page read in memory."""
    absolute, offset, shape = str(path.absolute()), images.offset, images.shape
    order: Literal["C", "F"] = "C" if images.flags.c_contiguous else "F"

    def read(i: int) -> Pixels:
        try:
            return np.atleast_3d(np.array(np.memmap(absolute, np.uint8, "r", offset, shape, order)[i]))
        except (OSError, ValueError) as error:
            raise UnreadableImage(f"{path} row {i} cannot be read any more ({error}); put the file back{SKIP_HINT}") from None

    return read


def _array_labels(arrays: "np.lib.npyio.NpzFile", count: int) -> Labels | None:
    """The one array of an .npz that is named like labels and has a whole number per image."""
    named = [_array_or_none(arrays, k) for k in arrays.files if "label" in k.lower()]
    fitting = [a for a in named if a is not None and a.shape == (count,) and a.dtype.kind in "iu"]
    return Labels(tuple(fitting[0].tolist())) if len(fitting) == 1 else None


def _array_or_none(arrays: "np.lib.npyio.NpzFile", key: str) -> np.ndarray | None:
    try:
        return arrays[key]
    except ValueError:  # Python objects, such as names: nothing that a model without classes needs
        return None


def _image_key(path: Path, arrays: "np.lib.npyio.NpzFile") -> str:
    candidates = [k for k in arrays.files if arrays[k].dtype == np.uint8 and arrays[k].ndim >= 3]
    if len(candidates) != 1:
        found = ", ".join(candidates or arrays.files)
        raise UserError(f"{path} must hold one uint8 image array; found {found}: say which as {path}:NAME")
    return candidates[0]


def _parquet(path: Path, key: str | None, decoding: Decoding) -> ImageSource:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0]})") from None
    names = file.schema_arrow.names
    column = key or next((c for c in IMAGE_COLUMNS if c in names), None)
    if column not in names:
        raise UserError(
            f"{path} must have an image column ({', '.join(IMAGE_COLUMNS)}); it has {', '.join(names)}: say which as {path}:NAME"
        )
    starts = np.cumsum([0] + [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)])
    if starts[-1] == 0:
        raise UserError(f"{path} must hold at least one image; it is empty")

    @lru_cache(maxsize=1)
    def group(g: int) -> pa.ChunkedArray:
        return file.read_row_group(g, columns=[column]).column(0)

    def look(i: int) -> Decoded:
        g = int(np.searchsorted(starts, i, side="right")) - 1
        cell = group(g)[i - int(starts[g])].as_py()
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise UnreadableImage(f"{path} row {i}: column '{column}' holds no encoded image; replace it{SKIP_HINT}")
        return decode(content, f"{path} row {i}", decoding)

    def labels() -> Labels | None:
        if "label" not in names or not pa.types.is_integer(file.schema_arrow.field("label").type):
            return None
        numbers = file.read(columns=["label"]).column(0)
        return None if numbers.null_count else Labels(tuple(numbers.to_pylist()))

    def captions() -> tuple[Texts, ...] | None:
        told = next((c for c in CAPTION_COLUMNS if c in names and _holds_text(file.schema_arrow.field(c).type)), None)
        return tuple(map(not_blank, file.read(columns=[told]).column(0).to_pylist())) if told else None

    read = lambda i: look(i).pixels
    return ImageSource(str(path), tuple(map(str, range(starts[-1]))), read, labels, captions, look, decoding)


def _holds_text(kind: Any) -> bool:
    """Whether a column of this Arrow type holds a text, or a list of texts, per row."""
    import pyarrow.types as types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _digits(decoding: Decoding) -> ImageSource:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.clip(np.rint(digits.images * (255 / 16)), 0, 255).astype(np.uint8)
    return replace(_array_source("digits", images, decoding), labels=lambda: Labels(tuple(digits.target.tolist())))


def _hugging_face(locator: str, decoding: Decoding) -> ImageSource:
    try:
        import datasets
    except ImportError:
        raise UserError(f"'{locator}' needs the datasets library: {pip_install('hf')}") from None
    _, name, *rest = locator.split(":", 2)
    split = rest[0] if rest else "train"
    try:
        table = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises many kinds; each is about the name, the split or the network
        raise UserError(f"'{locator}' cannot be loaded: {str(error).splitlines()[0]}") from None
    column = next((c for c, kind in table.features.items() if isinstance(kind, datasets.Image)), None)
    if column is None:
        raise UserError(f"'{locator}' must have an image column; it has {', '.join(table.features)}")
    table = table.cast_column(column, datasets.Image(decode=False))

    def look(i: int) -> Decoded:
        cell = table[i][column]
        return decode(cell["bytes"] or Path(cell["path"]), f"{locator} row {i}", decoding)

    classes = next((c for c, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)), None)
    labels = lambda: Labels(tuple(table[classes])) if classes else None
    told = next((c for c in CAPTION_COLUMNS if c in table.features and _holds_text(table.data.schema.field(c).type)), None)
    captions = lambda: tuple(map(not_blank, table[told])) if told else None
    read = lambda i: look(i).pixels
    return ImageSource(locator, tuple(map(str, range(len(table)))), read, labels, captions, look, decoding)
