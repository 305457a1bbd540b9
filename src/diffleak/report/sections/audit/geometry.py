"""The geometry of the decoder, and how leakage goes with it."""

from collections.abc import Callable

from markupsafe import Markup

from diffleak.errors import one_or_more, visible
from diffleak.records.audit import AuditRecord, FilterGain, Gain, Geometry, Quartile
from diffleak.records.base import Estimate
from diffleak.report import selection
from diffleak.report.audited import Audited
from diffleak.report.judgement import GUESSING
from diffleak.report.section import Block, Section, Sentences, Tabulated, drawn, figure, heading, prose
from diffleak.report.table import COLUMNS, Cell, Column, Table, difference_cell, differences, gain_cell, missing, tabulate
from diffleak.report.wording import IMAGES, interval, signed, signed_interval, spoken

COMPARED = (None, "influence:0.4", "random:0.4", "reverse:0.4")
QUARTERS = {1: "lowest", 2: "second", 3: "third", 4: "highest"}


def section(audit: Audited) -> Section | None:
    """The geometry in short for text, and in full with its figures for a page."""
    found = audit.record.geometry
    if found is None:
        return None
    said = Sentences(sentences(audit.record), where="text")
    full = lambda: (*_intro(audit, found), *_quarters(audit, found), *_masks(audit), *_images(audit, found), *_filters(audit))
    return Section("geometry", "Geometry: attacks and the decoder's distortion", (said,), "Geometry", "Geometry", later=full)


def _intro(audit: Audited, found: Geometry) -> tuple[Block, ...]:
    why = Markup(
        "The diffusion model never sees a picture, only its latent; a decoder turns latents into pictures. Around some images a small "
        "step of the latent changes the picture a lot: there the decoder <em>distorts</em> much. This section asks whether attacks do "
        "better on such images."
    )
    repeats = audit.record.split.repeats
    first = f" Quarters and figures by quarter are of the first of {repeats} random divisions." if repeats > 1 else ""
    counted = " Near-duplicates count as one image, with the mean of their distortion." if audit.record.split.unit == "cluster" else ""
    filtered = ", their noise filtered out over neighbouring coordinates" if audit.record.plan.estimator == "filtered" else ""
    largest = "largest logarithmic singular value"
    values = f"the {largest}" if found.top == 1 else f"the sum of the {found.top} {largest}s"
    how = (
        f"Distortion is {values} of the decoder's Jacobian at an image; influence of a latent coordinate is estimated from "
        f"{one_or_more(found.probes, 'random probe')}{filtered}.{first}{counted}"
    )
    return prose(why), prose(how, "prose muted")


def _quarters(audit: Audited, found: Geometry) -> tuple[Block, ...]:
    from diffleak.report.figures import geometry as figures
    from diffleak.report.figures import keys

    at = timestep(audit.record)
    curves, intervals = figures.quartile_curves(found, at), figures.quartile_intervals(found, at)
    blocks: list[Block] = [
        heading("Do attacks do better on images that are distorted more?"),
        prose(high_minus_low(found)),
        prose(alone(found)),
    ]
    if curves:
        read = (
            f"AUC of {visible(str(found.attack))} at each timestep, on {audit.tested}, for four groups of images, from those that the "
            "decoder distorts least (light) to those that it distorts most (dark). The four groups are quarters of members and "
            "held-out images together."
        )
        band = (
            "The shaded band shows what groups of the same size look like when images are drawn at random: mean, plus and minus one "
            "standard deviation. A line inside the band differs no more than chance makes groups differ; look for lines well outside it."
        )
        named = lambda q: f"{quarter(q)} quarter: distortion {q.low:.2f} to {q.high:.2f}"
        key = [keys.Key(keys.line(figures.style_of(q)), named(q)) for q in found.quartiles]
        key += [keys.band("random quarters")] if found.band else []
        key += [keys.chosen(f"chosen timestep, {at}")] if at is not None else []
        blocks += [figure(curves, (read, band), [*key, keys.GUESSING])]
    sizes = lambda q: IMAGES.sides(q.n_members, q.n_nonmembers)
    rows = [(quarter(q), auc_words(q.auc), sizes(q)) for q in found.quartiles]
    if intervals:
        read = "The same four groups at the chosen timestep: how often the attack picks the member out of a pair, with 95 % intervals."
        blocks += [drawn("quarters", rows=rows, svg=Markup(intervals), note=read + (" Shaded: random quarters." if found.band else ""))]
    else:
        blocks += [drawn("quarters", rows=rows, svg="", note="") if rows else prose(by_quarter(audit.record, found), "")]
    return tuple(blocks)


