"""Where images come from: one locator string, one lazy `ImageSource`.

DATA is an image folder (the Hugging Face imagefolder convention, or texts beside the images), a Parquet file or a folder of them, a folder
that `save_to_disk` of `datasets` wrote, a WebDataset .tar shard or a folder of them, a .npy/.npz of uint8 (N, H, W[, C]), `digits`, or
`hf:NAME[:SPLIT]`. Pixels stay uint8 and are decoded one image at a time, so a source of a million files costs only its list of ids.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diffleak.data.decoding import SKIP_HINT, Decoded, Pixels, UnreadableImage, decode, of_array
from diffleak.data.foreign import foreign_file, foreign_folder
from diffleak.data.image_source import CAPTION_COLUMNS, ImageSource, Said, Texts, not_blank, texts_of
from diffleak.data.labels import FOLDERS, Labels, array_labels, folder_labels, label_column, table_labels
from diffleak.data.listing import Listing, list_images, opened_suffixes, path_id
from diffleak.data.metadata import column_of, malformed, metadata_rows, names_in_metadata
from diffleak.data.names import Names
from diffleak.data.shards import choose, counted, files_below
from diffleak.data.sidecars import Sidecars, find_sidecars
from diffleak.data.tables import arrow_part, holds_images, holds_text, is_saved, parquet_part, saved_parts, table_source
from diffleak.data.tars import tar_source
from diffleak.errors import WHY, UserError, first_lines, listed, one_or_more, pip_install, refuse_other_bytes, refusing, shown
from diffleak.records.images import AS_TRAINERS, Decoding
from diffleak.work.progress import retrying_quietly
from diffleak.work.reading import Unreadable, found_at, parsing

KINDS_READ = "DATA must be a folder of images, or a .npy, .npz, .parquet, .arrow or .tar file"
DATA_READ = f"{KINDS_READ}, 'digits' or 'hf:NAME'"
MOST_KEYS = 2  # after a path: a split, and a column or the ending of images


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
    path, keys, found = _place(text)
    if found == "a folder":
        return _folder(path, keys, decoding)
    if path.suffix.lower() not in READERS:
        ending = f"the ending {path.suffix!r}" if path.suffix else "no ending"
        raise UserError(f"{KINDS_READ}; {foreign_file(path) or f'{path} has {ending}'}")
    if len(keys) > 1:
        raise UserError(f"{path} is one file, after which one name may stand; got {shown(':'.join(keys))}: leave out one of them")
    return READERS[path.suffix.lower()](path, keys[0] if keys else None, decoding)


def refuse_no_data(data: str) -> None:
    """Raises `UserError` for a DATA argument that names a path at which there is neither a file nor a folder; nothing is read."""
    if data != "digits" and not data.startswith("hf:"):
        _place(data)


def _place(text: str) -> tuple[Path, list[str], str]:
    """The path that a DATA argument names, what stands after it, and what is there: "a file" or "a folder"."""
    refuse_other_bytes(text)
    if not text.strip():
        raise UserError(f"{DATA_READ}; got an empty text")
    path, keys = Path(text), list[str]()
    while found_at(path) == "nothing" and ":" in str(path) and len(keys) < MOST_KEYS:
        head, _, key = str(path).rpartition(":")
        path, keys = Path(head), [key, *keys]
    found = found_at(path)
    if found not in ("a file", "a folder"):
        where = text if found.startswith("nothing") else path
        raise UserError(f"{DATA_READ}; found {found} at {where}")
    return path, keys, found


def _folder(path: Path, keys: list[str], decoding: Decoding) -> ImageSource:
    listing = list_images(path)
    if listing.files and (data := _data_beside(path, listing)):
        saved, place = data == path, path.joinpath(*data.relative_to(path).parts[:1])
        found = "what save_to_disk wrote" if saved else shown(path_id(data, path))
        way = "move the image files away" if saved else f"give {':'.join([str(place), *keys])}, or the folder of the images"
        raise UserError(
            f"{path} must hold one kind of data; it has {one_or_more(len(listing.files), 'image file')} "
            f"(first: {shown(path_id(listing.files[0], path))}) and {found}: {way}"
        )
    if listing.files and keys:
        below = path / keys[0]
        way = f"give {below}" if below.is_dir() else "leave that out"
        raise UserError(f"{path} is a folder of images, which has no splits or columns to name; got {shown(':'.join(keys))}: {way}")
    if listing.files:
        return _image_folder(path, listing, decoding)
    if not listing.left_out.unopened and not listing.left_out.hidden:
        if other := _tables_or_tars(path, keys, decoding):
            return other
        if said := foreign_folder(path):
            raise UserError(f"{KINDS_READ}; {said}")
    left_out, unopened = listing.left_out, "of a kind that is not opened"
    others = "".join(
        f"; {one_or_more(count, one, more)} (first: {shown(first)})"
        for count, one, more, first in (
            (left_out.unopened, f"looks like an image and is {unopened}", f"look like images and are {unopened}", left_out.first_unopened),
            (left_out.hidden, "is hidden", "are hidden", left_out.first_hidden),
        )
        if count
    )
    raise UserError(f"{path} must contain images ({', '.join(sorted(opened_suffixes()))}); found none{others}")


def _data_beside(path: Path, listing: Listing) -> Path | None:
    """Data of another kind in a folder of images: the first table of images or tar archive, or the folder itself where it is saved."""
    if is_saved(path):
        return path
    tables = [file for file in listing.tables if file.name != "metadata.parquet"]
    return next((file for file in tables if file.suffix.lower() == ".tar" or holds_images(file)), None)


def _tables_or_tars(path: Path, keys: list[str], decoding: Decoding) -> ImageSource | None:
    """The images of a folder without image files, in Parquet or tar shards or as `save_to_disk` wrote them; None for another folder."""
    called = lambda key: ":".join([str(path), *(keys if key is None else keys[:-1])])
    if is_saved(path):
        parts, key = saved_parts(path, keys)
        return table_source(called(key), path, parts, key, decoding, one_or_more(len(parts), "Arrow file"))
    tables, tars = files_below(path, ".parquet"), files_below(path, ".tar")
    if tables and tars:
        raise UserError(
            f"{path} must hold one kind of data; it has {tables[0].name} and {tars[0].name}: give one file, or a folder of one kind"
        )
    if not tables and not tars:
        return None
    shards, key = choose(path, tables or tars, keys)
    if tars:
        return tar_source(called(key), path, shards, key, decoding)
    return table_source(called(key), path, [parquet_part(file) for file in shards], key, decoding, counted(shards))


def _image_folder(path: Path, listing: Listing, decoding: Decoding) -> ImageSource:
    files = listing.files
    ids = tuple(path_id(f, path) for f in files)
    look = lambda i: decode(files[i], str(files[i]), decoding)
    return ImageSource(
        str(path),
        ids,
        lambda i: look(i).pixels,
        lambda: folder_labels(path, ids),
        lambda: _folder_captions(path, ids) or find_sidecars(path, files).captions(ids),
        look,
        decoding,
        listing.left_out,
        lambda: _names_in_folder(path, ids, find_sidecars(path, files)),
        lambda: _said_in_folder(path, ids, find_sidecars(path, files)),
        lambda name: column_of(path, ids, name),
        side_by_side=True,
    )


def _names_in_folder(path: Path, ids: tuple[str, ...], sidecars: Sidecars) -> Names | None:
    """The names in the metadata where it says the captions or nothing else does, else those of the texts beside the images."""
    in_metadata = names_in_metadata(path, ids)
    return in_metadata if not sidecars.counted or (in_metadata and _folder_captions(path, ids)) else sidecars.names()


def _said_in_folder(path: Path, ids: tuple[str, ...], sidecars: Sidecars) -> Said:
    """Where captions and labels of a folder are: in metadata, in texts beside the images, in the folders' names."""
    folders = len({image_id.rpartition("/")[0] for image_id in ids})
    in_folders = f"{FOLDERS} ({folders:,})" if any("/" in image_id for image_id in ids) else ""
    try:
        rows = metadata_rows(path, ids, "captions or labels")
    except UserError:
        return Said(sidecars.used, in_folders, "its metadata cannot be used")
    of = lambda *columns: {row.file for row in rows if any(row.values.get(column) not in (None, "", []) for column in columns)}
    captions, labels = of(*CAPTION_COLUMNS, "captions"), of("label")
    beside = f"{sidecars.counted} beside them not read" if captions and sidecars.counted else ""
    named = lambda files: files.pop().name if len(files) == 1 else f"{len(files):,} metadata files" if files else ""
    return Said(named(captions) or sidecars.used, named(labels) or in_folders, beside)


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
    with refusing(Unreadable, f"{path} cannot be read as numpy data without pickle ({WHY})"), parsing():
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
            said = Said("", f"the array {', '.join(named)}" if named else "")
            others = [k for k in loaded.files if k != chosen]
            column = lambda name: _npz_column(path, name, count) if name in others else None
            return replace(source, labels=lambda: array_labels(str(path), named, count), said=lambda: said, column=column)


