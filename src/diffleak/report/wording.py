"""Numbers and names, written the same in the terminal, in Markdown and in HTML. Rates are fractions in, percent out."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from diffleak.errors import one_or_more, visible
from diffleak.records.base import Estimate
from diffleak.records.scores import Unit

# Rates this close to impossible, guessing or certain keep a decimal: 50.4 % must not read as 50 %.
EDGES = (0.0, 0.5, 1.0)
NAMED = 6  # class names that are written out


class Counted(NamedTuple):
    """What an audit counts: how one is called, and several, on either side and on any."""

    member: str
    members: str
    held_out: str
    all_held_out: str
    one: str
    several: str

    def filled(self, text: str) -> str:
        """A text with {members} and the other names above in it, in these words."""
        for name, words in self._asdict().items():
            text = text.replace(f"{{{name}}}", words)
        return text

    def sides(self, members: int, nonmembers: int) -> str:
        """1600 members, 1600 held-out images"""
        return f"{one_or_more(members, self.member, self.members)}, {one_or_more(nonmembers, self.held_out, self.all_held_out)}"


IMAGES = Counted("member", "members", "held-out image", "held-out images", "image", "images")
GROUPS = Counted("group of members", "groups of members", "held-out group", "held-out groups", "group", "groups")


def counted(unit: Unit) -> Counted:
    """The words for what an audit counts; a cluster of near-duplicates is one image."""
    return GROUPS if unit == "group" else IMAGES


def adapter(lora: str | None, scale: float | None, embedding: str | None = None) -> str:
    """LoRA and embedding at the head of a list: "the LoRA pokemon at scale 1, "; nothing where there is none."""
    merged = "" if lora is None else f"the LoRA {visible(lora)} {at_scale(scale)}, "
    return merged if embedding is None else f"{merged}the embedding {visible(embedding)}, "


def at_scale(scale: float | None) -> str:
    """The strength of a LoRA, which a record need not have."""
    return "at a scale that is not recorded" if scale is None else f"at scale {scale:g}"


def labels_from(origin: str, names: dict[str, int] | None) -> str:
    """Where the classes of images came from, with the first numbers of names that are not the numbers themselves."""
    named = [(name, i) for name, i in (names or {}).items() if not (name.isdecimal() and name.lstrip("0") == str(i).lstrip("0"))]
    more = f", and {count(len(named) - NAMED)} more" if len(named) > NAMED else ""
    return visible(origin) + (f" ({', '.join(f'{visible(name)} = {i}' for name, i in named[:NAMED])}{more})" if named else "")


def beside(x: float, limit: float, kind: str = "f") -> str:
    """A number with three decimals (kind "g": three digits), or as many as it takes to be on the same side of a limit as the number."""
    return next((text for n in range(3, 17) if (float(text := f"{x:.{n}{kind}}") > limit) == (x > limit)), repr(x))


def count(n: int) -> str:
    """1600 as 1,600."""
    return f"{n:,}"


def cut_captions(n: int) -> str:
    """The warning of captions that are longer than the text encoder reads."""
    cut = "longer than the model's text encoder reads"
    return one_or_more(n, f"caption is {cut}: it read the beginning only", f"captions are {cut}: it read their beginning only")


def resized(n: int, shape: object, image: str = "image") -> str:
    """The warning of images of another shape than the model's."""
    how = f"resized to {shape} (bicubic, antialiased, centre crop)"
    return one_or_more(n, f"{image} of another shape was {how}", f"{image}s of another shape were {how}")


def omitted(n: int) -> str:
    """The warning of images that cannot be read."""
    return one_or_more(n, "unreadable image was left out", "unreadable images were left out")


def number(x: float, decimals: int = 1) -> str:
    """A rate as a number of percent; only an exact 0 or 1 is written as 0 or 100."""
    if x in (0.0, 1.0):
        return f"{100 * x:.0f}"
    for places in range(decimals, 6):
        text = f"{100 * x:.{places}f}"
        if float(text) not in (0.0, 100.0):
            break
    return text


