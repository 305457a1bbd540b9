"""The report of an audit."""

from collections.abc import Callable

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from diffleak.errors import visible
from diffleak.records.audit import AuditRecord, Result
from diffleak.records.epsilon import EpsilonRecord
from diffleak.records.maps import Maps
from diffleak.records.scores import Samples
from diffleak.report import handling
from diffleak.report.audited import Audited
from diffleak.report.section import Page, Section, sections
from diffleak.report.sections import glossary, limits, model, verdict, warnings
from diffleak.report.sections.audit import (
    attacks,
    calibrated,
    epsilon,
    exposed,
    figures,
    gates,
    geometry,
    groups,
    headers,
    made,
    masks,
    reference,
)
from diffleak.report.selection import masked
from diffleak.report.table import columns, difference_cell
from diffleak.report.wording import count, counted, moment

GLOSSARY = (
    ("Member", "an image the model was trained on; a held-out image comes from the same source but was not used for training."),
    ("AUC", "how often an attack ranks a random member above a random held-out image; 0.5 is guessing, 1 is always right."),
    ("TPR at 1 % FPR", "share of members an attack catches when it may raise a false alarm for 1 % of the held-out images."),
    ("Timestep", "how much noise an image gets before the model is asked about it; each attack has one where it sees most."),
    ("Calibrate, test part", "settings are chosen on the one; every number in the verdict comes from the other."),
)
LATENT_GLOSSARY = (
    ("Latent", "the compressed form of an image that the diffusion model works on; its numbers are the latent coordinates."),
    ("Decoder", "the part of the model that turns a latent into a picture."),
    ("Influence", "how much the decoded picture changes when one latent coordinate changes a little."),
    ("Distortion", "how strongly the decoder stretches small steps around an image's latent; one number per image."),
    ("Mask", "leaves a share of the latent coordinates out of an attack, such as the 40 % of lowest influence (influence:0.4)."),
)
CALIBRATED_GLOSSARY = (
    ("Calibrated", "an attack's score less what the complexity of the image, its compressed size and its frequencies, predicts of it."),
)
GROUPS_GLOSSARY = (
    ("Group", "images that belong together, such as those of one person. Its score is the mean of its images' scores."),
    ("Counted by group", "AUC, rates and intervals are of groups: read member as group of members, and held-out image as held-out group."),
)
REFERENCE_GLOSSARY = (
    ("Reference", "a model without the training that is audited, such as the one that was fine-tuned; it says how hard each image is."),
    ("Excess", "an attack's score of an image less its score of the same image in the reference."),
)

LIMITS = (
    ("A lower bound.", "Only the attacks in the table were run. A stronger one may find more; none of this proves that nothing leaks."),
    ("The attacker's access.", "The results hold for the access named in the table; an attacker with less may find less, with more, more."),
    (
        "The same source.",
        "Members and held-out images must come from one source, divided at random. If they differ by themselves, the numbers measure "
        "that. The check on pixel statistics catches only coarse differences.",
    ),
    (
        "Averages.",
        "AUC is about a typical image. A few images can be fully exposed while it is close to one half; the rates at few false alarms "
        "and the list of the highest scores look there.",
    ),
    ("One model.", "The intervals count the choice of images, not that of another training run, seed or data set."),
    ("Membership, not copies.", "Whether the model reproduces its training images is another question."),
)

SECTIONS: tuple[Callable[[Audited], Section | None], ...] = (
    lambda audit: verdict(audit.verdict),
    gates.section,
    lambda audit: warnings(audit.record.warnings),
    figures.tiles,
    attacks.section,
    calibrated.section,
    masks.section,
    reference.section,
    figures.roc,
    figures.timesteps,
    figures.scores,
    geometry.section,
    groups.section,
    exposed.section,
    lambda audit: epsilon.section(audit.bound),
    headers.section,
    made.costs,
    lambda audit: limits(LIMITS, "What this does not show"),
    lambda audit: glossary(_terms(audit.record)),
    made.section,
    made.omitted,
)
OF_INVALID = (SECTIONS[0], made.section)  # why it is, what to do, and how it was made


def page(
    record: AuditRecord,
    samples: Samples | None = None,
    thumbnail: Callable[[str], bytes] | None = None,
    maps: Maps | None = None,
    bound: EpsilonRecord | None = None,
) -> Page:
    """The report; only with samples it has figures, and only with thumbnails, an image's PNG by its id, images with their maps.

    bound: what `diffleak epsilon` found, which gets a section.
    """
    audit = Audited(record, samples, thumbnail, maps, bound)
    invalid = audit.verdict.level == "invalid"
    sides = counted(record.split.unit).sides(record.split.members, record.split.nonmembers)
    return Page(
        title=f"Membership audit of {visible(record.plan.model)}",
        heading="Membership audit",
        meta=f"{model(record.plan.model, record.plan.lora)} · {sides}",
        created=visible(moment(record.created)),
        version=record.environment.diffleak,
        sections=sections(make(audit) for make in (OF_INVALID if invalid else SECTIONS)),
        handling="" if invalid else handling.on_page(record.plan.anonymous is not None, thumbnail is not None),
        style="maps.css" if maps and thumbnail and not invalid else "",
    )


def print_calibrated(plain: Result, found: Result, console: Console | None = None) -> None:
    """Prints the statistics of one score file as it is, then those of the calibrated scores and what that adds."""
    console = console or Console()
    print_result(plain, console)
    console.print(Text(f"\n{visible(found.attack)}, taken out: {calibrated.taken_out(found)}", "bold"))
    print_result(found, console)
    if found.gain:
        for name, estimate, in_percent in (("AUC", found.gain.auc, False), ("TPR at 1 % FPR, in points", found.gain.tpr_at_1pct, True)):
            cell = difference_cell(estimate, in_percent)
            console.print(Text(f"{name}: {' '.join((cell.text, *cell.details))} by calibration"))


def print_result(result: Result, console: Console | None = None) -> None:
    """Prints the statistics of one score file, a line each, with the reason where one cannot be estimated."""
    console = console or Console()
    drawn = RichTable(box=None, show_header=False, pad_edge=False)
    drawn.add_column(no_wrap=True)
    drawn.add_column(no_wrap=True, justify="right")
    drawn.add_column(style="dim")
    for column in columns([result]):
        cell = column.cell(result)
        if cell.text != "-":
            drawn.add_row(column.title, cell.text, Text("; ".join([*cell.details, *map(visible, filter(None, [cell.reason]))])))
    console.print(drawn)
    sizes = f"{count(result.n_members)} members, {count(result.n_nonmembers)} non-members"
    console.print(Text(f"{sizes}; convention {result.convention}; intervals are 95 %", "dim"))


def _terms(record: AuditRecord) -> tuple[tuple[str, str], ...]:
    told = {
        LATENT_GLOSSARY: record.geometry or masked(record),
        REFERENCE_GLOSSARY: record.plan.reference,
        GROUPS_GLOSSARY: record.groups,
        CALIBRATED_GLOSSARY: any(result.complexity for result in record.results),
    }
    return (*GLOSSARY, *(term for terms, there in told.items() if there for term in terms))
