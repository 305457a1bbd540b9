"""How many images an audit looked at and, where images count together, in how many groups: one phrase for every page and table."""

from diffleak.errors import visible
from diffleak.records.audit import AuditRecord
from diffleak.report.wording import count


def trained(record: AuditRecord, what: str = "training images") -> str:
    """412 training images; 412 training images in 398 groups of near-duplicates; 412 training images in 37 groups by patient."""
    return _side(record, record.plan.n_members, record.split.members, what)


def held_out(record: AuditRecord) -> str:
    """The same of the other side."""
    return _side(record, record.plan.n_nonmembers, record.split.nonmembers, "held-out images")


def units(record: AuditRecord, members: int, nonmembers: int) -> str:
    """A part of what is counted: 20 training and 30 held-out images, or so many groups of them."""
    return f"{count(members)} training and {count(nonmembers)} held-out {_counts(record) or 'images'}"


def _side(record: AuditRecord, images: int, of: int, what: str) -> str:
    """Images, and what they count as where that is fewer; a record from before groups has a number of images alone."""
    counts = "" if record.split.unit == "cluster" and images == of else _counts(record)
    return f"{count(images)} {what} in {count(of)} {counts}" if counts else f"{count(of)} {what}"


def _counts(record: AuditRecord) -> str:
    """What is counted in the place of images; empty where every image counts alone."""
    by = visible(str(record.plan.group))
    return {"image": "", "cluster": "groups of near-duplicates", "group": f"groups by {by}"}[record.split.unit]
