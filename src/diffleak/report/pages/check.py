"""The page on a check of two sides before an audit."""

from collections.abc import Callable

from diffleak.errors import one_or_more
from diffleak.records.check import CheckRecord
from diffleak.report.section import Page, Section, facts, page_of
from diffleak.report.sections import glossary, limits, reproduce, verdict, warnings
from diffleak.report.sections.check import duplicates, made, power, sides, unreadable
from diffleak.report.sections.check import verdict as judge
from diffleak.report.wording import entries

GLOSSARY = entries("""
    Member | an image that the model was, or will be, trained on; a held-out image comes from the same source and was not.
    Near-duplicate | an image that was encoded again, resized, mirrored, recoloured or slightly cropped, or that looks like such a
        copy.
    Cluster | images that near-duplicates connect; an audit counts them as one image.
    AUC | how often an attack ranks a random member above a random held-out image; 0.5 is guessing, 1 is always right.
    TPR at 1 % FPR | share of members that an attack names while it names 1 % of the held-out images by mistake.
    Detected | the 95 % interval of the number does not include what guessing gives.
""")

LIMITS = entries("""
    No model was used. | Nothing here says that a model leaks, or does not. It says what an audit of these sides can show.
    Duplicates are found by their look. | Small images and drawings look alike without being copies, and copies that were rotated,
        cropped by more than about a tenth, or drawn over are missed. So are near-duplicates in clusters of more than 32.
    Sources can differ unseen. | The blind check sees pixel statistics. Sides that differ by content alone, as by date or place,
        can pass it.
    The number of images is a guide. | It holds for the two kinds of leak that the table names. An audit of few images reports medians
        over several divisions.
""")

HANDLING = (
    "This page names images (file name or row number): personal data where they are of people. Pass it on only to those who may know "
    "which images are trained on."
)

SECTIONS: tuple[Callable[[CheckRecord], Section | None], ...] = (
    lambda record: verdict(judge(record)),
    lambda record: warnings(record.warnings),
    sides,
    duplicates,
    power,
    unreadable,
    lambda record: limits(LIMITS),
    lambda record: glossary(GLOSSARY, of_attacks=True),
    lambda record: reproduce(record.command, facts(made(record))),
)


def page(record: CheckRecord) -> Page:
    """The report."""
    return page_of(
        record,
        (make(record) for make in SECTIONS),
        title="Check before an audit",
        heading="Check before an audit",
        meta=f"{one_or_more(record.members.images, 'member')}, {one_or_more(record.nonmembers.images, 'held-out image')}",
        handling=HANDLING if record.duplicates.pairs or record.unreadable else "",
    )
