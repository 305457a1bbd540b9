"""The report on memorised prompts."""

from collections.abc import Callable

from diffleak.errors import visible
from diffleak.records.prompts import PromptsRecord
from diffleak.report.section import Page, Section, sections
from diffleak.report.sections import glossary, limits, model, verdict, warnings
from diffleak.report.sections.prompts import made, prompts, statistics
from diffleak.report.sections.prompts import verdict as judge
from diffleak.report.wording import count, moment

GLOSSARY = (
    ("Memorised", "for such a prompt the model draws (nearly) the same image every time: one that it was trained on."),
    ("Ordinary", "a prompt of the same kind that the model was not trained on, or for which it draws something new."),
    ("AUC", "how often a statistic ranks a random memorised prompt above a random ordinary one; 0.5 is guessing, 1 is always right."),
    ("TPR at 1 % FPR", "share of memorised prompts found when 1 % of the ordinary ones may raise a false alarm."),
    ("Success", "share of right answers at a threshold that was chosen on other prompts."),
    ("Member, non-member", "in a footnote: a memorised and an ordinary prompt."),
)

LIMITS = (
    (
        "The lists decide.",
        "Prompts of another style, length or source than the ordinary ones score differently without being memorised. Compare like "
        "with like.",
    ),
    ("No proof of a copy.", "A score says that the prompt fixes the image, not that the image is a training image; look at what is drawn."),
    (
        "Prompts, not images.",
        "A training image that no listed prompt calls up is not found. Membership of images is what an audit measures.",
    ),
    ("Few draws.", "{drawn} drawn for each prompt. More make the scores steadier."),
)

SECTIONS: tuple[Callable[[PromptsRecord], Section | None], ...] = (
    lambda record: verdict(judge(record)),
    lambda record: warnings(record.warnings, "Note"),
    statistics,
    prompts,
    lambda record: limits(LIMITS, drawn=_drawn(record)),
    lambda record: glossary(GLOSSARY),
    made,
)


def page(record: PromptsRecord) -> Page:
    """The report."""
    return Page(
        title=f"Memorised prompts of {visible(record.plan.model)}",
        heading="Memorised prompts",
        meta=f"{model(record.plan.model, record.plan.lora)} · {count(record.plan.prompts)} prompts",
        created=visible(moment(record.created)),
        version=record.environment.diffleak,
        sections=sections(make(record) for make in SECTIONS),
        style="prompts.css",
    )


def _drawn(record: PromptsRecord) -> str:
    images = record.plan.images
    return f"{count(images)} {'image was' if images == 1 else 'images were'}"
