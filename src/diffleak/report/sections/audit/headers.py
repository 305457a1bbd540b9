"""What the released file gives away beside its weights, by its header."""

from diffleak.errors import visible
from diffleak.report.audited import Audited
from diffleak.report.section import Section, Sentences

TITLE = "What the file's header gives away"


def section(audit: Audited) -> Section | None:
    """A sentence for each file; text has it only where something private is there."""
    headers = audit.record.headers
    private = any(header.counts for header in headers)
    said = tuple(visible(header.sentence) for header in headers if header.counts or not private)
    blocks = (Sentences(said, tone="caution" if private else "", where="everywhere" if private else "page"),)
    return Section("headers", TITLE, blocks, "Header", TITLE if private else "") if headers else None
