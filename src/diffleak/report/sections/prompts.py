"""The sections of the report on memorised prompts."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from markupsafe import Markup

from diffleak.errors import one_or_more, visible
from diffleak.records.audit import Result
from diffleak.records.prompts import NOISE_SUM, PromptScore, PromptsRecord, Statistic
from diffleak.report.judgement import GUESSING, Verdict, mirrored, widened_low
from diffleak.report.media.html import data_uri
from diffleak.report.section import Block, Section, Tabulated, drawn, prose
from diffleak.report.sections import device, fingerprinted, of_model, versions
from diffleak.report.table import Cell, Column, asr_cell, auc_cell, rate_cell, tabulate
from diffleak.report.wording import count, duration, percent, spoken


class Wording(NamedTuple):
    """A statistic's name and what it says."""

    title: str
    meaning: str


STATISTICS: dict[Statistic, Wording] = {
    "magnitude": Wording("Magnitude", "how far the prompt moves the model's prediction while it draws; larger = memorised"),
    "t_error": Wording("t-error", "how far the model is from finding its way back to what it drew; smaller = memorised"),
    "noise_norm": Wording("Noise norm", "how far the prompt moves the prediction for pure noise, at the first step; larger = memorised"),
    "alignment": Wording(
        "Alignment",
        "the prompt changes the prediction for pure noise: how nearly this change, at a late step, points the same way as the prediction "
        "without a prompt; larger = memorised",
    ),
}
SUM = Wording("Noise sum", "noise norm and alignment added, with a weight chosen on other labelled prompts; larger = memorised")


def verdict(record: PromptsRecord) -> Verdict:
    """States whether the statistics tell the two lists apart; never that nothing is memorised."""
    if not record.results:
        why = record.reason or "not estimable"
        title = "The prompts were scored; how well the scores tell memorised from ordinary ones was not measured."
        return Verdict("invalid", title, (f"{why[:1].upper()}{why[1:]}.",))
    sentences, tries = tuple(_measured(result) for result in record.results), len(record.results)
    if any(widened_low(r.auc, tries) > GUESSING for r in record.results):
        return Verdict("leak", "Memorised prompts stand out from ordinary ones.", sentences)
    if wrong := [wording(r).title for r in record.results if widened_low(mirrored(r.auc), tries) > GUESSING]:
        title = f"Undecided: {', '.join(wrong)} {'tells' if len(wrong) == 1 else 'tell'} the two lists apart, but the wrong way round."
        said = (
            "Ordinary prompts score higher than memorised ones. Check that the two lists are not exchanged, and what else they differ in."
        )
        return Verdict("undecided", title, (*sentences, said))
    if any((r.auc.low or 0.0) > GUESSING for r in record.results):
        sentences += (
            f"With {tries} statistics, chance alone puts at least one interval above one half more often than with a single statistic. "
            "Widened to allow for that, no interval lies above one half.",
        )
    bound = max((r.auc.high for r in record.results if r.auc.high is not None), default=1.0)
    said = f"By each of these, a memorised prompt ranks first in at most {percent(bound)} of pairs (upper end of the 95 % interval)."
    return Verdict("no-leak-found", "No difference between memorised and ordinary prompts was found.", (*sentences, said))


def _measured(result: Result) -> str:
    title = wording(result).title
    if result.auc.value is None or result.auc.low is None or result.auc.high is None:
        return f"{title}: {visible(result.auc.reason or 'not estimable')}."
    value, ends = spoken(result.auc)
    return (
        f"{title}: ranks a memorised prompt above an ordinary one in {value} of pairs (95 % interval {ends}; "
        f"{count(result.n_members)} and {count(result.n_nonmembers)} prompts)."
    )


WEIGHED = (
    "Noise sum: w is the weight of alignment, and 1 - w that of noise norm, both scaled by median and quartiles. It is chosen on a fifth "
    "of the prompts and the numbers are of the others; with fewer than 200 prompts on a list they are medians over 25 such divisions."
)


