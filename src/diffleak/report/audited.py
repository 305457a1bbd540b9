"""The record, samples and images that the sections of an audit are made from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from markupsafe import Markup

from diffleak.errors import visible
from diffleak.records.audit import AuditRecord, Gate, Result
from diffleak.records.digests import Sealed
from diffleak.records.epsilon import EpsilonRecord
from diffleak.records.gate import Gated
from diffleak.records.maps import Maps
from diffleak.records.scores import Samples
from diffleak.report.judgement import Verdict, verdict
from diffleak.report.media.html import data_uri
from diffleak.report.section import Drawn, prose
from diffleak.report.selection import shown

MOST_PICTURED = 12


class Pictured(NamedTuple):
    """An image of a list: what is said of it, and its picture as a data URI."""

    id: str
    said: str
    picture: str | None
    score: str = ""


@dataclass(frozen=True, eq=False)
class Audited:
    """A record and, for a page, its samples, the digests of its files, what other commands found, and PNGs by id and maps.

    Without PNGs no image is shown.
    """

    record: AuditRecord
    samples: Samples | None = None
    thumbnail: Callable[[str], bytes] | None = None
    maps: Maps | None = None
    bound: EpsilonRecord | None = None
    sealed: Sealed | None = None
    gated: Gated | None = None

    @property
    def gates(self) -> tuple[Gate, ...]:
        """The checks against limits: those of `diffleak gate`, if they still hold, behind those of the audit's own flags."""
        checked = self.gated.record.checks if self.gated and self.gated.holds else ()
        again = {(gate.limit, gate.at_most) for gate in checked}
        return (*(gate for gate in self.record.gates if (gate.limit, gate.at_most) not in again), *checked)

    @property
    def scores(self) -> Samples:
        """The samples of a page."""
        assert self.samples is not None, "figures and images are made for pages only, which have samples"
        return self.samples

    @cached_property
    def verdict(self) -> Verdict:
        return verdict(self.record)

    @cached_property
    def results(self) -> tuple[Result, ...]:
        """The results of the main table and the figures, in the order of the record."""
        return shown(self.record)

    @property
    def lead(self) -> Result | None:
        """The result that the verdict speaks of."""
        return next((r for r in self.record.results if r.attack == self.verdict.attack), None)

    @property
    def ordered(self) -> list[Result]:
        """The results with the lead first."""
        return ([self.lead] if self.lead else []) + [r for r in self.results if r is not self.lead]

    @property
    def tested(self) -> str:
        return "the test part" if self.record.plan.calibration else "all images"

    @property
    def divisions(self) -> str:
        """The division that a figure is of, where there are several."""
        repeats = self.record.split.repeats
        return f" Drawn for the first of {repeats} random divisions; the table has the medians over all." if repeats > 1 else ""

    def pictured(self, image_id: str, said: str, score: str = "") -> Pictured:
        picture = data_uri(self.thumbnail(image_id)) if self.thumbnail else None
        return Pictured(visible(image_id), said, picture, score)

    def gallery(self, ids: Sequence[str]) -> list[Pictured]:
        """The first of these images, each with its side."""
        member = dict(zip(self.scores.ids, self.scores.member.tolist(), strict=True))
        side = lambda i: ("member" if member[i] else "held-out image") if i in member else "unknown side"
        return [self.pictured(i, side(i)) for i in ids[:MOST_PICTURED]]

    def no_pictures(self, why: str) -> tuple[Drawn, ...]:
        """The reason that images are not shown, where they are not."""
        if self.thumbnail is not None:
            return ()
        said, anonymous = f"reports are passed on, and these {why} private training images", self.record.plan.anonymous is not None
        return (not_shown(said, anonymous, Markup(", in <code>diffleak report</code> too")),)


def not_shown(why: str, anonymous: bool, where: str = "") -> Drawn:
    """The reason that images are not shown, and the flag that adds them; `where` else it does."""
    return prose(
        Markup("Images are not shown: {}.").format(why)
        + ("" if anonymous else Markup(" <code>--thumbnails</code> adds them{}.").format(where)),
        "prose muted",
    )