def percent(x: float, decimals: int = 1) -> str:
    """0.234 as 23.4 %."""
    return f"{number(x, decimals)} %"


def spoken(estimate: Estimate) -> tuple[str, str]:
    """An estimated rate for a sentence: ("89 %", "86 to 92 %"), with a decimal where whole percents would mislead."""
    value, low, high = estimate.value, estimate.low, estimate.high
    assert value is not None and low is not None and high is not None, "callers speak only of what was estimated"
    near = any(abs(rate - edge) < 0.01 for rate in (value, low, high) for edge in EDGES)
    decimals = 1 if near or high - low < 0.03 else 0
    return percent(value, decimals), f"{number(low, decimals)} to {percent(high, decimals)}"


def interval(estimate: Estimate, in_percent: bool) -> str:
    """[0.862, 0.918], or [17.0, 30.1] in percent; empty where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    low, high = (number(x) if in_percent else f"{x:.3f}" for x in (estimate.low, estimate.high))
    return f"[{low}, {high}]"


def signed(x: float, in_percent: bool = False) -> str:
    """A difference with its sign, +0.021 or, in points of percent, +2.1; only an exact 0 is written as 0."""
    scaled, fewest = (100 * x, 1) if in_percent else (x, 3)
    for places in range(fewest, fewest + 4):
        text = f"{scaled:+.{places}f}"
        if float(text) != 0.0:
            return text
    return f"{0.0:.{fewest}f}"


def signed_interval(estimate: Estimate, in_percent: bool = False) -> str:
    """[+0.010, +0.032]; empty where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{signed(estimate.low, in_percent)}, {signed(estimate.high, in_percent)}]"


def _parts(text: str) -> Iterator[list[str]]:
    """The parts of every line, which " | " divides; a line that is indented by 8 goes on with the one before."""
    return (line.strip().split(" | ") for line in re.sub(r"\n {8}", " ", text).splitlines() if line.strip())


def entries(text: str) -> tuple[tuple[str, str], ...]:
    """Names and what is said of each, a line each: NAME | SAID."""
    return tuple((name, said) for name, said in _parts(text))


def triples(text: str) -> tuple[tuple[str, str, str], ...]:
    """Three parts of every line: NAME | SAID | SAID."""
    return tuple((name, first, second) for name, first, second in _parts(text))


def medians(repeats: int) -> tuple[str, ...]:
    """Says that a difference in a table need not be that of its columns; nothing with one division."""
    if repeats == 1:
        return ()
    return (
        f"Every number is the median over {repeats} random divisions, differences too, so a difference need not be that of the "
        "two numbers beside it.",
    )


def exposed(share: float, nonmembers: int, what: str = "image") -> str:
    """In words, how many held-out images, or groups of them, score at least as high as a member does."""
    if share == 0:
        return f"none of the {count(nonmembers)} held-out {what}s scores as high"
    if share < 0.2:
        return f"about 1 in {count(round(1 / share))} held-out {what}s scores as high"
    return f"{percent(share, 0)} of the held-out {what}s score as high"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min {int(seconds) % 60} s"


def moment(iso: str) -> str:
    """2025-01-31T12:00:00+00:00 as 2025-01-31 12:00 UTC; anything else as it is."""
    try:
        time = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if time.tzinfo else iso


def nearer_than_base(nearer: int, pictures: int) -> str:
    """How many pictures an adapter draws more closely than its base draws any."""
    of = one_or_more(pictures, "picture")
    return f"to {count(nearer)} of {of} the adapter's drawings come closer than the base's drawings come to any picture"


def last_part(model: str) -> str:
    """The last part of a path, or the name on the hub."""
    parts = [part for part in re.split(r"[/\\]", model) if part]
    return visible((parts or ["model"])[-1])


def last_parts(names: str) -> str:
    """The last part of each path in a list such as that of --lora: a/x.safetensors@0.8,b/y as x.safetensors@0.8,y."""
    return ",".join(map(last_part, names.split(",")))