def wording(result: Result) -> Wording:
    """What the statistic of a result is called."""
    named = {NOISE_SUM: SUM} | {str(name): said for name, said in STATISTICS.items()}
    return named.get(result.attack) or Wording(visible(result.attack), "")


def measured(record: PromptsRecord) -> list[Statistic]:
    """The statistics that the prompts have; one that draws nothing, or is of an earlier version, has fewer."""
    return [name for name in STATISTICS if record.prompts and all(getattr(row, name) is not None for row in record.prompts)]


def statistics(record: PromptsRecord) -> Section:
    """A row per statistic where there are two lists, and a histogram of each."""
    content = tabulate(record.results, COLUMNS, lambda r: (wording(r).title, r.setting or "", False))
    caption = "In brackets: 95 % intervals over the choice of prompts. n/e: not estimable, with the reason below."
    weighed = any(result.attack == NOISE_SUM for result in record.results)
    found = (Tabulated(content, caption, "Statistic", notes=(WEIGHED,) if weighed else ()),) if content.rows else ()
    return Section("statistics", "The statistics", found, "Statistics", later=lambda: _histograms(record))


def _histograms(record: PromptsRecord) -> tuple[Block, ...]:
    from diffleak.report.figures import keys
    from diffleak.report.figures.prompts import histogram

    key = drawn("key", entries=keys.sides("memorised prompts", "ordinary prompts"))
    said = lambda name: f"{STATISTICS[name].title}: {STATISTICS[name].meaning}"
    figures = [(said(name), Markup(histogram(record, name))) for name in measured(record)]
    return *((key,) if labelled(record) else ()), drawn("multiples", figures=figures)


def labelled(record: PromptsRecord) -> bool:
    """True where the lists of the prompts are known."""
    return any(row.memorised is not None for row in record.prompts)


CAUGHT = lambda result: rate_cell(result.tpr(0.01), "ordinary prompts")
COLUMNS = (
    Column(("AUC",), "How often a memorised prompt ranks above an ordinary one; 0.5 is guessing. In brackets: 95 % interval.", 1, auc_cell),
    Column(
        ("TPR at", "1 % FPR"),
        "Share of memorised prompts found when 1 % of the ordinary ones raise a false alarm.",
        2,
        lambda r: rate_cell(r.tpr(0.01), "ordinary prompts"),
    ),
    Column(("Success",), "Share of right answers at a threshold chosen on other prompts.", 3, asr_cell),
)


MOST_ROWS = 200  # prompts in the page; prompts.csv has all
MOST_PRINTED = 10


def prompts(record: PromptsRecord) -> Section:
    """The prompts, the largest magnitude first, or the largest noise norm."""
    leading = STATISTICS[ranking(record)].title.lower()
    scores = tuple(_scored(name, importance) for name, importance in zip(measured(record), (1, 2, 4, 5), strict=False))
    on_list = Column(("List",), "", 3, lambda p: Cell(side(p)), width=10)
    name = lambda p: (p.prompt, "", False)
    shown = record.prompts[:MOST_ROWS]
    whole = "All prompts, as in prompts.csv."
    if len(shown) < len(record.prompts):
        whole = f"The first {count(len(shown))} of {count(len(record.prompts))} prompts; prompts.csv has all."
    listed = tabulate(shown, (*((on_list,) if labelled(record) else ()), *scores), name)
    printed = tabulate(record.prompts[:MOST_PRINTED], (*scores, on_list), name)
    blocks = (
        Tabulated(printed, first=f"Most memorised by {leading}", quoted=True, where="text"),
        Tabulated(listed, f"{whole} The page is as private as the prompts are.", "Prompt", look="prompts", quoted=True, where="page"),
    )
    return Section("prompts", f"Prompts, the largest {leading} first", blocks, "Prompts")


def ranking(record: PromptsRecord) -> Statistic:
    """The statistic that the prompts are in the order of."""
    return "magnitude" if record.plan.draw else "noise_norm"


