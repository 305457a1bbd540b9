"""What a reader of an audit must know beside its numbers, and what is said before the first score. Only words: nothing is decided here."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from diffleak.attacks import ATTACKS
from diffleak.attacks.black_box import BlackBox
from diffleak.attacks.clid import CLiD
from diffleak.attacks.noise_probe import NoiseProbe
from diffleak.auditing.evidence import known
from diffleak.auditing.plan import Prepared
from diffleak.data.captions import Captions
from diffleak.data.duplicates import beside_members
from diffleak.data.scan import Scan
from diffleak.errors import one_or_more, shown, visible
from diffleak.records.audit import Blind, Result
from diffleak.records.evidence import GIVES, RELEASED
from diffleak.records.plan import one_for_all
from diffleak.records.scores import Scores
from diffleak.records.variants import VARIANTS
from diffleak.report.judgement import sources
from diffleak.report.wording import cut_captions, omitted, resized
from diffleak.stats import evaluation
from diffleak.stats.blind import finding
from diffleak.stats.calibration import FEWEST
from diffleak.work.files import closing, open_to_others
from diffleak.work.folder import UNKNOWN

WITH_REFERENCE = {name for name, kind in ATTACKS.items() if kind.needs_reference}


def captions_line(captions: Captions, images: int) -> str:
    if one_for_all(captions.choice):
        given = f"'{shown(captions.texts[0])}'" if captions.texts[0] else "the empty caption"
        return f"captions: {given} for every image ({visible(captions.choice)}; {captions.found}/{images} have one of their own)"
    return f"captions found: {captions.found}/{images} ({visible(captions.choice)})"


def about_release(prepared: Prepared) -> Iterator[str]:
    """That no attack counts for the form of release, and what does: the verdict says so too, after hours of scoring."""
    release = prepared.config.release or RELEASED
    attacks = known(prepared.attacks, prepared.target.text is not None)
    counting = [each for each in attacks if each.access in GIVES[release] and each.unfit is None]
    if not prepared.attacks or any(each.run for each in counting):
        return
    none = f"note: no attack given counts for --release {release}, so this audit cannot answer for it"
    if counting:
        allowed = [each.attack for each in counting if prepared.reference or each.attack not in WITH_REFERENCE]
        yield f"{none}: add {' or '.join(allowed)} to --attacks"
    else:
        why = "none of diffleak audit works with drawn images alone" if release == "images" else "none that counts works with this model"
        yield f"{none}: {why}; diffleak extract looks for copies"


def about_sides(prepared: Prepared) -> Iterator[str]:
    """That the sides differ without the model: the verdict says so too, after hours of scoring."""
    if not prepared.config.known or prepared.config.allow_shift or not prepared.attacks:
        return
    blind = (prepared.by_key if prepared.key else prepared).blind
    if finding(blind) == "different":
        all_the_same = "" if "allow_shift" in prepared.config.NO_FLAG else ", or show the numbers all the same with --allow-shift"
        yield (
            f"note: this audit will be invalid (exit 4), whatever the attacks find: {sources(blind)} Hold out images of the same source "
            f"(`diffleak split`){all_the_same}"
        )


def about_names(prepared: Prepared, folder: Path) -> Iterator[str]:
    """Who can read the names of the images."""
    if prepared.key:
        yield f"anonymous: images go by keyed ids; keep their key {prepared.key.path}, and never pass it on with the run"
        if prepared.key.path and open_to_others(prepared.key.path):
            yield f"others on this machine may read the key: {closing(prepared.key.path)}"
    elif open_to_others(folder):
        yield f"others on this machine may read {folder}, which names images by file name: {closing(folder)}"


def about_equal_scores(prepared: Prepared, scores: Sequence[Scores]) -> tuple[str, ...]:
    """Which attacks give every image the same score; an excess over the model itself is nothing, which `warnings_of` says once."""
    equal = [each.attack for each in scores if not (np.nanmax(each.statistic, axis=0) > np.nanmin(each.statistic, axis=0)).any()]
    asked = {
        attack: "is the reference the model itself?" if f"[{VARIANTS[1]}" in attack else "does the model's answer depend on the image?"
        for attack in equal
        if not (f"[{VARIANTS[1]}" in attack and _beside_itself(prepared))
    }
    return tuple(f"{attack} gives every image the same score, so it measured nothing: {why}" for attack, why in asked.items())


def _beside_itself(prepared: Prepared) -> bool:
    """True where the reference is known to be the audited model."""
    plan = prepared.plan
    return prepared.reference is not None and plan.reference_fingerprint == plan.model_fingerprint != UNKNOWN


def about_memory(prepared: Prepared, halved_to: int | None) -> tuple[str, ...]:
    """That memory ran out, and what it changed; nothing where it did not."""
    if halved_to is None:
        return ()
    return (
        f"memory ran out: some images were scored or drawn {halved_to:,} at once, fewer than planned (batches of "
        f"{prepared.plan.batch_size:,}); this changes the last digits of their scores",
    )


def about_copies(scan: Scan) -> tuple[str, ...]:
    """How many held-out images are near-duplicates of members, without their names, which a report may not show; nothing where none is."""
    count = int(beside_members(scan.clusters, scan.cohort.member).sum())
    if not count:
        return ()
    are = one_or_more(count, "held-out image is a near-duplicate of a member", "held-out images are near-duplicates of members")
    return (
        f"{are}: a leak of the member also raises the held-out copy's score, so the audit "
        "underestimates leaks; `diffleak check` lists the pairs",
    )


def _about_units(prepared: Prepared) -> Iterator[str]:
    """Which images are not independent of each other, and what is done about it."""
    units, scan = prepared.units, prepared.scan
    if units.kind == "cluster":
        together = int((units.sizes()[units.of] > 1).sum())
        yield (
            f"{together:,} images have a near-duplicate on their side: each cluster counts as one image, with the mean of its scores, so "
            f"{int(units.member.sum()):,} members and {int((~units.member).sum()):,} held-out images are counted"
        )
    elif units.kind == "image" and scan.repeated:
        occur = one_or_more(scan.repeated, "image occurs", "images occur")
        yield f"{occur} more than once on their side; intervals treat them as independent"
    elif units.kind == "group":
        pairs = np.unique(np.stack([2 * scan.clusters + scan.cohort.member, units.of]), axis=1)[0]
        apart = int((np.unique(pairs, return_counts=True)[1] > 1).sum())
        if apart:
            lie = one_or_more(apart, "cluster of near-duplicates lies", "clusters of near-duplicates lie")
            yield f"{lie} in more than one group of a side, so these groups are not independent"


def about_models(prepared: Prepared) -> list[str]:
    """What the models themselves make a reader know."""
    found = list(prepared.target.warnings)
    if prepared.reference:
        found += [f"of the reference: {line}" for line in prepared.reference.warnings]
    models = len(prepared.target.denoiser.exposed)
    if models > 1:
        found.append(
            f"the release holds {models} models, and an attacker can query each: every statistic is that of the model under which "
            "the image looks most like a member"
        )
    return found


def warnings_of(prepared: Prepared, results: Sequence[Result], blind: Blind) -> tuple[str, ...]:
    found, split = about_models(prepared), prepared.split.record
    what = "groups" if split.unit == "group" else "images"
    if prepared.config.complexity and prepared.config.calibration and not prepared.calibrates:
        found.append(
            f"scores were not corrected for how simple each image is: that takes {FEWEST} held-out {what} in the calibrate part, which has "
            f"{split.calibrate_nonmembers}"
        )
    if split.repeats > 1:
        found.append(
            f"fewer than {evaluation.SMALL_SIDE} {what} on a side: each number is the median over {split.repeats} random divisions into "
            "calibrate and test part"
        )
    if prepared.membership and prepared.membership.status == "contradicted, ignored":
        found.append(prepared.membership.sentence)
    found += _about_units(prepared)
    found += about_reading(prepared)
    found += about_copies(prepared.scan)
    if finding(blind) == "perhaps":
        found.append(
            "the two sides differ without the model, more than by chance: part of what the attacks find may come from that difference"
        )
    if _beside_itself(prepared):
        found.append("the reference is the model itself: there is no excess over it")
    return (*found, *about_direction(results))


def about_direction(results: Sequence[Result]) -> Iterator[str]:
    """Attacks that rank held-out images clearly above members."""
    for result in (r for r in results if r.plain):
        if result.auc.value is not None and result.auc.value < 0.4:
            yield (
                f"{result.attack}: at an AUC of {result.auc.value:.3f} held-out images look more like members than the members do "
                "(are the two sides swapped?); the number is shown as it is"
            )


def about_reading(prepared: Prepared) -> list[str]:
    """How images and captions were read, and what the model made of them."""
    found = list[str]()
    if prepared.scan.omitted:
        found.append(omitted(len(prepared.scan.omitted)))
    if images := prepared.images:
        found.append(
            f"how the images were read: {', '.join(images)}; the scores are of the training images only if the training read them in the "
            "same way (--exif, --alpha and --white choose another)"
        )
    if prepared.truncated:
        found.append(
            f"{cut_captions(len(prepared.truncated))} (audit.json, or inquiry.json of an inquiry, lists the images under truncated)"
        )
    captions = prepared.scan.captions
    if captions:
        found += prepared.target.unnamed(captions.texts)
    if captions and not any(captions.texts):
        found += [
            f"the model was given no captions, and {attack.label} measures what captions add: only the loss is left of it"
            for attack in prepared.attacks
            if isinstance(attack, CLiD)
        ]
    guidance = prepared.plan.guidance_scale
    if guidance is not None:
        found += [
            f"{attack.label} draws under a guidance of its own, {attack.guidance_scale:g}, and not under the audit's {guidance:g}: "
            "its parameter guidance_scale changes it"
            for attack in prepared.attacks
            if isinstance(attack, BlackBox | NoiseProbe)
        ]
    if prepared.config.resize and prepared.scan.resized:
        found.append(resized(prepared.scan.resized, prepared.plan.image_shape))
    if prepared.plan.buckets:
        buckets = one_or_more(len(prepared.plan.buckets), "bucket")
        found.append(
            f"images were brought to {buckets} of --buckets {prepared.config.buckets} as kohya's scripts do "
            "(bicubic, antialiased, centre crop); the scores are of the training images only if the training sized them alike"
        )
    return found
