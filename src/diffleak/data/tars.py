"""Shards of WebDataset: .tar files whose members of one key are one sample, as x.jpg, x.txt and x.cls. Images are read where they lie.

The key is the path up to the first dot of the file's name, the rest is the ending. A sample is an image (.jpg, .png, .webp ...), its
caption in .txt or .caption (the first line, as beside images) or the `caption` or `text` of .json, and its label in .cls, .label or the
`label` or `cls` of .json. Samples of pictures that are not opened are left out and counted.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from diffleak.data.decoding import SKIP_HINT, Decoded, UnreadableImage, decode
from diffleak.data.image_source import CAPTION_COLUMNS, ImageSource, Said, Texts, lines_of, not_blank, several_lines, texts_of
from diffleak.data.labels import Labels, Value, label_value
from diffleak.data.listing import COMPANION, COMPANIONS, OTHERS, PICTURES, opened_suffixes
from diffleak.data.names import UnclearName
from diffleak.data.shards import counted
from diffleak.errors import WHY, UserError, is_text, listed, one_or_more, refusing, shown
from diffleak.records.images import Decoding, LeftOut
from diffleak.work.reading import Unreadable, opened, parsing

TEXTS, LABELS, JSON = ("txt", "caption"), ("cls", "label"), "json"
LABEL_KEYS = ("label", "cls")
LONGEST = 2**22  # bytes of a member that holds texts
BLOCK = 512
COMPRESSED = {rb"\x1f\x8b\x08": "gzip", rb"BZh[1-9]1AY": "bzip2", rb"\xfd7zXZ": "xz", rb"\x28\xb5\x2f\xfd": "zstd"}  # how each begins
USTAR = slice(257, 262)  # of a header of tar, which may begin with any name


class Member(NamedTuple):
    """Where a file lies in a shard."""

    shard: int
    offset: int
    size: int


@dataclass(frozen=True)
class Sample:
    """One image: its key and shard, the ending and place of its picture, and the places of what is said of it by ending."""

    key: str
    ending: str
    image: Member
    said: dict[str, Member]


def tar_source(name: str, root: Path, shards: Sequence[Path], ending: str | None, decoding: Decoding) -> ImageSource:
    """The samples of the shards of one split. name: as the user gave it; root: of the shards' names; ending: of the images, where a sample
    has several."""
    samples, left_out = [], LeftOut()
    for number, path in enumerate(shards):
        found, without = _samples(path, number, ending)
        samples += found
        left_out = LeftOut(left_out.unopened + without.unopened, left_out.first_unopened or without.first_unopened, 0, None)
    if not samples:
        first = (
            f"; {one_or_more(left_out.unopened, 'is', 'are')} of a kind that is not opened (first: {left_out.first_unopened})"
            if left_out.unopened
            else ""
        )
        kinds = ", ".join(sorted(opened_suffixes())) if ending is None else f".{ending}"
        raise UserError(f"{name} must contain samples with an image ({kinds}); found none{first}")
    ids = _ids(samples, shards, root)

    def content(member: Member) -> bytes:
        with opened(shards[member.shard], None) as file, parsing():
            file.seek(member.offset)
            read = file.read(member.size)
        if len(read) < member.size:
            raise Unreadable("it ends early")
        return read

    def look(i: int) -> Decoded:
        sample = samples[i]
        where = f"{shards[sample.image.shard]}: {ids[i]}.{sample.ending}"
        with refusing(Unreadable, f"{where} cannot be read ({WHY}); put the shard back{SKIP_HINT}", raises=UnreadableImage):
            encoded = content(sample.image)
        return decode(encoded, where, decoding)

    def text(i: int, kind: str) -> Any:
        """What a member of a sample says: a text, or what its JSON holds."""
        member = samples[i].said[kind]
        where = f"{shards[member.shard]}: {shown(samples[i].key)}.{kind}"
        with refusing(Unreadable, f"{where} cannot be read ({WHY}): save it as UTF-8, or remove it", raises=UnclearName):
            if member.size > LONGEST:
                raise Unreadable(f"it has {member.size:,} bytes; at most {LONGEST:,} bytes are read")
            with parsing():
                said = content(member).decode("utf-8-sig")
                held = json.loads(said) if kind == JSON else said
                if kind == JSON and not isinstance(held, dict):
                    raise ValueError(f"it holds a {type(held).__name__}")
                return held

    def texts(i: int) -> Texts:
        found: list[Texts] = []
        with refusing(ValueError, f"{name}: {shown(ids[i])} must have texts ({WHY}): correct them, or remove them", raises=UnclearName):
            for kind in [kind for kind in (*TEXTS, JSON) if kind in samples[i].said]:
                held = text(i, kind)
                said = [one for column in CAPTION_COLUMNS for one in texts_of(held.get(column))] if kind == JSON else lines_of(held)
                found += [each] if (each := not_blank([one.strip() for one in said])) else []
        if len({each[0] for each in found}) > 1:
            raise UnclearName(
                f"{name} must have one caption for each sample; {shown(ids[i])} has {shown(found[0][0], 40)} and {shown(found[1][0], 40)}: "
                "give the one that the model was trained with as --captions FILE"
            )
        return texts_of([text for each in found for text in each])

    def captions() -> tuple[Texts, ...] | None:
        all_texts = tuple(map(texts, range(len(samples))))
        return all_texts if any(all_texts) else None

    def label(i: int) -> Value:
        found: list[Value] = []
        with refusing(ValueError, f"{name}: {shown(ids[i])} must have a whole number or a name as label ({WHY})", raises=UnclearName):
            for kind in [kind for kind in (*LABELS, JSON) if kind in samples[i].said]:
                held = text(i, kind)
                said = [held.get(key) for key in LABEL_KEYS] if kind == JSON else [_number(held.strip())]
                found += [value for each in said if (value := label_value(each)) is not None]
        if len(set(found)) > 1:
            raise UnclearName(f"{name} must give each image one label; {shown(ids[i])} has {shown(found[0])} and {shown(found[1])}")
        return found[0] if found else None

    def labels() -> Labels | None:
        values = tuple(map(label, range(len(samples))))
        return Labels(values, _kinds(samples, LABELS, in_json(LABEL_KEYS))) if any(value is not None for value in values) else None

    def column(wanted: str) -> tuple[Any, ...] | None:
        held = [text(i, JSON) if JSON in sample.said else {} for i, sample in enumerate(samples)]
        return tuple(each.get(wanted) for each in held) if any(wanted in each for each in held) else None

    def in_json(keys: Sequence[str]) -> bool:
        """True if the first JSON has one of the keys."""
        first = next((i for i, sample in enumerate(samples) if JSON in sample.said), None)
        try:
            return first is not None and not text(first, JSON).keys().isdisjoint(keys)
        except UnclearName:
            return False

    def several(i: int) -> bool:
        """True if a caption member has several lines."""
        try:
            return any(len(lines_of(text(i, kind))) > 1 for kind in TEXTS if kind in samples[i].said)
        except (ValueError, UnclearName):
            return False

    def said() -> Said:
        told = _kinds(samples, TEXTS, in_json(CAPTION_COLUMNS)) + several_lines(sum(map(several, range(len(samples)))))
        return Said(told, _kinds(samples, LABELS, in_json(LABEL_KEYS)), counted(shards))

    read = lambda i: look(i).pixels
    return ImageSource(name, ids, read, labels, captions, look, decoding, left_out, said=said, column=column)


def _number(text: str) -> Value:
    """The class in a .cls file, which WebDataset writes as the digits of a number."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else text


