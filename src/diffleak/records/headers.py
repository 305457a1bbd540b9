"""What the header of a .safetensors file says beside its weights: kohya's, OneTrainer's and others' notes on the training. No torch.

kohya's sd-scripts writes `ss_...` keys (tags of all captions with their counts, names of the folders, numbers of images) and
`modelspec....`, the Stability AI model metadata standard; OneTrainer `ot_...` keys with its whole config; ai-toolkit `software`,
`training_info` and what its job says. Every value is looked at, those inside of JSON too; names decide what a value is, and an absolute
path is found wherever it stands. peft keeps the settings of an adapter in `adapter_config.json` beside it, where its trainer leaves the
place of the base model: that file is published with the adapter, so it is looked at like a text of the header.
"""

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from diffleak.errors import UserError, one_or_more, shown
from diffleak.records.base import Record
from diffleak.work.folder import read_object
from diffleak.work.reading import PICKLES, Header, Unreadable, found_at, load_header

Role = Literal["adapter", "model", "network", "embedding"]  # of a file in an audit
Kind = Literal["captions", "names", "paths", "users", "comments", "images", "thumbnails", "ids", "about", "settings", "unknown"]
KINDS: tuple[Kind, ...] = get_args(Kind)
WORDS: dict[Kind, tuple[str, str]] = {  # one of a kind, and several
    "captions": ("caption or tag", "captions and tags"),
    "names": ("name of a training folder or file", "names of training folders and files"),
    "paths": ("path of the training machine", "paths of the training machine"),
    "users": ("user name", "user names"),
    "comments": ("comment", "comments"),
    "images": ("number of images", "numbers of images"),
    "thumbnails": ("thumbnail", "thumbnails"),
    "ids": ("hash, id or date", "hashes, ids and dates"),
    "about": ("name or description of the model", "names and descriptions of models"),
    "settings": ("setting", "settings"),
    "unknown": ("unknown key", "unknown keys"),
}
PRIVATE: tuple[Kind, ...] = ("captions", "names", "paths", "users", "comments", "images", "thumbnails")
PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model"  # without its ending
ADAPTER_STEMS = ("pytorch_lora_weights", PEFT_WEIGHTS)  # of the files of an adapter in a folder: of diffusers, and of peft
ADAPTER_FILES = tuple(f"{stem}.safetensors" for stem in ADAPTER_STEMS)
PEFT_PREFIX = "base_model.model."  # of the names of weights
MOST_VALUES = 1000  # of a kind that are listed
LONGEST_VALUE = 200  # characters of a value that is listed
DEEPEST = 3  # JSON in a text in JSON in a text
DEEPEST_INSIDE = 50  # lists and objects in each other; what is deeper is read as text

