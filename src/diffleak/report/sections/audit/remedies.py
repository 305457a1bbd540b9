"""What to do after a leak was found, with the part of the README that has the commands."""

from diffleak.report.audited import Audited
from diffleak.report.section import Facts, Section, Sentences

TITLE = "What to do next"
STEPS = (  # name, what, heading in the README
    (
        "Train for fewer steps.",
        "Earlier checkpoints usually give away less. diffleak audit over all of them shows which ones keep a limit (--max-auc, --max-tpr)",
        "Which checkpoint?",
    ),
    (
        "Train with a defence.",
        "diffleak defend distill or dual trains a model whose answers depend less on single images; diffleak compare shows by how much",
        "Defend",
    ),
    (
        "Train with differential privacy.",
        "diffleak train --dp-epsilon bounds what the model can reveal of any one image, at a cost in quality",
        "Defend",
    ),
    (
        "Leave images out.",
        "Take the images that must not be exposed out of the data, train again from the start and audit again. Taking them out of the "
        "folder alone "
        "changes nothing in a model that has seen them",
        "Audit your own model",
    ),
    (
        "Release less.",
        "An interface that draws images gives outsiders less than the weights do. For a text-to-image model audit with --release api and "
        "the black_box attack; for other models use diffleak extract",
        "The attacks",
    ),
)


def section(audit: Audited) -> Section | None:
    """The steps; None where no leak was found."""
    if audit.verdict.level != "leak":
        return None
    rows = tuple((name, f"{what} (README, “{where}”).") for name, what, where in STEPS)
    short = "Fewer training steps, a defence, DP-SGD, leaving images out or releasing less; report.html has the steps (README, “Defend”)."
    return Section("next", TITLE, (Facts(rows, "limits"), Sentences((short,), tone="small", where="terminal")), "What next", TITLE)
