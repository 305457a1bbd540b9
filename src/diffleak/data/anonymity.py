"""Keyed ids: names for images that say nothing without a secret key.

    id(name) = "i" + the first 16 hex digits of HMAC-SHA256(key, name)

Without the key nobody can test whether a file name belongs to an id, however many names are tried; with it, and the data, the
owner finds every name again (`diffleak reveal`). The key lies in a file of mode 0600, beside the run or where several runs
share it. Parts and noise are still drawn by the name, so that numbers do not change: the part of an image, calibrate or test,
says of a known name in which of the two its row is, and nothing of its side. (HMAC: Krawczyk, Bellare and Canetti 1997, RFC 2104.)
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffleak.errors import WHY, UserError, refusing
from diffleak.records.run_folder import read_plan
from diffleak.work.files import checked_folder, write_new
from diffleak.work.folder import PLAN
from diffleak.work.reading import Unreadable, load_text

FILE = "anonymous.key"
BYTES = 32
LONGEST = 4096  # bytes of a file that holds a key
DIGITS = 16  # of an id: among a million images two are the same with a probability of 3e-8, and then they are refused


@dataclass(frozen=True)
class Key:
    """A secret and the file that holds it; None for one that is thrown away, as for a plan that writes nothing."""

    secret: bytes = field(repr=False)
    path: Path | None = None

    @property
    def name(self) -> str:
        """What records call this key: equal for equal keys, and nothing can be computed from it."""
        return self._digest("key", "", DIGITS)

    def ids(self, names: Sequence[str]) -> tuple[str, ...]:
        """The keyed ids of images, in their order; raises `UserError` should two be the same."""
        return self._distinct("image", names, "images have the same keyed id")

    def groups(self, names: Sequence[str]) -> tuple[str, ...]:
        """The keyed names of groups of images, in their order; raises `UserError` should two be the same."""
        return self._distinct("group", names, "groups have the same keyed name")

    def drawing(self, text: str) -> str:
        """The keyed name of a drawing, of what it is drawn from; twice as long as an id, since nothing shows that two are the same."""
        return self._digest("drawing", text, 2 * DIGITS)

    def _distinct(self, purpose: str, names: Sequence[str], clash: str) -> tuple[str, ...]:
        found = tuple(purpose[0] + self._digest(purpose, name, DIGITS) for name in names)
        if len(set(found)) < len(set(names)):
            raise UserError(f"two {clash} under {self.path}; use another key")
        return found

    def _digest(self, purpose: str, text: str, digits: int) -> str:
        return hmac.new(self.secret, f"{purpose}\0{text}".encode(), hashlib.sha256).hexdigest()[:digits]


def choose_key(
    anonymous: bool, file: Path | None, folder: Path | None, recorded: Mapping[Path, str | None], create: bool = True
) -> Key | None:
    """The key of a run in `folder`: that of `file`, else the folder's own; None for a run that is not anonymous.

    recorded: what lies in the folder already, with the name of its key (None: it names images by file name). A key that is not
    there yet is made once, by the first of several workers; without `create` nothing is written. Raises `UserError` when
    the folder would hold file names beside keyed ids or ids of two keys, and when the key of what it holds is missing.
    """
    for path, name in recorded.items():
        if anonymous and name is None:
            raise UserError(f"{path} is of a run that names images by file name; --anonymous needs a folder of its own: choose another -o")
        if not anonymous and name is not None:
            raise UserError(f"{path} is of an anonymous run; add --anonymous, or choose another -o")
    if not anonymous:
        return None
    where = file or (folder / FILE if folder else None)
    if where is not None and not where.exists():
        if recorded:
            raise UserError(
                f"{next(iter(recorded))} is of an anonymous run, and its key {where} is missing; put it back, or choose another -o"
            )
        if create:
            write_new(where, secrets.token_hex(BYTES) + "\n", private=True)
    if where is None or not where.exists():
        return Key(secrets.token_bytes(BYTES))
    key = read_key(where)
    for path, name in recorded.items():
        if name != key.name:
            raise UserError(f"{path} is of an anonymous run with another key than {where}; put its own back, or choose another -o")
    return key


def key_beside_audit(config: Any, file: str, read: Callable[[Path], Any]) -> Key | None:
    """The key of a command whose record `file` lies in a folder of its own, or in that of an anonymous audit, whose key it then has.

    config: its settings; `anonymous`, `anonymous_key` and `output` count. read: how the record is read.
    """
    folder, recorded = config.output, dict[Path, str | None]()
    if folder and (plan := read_plan(folder)):
        recorded[folder / PLAN] = plan.anonymous
    if folder and (folder / file).exists():
        recorded[folder / file] = read(folder / file).anonymous
    if folder and config.anonymous:
        checked_folder(folder)
    return choose_key(config.anonymous, config.anonymous_key, folder, recorded)


def read_key(path: Path) -> Key:
    """The key in a file; raises `UserError` for a file that holds none."""
    with refusing(Unreadable, f"the key {path} cannot be read ({WHY}); give the file with --anonymous-key FILE"):
        text = load_text(path, LONGEST)
    try:
        secret = bytes.fromhex(text.strip())
    except ValueError:
        secret = b""
    if len(secret) != BYTES:
        raise UserError(f"the key {path} must be {2 * BYTES} hexadecimal digits; give the file that the first run made")
    return Key(secret, path)
