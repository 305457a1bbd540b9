"""Tables of images: a Parquet file, the Parquet shards of a folder, and what `save_to_disk` of `datasets` leaves (Arrow files).

Rows are numbered over the files in their order, and read a group at a time where they lie. A cell holds an encoded image, or the path of
one from the folder of its file or from the folder that was given.
"""

import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from diffleak.data.decoding import SKIP_HINT, Decoded, UnreadableImage, decode
from diffleak.data.image_source import CAPTION_COLUMNS, ImageSource, Said, Texts, not_blank
from diffleak.data.labels import Labels, label_column, table_labels
from diffleak.data.names import Names
from diffleak.errors import WHY, UserError, listed, refusing, shown
from diffleak.records.images import Decoding
from diffleak.work.reading import Unreadable, load_column, load_json, opened, opened_parquet, parsing

IMAGE_COLUMNS = ("image", "img", "images", "pixels")
STATE, SPLITS_OF_DICT = "state.json", "dataset_dict.json"  # of save_to_disk
ADDRESSES = ("http://", "https://", "s3://", "gs://", "hf://")


@dataclass(frozen=True)
class Part:
    """One file of a table: the rows of each group, and how a column is read: of one group as Arrow, or whole as Python's values."""

    path: Path
    schema: Any
    rows: tuple[int, ...]
    group: Callable[[int, str], Any]
    column: Callable[[str], list[Any]]
    without_bytes: frozenset[str]  # the columns of images that are known to hold none


def parquet_part(path: Path) -> Part:
    """A Parquet file; raises `UserError` for a file that is none."""
    with refusing(Unreadable, f"{path} cannot be read as Parquet ({WHY})"), opened_parquet(path) as file:
        schema, rows = file.schema_arrow, tuple(file.metadata.row_group(g).num_rows for g in range(file.num_row_groups))
        without_bytes = _without_bytes(file.metadata)

    def group(g: int, column: str) -> Any:
        with opened_parquet(path) as file:
            return file.read_row_group(g, columns=[column]).column(0)

    return Part(path, schema, rows, group, lambda name: load_column(path, name), frozenset(without_bytes))


def arrow_part(path: Path) -> Part:
    """An Arrow file, mapped for as long as a group is read; raises `UserError` for a file that is none."""
    with refusing(Unreadable, f"{path} cannot be read as an Arrow file ({WHY})"), _batches(path) as (schema, batches):
        if len(set(schema.names)) < len(schema.names):  # names of damaged bytes are refused here too
            raise Unreadable("a column is there twice")
        rows, without = [], set(_structs_with_bytes(schema))
        for batch in batches:
            rows.append(batch.num_rows)
            cells = {name: batch.column(schema.get_field_index(name)).field("bytes") for name in without}
            without -= {name for name, content in cells.items() if content.null_count < len(content)}

    def column_of(batch: Any, name: str) -> Any:
        column = batch.column(batch.schema.get_field_index(name))
        column.validate(full=True)  # Arrow reads where its offsets point, and a damaged file may point anywhere
        return column

    def group(g: int, name: str) -> Any:
        with _batches(path) as (_, batches):
            return column_of(next(islice(batches, g, None)), name)  # which holds the mapping for as long as it is used

    def whole(name: str) -> list[Any]:
        with _batches(path) as (_, batches):
            return [value for batch in batches for value in column_of(batch, name).to_pylist()]

    return Part(path, schema, tuple(rows), group, whole, frozenset(without))


@contextmanager
def _batches(path: Path) -> Iterator[tuple[Any, Iterator[Any]]]:
    """The schema and the batches of an Arrow file of either form; nothing in them is copied."""
    import pyarrow as pa

    with opened(path, None) as file, parsing():
        begins = file.read(6)
        with pa.memory_map(str(path)) as mapped:
            if begins == b"ARROW1":
                whole = pa.ipc.open_file(mapped)
                yield whole.schema, (whole.get_batch(i) for i in range(whole.num_record_batches))
            else:
                stream = pa.ipc.open_stream(mapped)
                yield stream.schema, iter(stream)