def _npz_column(path: Path, name: str, count: int) -> tuple[Any, ...]:
    """The values of an array that has one for each image."""
    message = f"the array {shown(name)} of {path} cannot be read ({WHY})"
    with refusing(Unreadable, message), parsing(), np.load(path, allow_pickle=False) as loaded:
        values = loaded[name]
        if values.shape != (count,):
            raise Unreadable(f"it has the shape {values.shape}, not one value for each of {one_or_more(count, 'image')}")
        return tuple(values.tolist())


def _mapped(path: Path, images: np.memmap) -> Callable[[int], Pixels]:
    """Reads each image of a .npy file by itself: a mapping that stayed open would keep every page read in memory."""
    absolute, offset, shape, side_by_side = str(path.absolute()), images.offset, images.shape, images.flags.c_contiguous
    size = math.prod(shape[1:])

    def stored(i: int) -> np.ndarray:
        if side_by_side:
            with open(absolute, "rb", buffering=0) as file:
                file.seek(offset + i * size)
                return np.frombuffer(bytearray(file.read(size)), np.uint8).reshape(shape[1:])
        return np.array(np.memmap(absolute, np.uint8, "r", offset, shape, "F")[i])

    def read(i: int) -> Pixels:
        message = f"{path} row {i} cannot be read any more ({WHY}); put the file back{SKIP_HINT}"
        with refusing((OSError, ValueError), message, raises=UnreadableImage):
            return np.atleast_3d(stored(i))

    return read


