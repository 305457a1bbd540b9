"""Lays out DIR/members and DIR/nonmembers for trainers that read folders, with what the data says of each image.

text files      .txt and .caption beside an image go with it
metadata.jsonl  captions, labels and groups from metadata, tables and arrays: a line per image

What is made here is its owner's alone, folders and files; links are as open as the files they lead to.
"""

import json
import os
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffleak.data.image_source import ImageSource
from diffleak.data.metadata import metadata_rows
from diffleak.data.pixels import png
from diffleak.data.sidecars import find_sidecars
from diffleak.data.split import Ids, Split
from diffleak.errors import WHY, UserError, of_system, refusing, shown
from diffleak.splitting.config import COLUMN, SplitConfig
from diffleak.work.files import checked_folder, open_private, write_text
from diffleak.work.progress import progress

SIDES = ("members", "nonmembers")


def refuse_folder(source: ImageSource, config: SplitConfig) -> None:
    """Raises `UserError` for a layout that cannot be made, before anything is read."""
    folder = config.folder
    if folder is None:
        return
    if config.link and not _files(source):
        raise UserError(
            f"--link links to image files, and {shown(source.name)} holds its images in another way: give --copy {shlex.quote(str(folder))}"
        )
    for side in SIDES:
        if (folder / side).exists() and (not (folder / side).is_dir() or any((folder / side).iterdir())):
            raise UserError(f"{folder / side} is there already; choose another folder, or remove it")
    strange = next((image_id for image_id in source.ids if os.path.isabs(image_id) or ".." in Path(image_id).parts), None)
    if strange is not None and not _files(source):
        raise UserError(f"{shown(source.name)} has an image named {shown(strange)}, which is no place in a folder: rename it in the data")
    root = Path(source.name).resolve()
    if _files(source) and (folder.resolve() == root or root in folder.resolve().parents):
        raise UserError(f"{folder} lies in the data {root}, where its images would count twice; choose a folder elsewhere")


def make_folders(config: SplitConfig) -> None:
    """Makes both folders, empty; raises `UserError` where they cannot be written."""
    if config.folder is not None:
        for side in SIDES:
            checked_folder(checked_folder(config.folder, _flag(config)) / side, _flag(config))


def _flag(config: SplitConfig) -> str:
    return "--link" if config.link else "--copy"


def lay_out(source: ImageSource, drawn: Split, config: SplitConfig) -> None:
    """Fills both folders; raises `UserError` where the disk refuses."""
    folder = config.folder
    assert folder is not None
    total = len(drawn.members) + len(drawn.nonmembers)
    position = {image_id: i for i, image_id in enumerate(source.ids)}
    unwritten = f"{folder} cannot be written ({WHY}); free the disk or choose another folder"
    with refusing(OSError, unwritten, of_system), progress("laying out folders", total, "images") as advance:
        for side, ids in zip(SIDES, (drawn.members, drawn.nonmembers), strict=True):
            names = _place_files(source, ids, folder / side, config, advance) if _files(source) else None
            if names is None:
                names = _write_images(source, ids, position, folder / side, advance)
            rows = _said(source, ids, position)
            lines = [json.dumps({"file_name": names[i], **rows[i]}, ensure_ascii=False, default=str) for i in ids if rows.get(i)]
            if lines:
                write_text(folder / side / "metadata.jsonl", "\n".join(lines) + "\n", private=True)


def _files(source: ImageSource) -> bool:
    """True where every image of a source is a file below a folder."""
    root = Path(source.name)
    return root.is_dir() and (root / source.ids[0]).is_file()


def _place_files(source: ImageSource, ids: Ids, folder: Path, config: SplitConfig, advance: Any) -> dict[str, str]:
    root = Path(source.name).resolve()
    files = [root / image_id for image_id in ids]
    for image_id, file, beside in zip(ids, files, find_sidecars(root, files).of, strict=True):
        for each in (file, *beside):
            target = folder / Path(image_id).parent / each.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                continue  # a caption file of two images
            if config.link:
                os.symlink(each, target)
            else:
                with each.open("rb") as content, open_private(target) as copy:
                    shutil.copyfileobj(content, copy)
        advance(1)
    return {image_id: image_id for image_id in ids}


def _write_images(source: ImageSource, ids: Ids, position: dict[str, int], folder: Path, advance: Any) -> dict[str, str]:
    """Every image as a PNG file under its id."""
    names = {image_id: f"{image_id}.png" for image_id in ids}
    for image_id, name in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with open_private(folder / name) as file:
            file.write(png(source.read(position[image_id])))
        advance(1)
    return names


def _said(source: ImageSource, ids: Ids, position: dict[str, int]) -> dict[str, dict[str, Any]]:
    """What metadata says of each image: its row as it is, or caption, label and group of other data."""
    wanted = set(ids)
    if _files(source):
        rows = metadata_rows(Path(source.name), source.ids, "captions or labels")
        return _merged((row.image, {k: v for k, v in row.values.items() if k != "file_name"}) for row in rows if row.image in wanted)
    captions, labels, groups = source.captions(), source.labels(), source.column(COLUMN)
    found: dict[str, dict[str, Any]] = {}
    for image_id in ids:
        row: dict[str, Any] = {}
        i = position[image_id]
        texts = captions[i] if captions else ()
        row |= {"text": texts[0]} if texts else {}
        row |= {"captions": list(texts)} if len(texts) > 1 else {}
        row |= {"label": labels.values[i]} if labels and labels.values and labels.values[i] is not None else {}
        row |= {"group": groups[i]} if groups and groups[i] is not None else {}
        found[image_id] = row
    return found


def _merged(rows: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """One row for each image: several rows are several captions of it."""
    found: dict[str, dict[str, Any]] = {}
    for image_id, row in rows:
        before = found.get(image_id)
        if before is None:
            found[image_id] = row
            continue
        texts = [each.get("text") or each.get("caption") for each in (before, row)]
        found[image_id] = {**before, "captions": [*(before.get("captions") or []), *filter(None, texts[1:])]}
    return found
