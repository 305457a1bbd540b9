"""What to do after a leak was found in this kind of model, with the paper of each defence and the part of the documentation that has the
commands.
"""

from typing import NamedTuple

from diffleak.records.audit import AuditRecord
from diffleak.report.audited import Audited
from diffleak.report.section import Facts, Section, Sentences

TITLE = "What to do next"
DEFENCES = "defences.md"


class Step(NamedTuple):
    """One thing to do: its name, how, the page and heading in docs/, and the name inside of a sentence."""

    name: str
    what: str
    where: str
    short: str


FEWER = Step(
    "Train for fewer steps.",
    "Earlier checkpoints usually give away less. diffleak audit over all of them shows which ones meet a limit (--max-auc, --max-tpr)",
    "fine-tunes.md, Which checkpoint?",
    "fewer training steps",
)
FEWER_OF_EMBEDDING = FEWER._replace(
    what="Earlier checkpoints usually give away less: audit them too", where="fine-tunes.md, Fine-tuned models"
)
EARLY = Step(
    "Stop early.",
    "diffleak train --preset lora --validation 0.1 keeps the LoRA that is best on images set aside. defend and DP-SGD take no LoRA",
    "defences.md, Early stopping and DP-SGD",
    "early stopping",
)
_LESS = (
    "whose answers depend less on single images (Tran et al. 2024, arXiv 2410.16657). If you release the weights, neither protects against "
    "every attack; diffleak compare shows how much is left"
)
DEFENCE = Step(
    "Train with a defence.", f"diffleak defend distill or dual trains a whole model, {_LESS}", "defences.md, Defend", "a defence"
)
DEFENCE_OF_TEXT = DEFENCE._replace(
    what=f"diffleak defend distill or dual --base MODEL fine-tunes a whole model, {_LESS}", where="defences.md, Text-to-image models"
)
PRIVATE = Step(
    "Train with differential privacy.",
    "diffleak train --dp-epsilon bounds what the model can reveal of any one image, at a cost in quality (Abadi et al. 2016, "
    "arXiv 1607.00133)",
    "defences.md, Early stopping and DP-SGD",
    "DP-SGD",
)
PRIVATE_ON_LATENTS = PRIVATE._replace(what=f"{PRIVATE.what}. The bound does not cover an autoencoder that was trained on the same images")
OWN_CODE = Step(
    "Train with a defence.",
    "DualMD and DistillMD make answers depend less on single images (Tran et al. 2024, arXiv 2410.16657), DP-SGD bounds what the model can "
    "reveal of any one image (Abadi et al. 2016, arXiv 1607.00133). diffleak defend and diffleak train --dp-epsilon train models of "
    "diffusers; a network of your own needs code of its own for them",
    "defences.md, Defend",
    "a defence",
)
LEAVE_OUT = Step(
    "Leave images out.",
    "Take the images that must not be exposed out of the data, train again from the start and audit again. Taking them out of the folder "
    "alone changes nothing in a model that has seen them",
    "audit.md, Audit a model",
    "leaving images out",
)
BY_BLACK_BOX = Step(
    "Release less.",
    "An interface that draws images gives outsiders less than the weights do: audit with --release api and the black_box attack",
    "attacks.md, Choosing attacks",
    "releasing less",
)
BY_EXTRACT = Step(
    "Release less.",
    "Drawn images alone give outsiders less than the model does. diffleak extract looks for training images among them",
    "drawings.md, Would it give my pictures back?",
    "releasing less",
)
STEPS = (
    FEWER,
    FEWER_OF_EMBEDDING,
    EARLY,
    DEFENCE,
    DEFENCE_OF_TEXT,
    PRIVATE,
    PRIVATE_ON_LATENTS,
    OWN_CODE,
    LEAVE_OUT,
    BY_BLACK_BOX,
    BY_EXTRACT,
)


def section(audit: Audited) -> Section | None:
    """The steps; None where no leak was found."""
    if audit.verdict.level != "leak":
        return None
    found = steps(audit.record)
    *names, last = [step.short for step in found]
    listed = f"{', '.join(names)} or {last}"
    where = next((step.where for step in found if step.where.startswith(DEFENCES)), found[0].where)
    short = f"{listed[0].upper()}{listed[1:]}; report.html has the steps ({_page(where)})."
    rows = tuple((step.name, f"{step.what} ({_page(step.where)}).") for step in found)
    return Section("next", TITLE, (Facts(rows, "limits"), Sentences((short,), tone="small", where="terminal")), "What next", TITLE)


def _page(where: str) -> str:
    """A page of the documentation and the heading on it: "docs/defences.md, “Defend”"."""
    page, heading = where.split(", ")
    return f"docs/{page}, “{heading}”"


def steps(record: AuditRecord) -> tuple[Step, ...]:
    """The steps that this kind of model can take, for the form of release: one that gives drawn images alone cannot give less."""
    return (*_in_training(record), LEAVE_OUT, *_in_release(record))


def _in_training(record: AuditRecord) -> tuple[Step, ...]:
    plan = record.plan
    if plan.lora is not None:
        return FEWER, EARLY
    if plan.embedding is not None:
        return (FEWER_OF_EMBEDDING,)
    if plan.model_from is not None:
        return FEWER, OWN_CODE
    if _takes_text(record):
        return FEWER, DEFENCE_OF_TEXT
    return FEWER, DEFENCE, PRIVATE_ON_LATENTS if record.latent else PRIVATE


def _in_release(record: AuditRecord) -> tuple[Step, ...]:
    evidence = record.evidence
    if evidence is None or evidence.released == "weights":
        return (BY_BLACK_BOX,) if _takes_text(record) else (BY_EXTRACT,)
    return (BY_EXTRACT,) if evidence.released == "api" else ()


def _takes_text(record: AuditRecord) -> bool:
    """True for a text-to-image model."""
    fit = record.evidence is not None and any(each.access == "black-box" and each.unfit is None for each in record.evidence.attacks)
    return fit or record.plan.captions is not None
