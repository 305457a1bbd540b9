"""The groups of images that were counted in the place of images, the most exposed ones listed."""

from diffleak.errors import one_or_more, visible
from diffleak.report.audited import Audited
from diffleak.report.section import Section, Sentences, Tabulated
from diffleak.report.sections.audit.exposed import EXPOSURE
from diffleak.report.table import Cell, Column, tabulate
from diffleak.report.wording import GROUPS, count, exposed

COLUMNS = (
    Column(("Images",), "Images of the group.", 3, lambda group: Cell(count(group.images))),
    Column(("Score",), "Mean membership score of its images; higher = more likely members.", 2, lambda group: Cell(f"{group.score:.4g}")),
)


def section(audit: Audited) -> Section | None:
    """How many groups there are, and those of members that the attack is surest of."""
    found = audit.record.groups
    if found is None:
        return None
    column, (smallest, middle, largest) = visible(found.column), found.images
    images = (
        f"{count(smallest)} to {count(largest)} images (median {count(middle)})" if largest > smallest else one_or_more(largest, "image")
    )
    said = [
        f"Images of one {column} count as one: {GROUPS.sides(found.members, found.nonmembers)}, of {images} each. AUC, rates, intervals "
        "and limits are of groups."
    ]
    if not found.exposed:
        return Section("groups", f"Groups by {column}", (Sentences(tuple(said), listed=False),), "Groups", f"Groups by {column}")
    part = " of the test part" if audit.record.plan.calibration else ""
    said.append(
        f"The groups of members{part} that {visible(found.attack or '')} is surest of. "
        f"{EXPOSURE[audit.verdict.level].replace('members', 'groups')} samples.csv has every image with its group."
    )
    exposure = lambda group: Cell(exposed(group.exposure, found.tested[1], "group"))
    columns = (*COLUMNS, Column(("Exposure",), "How few held-out groups score as high.", 1, exposure, look="left"))
    made = tabulate(found.exposed, columns, lambda group: (group.group, "", False))
    listed = Tabulated(made, "The groups with the highest scores first.", column, quoted=True)
    return Section("groups", f"Groups by {column}", (Sentences(tuple(said), listed=False), listed), "Groups", f"Groups by {column}")