def _kinds(samples: Sequence[Sample], kinds: Sequence[str], in_json: bool) -> str:
    """Which endings say something, and of how many samples, in words."""
    counts = {kind: sum(kind in sample.said for sample in samples) for kind in (*kinds, *([JSON] if in_json else []))}
    return " and ".join(one_or_more(count, f".{kind} member") for kind, count in counts.items() if count)


def _ids(samples: Sequence[Sample], shards: Sequence[Path], root: Path) -> tuple[str, ...]:
    """The key of each sample, with the name of its shard before it where a key is in two shards."""
    ids = tuple(sample.key for sample in samples)
    if len(set(ids)) < len(ids):
        names = [os.path.splitext(path.relative_to(root).as_posix())[0] for path in shards]
        ids = tuple(f"{names[sample.image.shard]}/{sample.key}" for sample in samples)
    if len(set(ids)) < len(ids):
        raise UserError(f"the samples of {root} must have different keys below their shards; two are alike: rename a shard")
    return ids


# the index of a shard


def _samples(path: Path, shard: int, ending: str | None) -> tuple[list[Sample], LeftOut]:
    """The samples of a shard in their order, and the pictures that are not opened."""
    pictures, ending = {each[1:] for each in opened_suffixes()}, ending and ending.lower()
    others = {each[1:] for each in PICTURES | OTHERS}
    members: dict[str, dict[str, Member]] = {}
    for key, kind, member in _members(path, shard):
        of_key = members.setdefault(key, {})
        if kind in of_key:
            raise UserError(f"{path} must have each file of a sample once; {shown(f'{key}.{kind}')} is there twice: write the shard again")
        of_key[kind] = member
    samples, unopened = [], []
    for key, of_key in members.items():
        images = [kind for kind in of_key if kind == ending or (ending is None and kind.rpartition(".")[2] in pictures)]
        images = [kind for kind in images if "." not in kind] or images  # x.jpg before x.seg.png
        if len(images) > 1:
            raise UserError(
                f"{path} must have one image for each sample; {shown(key)} has {listed(sorted(images), 80)}: say which as "
                f"DATA:{min(images)}"
            )
        if images:
            samples.append(Sample(key, images[0], of_key[images[0]], {k: m for k, m in of_key.items() if k in (*TEXTS, *LABELS, JSON)}))
        elif ending is None:
            unopened += [f"{key}.{kind}" for kind in of_key if kind.rpartition(".")[2] in others]
    return samples, LeftOut(len(unopened), unopened[0] if unopened else None, 0, None)