def table_source(name: str, root: Path, parts: Sequence[Part], column: str | None, decoding: Decoding, files: str = "") -> ImageSource:
    """The images of a table. name: as the user gave it; root: where paths in cells may begin; files: those it lies in, in words."""
    schema = parts[0].schema
    for part in parts:
        if not part.schema.equals(schema):
            raise UserError(
                f"the files of one table must have the same columns; {part.path} has others than {parts[0].path}: give one of them"
            )
    names = schema.names
    if column is not None and column not in names:
        what = "split or column" if name == str(root) else "column"
        raise UserError(f"{name} has no {what} {shown(column)}; it has {listed(names, 120)}: name one of them")
    column = column or next((c for c in IMAGE_COLUMNS if c in names), None)
    if column is None:
        raise UserError(
            f"{name} must have an image column ({', '.join(IMAGE_COLUMNS)}); it has {listed(names, 120)}: say which as {name}:NAME"
        )
    groups = [(part, g) for part in parts for g in range(len(part.rows))]
    starts = [0, *accumulate(part.rows[g] for part, g in groups)]
    if starts[-1] == 0:
        raise UserError(f"{name} must hold at least one image; it is empty")
    _refuse_no_images(name, root, parts, column)

    @lru_cache(maxsize=1)
    def group(number: int) -> Any:
        part, g = groups[number]
        return part.group(g, column)

    def look(i: int) -> Decoded:
        number = bisect_right(starts, i) - 1
        part, _ = groups[number]
        where = f"{name} row {i}" + (f" (in {part.path.name})" if len(parts) > 1 else "")
        with refusing(Unreadable, f"{where} cannot be read ({WHY}); replace the file{SKIP_HINT}", raises=UnreadableImage):
            cells = group(number)
            with parsing():
                cell = cells[i - starts[number]].as_py()
        return decode(_content(cell, where, column, part.path.parent, root), where, decoding)

    def labels() -> Labels | None:
        return table_labels(name, _class_columns(schema), lambda chosen: _column(name, parts, chosen))

    told = next((c for c in CAPTION_COLUMNS if c in names and holds_text(schema.field(c).type)), None)

    def captions() -> tuple[Texts, ...] | None:
        return tuple(map(not_blank, _column(name, parts, told))) if told else None

    def said() -> Said:
        labelled = label_column(_class_columns(schema))
        of = lambda chosen: f"the column {shown(chosen)}" if chosen else ""
        return Said(of(told), of(labelled), files)

    table = Names(name, columns=tuple(names))
    ids = tuple(map(str, range(starts[-1])))
    values = lambda wanted: tuple(_column(name, parts, wanted)) if wanted in names and wanted != column else None
    return ImageSource(name, ids, lambda i: look(i).pixels, labels, captions, look, decoding, names=lambda: table, said=said, column=values)


def _column(name: str, parts: Sequence[Part], column: str) -> list[Any]:
    with refusing(Unreadable, f"the column {column} of {name} cannot be read ({WHY})"), parsing():
        return [value for part in parts for value in part.column(column)]


def _refuse_no_images(name: str, root: Path, parts: Sequence[Part], column: str) -> None:
    """Raises `UserError` for a column that holds neither encoded images nor paths of files, by its type and its first path."""
    held = str(parts[0].schema.field(column).type)
    empty = all(column in part.without_bytes for part in parts)
    texts = held in ("string", "large_string")
    if ("binary" in held and not empty) or ("binary" not in held and not texts):
        if "binary" not in held:
            raise UserError(
                f"the column {shown(column)} of {name} must hold encoded images or paths of files; it holds {shown(held)}: give the folder "
                "of the images, or write their bytes into the column"
            )
        return
    first = next((cell for part in parts for g in range(len(part.rows)) for cell in _paths(part, g, column)), None)
    if first is None or first.startswith(ADDRESSES):
        what = f"addresses such as {shown(first)}: download the images" if first else "nothing: give the column or the folder of the images"
        raise UserError(f"the column {shown(column)} of {name} must hold encoded images or paths of files; it holds {what}")
    if not _found(first, parts[0].path.parent, root):
        where = " or ".join(dict.fromkeys([str(parts[0].path.parent), str(root)]))
        raise UserError(
            f"the column {shown(column)} of {name} must hold encoded images or paths of files; it holds texts such as {shown(first)}, "
            f"and no such file is in {where}: put the images there, or write their bytes into the column"
        )


def _paths(part: Part, g: int, column: str) -> Iterator[str]:
    with refusing(Unreadable, f"{part.path} cannot be read ({WHY})"), parsing():
        for cell in part.group(g, column).to_pylist():
            path = cell.get("path") if isinstance(cell, dict) else cell
            if isinstance(path, str) and path:
                yield path


def _found(told: str, *folders: Path) -> list[Path]:
    """The files that a path in a cell may mean, each once."""
    found: dict[str, Path] = {}
    for folder in folders:
        path = folder / told.replace("\\", "/")
        if os.path.lexists(path):
            found.setdefault(os.path.realpath(path), path)
    return [*found.values()]