KNOWN = re.compile(
    r"(ss|sshs|ot)_|modelspec\.|"
    r"(format|lora_adapter_metadata|adapter_config\.json|software|training_info|tensor_names|_quantization_metadata)$"
)
NOTHING = ("", "none", "null", "true", "false", "{}", "[]")
PLACE = re.compile(r"(^|_)(dirs?|directory|folders?|paths?|files?|filenames?|file_names?|destination)$")  # ends of keys
MODEL = re.compile(r"model|vae|checkpoint|clip|t5|unet|transformer|output_name|modelspec\.|license|(^|[._])(software|name|version|repo)$")
CAPTION = re.compile(r"caption|prompt|trigger|class_tokens|instance|keyword|activation|(^|[._])tags?$")
NO_CAPTION = re.compile(r"(^|_)(exten[st]ion|separator|source|type|mode|method|rate|shuffle|strategy|encoder)(_|$)|dropout")
COMMENT = re.compile(r"comment|(^|[._])notes?$")
IMAGES = re.compile(r"(img|image)s?_?count|num_(train_|reg_|val\w*_)?images|(^|_)image_num")
ID = re.compile(r"hash|session|uuid|sha256|md5|_at$|(^|[._])date($|_)|timestamp|(^|_)time$")
USER = re.compile(r"(^|_)(user|user_?name|owner|creator|host|host_?name|machine|e_?mail)$|(^|[._])authors?$")
RELATIVE = re.compile(
    r"[.~/]|[A-Za-z]:(?!//|\s)|.*\\|(?![^/]*://)[^/]+/+[^/]+/"
)  # starts of paths, where hub ids, URLs and names stand too
STARTS = r"(?:[A-Za-z]:[\\/]|\\\\\w|~[\\/]|/)"
WHOLE_PATH = re.compile(r"(?:file://)?(?:(?:[A-Za-z]:[\\/]|\\\\\w|~[\\/])[^\n\"]*|/[^\n\"/]+/[^\n\"]*)")
PATH = re.compile(
    r"(?:(?<![\w.:/\\~)\]}-])|(?<=file://))"
    r"(?:(?:[A-Za-z]:[\\/]+|\\\\\w|~[\\/])[^\s\"'<>|*?;,]+|/(?:[^\s\"'<>|*?;,:/\\()\[\]]+/)+[^\s\"'<>|*?;,()\[\]]*)"
)
HOME = re.compile(r"(?:^|[\\/])(?:home|Users|Documents and Settings)[\\/]+([^\\/]+)")
OF_ADAPTERS = re.compile(r"(^|[._])(lora|lycoris|hada|lokr|oft|dora)([._]|$)|\.diff(_b)?$")  # in the names of an adapter's weights


class Finding(Record):
    """What a header gives away of one kind."""

    kind: Kind
    """What kind of value it is."""
    private: bool
    """True where it may tell of the training images, or of the person who trained."""
    count: int
    """Number of different values."""
    values: tuple[str, ...]
    """The values as they stand there, the first thousand, each cut to 200 characters."""
    keys: tuple[str, ...]
    """Keys of the header that hold them."""

    @property
    def words(self) -> str:
        return in_words(self.kind, self.count)


class HeaderRecord(Record):
    """What `diffleak metadata FILE --json` prints."""

    schema_version: Literal[1] = 1
    """Version of these fields."""
    file: str
    """Path of the file."""
    tensors: int
    """Number of tensors in the file."""
    keys: int
    """Number of keys of the header beside the tensors."""
    config: str | None = None
    """Path of the adapter_config.json of peft beside the file, whose values are among the findings; null without one."""
    findings: tuple[Finding, ...]
    """What the header and that config give away, a kind each; empty where they say nothing."""
    private: bool
    """True where one of the findings is private."""
    stripped: str | None = None
    """Path of the copy without what loading does not need; null where none was written."""
    kept: tuple[str, ...] | None = None
    """Keys of the header that the copy keeps; null without a copy."""
    stripped_config: str | None = None
    """Path of the copy of adapter_config.json, beside that of the file; null where none was written."""
    taken_out: tuple[str, ...] | None = None
    """Settings that are null in the copy of adapter_config.json and were not; null without such a copy."""

    @property
    def subject(self) -> str:
        """What gives away, with its verb."""
        file = shown(self.file, 120)
        return f"the header of {file} and its {PEFT_CONFIG} give away" if self.config else f"the header of {file} gives away"


class GivenAway(Record):
    """What the header of a released file gives away that is private, counted: of an adapter, an embedding, or a model or network in one.

    With an adapter of peft that includes its adapter_config.json.
    """

    file: str
    """Path of the file, or its name where it is from the Hub."""
    what: Role
    """Part that the file plays in the audit."""
    counts: dict[str, int]
    """Number of different values of each private kind, as `diffleak metadata` names the kinds; empty where there is none."""
    config: bool = False
    """True where the adapter_config.json of peft beside the file is counted too."""

    @property
    def sentence(self) -> str:
        """The same for a reader."""
        give = f" and its {PEFT_CONFIG} give" if self.config else " gives"
        if not self.counts:
            return f"The header of the {self.what} {self.file}{give} away nothing private that is known."
        said = ", ".join(in_words(kind, self.counts[kind]) for kind in KINDS if kind in self.counts)
        here = self.file.endswith(".safetensors")  # else a name on the Hub
        lists = f"diffleak metadata {shlex.quote(self.file)}" if here else f"diffleak metadata, on a downloaded copy of {self.file},"
        return f"The header of the {self.what}{give} away: {said}. {lists} lists them, and --strip removes them."