def _members(path: Path, shard: int) -> Iterator[tuple[str, str, Member]]:
    """Key, ending and place of every plain file of a shard, in its order."""
    message = f"{path} cannot be read as a tar archive ({WHY}): get or write the shard again"
    with refusing(Unreadable, message), opened(path, None) as file, parsing():
        length = os.fstat(file.fileno()).st_size
        begins = file.read(BLOCK)
        compressed = next((kind for pattern, kind in COMPRESSED.items() if re.match(pattern, begins)), None)
        if compressed and begins[USTAR] != b"ustar":
            raise UserError(f"{path} is a tar archive compressed with {compressed}: uncompress it, and give the .tar")
        file.seek(0)
        end = 0
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (entry := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # of which tarfile keeps every one
                if entry.offset < end or entry.size < 0:
                    raise Unreadable(f"the place of {shown(entry.name)} is damaged")
                if entry.offset_data + entry.size > length:
                    raise Unreadable(f"it ends within {shown(entry.name)}")
                end = tar.offset
                if entry.isreg() and (named := _key(entry.name)):
                    if entry.issparse():
                        raise Unreadable(f"{shown(entry.name)} is stored as a sparse file")
                    yield (*named, Member(shard, entry.offset_data, entry.size))
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            raise Unreadable("it ends before the mark of its end")


def _key(name: str) -> tuple[str, str] | None:
    """The key and the ending of a member; None for what is hidden, of macOS, or has no ending."""
    folder, _, file = (name if is_text(name) else name.encode("utf-8", "backslashreplace").decode()).removeprefix("./").rpartition("/")
    stem, _, ending = file.partition(".")
    if not stem or not ending or file.startswith(COMPANION) or COMPANIONS in folder.split("/"):
        return None
    return (f"{folder}/{stem}" if folder else stem), ending.lower()