def _content(cell: Any, where: str, column: str, *folders: Path) -> bytes | Path:
    content, told = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if isinstance(content, bytes):
        return content
    told = content if isinstance(content, str) else told
    if not isinstance(told, str) or not told:
        raise UnreadableImage(f"{where}: column '{column}' holds no encoded image; replace it{SKIP_HINT}")
    found = _found(told, *folders)
    if len(found) > 1:
        raise UnreadableImage(f"{where} must name one image; {shown(told)} is both {found[0]} and {found[1]}: remove one{SKIP_HINT}")
    if not found:
        raise UnreadableImage(
            f"{where}: column '{column}' holds no encoded image but {shown(told)}, which is not in {folders[0]}; put it there{SKIP_HINT}"
        )
    return found[0]


# what save_to_disk leaves


def saved_parts(root: Path, keys: Sequence[str]) -> tuple[list[Part], str | None]:
    """The files of a folder that `save_to_disk` wrote, or of a split of it, and the column that is left of `keys`.

    Raises `UserError` for a split that has to be named or is not there, and for a folder that is not whole.
    """
    if (root / SPLITS_OF_DICT).is_file():
        splits = _names_in(root / SPLITS_OF_DICT, "splits")
        if keys and keys[0] in splits:
            return saved_parts(root / keys[0], keys[1:])
        if len(splits) == 1 and len(keys) < 2:
            return saved_parts(root / splits[0], keys)
        wanted = f"must have a split {shown(keys[0])}; it has" if keys else "holds several splits,"
        raise UserError(f"{root} {wanted} {listed(splits, 120)}: say which as {root}:{splits[0]}")
    state = _state(root / STATE)
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise UserError(f"{root} is a selection of rows that an old version of datasets saved: load it and save it again with a newer one")
    files = state.get("_data_files")
    found = [file.get("filename") for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    if not found or not all(map(_is_name, found)):
        raise UserError(f"{root / STATE} must list the Arrow files of the folder as save_to_disk of datasets does: save it again")
    if len(keys) > 1:
        raise UserError(f"{root} holds one table and no splits; got {shown(':'.join(keys))}: name its column alone")
    return [arrow_part(root / str(name)) for name in found], keys[0] if keys else None


def is_saved(root: Path) -> bool:
    """True for a folder that `save_to_disk` of `datasets` wrote."""
    return (root / SPLITS_OF_DICT).is_file() or ((root / STATE).is_file() and (root / "dataset_info.json").is_file())


def _names_in(path: Path, key: str) -> list[str]:
    found = _state(path).get(key)
    if not isinstance(found, list) or not found or not all(map(_is_name, found)):
        raise UserError(f"{path} must list its {key} as save_to_disk of datasets does: save it again")
    return found


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name == os.path.basename(name) and name not in ("", ".", "..")


def _state(path: Path) -> Mapping[str, Any]:
    with refusing(Unreadable, f"{path} cannot be read ({WHY}): save the folder again with save_to_disk of datasets"):
        found = load_json(path)
        if not isinstance(found, dict):
            raise Unreadable(f"it holds a {type(found).__name__}")
        return found


# columns


def holds_images(path: Path) -> bool:
    """True if a Parquet file holds encoded images, as far as it can be read."""
    try:
        part = parquet_part(path)
    except UserError:
        return False
    encoded = [name for name in IMAGE_COLUMNS if name in part.schema.names and "binary" in str(part.schema.field(name).type)]
    return bool({*encoded, *_structs_with_bytes(part.schema)} - part.without_bytes)


def _without_bytes(metadata: Any) -> set[str]:
    """The columns of a Parquet file whose `bytes` are null in every row, by its statistics: as `datasets` writes images by their paths."""
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    missing = set[str]()
    for c in range(metadata.num_columns):
        column, _, child = metadata.schema.column(c).path.rpartition(".")
        if child == "bytes" and all((found := g.column(c).statistics) and found.null_count == g.num_rows for g in groups):
            missing.add(column)
    return missing


def _structs_with_bytes(schema: Any) -> list[str]:
    import pyarrow.types as types

    return [field.name for field in schema if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0]


def _class_columns(schema: Any) -> dict[str, tuple[str, ...]]:
    """Every column, with the names of classes that the `datasets` library wrote beside an Arrow table."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        classes = {name: tuple(map(str, kind["names"])) for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        classes = {}
    return {**dict.fromkeys(schema.names, ()), **classes}


def holds_text(kind: Any) -> bool:
    """True if a column of this Arrow type holds a text, or a list of texts, per row."""
    import pyarrow.types as types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_dictionary(kind):
        return holds_text(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind))