def _array_or_none(arrays: "np.lib.npyio.NpzFile", key: str) -> np.ndarray | None:
    try:
        return arrays[key]
    except ValueError:  # Python objects, such as names: nothing that a model without classes needs
        return None


def _image_key(path: Path, arrays: "np.lib.npyio.NpzFile") -> str:
    candidates = [k for k in arrays.files if arrays[k].dtype == np.uint8 and arrays[k].ndim >= 3]
    if not candidates:
        found = listed((f"{k}, {arrays[k].dtype} {arrays[k].shape}" for k in arrays.files), 120) or "nothing"
        raise UserError(f"{path} must hold images as uint8 (N, H, W) or (N, H, W, C); found {found}: write them so with numpy.savez")
    if len(candidates) != 1:
        found = listed(candidates, 120)
        raise UserError(f"{path} must hold one uint8 image array; found {found}: say which as {path}:NAME")
    return candidates[0]


def _table_file(path: Path, key: str | None, decoding: Decoding) -> ImageSource:
    part = (arrow_part if path.suffix.lower() == ".arrow" else parquet_part)(path)
    return table_source(str(path), path.parent, [part], key, decoding)


READERS: dict[str, Callable[[Path, str | None, Decoding], ImageSource]] = {
    ".npy": _numpy_file,
    ".npz": _numpy_file,
    ".parquet": _table_file,
    ".arrow": _table_file,
    ".tar": lambda path, key, decoding: tar_source(str(path), path.parent, (path,), key, decoding),
}


def _digits(decoding: Decoding) -> ImageSource:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.clip(np.rint(digits.images * (255 / 16)), 0, 255).astype(np.uint8)
    shows = "what the digits show"
    labels = lambda: Labels(tuple(digits.target.tolist()), shows)
    return replace(_array_source("digits", images, decoding), labels=labels, said=lambda: Said("", shows))


def _hugging_face(locator: str, decoding: Decoding) -> ImageSource:
    with refusing(ImportError, f"'{locator}' needs the datasets library: {pip_install('hf')}"):
        import datasets
    _, name, *rest = locator.split(":", 2)
    split = rest[0] if rest else "train"
    # the library raises many kinds; each is about the name, the split or the network
    with refusing(Exception, f"'{locator}' cannot be loaded: {WHY}", first_lines), retrying_quietly():
        table = datasets.load_dataset(name, split=split)
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
    told = next((c for c in CAPTION_COLUMNS if c in table.features and holds_text(table.data.schema.field(c).type)), None)
    captions = lambda: tuple(map(not_blank, table[told])) if told else None
    of = lambda column: f"the column {column}" if column else ""
    said = lambda: Said(of(told), of(label_column(columns)))
    read = lambda i: look(i).pixels
    ids, values = tuple(map(str, range(len(table)))), lambda name: tuple(table[name]) if name in table.features and name != column else None
    return ImageSource(locator, ids, read, labels, captions, look, decoding, said=said, column=values)
