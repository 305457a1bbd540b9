"""Hashes of large files, remembered from call to call, so that weights are read once to be hashed and not at each command.

    hash of files = what was remembered for the same (name, device, inode, size, mtime, ctime) of each, else `files.hash_files`

One small text file for each set of files lies in `hashes` of the cache folder: that of the variable DIFFLEAK_CACHE, nothing where it is
empty, by default diffleak in XDG_CACHE_HOME or ~/.cache. It is written whole or not at all, so any number of processes may share it. A
cache that is missing, damaged or cannot be written costs time and nothing else. Files that changed within the last SETTLING seconds are
neither remembered nor looked up: a second change within the resolution of the clock could not be seen.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from diffleak.errors import UserError
from diffleak.work.files import hash_files, write_text
from diffleak.work.reading import Unreadable, load_text

VARIABLE = "DIFFLEAK_CACHE"
SMALL = 2**24  # bytes in all up to which files are hashed each time, which takes a hundredth of a second
SETTLING = 2.0  # seconds
HASH = re.compile(r"[0-9a-f]{64}")


def hash_weights(files: Sequence[Path]) -> str:
    """The same as `hash_files`, read from disk only where the files have changed since."""
    before = _state(files)
    place = None if before is None else _place(before)
    if place is None or (found := _read(place)) is None:
        found = hash_files(files)
        if place is not None and _state(files) == before:
            with suppress(UserError, OSError):  # no place to write to
                write_text(place, found, private=True)
    return found


def cache_folder() -> Path | None:
    """Where things are remembered; None where that is switched off, or where there is no home."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE]) if os.environ[VARIABLE] else None
    given = os.environ.get("XDG_CACHE_HOME", "")  # one that is no absolute path is invalid, says the specification
    if os.path.isabs(given):
        return Path(given) / "diffleak"
    with suppress(RuntimeError):
        return Path.home() / ".cache" / "diffleak"
    return None


def _state(files: Sequence[Path]) -> list[tuple[str | int, ...]] | None:
    """What tells an unchanged file from a changed one, for each; None for what is not remembered."""
    try:
        found = [(os.fsencode(file.name).hex(), file.stat()) for file in files]
    except (OSError, ValueError):  # hashing them says what is wrong
        return None
    settled = time.time() - SETTLING
    if sum(status.st_size for _, status in found) <= SMALL or any(max(s.st_mtime, s.st_ctime) > settled for _, s in found):
        return None
    return [(name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in found]


def _place(state: Sequence[tuple[str | int, ...]]) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "hashes" / hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _read(place: Path) -> str | None:
    try:
        found = load_text(place)
    except Unreadable:
        return None
    return found if HASH.fullmatch(found) else None
