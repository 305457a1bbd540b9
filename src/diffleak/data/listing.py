"""The image files below a folder, and what is there and left out.

Links to folders are followed, once on every way down, so that a link to a folder above it ends. Hidden files and folders are left
out and counted, and so is what looks like an image and is no file that the installed Pillow opens, by its kind or because it is a pipe, a
socket, a device, which could block for ever, or a folder without images.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from diffleak.errors import UserError
from diffleak.records.images import LeftOut

# fmt: off
PICTURES = frozenset({
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg",
    ".jpf", ".jpg", ".jpx", ".jxl", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp",
})  # opened where the installed Pillow, or a plugin of it, can
OTHERS = frozenset({
    ".3fr", ".arw", ".avifs", ".bpg", ".cr2", ".cr3", ".dds", ".dng", ".erf", ".exr", ".hdr", ".heics", ".ico", ".jxr", ".kdc",
    ".mpo", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".psb", ".psd", ".raf", ".raw", ".rw2", ".sr2", ".srf", ".srw", ".svg", ".svgz",
    ".wdp", ".x3f", ".xcf",
})  # images to their owner, and nothing that trainers open
# fmt: on
TABLES = frozenset({".parquet", ".tar"})
TEXTS = frozenset({".caption", ".csv", ".json", ".jsonl", ".md", ".parquet", ".toml", ".tsv", ".txt", ".yaml", ".yml"})
SIGNATURES = frozenset({*(b"\xff\xd8\xff" + bytes([i]) for i in range(256)), b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*"})  # of image files
COMPANION, COMPANIONS = "._", "__MACOSX"  # of macOS: no images, whatever they are named


@dataclass(frozen=True)
class Listing:
    """The image files in their order, what was left out, and the tables and archives beside them, of which some hold images too."""

    files: tuple[Path, ...]
    left_out: LeftOut
    tables: tuple[Path, ...] = ()


def opened_suffixes() -> frozenset[str]:
    """The endings of image files that this Pillow opens."""
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN) & PICTURES


def list_images(root: Path) -> Listing:
    """Walks the folder; raises `UserError` for a folder below it that cannot be read.

    A dead link counts as an image, so that it is reported and not silently missing.
    """
    opened, files, unopened, hidden, tables = opened_suffixes(), list[Path](), list[Path](), list[Path](), list[Path]()
    named = opened | OTHERS | PICTURES

    def walk(folder: Path, above: frozenset[tuple[int, int]], out_of_sight: bool) -> None:
        try:
            here = os.stat(folder)
            with os.scandir(folder) as entries:
                found = list(entries)
        except OSError as error:
            if out_of_sight:
                return
            raise UserError(
                f"every folder of the data must be readable; {folder} is not ({error.strerror}): make it readable, or move it away"
            ) from None
        place = (here.st_dev, here.st_ino)
        if place in above:
            return
        for entry in found:
            if entry.name.startswith(COMPANION) or entry.name == COMPANIONS:
                continue
            dot = out_of_sight or entry.name.startswith(".")
            path = folder / entry.name
            suffix = path.suffix.lower()
            if _is_folder(entry):
                before = len(files) + len(unopened) + len(hidden)
                walk(path, above | {place}, dot)
                if suffix in named and not dot and before == len(files) + len(unopened) + len(hidden):
                    unopened.append(path)
            elif suffix in named:
                (hidden if dot else files if suffix in opened and not _is_special(entry) else unopened).append(path)
            elif suffix not in TEXTS and not dot and not _is_special(entry) and _begins_like_an_image(path):
                unopened.append(path)  # without an ending, or with one that a browser made up
            elif suffix in TABLES and not dot:
                tables.append(path)

    walk(root, frozenset(), False)
    first = lambda paths: path_id(min(paths), root) if paths else None
    return Listing(tuple(sorted(files)), LeftOut(len(unopened), first(unopened), len(hidden), first(hidden)), tuple(sorted(tables)))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_special(entry: "os.DirEntry[str]") -> bool:
    """True for a pipe, a socket or a device, and for a link to one; a dead link is none."""
    try:
        return not entry.is_file(follow_symlinks=False) and not stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return False


def _begins_like_an_image(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) in SIGNATURES
    except OSError:
        return False


def path_id(path: Path, root: Path) -> str:
    """The path below the root; a name that is not UTF-8 is spelled with escapes, so that it can be hashed and written."""
    return path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode()