def _masks(audit: Audited) -> tuple[Block, ...]:
    from diffleak.report.figures import geometry as figures
    from diffleak.report.figures import keys

    controls, blocks = controls_table(audit.record), list[Block]()
    caption = (
        "Each attack on all coordinates, then without a share of them: those that matter least (influence:0.4 leaves out 40 %), as many at "
        "random, or those that matter most (reverse). Differences are to the unmasked attack; only influence should gain. Marked: the "
        "unmasked attacks. Small print: 95 % intervals."
    )
    blocks += [heading("Masks and their controls", "controls")]
    blocks += [
        Tabulated(controls, caption, under="controls", where="page") if controls else prose("No attack was run under these masks.", "")
    ]
    swept, styles = figures.sweeps_of(audit.record, audit.verdict.attack)
    svg = figures.ratio_sweep(swept, styles)
    blocks += [heading("How much to leave out")]
    if svg is None:
        return (*blocks, prose("No attack was run under several influence masks, so there is no sweep to draw.", ""))
    triangle = (
        " A triangle marks the opposite: 90 % left out, the most influential first (moved sideways a little where several attacks have "
        "one)."
    )
    read = (
        f"AUC on {audit.tested} when the share on the horizontal axis is left out, the least influential coordinates first; 0 % is the "
        "unmasked attack. Each point has an interval of its own (see the table of masks), so small bumps mean nothing."
    ) + (triangle if any(s.reverse for s in swept) else "")
    return (*blocks, figure(svg, (read,), keys.lines((s.attack, styles[s.attack]) for s in swept)))


def _images(audit: Audited, found: Geometry) -> tuple[Block, ...]:
    from diffleak.report.figures.geometry import correlations

    svg = correlations(found)
    read = (
        "Pearson's correlation of an image's distortion with its energy at low and at high frequencies, with 95 % intervals: 0 is no "
        f"relation, +1 or -1 a perfect one. Low means up to {found.radius:.3g} cycles per image."
    )
    below = "Below, the images of highest and lowest distortion of both sides. High distortion does not say that an image is a member."
    return (
        heading("Which images are distorted"),
        *map(prose, frequencies(found)),
        *((figure(svg, (read,)),) if svg else ()),
        prose(below),
        *audit.no_pictures("may be"),
        drawn("gallery", title="Highest distortion", items=audit.gallery(found.highest)),
        drawn("gallery", title="Lowest distortion", items=audit.gallery(found.lowest)),
    )


def _filters(audit: Audited) -> tuple[Block, ...]:
    title, content = heading("The frequency filter beside the mask", "filters"), filters_table(audit.record)
    if content is None:
        return title, prose("No attack was run with the frequency filter.", "")
    why = (
        "A simpler idea than masks is to turn down the high frequencies of the decoded pictures before an attack compares them. What each "
        f"changes, filter and mask {selection.MAIN_MASK} side by side:"
    )
    caption = f"Difference to the plain attack on {audit.tested}; small print: 95 % intervals."
    return title, prose(why), Tabulated(content, caption, under="filters", where="page")


def quarter(quartile: Quartile) -> str:
    """The name of a quarter of the images by distortion."""
    return QUARTERS.get(quartile.quartile, str(quartile.quartile))


def sentences(record: AuditRecord) -> tuple[str, ...]:
    """The geometry in short, for the terminal and Markdown; empty where it was not studied."""
    geometry = record.geometry
    if geometry is None:
        return ()
    return (
        by_quarter(record, geometry),
        high_minus_low(geometry),
        alone(geometry),
        *frequencies(geometry),
        *map(_filter, geometry.filters),
    )


def timestep(record: AuditRecord) -> int | None:
    """The chosen timestep of the attack whose curves are given by quartile."""
    attack = record.geometry.attack if record.geometry else None
    return next((r.timestep for r in record.results if r.attack == attack), None)


def by_quarter(record: AuditRecord, geometry: Geometry) -> str:
    """The AUC of each quarter of the images at the chosen timestep."""
    if not geometry.quartiles or geometry.attack is None:
        return f"The AUC by quarter of distortion could not be estimated{_why(geometry.high_minus_low)}."
    at = f" at timestep {timestep(record)}" if timestep(record) is not None else ""
    listed = ", ".join(f"{quarter(q)} {auc_words(q.auc)}" for q in geometry.quartiles)
    return f"AUC of {visible(geometry.attack)}{at} by quarter of images, from the least to the most distorted by the decoder: {listed}."


def auc_words(auc: Estimate) -> str:
    """An AUC with its interval, or why there is none."""
    if auc.value is None:
        return f"not estimable{_why(auc)}"
    return f"{auc.value:.3f} {interval(auc, in_percent=False)}".rstrip()


def _why(estimate: Estimate) -> str:
    return f" ({visible(estimate.reason)})" if estimate.reason else ""


def high_minus_low(geometry: Geometry) -> str:
    """Compares the images that are distorted most with those distorted least."""
    gap = geometry.high_minus_low
    if gap.value is None or gap.low is None or gap.high is None:
        return f"Whether members with high distortion are easier to tell apart could not be estimated{_why(gap)}."
    size = f"AUC highest minus lowest quarter: {signed(gap.value)}, 95 % interval {signed_interval(gap)}"
    if gap.low > 0:
        return f"The attack does better on the images that the decoder distorts most than on those it distorts least ({size})."
    if gap.high < 0:
        return f"The attack does worse on the images that the decoder distorts most than on those it distorts least ({size})."
    return f"No difference was found between the images that the decoder distorts most and least; one cannot be excluded ({size})."