def _scored(name: Statistic, importance: int) -> Column:
    return Column((STATISTICS[name].title,), "", importance, lambda p: Cell(f"{getattr(p, name):.4g}"))


MOST_PICTURED = 12
ENDS = ("nothing changes", "most changes")  # of the colours of a map


class Picture(NamedTuple):
    """What the model drew for a prompt, None where that is no image, and where in it the prompt acted."""

    score: PromptScore
    image: UInt8[np.ndarray, "h w c"] | None
    map: Float32[np.ndarray, "h2 w2"]


def pictured(record: PromptsRecord, pictures: Sequence[Picture]) -> Section | None:
    """What is drawn for the highest prompts, each beside its map."""
    if not pictures:
        return None
    title = "What the model draws for the highest prompts, and where the prompt acts"
    return Section("maps", title, (), "Images and maps", later=lambda: _maps(pictures))


def _maps(pictures: Sequence[Picture]) -> tuple[Block, ...]:
    from diffleak.report.figures.heat import scale

    those = "The prompt" if len(pictures) == 1 else f"The {count(len(pictures))} prompts"
    what = (
        f"{those} of the largest magnitude. Left, the first image that the model draws for the prompt. Right, "
        "the map of where the prompt acts: the squared difference between the predictions with and without the prompt, averaged over the "
        "steps of drawing. Where the map is bright the prompt decides the image; whether that is a training image, the map does not say. "
        "These images may be copies of private training images: look before you pass this page on."
    )
    return prose(what), drawn("scale", picture=data_uri(scale()), ends=ENDS), drawn("maps", items=[_picture(each) for each in pictures])


def _picture(picture: Picture) -> dict[str, Any]:
    from diffleak.report.figures.heat import half_lies_in, heat_map, shrunk

    row, on_list = picture.score, side(picture.score)
    acts = bool(picture.map.max() > 0)
    place = f"half of what it changes lies in {percent(half_lies_in(picture.map), 0)} of the image" if acts else "it changes nothing"
    return {
        "name": visible(row.prompt),
        "image": None if picture.image is None else data_uri(shrunk(picture.image)),
        "shows": f"Drawn for: {visible(row.prompt)}",
        "map": data_uri(heat_map(picture.map)),
        "where": f"Map of where the prompt acts: {place}",
        "said": f"{on_list + ', ' if on_list else ''}magnitude {row.magnitude:.4g}; {place}",
    }


def side(row: PromptScore) -> str:
    """The list that a prompt is on, in a word."""
    return {True: "memorised", False: "ordinary", None: ""}[row.memorised]


def made(record: PromptsRecord) -> Iterator[tuple[str, str]]:
    """The settings, what they were used on, and what it took."""
    plan = record.plan
    yield from of_model(plan)
    drawn = f"each drawn {one_or_more(plan.images, 'time')}" if plan.draw else f"none drawn, {one_or_more(plan.images, 'noise')} each"
    yield "Prompts", fingerprinted(f"{count(plan.prompts)}, {drawn}", plan.prompts_fingerprint)
    if plan.draw:
        how = f"guidance {plan.guidance_scale}, latents {visible(plan.latent_shape)}, seed {plan.seed}"
        yield "Drawing", f"DDIM in {one_or_more(plan.steps, 'step')}, {how}"
        yield "t-error", f"SecMI at timestep {plan.timestep}, k = {plan.k}, without guidance"
    if plan.noise_norm_timestep is not None:
        at = f"noise norm at timestep {plan.noise_norm_timestep}, alignment at {plan.alignment_timestep}, of DDIM "
        at += f"in {one_or_more(plan.steps, 'step')}"
        noise = "the noise that images start from" if plan.draw else f"latents {visible(plan.latent_shape)}, seed {plan.seed}"
        yield "From noise", f"{at}; {noise}"
    yield "Cost", f"{count(record.costs.forwards)} forwards of one image each; this call took {duration(record.costs.seconds)}"
    yield "Device", device(record.environment)
    yield "Versions", versions(record.environment)
    yield "Record", f"prompts.json, schema version {record.schema_version}"
