"""Damage to the bytes of a file: by accident, by an editor, by a hostile hand. Each function takes a random generator and the content, and
returns what it did in words and the new content."""

import codecs
import os
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

from fuzz.structures import FORMS

Mutation = tuple[str, bytes]


def mutate(rng: Random, content: bytes, form: str) -> Mutation:
    """One change to a file of this form (its ending): to the values in it where the form is known, to its text, or to its bytes."""
    ways: list[Callable[[Random, bytes], Mutation]] = [of_bytes]
    if form in TEXTS:
        ways += [of_bytes, of_text]
    if form in FORMS:
        ways += 4 * [FORMS[form]]
    return rng.choice(ways)(rng, content)


def of_bytes(rng: Random, content: bytes) -> Mutation:
    """A change that knows nothing of what the bytes mean."""
    n = len(content)
    start = rng.randrange(n + 1)
    stop = min(n, start + rng.choice((1, 2, 8, 64, 512, n)))
    head, part, tail = content[:start], content[start:stop], content[stop:]
    match rng.choice(("flip", "flips", "cut", "empty", "zero", "repeat", "insert", "swap", "append", "lose")):
        case "flip":
            bit = rng.randrange(max(1, 8 * n))
            return f"bit {bit} flipped", _flipped(content, [bit])
        case "flips":
            bits = [rng.randrange(max(1, 8 * n)) for _ in range(rng.choice((2, 8, 64)))]
            return f"{len(bits)} bits flipped from {min(bits)} on", _flipped(content, bits)
        case "cut":
            return f"cut off at {start} of {n}", head
        case "empty":
            return "empty", b""
        case "zero":
            return f"{start} to {stop} zero", head + bytes(len(part)) + tail
        case "repeat":
            times = rng.choice((2, 3, 50))
            return f"{start} to {stop} {times} times", head + times * part + tail
        case "insert":
            new = rng.randbytes(rng.choice((1, 2, 16, 256)))
            return f"{len(new)} random bytes at {start}", head + new + part + tail
        case "swap":
            middle = (start + stop) // 2
            return f"{start} to {middle} behind {stop}", head + content[middle:stop] + content[start:middle] + tail
        case "append":
            new = rng.choice((b"\0", b"\n", b"x", content, rng.randbytes(64), bytes(4096)))
            return f"{len(new)} bytes appended", content + new
        case _:
            return f"{start} to {stop} left out", head + tail


def _flipped(content: bytes, bits: list[int]) -> bytes:
    made = bytearray(content)
    for bit in bits if made else ():
        made[bit // 8] ^= 1 << bit % 8
    return bytes(made)


def of_text(rng: Random, content: bytes) -> Mutation:
    """A change that an editor, another system or a hostile text makes: encodings, line ends, lines, characters that do not print."""
    text = content.decode("utf-8", "replace")
    lines = text.split("\n")
    i, j = (rng.randrange(len(lines)) for _ in range(2))
    match rng.choice(("encoding", "mark", "ends", "drop", "double", "swap", "character", "number", "number", "long", "lines")):
        case "encoding":
            name = rng.choice(("utf-16", "utf-16-le", "utf-32", "latin-1", "cp500", "utf-7"))
            return f"in {name}", text.encode(name, "replace")
        case "mark":
            mark = rng.choice((codecs.BOM_UTF8, 2 * codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            return f"after the mark {mark.hex()}", mark + content
        case "ends":
            end = rng.choice(("\r\n", "\r", "\n\n", "\n\r", "\u2028", "\x0b", "\x0c", ""))
            return f"lines end with {end!r}", text.replace("\n", end).encode()
        case "drop":
            return f"line {i} left out", "\n".join(lines[:i] + lines[i + 1 :]).encode()
        case "double":
            return f"line {i} twice", "\n".join(lines[: i + 1] + lines[i:]).encode()
        case "swap":
            lines[i], lines[j] = lines[j], lines[i]
            return f"lines {i} and {j} swapped", "\n".join(lines).encode()
        case "character":
            at = rng.randrange(len(text) + 1)
            name, new = rng.choice(CHARACTERS)
            return f"{name} at character {at}", text[:at].encode() + new + text[at:].encode()
        case "number":
            found = list(re.finditer(r"[0-9][0-9.]*", text)) or [None]
            place, new = rng.choice(found), rng.choice(NUMBERS)
            if place is None:
                return f"{new} instead of the text", new.encode()
            return f"{place[0][:20]} at {place.start()} as {new}", (text[: place.start()] + new + text[place.end() :]).encode()
        case "long":
            lines[i] += 200_000 * rng.choice(("x", " ", ",", '"', "[", "é"))
            return f"line {i} with 200,000 {lines[i][-1]!r}", "\n".join(lines).encode()
        case _:
            return "20,000 empty lines", content + 20_000 * b"\n"


CHARACTERS = (
    ("a NUL", b"\0"),
    ("ESC", b"\x1b[2J\x1b[31m"),
    ("U+202E", "\u202e".encode()),
    ("a lone surrogate", "\ud800".encode("utf-8", "surrogatepass")),
    ("a byte that is no UTF-8", b"\xff"),
    ("U+2028", "\u2028".encode()),
    ("a combining mark", "\u0301".encode()),
    ("a carriage return", b"\r"),
    ("a tab", b"\t"),
    ("a quote", b'"'),
    ("a comma", b","),
    ("a bracket", b"["),
    ("a brace", b"}"),
    ("a comment", b"#"),
    ("a digit", b"9"),
    ("a minus", b"-"),
)
NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "NaN",
    "Infinity",
    "-1",
    "1e999",
    "1e308",
    "0x10",
    "1_000",
    "1,5",
    "\u0663",
    "\uff11",
    "",
    "1e-400",
    "9" * 30,
)
TEXTS = {".json", ".jsonl", ".csv", ".txt", ".yaml", ".key"}


def replace(rng: Random, path: Path) -> str:
    """Puts something else in the place of a file: a folder, a pipe, a dead link, a link to itself, a device, or nothing."""
    content = path.read_bytes()
    path.unlink()
    match rng.choice(("folder", "pipe", "dead", "loop", "device", "gone", "mode", "link")):
        case "folder":
            path.mkdir()
            return "a folder in its place"
        case "pipe":
            os.mkfifo(path)
            return "a pipe in its place"
        case "dead":
            path.symlink_to(path.parent / "not there")
            return "a dead link in its place"
        case "loop":
            path.symlink_to(path)
            return "a link to itself in its place"
        case "device":
            path.symlink_to("/dev/zero")
            return "a link to /dev/zero in its place"
        case "mode":
            path.write_bytes(content)
            path.chmod(0)
            return "mode 000"
        case "link":
            other = path.with_name(f"{path.name}.other")
            other.write_bytes(content)
            path.symlink_to(other.name)
            return "a link to the same content in its place"
    return "missing"
