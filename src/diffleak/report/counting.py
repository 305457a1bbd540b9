"""How many images an audit looked at and, where images count together, as how many: one phrase for every page and table."""

from diffleak.errors import visible
from diffleak.records.audit import AuditRecord
from diffleak.report.wording import count


def trained(record: AuditRecord, what: str = "training images") -> str:
    """412 training images; 412 training images (398 with near-duplicates counted once); 412 training images in 37 groups by patient."""
    return _side(record, record.plan.n_members, record.split.members, what)


def held_out(record: AuditRecord) -> str:
    """The same of the other side."""
    return _side(record, record.plan.n_nonmembers, record.split.nonmembers, "held-out images")


def units(record: AuditRecord, members: int, nonmembers: int) -> str:
    """A part of what is counted: 20 training and 30 held-out images, or so many groups of them."""
    once = " (near-duplicates counted once)" if record.split.unit == "cluster" else ""
    return f"{count(members)} training and {count(nonmembers)} held-out {_groups(record) or 'images'}{once}"


def _side(record: AuditRecord, images: int, of: int, what: str) -> str:
    """Images, and what they count as where that is fewer; a record from before groups has a number of images alone."""
    if groups := _groups(record):
        return f"{count(images)} {what} in {count(of)} {groups}"
    if record.split.unit == "cluster" and images != of:
        return f"{count(images)} {what} ({count(of)} with near-duplicates counted once)"
    return f"{count(of)} {what}"


def _groups(record: AuditRecord) -> str:
    """The groups that are counted in the place of images; empty where images are."""
    return f"groups by {visible(str(record.plan.group))}" if record.split.unit == "group" else ""
