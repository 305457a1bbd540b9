"""The report on memorised prompts."""

from collections.abc import Callable, Sequence

from diffleak.errors import one_or_more, visible
from diffleak.records.prompts import PromptsRecord
from diffleak.report.section import Page, Section, facts, page_of
from diffleak.report.sections import glossary, limits, model, reproduce, verdict, warnings
from diffleak.report.sections.prompts import Picture, made, pictured, prompts, statistics
from diffleak.report.sections.prompts import verdict as judge
from diffleak.report.wording import entries

GLOSSARY = entries("""
    Memorised | for such a prompt the model draws (nearly) the same image every time: one that it was trained on.
    Ordinary | a prompt of the same kind that the model was not trained on, or for which it draws something new.
    Magnitude, t-error | two measures of what the model does while it draws. Magnitude: how far the prompt moves the prediction; large
        speaks for memorised. t-error: how far the model is from finding its way back to what it drew; small speaks for memorised.
    Noise norm, alignment | two measures of how a prompt changes the prediction for pure noise. Noise norm: the size of this change
        at the first step. Alignment: how similar its direction is, at a late step, to that of the prediction without a prompt. They
        need no image. Their sum has a weight that is chosen
        on other labelled prompts.
    AUC | how often a statistic ranks a random memorised prompt above a random ordinary one; 0.5 is guessing, 1 is always right.
    TPR at 1 % FPR | share of memorised prompts found when 1 % of the ordinary ones may raise a false alarm.
    Success | share of right answers at a threshold that was chosen on other prompts.
    Threshold | the value of a statistic that divides prompts called memorised from those called ordinary.
    Baseline | the success of always naming the longer list, without looking at the model.
    Interval, 95 % | the range of values that agree with the measurement: in 95 of 100 repetitions with other prompts it contains the
        true value.
    Member, non-member | in a footnote: a memorised and an ordinary prompt.
""")

LIMITS = entries("""
    The lists decide. | Prompts of another style, length or source than the ordinary ones score differently without being memorised.
        Compare like with like.
    No proof of a copy. | A score says that the prompt fixes the image, not that the image is a training image; look at what is drawn.
    Prompts, not images. | A training image that no listed prompt calls up is not found. Membership of images is what an audit
        measures.
    Few draws. | {drawn} for each prompt. More make the scores steadier.
""")

SECTIONS: tuple[Callable[[PromptsRecord, Sequence[Picture]], Section | None], ...] = (
    lambda record, pictures: verdict(judge(record)),
    lambda record, pictures: warnings(record.warnings, "Note"),
    lambda record, pictures: statistics(record),
    pictured,
    lambda record, pictures: prompts(record),
    lambda record, pictures: limits(LIMITS, drawn=_drawn(record)),
    lambda record, pictures: glossary(GLOSSARY),
    lambda record, pictures: reproduce(record.command, facts(made(record))),
)


def page(record: PromptsRecord, pictures: Sequence[Picture] = ()) -> Page:
    """The report; only with pictures it shows images."""
    return page_of(
        record,
        (make(record, pictures) for make in SECTIONS),
        title=f"Memorised prompts of {visible(record.plan.model)}",
        heading="Memorised prompts",
        meta=f"{model(record.plan.model, record.plan.lora)} · {one_or_more(record.plan.prompts, 'prompt')}",
        style="prompts.css",
    )


def _drawn(record: PromptsRecord) -> str:
    images = record.plan.images
    if record.plan.draw:
        return one_or_more(images, "image was drawn", "images were drawn")
    return one_or_more(images, "noise was taken", "noises were taken")
