"""Writing so that a file is whole or absent, and a full or read-only disk is a clear message."""

import errno
import hashlib
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO
from uuid import uuid4

from diffleak.errors import WHY, UserError, of_system, refusing
from diffleak.work.progress import progress
from diffleak.work.reading import Unreadable, found_at, opened, parsing

SEAL = b"sha256 %s\n"  # with the hex digits of the digest
BLOCK = 2**20  # bytes hashed at once
SHOWN = 64  # blocks above which hashing shows its progress


def write_atomic(
    path: Path, write: Callable[[Path], object], private: bool = False, named: Path | None = None, lasting: bool = True
) -> None:
    """Calls `write(temporary)` beside `path`, then renames it into place; raises `UserError` when the disk refuses.

    named: the file that this error names, where `path` is itself to be renamed.
    private: `temporary` is there already, empty, and only its owner may read it. Whatever names images or holds what they look like is.
    lasting: the content is on the disk before it has its name; without, a power cut may leave the file empty, which its reader must take.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.part")  # workers on several machines may share process ids
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if private:
            open_private(temporary).close()
        write(temporary)
        if lasting:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):  # a file in the place of its folder
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"{named or path} cannot be written ({of_system(error)}); "
            "free or change the output folder and run the same command again: finished work is kept"
        ) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_new(path: Path, text: str, private: bool = False) -> bool:
    """Writes a file that is not there yet, whole and for one writer only; False when somebody was first.

    A `private` one can be read by its owner only.
    """
    if path.exists():
        return False
    mine = path.with_name(f".{path.name}.{uuid4().hex}.new")
    write_atomic(mine, lambda temporary: temporary.write_bytes(text.encode("utf-8")), private, named=path)
    try:
        os.link(mine, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        os.replace(mine, path)
    finally:
        mine.unlink(missing_ok=True)
    return True


def write_text(path: Path, text: str, private: bool = False, lasting: bool = True) -> None:
    """Writes UTF-8 text atomically; a `private` file has mode 0600 from its first byte. lasting: see `write_atomic`."""
    write_atomic(path, lambda temporary: temporary.write_bytes(text.encode("utf-8")), private, lasting=lasting)


def write_bytes(path: Path, content: bytes, private: bool = False) -> None:
    """Writes bytes atomically; a `private` file has mode 0600 from its first byte."""
    write_atomic(path, lambda temporary: temporary.write_bytes(content), private)


def open_private(path: Path) -> BinaryIO:
    """A new file to write to that its owner alone may read from its first byte; raises `FileExistsError` where there is one."""
    return open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a folder to one process while it works there; raises `UserError` when another one has it.

    The lock ends with the process, however that ends. Where the system has no such locks nothing is kept.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = folder / ".lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in {folder}; wait for it, or stop it") from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Lets one process or thread after another in, to change a file of a folder that several write; the others wait.

    It is for moments only, and must not be entered again inside. The lock is the folder's own, so no file is left, and it ends with its
    process, however that ends. Where the system has no such locks all are let in.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, PermissionError):  # Windows has no such locks, and opens no folders
        yield
        return
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def scratch(place: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `place` that is removed at the end, with those of this prefix that a process left when it was killed.

    A process holds a lock on its folder, which ends with it, however that ends; so the folders of others that still run stay. Where the
    system has no such locks, what a killed process left stays, too.
    """
    for left in place.glob(f"{prefix}*"):
        if _left(left):
            shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(dir=place, prefix=prefix) as folder, _held(Path(folder)):
        yield Path(folder)


def _left(folder: Path) -> bool:
    """True for a folder that no process holds."""
    with suppress(OSError), _held(folder) as held:
        return held
    return False


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Holds the lock of a folder; False where the system has none. Raises `OSError` where another process holds it."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, PermissionError):  # Windows has no such locks, and opens no folders
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            raise
        except OSError:  # a file system without locks
            held = False
        yield held
    finally:
        os.close(descriptor)


def seal(path: Path) -> None:
    """Appends the SHA-256 of a file to it; a reader of .npy files stops before it."""
    with path.open("r+b") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0, os.SEEK_END)
        file.write(SEAL % digest.encode())


def check_seal(path: Path) -> None:
    """Raises `Unreadable` for a file whose content is not what its seal says, or that has none."""
    digest, length = hashlib.sha256(), len(SEAL % (64 * b"0"))
    with opened(path, None) as file, parsing():
        left = os.fstat(file.fileno()).st_size - length
        while left > 0 and (block := file.read(min(left, BLOCK))):
            digest.update(block)
            left -= len(block)
        if file.read() != SEAL % digest.hexdigest().encode():
            raise Unreadable("its checksum is not that of its content")


def hash_file(path: Path) -> str:
    """The SHA-256 of the content of a file; raises `Unreadable` for what is none."""
    with opened(path, None) as stream, parsing():
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_files(files: Sequence[Path]) -> str:
    """The SHA-256 of the names and contents of files, in their order; raises `UserError` for one that cannot be read."""
    digest, blocks = hashlib.sha256(), sum(-(-file.stat().st_size // BLOCK) for file in files if file.is_file())
    with progress("hashing", blocks, "MiB") if blocks > SHOWN else nullcontext(lambda n: None) as advance:
        for file in files:
            digest.update(os.fsencode(file.name))
            with refusing(Unreadable, f"{file} cannot be read ({WHY})"), opened(file, None) as stream, parsing():
                while block := stream.read(BLOCK):
                    digest.update(block)
                    advance(1)
    return digest.hexdigest()


def checked_folder(path: Path, flag: str = "-o") -> Path:
    """`path` as an existing folder that can be written to; raises `UserError`, which names the flag, otherwise.

    One that is made here has mode 0700: file names of training images, scores and latents are their owner's. The mode of a folder
    that is there already stays as it is (see `open_to_others`).
    """
    with refusing(OSError, f"the output folder {path} cannot be written ({WHY}); choose another with {flag}", of_system):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = path / f".writable.{uuid4().hex}"
        probe.touch()
        probe.unlink()
    return path


def refuse_unwritable(path: Path, flag: str, folder: bool = False) -> None:
    """Raises `UserError`, which names the flag, for a place where no file, or no folder with files, can be made. Nothing is made.

    What only an attempt shows, such as a full disk, `checked_folder` and `write_atomic` say.
    """
    found = found_at(path)
    place = path if folder else path.parent
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if found not in ("nothing", "a folder" if folder else "a file"):
        reason = f"it is {found}"
    elif not place.is_dir():
        reason = os.strerror(errno.ENOTDIR)
    elif not os.access(place, os.W_OK | os.X_OK):
        reason = os.strerror(errno.EACCES)
    else:
        return
    raise UserError(f"{'the output folder ' if folder else ''}{path} cannot be written ({reason}); choose another with {flag}")


def open_to_others(path: Path) -> bool:
    """True if other users of this machine may read a file or enter a folder, as far as its own mode says."""
    return os.name == "posix" and bool(path.stat().st_mode & 0o077)


def closing(path: Path) -> str:
    """The command that closes a file or folder to other users, for messages."""
    return f"chmod {'700' if path.is_dir() else '600'} {shlex.quote(str(path))}"