class Leaf(NamedTuple):
    """A value of a header: the keys that lead to it, and its text."""

    trail: tuple[str, ...]
    text: str


def in_words(kind: str, count: int) -> str:
    """A number of values of a kind: "214 captions and tags"."""
    one, several = WORDS[kind]  # type: ignore[index]
    return one_or_more(count, one, several)


def only_file(given: Path) -> Path:
    """The .safetensors file that is meant: the only one in a folder, as in that of an adapter; raises `UserError` for none or several."""
    if found_at(given) != "a folder":
        return given
    inside = sorted(given.glob("*.safetensors"))
    if len(inside) != 1:
        has = f"has {len(inside)}: give one of them, such as {shown(inside[0], 150)}" if inside else "has none"
        raise UserError(f"FILE must be a .safetensors file, or a folder with one; {shown(given, 150)} {has}")
    return inside[0]


def read_header(file: Path) -> Header:
    """The header of a .safetensors file; raises `UserError`, which names the format, for anything else."""
    if (found := found_at(file)) != "a file":
        raise UserError(f"FILE must be a .safetensors file; found {found} at {shown(file, 150)}")
    if (ending := file.suffix.lower()) in (*PICKLES, ".gguf"):
        kind = "a GGUF file" if ending == ".gguf" else f"a pickle ({ending}), which has no header and runs code when it is opened"
        raise UserError(f"FILE must be a .safetensors file; {shown(file, 150)} is {kind}: save the weights as .safetensors")
    try:
        return load_header(file)
    except Unreadable as error:
        raise UserError(f"the header of {shown(file, 150)} cannot be read ({error}); FILE must be a whole .safetensors file") from None


def peft_config(file: Path) -> Path | None:
    """The adapter_config.json beside an adapter that is in the layout of peft; None for any other file, and without one."""
    config = file.with_name(PEFT_CONFIG)
    if not config.is_file():
        return None
    try:
        names = () if file.stem == PEFT_WEIGHTS else load_header(file).tensors
    except Unreadable:
        return None
    return config if file.stem == PEFT_WEIGHTS or (names and all(name.startswith(PEFT_PREFIX) for name in names)) else None


def read_peft_config(config: Path) -> dict[str, Any]:
    """The settings in an adapter_config.json; raises `UserError` for what is no JSON object."""
    return read_object(config, "peft writes it beside the adapter: save the adapter again")


def texts(header: Header, config: Path | None) -> dict[str, str]:
    """All texts that are looked at: those of a header, and a config of peft as one more."""
    return header.metadata | ({PEFT_CONFIG: json.dumps(read_peft_config(config))} if config else {})


def adapter_weight(names: Iterable[str]) -> str | None:
    """The first of these names of weights that is an adapter's, a LoRA's or another's; None where there is none."""
    return next((name for name in names if OF_ADAPTERS.search(name)), None)


def findings(metadata: Mapping[str, str]) -> tuple[Finding, ...]:
    """What the texts of a header give away, a kind each, in the order of KINDS; a value counts once in its kind."""
    found: dict[Kind, dict[str, str]] = {kind: {} for kind in KINDS}  # the key of the header by the value
    for key, text in metadata.items():
        for leaf in _leaves((key,), text):
            for kind, value in _kinds(leaf):
                found[kind].setdefault(value, key)
        if not KNOWN.match(key):
            found["unknown"][f"{key} = {text[:LONGEST_VALUE]}"] = key
    return tuple(
        Finding(
            kind=kind,
            private=kind in PRIVATE,
            count=len(values),
            values=tuple(value[:LONGEST_VALUE] for value in [*values][:MOST_VALUES]),
            keys=tuple(dict.fromkeys(values.values())),
        )
        for kind, values in found.items()
        if values
    )