def alone(geometry: Geometry) -> str:
    """Tells how well distortion alone, without any question to the diffusion model, separates the sides."""
    auc = geometry.distortion_auc
    if auc.value is None or auc.low is None or auc.high is None:
        return f"Whether distortion alone tells members apart could not be estimated{_why(auc)}."
    value, ends = spoken(auc)
    size = f"the image of higher distortion is the member in {value} of the pairs, 95 % interval {ends}; 50 % is guessing"
    if auc.low > GUESSING or auc.high < GUESSING:
        text = f"Distortion alone tells members apart, without any query of the diffusion model ({size})."
        return f"{text} The autoencoder may have been trained on the members, or the two sides may differ by themselves."
    return f"No sign that distortion alone tells members apart ({size}). If the autoencoder had been trained on the members, it might."


def frequencies(geometry: Geometry) -> tuple[str, ...]:
    """Relates distortion to the low and high frequencies of the images."""
    return (_correlation("low", geometry.low_frequency, geometry.radius), _correlation("high", geometry.high_frequency, geometry.radius))


def _correlation(name: str, r: Estimate, radius: float) -> str:
    what = "coarse shapes and shading" if name == "low" else "edges and fine texture"
    where = f"{'up to' if name == 'low' else 'beyond'} {radius:.3g} cycles per image"
    if r.value is None:
        return f"The correlation of distortion with {name} frequencies could not be estimated{_why(r)}."
    ends = f", 95 % interval {signed_interval(r)}" if signed_interval(r) else ""
    size = f"correlation {signed(r.value)}{ends}; {where}"
    if r.low is None or r.high is None or r.low <= 0 <= r.high:
        return f"No clear relation of distortion with {name} frequencies, {what}, was found ({size})."
    return f"Images with more energy at {name} frequencies, {what}, are distorted {'more' if r.value > 0 else 'less'} ({size})."


def _filter(found: FilterGain) -> str:
    """The change of an attack by the frequency filter."""
    attack, change = visible(found.attack), found.gain.auc
    if change.value is None:
        return f"What the frequency filter changes for {attack} could not be estimated{_why(change)}."
    ends = f" (95 % interval {signed_interval(change)})" if signed_interval(change) else _why(change)
    return f"The frequency filter changes the AUC of {attack} by {signed(change.value)}{ends}."


def controls_table(record: AuditRecord) -> Table | None:
    """Every masked attack without a mask, with the paper's, and with the two controls; None where none is masked so."""
    attacks = {r.base for r in selection.masked(record) if r.mask in COMPARED}
    names = [r.base for r in record.results if r.mask in COMPARED and r.base in attacks]
    found = [selection.under(record, attack, mask) for attack in dict.fromkeys(names) for mask in COMPARED]
    rows = [r for r in found if r is not None]
    shown = {c.title: c for c in COLUMNS}
    auc, asr, tpr = (shown[title] for title in ("AUC", "Attack success", "TPR at 1 % FPR"))
    by_auc, by_asr, by_tpr = differences((2, 4, 6))
    mask = lambda r: Cell("unmasked" if r.mask is None else visible(r.mask))
    drawn = (Column(("Mask",), "Which latent coordinates are left out.", 1, mask), auc, by_auc, asr, by_asr, tpr, by_tpr)
    return tabulate(rows, drawn, lambda r: (r.base, "", r.mask is None), record.split.unit) if rows else None


def filters_table(record: AuditRecord) -> Table | None:
    """The gain by the frequency filter beside that by the mask; None where no filter was run."""
    if record.geometry is None or not record.geometry.filters:
        return None
    drawn = (
        *_beside(record, ("AUC",), False, lambda g: g.auc),
        *_beside(record, ("Attack success", "(points)"), True, lambda g: g.asr),
        *_beside(record, ("TPR at 1 % FPR", "(points)"), True, lambda g: g.tpr_at_1pct),
    )
    return tabulate(record.geometry.filters, drawn, lambda f: (f.attack, f.filtered, False))


def _beside(record: AuditRecord, name: tuple[str, ...], in_percent: bool, pick: Callable[[Gain], Estimate]) -> tuple[Column, Column]:
    """The difference by the filter, and that by the mask on the same attack."""

    def by_mask(found: FilterGain) -> Cell:
        result = selection.under(record, found.attack, selection.MAIN_MASK)
        return gain_cell(pick, in_percent)(result) if result else missing(f"{selection.MAIN_MASK} was not run")

    hint = f"{' '.join(name)}: filtered minus plain attack. In brackets: 95 % interval."
    other = f"{' '.join(name)}: under {selection.MAIN_MASK} minus unmasked. In brackets: 95 % interval."
    by_filter = lambda found: difference_cell(pick(found.gain), in_percent)
    return Column((*name, "with filter"), hint, 1, by_filter), Column((*name, "with mask"), other, 1, by_mask)
