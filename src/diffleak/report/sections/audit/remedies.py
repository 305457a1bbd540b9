"""What to do after a leak was found, with the paper of each defence and the part of the documentation that has the commands."""

from diffleak.records.audit import AuditRecord
from diffleak.report.audited import Audited
from diffleak.report.section import Facts, Section, Sentences
from diffleak.report.wording import triples

TITLE = "What to do next"
# name, what, page and heading in docs/
STEPS = triples("""
    Train for fewer steps. | Earlier checkpoints usually give away less. diffleak audit over all of them shows which ones meet a limit
        (--max-auc, --max-tpr) | fine-tunes.md, Which checkpoint?
    Train with a defence. | diffleak defend distill or dual trains a whole model, no LoRA, whose answers depend less on single images
        (Tran et al. 2024, arXiv 2410.16657). If you release the weights, neither protects against every attack; diffleak compare shows
        how much is left | defences.md, Defend
    Train with differential privacy. | diffleak train --dp-epsilon, not for text-to-image models, bounds what the model can reveal of any
        one image, at a cost in quality (Abadi et al. 2016, arXiv 1607.00133) | defences.md, Defend
    Leave images out. | Take the images that must not be exposed out of the data, train again from the start and audit again. Taking
        them out of the folder alone changes nothing in a model that has seen them | audit.md, Audit a model
    Release less. | An interface that draws images gives outsiders less than the weights do. For a text-to-image model audit with
        --release api and the black_box attack; for other models use diffleak extract | attacks.md, Choosing attacks
""")
BY_EXTRACT = (
    "Release less.",
    "Drawn images alone give outsiders less than the model does. diffleak extract looks for training images among them",
    "drawings.md, Would it give my pictures back?",
)


def section(audit: Audited) -> Section | None:
    """The steps; None where no leak was found."""
    if audit.verdict.level != "leak":
        return None
    rows = tuple((name, f"{what} ({_page(where)}).") for name, what, where in steps(audit.record))
    less = " or releasing less" if len(rows) == len(STEPS) else ""
    short = (
        f"Fewer training steps, a defence, DP-SGD, leaving images out{less}; report.html has the steps ({_page('defences.md, Defend')})."
    )
    return Section("next", TITLE, (Facts(rows, "limits"), Sentences((short,), tone="small", where="terminal")), "What next", TITLE)


def _page(where: str) -> str:
    """A page of the documentation and the heading on it: "docs/defences.md, “Defend”"."""
    page, heading = where.split(", ")
    return f"docs/{page}, “{heading}”"


def steps(record: AuditRecord) -> tuple[tuple[str, str, str], ...]:
    """The steps for the form of release: one that gives drawn images alone cannot give less."""
    evidence = record.evidence
    if evidence is None or evidence.released == "weights":
        drawing = evidence is None or any(each.access == "black-box" and each.unfit is None for each in evidence.attacks)
        return STEPS if drawing else (*STEPS[:-1], BY_EXTRACT)
    return (*STEPS[:-1], BY_EXTRACT) if evidence.released == "api" else STEPS[:-1]