def given_away(file: Path, what: Role, name: str | None = None) -> GivenAway:
    """What a file's header gives away that is private, for the record of an audit; `name` is how the user named the file."""
    config = peft_config(file)
    found = findings(texts(read_header(file), config))
    counts: dict[str, int] = {each.kind: each.count for each in found if each.private}
    return GivenAway(file=name or str(file), what=what, counts=counts, config=config is not None)


def _leaves(trail: tuple[str, ...], value: object, depth: int = 0) -> Iterator[Leaf]:
    """Every value, inside of JSON too, also in a text that is JSON itself."""
    if isinstance(value, str) and depth < DEEPEST and value.lstrip()[:1] in ("{", "["):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = value
        if not isinstance(parsed, str) and not _deep(parsed):
            yield from _leaves(trail, parsed, depth + 1)
            return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves((*trail, key), inner, depth)
        if not value:
            yield Leaf(trail, "")
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(trail, inner, depth)
    else:
        yield Leaf(trail, "" if value is None else str(value))


def _deep(value: object) -> bool:
    """True if lists and objects lie in each other deeper than DEEPEST_INSIDE."""
    level = [value]
    for _ in range(DEEPEST_INSIDE):
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())]
    return bool(level)


def _kinds(leaf: Leaf) -> Iterator[tuple[Kind, str]]:
    """The kinds that a value is of, each with what is listed."""
    text, name = leaf.text.strip(), leaf.trail[-1].lower()
    if text.startswith("data:"):
        yield "thumbnails", f"{text[:40].partition(',')[0]}, {len(text):,} characters"
        return
    inner = _under(leaf.trail, "tag_frequency")
    if inner is not None:
        yield from (("names", folder) for folder in inner[:1])
        yield from (("captions", tag) for tag in inner[1:2])
    folders = _under(leaf.trail, "dataset_dirs")
    if folders:
        yield "names", folders[0]
    paths = [path for part in (*leaf.trail[1:], text) for path in _paths(part, name)]
    yield from (("paths", path) for path in paths)
    yield from (("users", user) for path in paths for user in HOME.findall(path))
    if inner is not None or paths or text.lower() in NOTHING:
        return
    kind = _by_name(leaf.trail, name, text)
    plain = kind in ("captions", "names", "comments", "users")
    yield kind, text if plain else f"{'.'.join(leaf.trail[-2:])} = {text[:LONGEST_VALUE]}"


def _by_name(trail: Sequence[str], name: str, text: str) -> Kind:
    """The kind of a value that is no path, by the name of its key."""
    number = re.fullmatch(r"[-+.\d]+(e[-+]?\d+)?", text.lower()) is not None
    if IMAGES.search(name) or (name == "count" and "buckets" in trail):
        return "images"
    if ID.search(name):
        return "ids"
    if number:
        return "settings"
    if COMMENT.search(name):
        return "comments"
    if CAPTION.search(name) and not NO_CAPTION.search(name) and not PLACE.search(name):
        return "captions" if not name.startswith("modelspec.") else "about"
    if name == "name" and "concepts" in trail:
        return "names"
    if USER.search(name):
        return "users"
    if MODEL.search(name) or trail[0] == "software":
        return "about"
    if PLACE.search(name):
        return "names"
    return "settings" if KNOWN.match(trail[0]) else "unknown"


def _under(trail: Sequence[str], name: str) -> Sequence[str] | None:
    """The keys below the one that ends in `name`; None where there is none."""
    at = next((place for place, key in enumerate(trail) if key.endswith(name)), None)
    return None if at is None else trail[at + 1 :]


def _paths(text: str, name: str) -> list[str]:
    """The absolute paths in a text, by the name of its key also a relative one; what is a path as a whole may have blanks in it."""
    local = name.endswith("name_or_path") and RELATIVE.match(text)
    if local or WHOLE_PATH.fullmatch(text) or (PLACE.search(name) and re.match(STARTS, text)):
        return [text]
    return PATH.findall(text)
