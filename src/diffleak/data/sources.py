"""Where images come from: one locator string, one lazy `ImageSource`.

DATA is an image folder (the Hugging Face imagefolder convention), a Parquet file with an image column, a .npy/.npz of
uint8 (N, H, W[, C]), `digits`, or `hf:NAME[:SPLIT]`. Pixels stay uint8 and are decoded one image at a time, so a source
of a million files costs only its list of ids.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffleak.data.decoding import SKIP_HINT, Decoded, Pixels, UnreadableImage, decode, of_array
from diffleak.data.foreign import foreign_file, foreign_folder
from diffleak.data.labels import Labels, array_labels, folder_labels, table_labels
from diffleak.data.listing import list_images, opened_suffixes, path_id
from diffleak.data.metadata import malformed, metadata_rows, names_in_metadata
from diffleak.data.names import Names
from diffleak.errors import UserError, is_text, listed, pip_install, refuse_other_bytes, shown
from diffleak.records.images import AS_TRAINERS, NOTHING, Decoding, LeftOut
from diffleak.work.reading import Unreadable, found_at, load_column, opened_parquet, parsing

IMAGE_COLUMNS = ("image", "img", "images", "pixels")
CAPTION_COLUMNS = ("text", "caption")
KINDS_READ = "DATA must be a folder of images, or a .npy, .npz or .parquet file"

Texts = tuple[str, ...]


@dataclass(frozen=True)
class ImageSource:
    """A named, ordered set of images that are read one at a time.

    `ids` are unique: the path below an image folder, or the row number (as text) of an array or table.
    `read(i)` returns image i as uint8 (height, width, channels) with 1, 3 or 4 channels. `labels()` reads what
    the data says of their classes, `captions()` the texts of each image, its own caption first and none where it has none; both return
    None where the data has none at all; `names()` is what the files that hold them name, None without such files. `decoded(i)` is image i
    with what was done to it by the choices of `decoding`; `left_out` counts the files of a folder that were not read.
    """

    name: str
    ids: tuple[str, ...]
    read: Callable[[int], Pixels]
    labels: Callable[[], Labels | None] = lambda: None
    captions: Callable[[], tuple[Texts, ...] | None] = lambda: None
    look: Callable[[int], Decoded] | None = None  # as `read`, with notes
    decoding: Decoding = AS_TRAINERS
    left_out: LeftOut = NOTHING
    names: Callable[[], Names | None] = lambda: None

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
    refuse_other_bytes(text)
    if not text.strip():
        raise UserError("DATA must be a folder, a .npy, .npz or .parquet file, 'digits' or 'hf:NAME'; got an empty text")
    path, key = Path(text), None
    if found_at(path) == "nothing" and ":" in text:
        path, key = Path(text.rpartition(":")[0]), text.rpartition(":")[2]
    found = found_at(path)
    if found == "a folder" and key is None:
        return _folder(path, decoding)
    readers = {".npy": _numpy_file, ".npz": _numpy_file, ".parquet": _parquet}
    if found != "a file":
        where = text if found.startswith("nothing") else path
        raise UserError(f"DATA must be a folder, a .npy, .npz or .parquet file, 'digits' or 'hf:NAME'; found {found} at {where}")
    if path.suffix.lower() not in readers:
        raise UserError(f"{KINDS_READ}; {foreign_file(path) or f'{path} has the ending {path.suffix!r}'}")
    return readers[path.suffix.lower()](path, key, decoding)


def _folder(path: Path, decoding: Decoding) -> ImageSource:
    listing = list_images(path)
    files, left_out = listing.files, listing.left_out
    if not files and not left_out.unopened and not left_out.hidden and (other := foreign_folder(path)):
        raise UserError(f"{KINDS_READ}; {other}")
    if not files:
        others = "".join(
            f"; {count} {what} (first: {shown(first)})"
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
        str(path),
        ids,
        read,
        lambda: folder_labels(path, ids),
        lambda: _folder_captions(path, ids),
        look,
        decoding,
        left_out,
        lambda: names_in_metadata(path, ids),
    )


def _folder_captions(path: Path, ids: tuple[str, ...]) -> tuple[Texts, ...] | None:
    """`text` or `caption`, then the `captions`, of the metadata files; None where no row has any."""
    holding, found = "text as a string and captions as a list of them", dict[str, Texts]()
    for row in metadata_rows(path, ids, holding):
        if row.values.keys() & {*CAPTION_COLUMNS, "captions"}:
            own = [row.values.get(column) for column in CAPTION_COLUMNS]
            try:
                odd = next((text for text in own if not (text is None or isinstance(text, str))), None)
                if odd is not None:
                    raise ValueError(f"got the text {shown(json.dumps(odd, default=str))}")
                found[row.image] = not_blank((*found.get(row.image, ()), *texts_of(own), *texts_of(row.values.get("captions"))))
            except ValueError as error:
                raise malformed(row.file, holding, error) from None
    return tuple(found.get(i, ()) for i in ids) if any(found.values()) else None


def texts_of(value: Any) -> Texts:
    """One text, a list of them, or None, as the distinct texts in their order; raises `ValueError` for anything else."""
    texts = [] if value is None else [value] if isinstance(value, str) else value
    texts = [text for text in texts if text is not None] if isinstance(texts, list | tuple) else [texts]
    if not all(isinstance(text, str) and is_text(text) for text in texts):
        raise ValueError(f"got the text {shown(json.dumps(value, default=str))}")
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
        with parsing():
            loaded = np.load(path, mmap_mode="r", allow_pickle=False)
            if isinstance(loaded, np.memmap):
                return _array_source(str(path), loaded, decoding, _mapped(path, loaded))
            with loaded:
                if key and key not in loaded.files:
                    raise UserError(f"{path} has no array '{shown(key)}'; it holds {listed(loaded.files)}")
                chosen = key or _image_key(path, loaded)
                images = loaded[chosen]
                source = _array_source(f"{path}:{key}" if key else str(path), images, decoding)
                named = {k: _array_or_none(loaded, k) for k in loaded.files if "label" in k.lower() and k != chosen}
                count = len(images)
                return replace(source, labels=lambda: array_labels(str(path), named, count))
    except Unreadable as error:
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


def _array_or_none(arrays: "np.lib.npyio.NpzFile", key: str) -> np.ndarray | None:
    try:
        return arrays[key]
    except ValueError:  # Python objects, such as names: nothing that a model without classes needs
        return None


def _image_key(path: Path, arrays: "np.lib.npyio.NpzFile") -> str:
    candidates = [k for k in arrays.files if arrays[k].dtype == np.uint8 and arrays[k].ndim >= 3]
    if len(candidates) != 1:
        found = listed(candidates or arrays.files, 120)
        raise UserError(f"{path} must hold one uint8 image array; found {found}: say which as {path}:NAME")
    return candidates[0]


def _parquet(path: Path, key: str | None, decoding: Decoding) -> ImageSource:
    try:
        with opened_parquet(path) as file:
            schema, rows = file.schema_arrow, [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            without_bytes = _without_bytes(file.metadata)
    except Unreadable as error:
        raise UserError(f"{path} cannot be read as Parquet ({error})") from None
    names = schema.names
    column = key or next((c for c in IMAGE_COLUMNS if c in names), None)
    if column not in names:
        raise UserError(
            f"{path} must have an image column ({', '.join(IMAGE_COLUMNS)}); it has {listed(names, 120)}: say which as {path}:NAME"
        )
    starts = np.cumsum([0, *rows])
    if starts[-1] == 0:
        raise UserError(f"{path} must hold at least one image; it is empty")
    held = str(schema.field(column).type)
    if "binary" not in held or column in without_bytes:
        what = "paths" if column in without_bytes else "texts, such as paths" if "string" in held else shown(held)
        raise UserError(
            f"the column {shown(column)} of {path} must hold encoded images; it holds {what}: give the folder of the images, or write "
            "their bytes into the column"
        )

    @lru_cache(maxsize=1)
    def group(g: int) -> Any:
        with opened_parquet(path) as file:
            return file.read_row_group(g, columns=[column]).column(0)

    def look(i: int) -> Decoded:
        g = int(np.searchsorted(starts, i, side="right")) - 1
        try:
            cells = group(g)
            with parsing():
                cell = cells[i - int(starts[g])].as_py()
        except Unreadable as error:
            raise UnreadableImage(f"{path} row {i} cannot be read ({error}); replace the file{SKIP_HINT}") from None
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise UnreadableImage(f"{path} row {i}: column '{column}' holds no encoded image; replace it{SKIP_HINT}")
        return decode(content, f"{path} row {i}", decoding)

    def labels() -> Labels | None:
        columns = {**dict.fromkeys(names, ()), **_class_names(schema)}
        return table_labels(str(path), columns, lambda name: load_column(path, name))

    def captions() -> tuple[Texts, ...] | None:
        told = next((c for c in CAPTION_COLUMNS if c in names and _holds_text(schema.field(c).type)), None)
        try:
            return tuple(map(not_blank, load_column(path, told))) if told else None
        except Unreadable as error:
            raise UserError(f"the column {told} of {path} cannot be read ({error})") from None

    read = lambda i: look(i).pixels
    table = Names(str(path), columns=tuple(names))
    return ImageSource(str(path), tuple(map(str, range(starts[-1]))), read, labels, captions, look, decoding, names=lambda: table)


def _without_bytes(metadata: Any) -> set[str]:
    """The columns of a Parquet file whose `bytes` are null in every row, by its statistics: as `datasets` writes images by their paths."""
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    missing = set[str]()
    for c in range(metadata.num_columns):
        column, _, child = metadata.schema.column(c).path.rpartition(".")
        if child == "bytes" and all((found := g.column(c).statistics) and found.null_count == g.num_rows for g in groups):
            missing.add(column)
    return missing


def _class_names(schema: Any) -> dict[str, tuple[str, ...]]:
    """The names of classes that the `datasets` library wrote beside an Arrow table, by column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: tuple(map(str, kind["names"])) for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


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
    return replace(_array_source("digits", images, decoding), labels=lambda: Labels(tuple(digits.target.tolist()), "what the digits show"))


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
        raise UserError(f"'{locator}' must have an image column; it has {listed(table.features)}")
    table = table.cast_column(column, datasets.Image(decode=False))

    def look(i: int) -> Decoded:
        cell = table[i][column]
        content = None if cell is None else cell["bytes"] or (Path(cell["path"]) if cell["path"] else None)
        if content is None:
            raise UnreadableImage(f"{locator} row {i}: column '{column}' holds no image; replace it{SKIP_HINT}")
        return decode(content, f"{locator} row {i}", decoding)

    columns = {c: tuple(kind.names) if isinstance(kind, datasets.ClassLabel) else () for c, kind in table.features.items()}
    labels = lambda: table_labels(locator, columns, lambda name: list(table[name]))
    told = next((c for c in CAPTION_COLUMNS if c in table.features and _holds_text(table.data.schema.field(c).type)), None)
    captions = lambda: tuple(map(not_blank, table[told])) if told else None
    read = lambda i: look(i).pixels
    return ImageSource(locator, tuple(map(str, range(len(table)))), read, labels, captions, look, decoding)
