"""score both sides → choose on one half, test on the other, swap, repeat → record and page.

Scores are those of an audit whose members are the images in question and whose held-out images are the controls; that their sides are not
known to be true changes nothing about scoring. An attack that takes a scale from images takes it from both sides alike, so that scores do
not depend on the sides.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from diffleak.attacks.base import Attack
from diffleak.auditing import run as auditing
from diffleak.auditing.inputs import clear
from diffleak.auditing.plan import Prepared, prepare
from diffleak.auditing.score import Collected
from diffleak.auditing.warnings import about_models, about_reading
from diffleak.data.captions import Captions
from diffleak.data.cohort import IN_MEMORY, Cohort, sort_key
from diffleak.data.complexity import NAMES
from diffleak.data.features import names as feature_names
from diffleak.data.membership import check_membership
from diffleak.data.sources import open_source
from diffleak.diffusion.environment import environment
from diffleak.diffusion.target import Target
from diffleak.errors import InvalidAudit, UserError, one_or_more
from diffleak.inquiry.config import GROUPS, InquireConfig, inquired, refuse_few
from diffleak.records.audit import Membership
from diffleak.records.base import Estimate, written
from diffleak.records.digests import made_with_scores, scored, write_recorded
from diffleak.records.inquiry import (
    FILE,
    PAGE,
    TABLE,
    BlindTest,
    Cut,
    Group,
    Image,
    InquiryRecord,
    Placebo,
    SetAnswer,
    of_controls,
    to_csv,
)
from diffleak.records.plan import Costs
from diffleak.records.scores import Scores
from diffleak.records.variants import VARIANTS
from diffleak.report import to_html
from diffleak.stats.calibration import features
from diffleak.stats.choosing import blind_chooser, chooser
from diffleak.stats.inquiry import LEVEL, Chooser, Tested, cut_and_test, detectable_auc, images_for_power, placebo_sides, q_values
from diffleak.stats.units import Units, units_of
from diffleak.work.progress import progress, say


def prepared(
    config: InquireConfig,
    target: Target | None = None,
    cohort: Cohort | None = None,
    reference: Target | None = None,
    made: Mapping[str, Attack] = MappingProxyType({}),
    log: Callable[[str], None] | None = None,
) -> Prepared:
    """Checks models, images and attacks as an audit does, and that no control is known to have been trained on.

    With `log` the line of the plan is said there before the model is tried.
    Raises `UserError` for the first thing that is wrong.
    """
    found = prepare(config, target, cohort or inquired(config), reference, made, log=log)
    _, counted, across = _to_test(found)
    if counted.kind == "group":  # `prepare` has counted images
        beside = f", without {one_or_more(int(across.sum()), 'image')} with a near-duplicate on the other side"
        left = beside if across.any() else ""
        refuse_few(int(counted.member.sum()), int((~counted.member).sum()), GROUPS, left)
    # what an attack takes from images, it takes from both sides
    alike = replace(found.split, calibrate=np.ones_like(found.split.calibrate))
    return replace(found, split=alike, membership=_known(config, found.target, found.scan.cohort))


class ToTest(NamedTuple):
    """What is tested."""

    rows: Int64[np.ndarray, " m"]
    """The images, in the order of the file names."""
    units: Units
    """What these images count as: themselves, or their groups."""
    across: Bool[np.ndarray, " n"]
    """True for each image of the data that is left out since it is a near-duplicate of one on the other side."""


def _to_test(prepared: Prepared) -> ToTest:
    """The first image of each cluster of near-duplicates: one is as good as several. Of a cluster on both sides no image.

    Whether it is on both does not depend on which side is which, so what is left is exchangeable where nothing was trained on.
    """
    scan, cohort = prepared.scan, prepared.scan.cohort
    order, first = cohort.by_key, np.zeros(len(cohort), dtype=bool)
    first[order[np.unique(scan.clusters[order], return_index=True)[1]]] = True
    across = np.isin(scan.clusters, np.intersect1d(scan.clusters[cohort.member], scan.clusters[~cohort.member]))
    rows = order[(first & ~across)[order]]
    if prepared.units.kind == "group":
        return ToTest(rows, prepared.units.taken(rows), across)
    ids, keys = (tuple(each[row] for row in rows) for each in (cohort.ids, cohort.keys))
    return ToTest(rows, units_of(ids, keys, cohort.member[rows], np.arange(len(rows))), across)


def _known(config: InquireConfig, target: Target, cohort: Cohort) -> Membership:
    """What the model's own split says of the controls; raises `UserError` where it says that they were trained on."""
    return check_membership(
        [cohort.only(~cohort.member)],
        f"{cohort.names[1]}",
        target.split_file,
        None,
        config.ignore_model_split,
        "controls must be images that were certainly not trained on",
        "leave them out",
    )


def run(prepared: Prepared, folder: Path, log: Callable[[str], None] = say, timed: bool = True) -> InquiryRecord | None:
    """Scores what is missing in `folder` and answers; None when other workers still have chunks to do.

    Raises `UserError` as an audit does, and where no attack gives two images different scores.
    """
    if prepared.membership:
        log(f"controls: {of_controls(prepared.membership)}")
    collected = auditing.score(prepared, folder, log, timed)
    if collected is None:
        return None
    record = answer(prepared, collected)
    clear(folder)
    return record


def answer(prepared: Prepared, collected: Collected) -> InquiryRecord:
    """The tests on finished scores, in the order of the file names, so that keyed ids change no number."""
    config, scan = prepared.config, prepared.scan
    assert isinstance(config, InquireConfig)
    rows, units, across = _to_test(prepared)
    question, keys = units.member, units.keys
    parts, constant = _parts(prepared, collected, rows, units)
    complexity = scan.complexity[rows] if config.complexity else None
    choices = _choices(parts, complexity, None if collected.reconstruction is None else collected.reconstruction[rows])
    everyone, controls = np.arange(len(rows)), np.flatnonzero(~question[units.of])
    control_keys = tuple(key for key, asked in zip(keys, question, strict=True) if not asked)
    with progress("testing halves", 6 * config.repeats, "halves") as advance:
        test = lambda named, sides, choose: cut_and_test(named, sides, choose, config.seed, config.repeats, lambda: advance(1))
        blind = test(keys, question, blind_chooser(_pixels(prepared, rows, units)))
        placebo_of = placebo_sides(control_keys, config.seed)
        placebo = test(control_keys, placebo_of, choices(controls))
        found = test(keys, question, choices(everyone))
    valid = blind.p_value > LEVEL
    listed = tuple(_in_question(units, found)) if valid else ()
    by_group, left_out = units.kind == "group", np.setdiff1d(np.arange(len(across)), rows)
    return InquiryRecord(
        **written(auditing.command_of(config, prepared.plan, (config.images, config.control))),
        settings=config.model_dump(mode="json"),
        plan=prepared.plan,
        environment=environment(prepared.target, prepared.worker.threads, config.seed, prepared.plan.data_fingerprint),
        level=LEVEL,
        repeats=config.repeats,
        valid=valid,
        invalid_reason=None if valid else _invalid(blind),
        set=_set(found if valid else None, int(question.sum()), len(control_keys)),
        placebo=Placebo(p_value=placebo.p_value, auc=placebo.auc, images=int(placebo_of.sum()), controls=int((~placebo_of).sum())),
        blind=BlindTest(
            p_value=blind.p_value,
            auc=blind.auc,
            chosen=Counter(each.chosen for each in blind.directions).most_common(1)[0][0],
            detectable_auc=detectable_auc(int(question.sum()), len(control_keys)),
        ),
        images=() if by_group else tuple(Image(id=name, p_value=p, q_value=q) for name, _, p, q in listed),
        group=config.group,
        groups=tuple(Group(group=name, images=n, p_value=p, q_value=q) for name, n, p, q in listed) if by_group else (),
        cuts=tuple(Cut.model_validate(each, from_attributes=True) for each in found.directions) if valid else (),
        repeated=tuple(scan.cohort.ids[row] for row in left_out if not across[row]),
        across=tuple(scan.cohort.ids[row] for row in np.flatnonzero(across)),
        warnings=_warnings(prepared, constant, placebo, across, len(left_out) - int(across.sum())),
        omitted=scan.omitted,
        truncated=prepared.truncated,
        costs=Costs(
            queries=collected.queries,
            queries_saved=collected.saved,
            queries_read=collected.read,
            seconds=round(collected.seconds, 2),
            chunks=collected.chunks,
        ),
        membership=prepared.membership,
        tally=scan.tally,
        headers=prepared.target.headers,
    )


def _choices(
    parts: Sequence[Scores], complexity: Float64[np.ndarray, "n 7"] | None, reconstruction: Float64[np.ndarray, "n 7"] | None
) -> Callable[[Int64[np.ndarray, " m"]], Chooser]:
    """All that a half may choose among, as a chooser for the images in some rows; without complexity none is taken out."""

    def of(rows: Int64[np.ndarray, " m"]) -> Chooser:
        own = None if complexity is None else complexity[rows]
        taken_out = None if own is None else features(own, None if reconstruction is None else reconstruction[rows])
        return chooser([scores.taken(rows) for scores in parts], taken_out, own)

    return of


def _parts(prepared: Prepared, collected: Collected, rows: Int64[np.ndarray, " m"], units: Units) -> tuple[list[Scores], list[str]]:
    """The scores that a half may choose among, and the attacks left out since they give every image the same score.

    With a reference also the excess over it; what the reference itself finds is of another model.
    """
    own = [scores for group in collected.scores for scores in group if not scores.attack.endswith(f"[{VARIANTS[0]}]")]
    offered = [units.counting(scores.taken(rows)) for scores in own]
    varied = [scores for scores in offered if np.ptp(scores.statistic, axis=0).any()]
    constant = [scores.attack for scores in offered if not np.ptp(scores.statistic, axis=0).any()]
    if not varied:
        give = "gives" if len(constant) == 1 else "give"
        raise UserError(
            f"an attack must give images different scores; {', '.join(constant)} {give} all {len(rows)} the same: does the model's answer "
            "depend on the image? The scores are kept; choose other --attacks or --timesteps"
        )
    return varied, constant


def _pixels(prepared: Prepared, rows: Int64[np.ndarray, " m"], units: Units) -> dict[str, Float64[np.ndarray, " u"]]:
    """What is known of every image without the model, by its name; numbers that are the same for all are left out.

    Of a group it is the mean over its images, and their number: scores of large groups spread less.
    """
    scan = prepared.scan
    found = {name: scan.features[rows, i] for i, name in enumerate(feature_names())}
    found |= {f"complexity: {name}": scan.complexity[rows, i] for i, name in enumerate(NAMES)}
    if scan.labels is not None:
        found |= {
            f"class {label}": (scan.labels.numbers[rows] == label).astype(np.float64) for label in np.unique(scan.labels.numbers[rows])
        }
    if scan.captions is not None:
        found |= _of_captions(scan.captions, rows)
    found = {name: units.mean(column[:, None])[:, 0] for name, column in found.items()}
    found |= {"number of images": units.sizes().astype(np.float64)} if units.kind == "group" else {}
    varied = {name: column for name, column in found.items() if np.ptp(column) > 0}
    return varied or {"nothing: all images have the same pixel statistics": np.zeros(len(units))}


def _of_captions(captions: Captions, rows: Int64[np.ndarray, " m"]) -> dict[str, Float64[np.ndarray, " m"]]:
    texts = [captions.texts[row] for row in rows]
    counted: dict[str, Callable[[str], int]] = {
        "characters of the caption": len,
        "words of the caption": lambda text: len(text.split()),
        "commas of the caption": lambda text: text.count(","),
        "capitals of the caption": lambda text: sum(map(str.isupper, text)),
    }
    return {name: np.array([of(text) for text in texts], dtype=np.float64) for name, of in counted.items()}


def _set(found: Tested | None, images: int, controls: int) -> SetAnswer:
    if found is None:
        invalid = "the two sides differ without the model, so no answer is given"
        return SetAnswer(images=images, controls=controls, auc=Estimate(reason=invalid), reason=invalid)
    value = found.auc.value
    needed = None if value is None else images_for_power(value, controls / images)
    reason = None if needed else "the images in question do not score above the controls, or too little for any number of images"
    return SetAnswer(
        p_value=found.p_value,
        auc=found.auc,
        images=images,
        controls=controls,
        images_for_power_80=needed,
        controls_for_power_80=round(needed * controls / images) if needed else None,
        detectable_auc=detectable_auc(images, controls),
        reason=reason,
    )


def _in_question(units: Units, found: Tested) -> Iterator[tuple[str, int, float, float]]:
    """Name, number of images, p- and q-value of all in question, in the order of names: that of the files would say which key is whose."""
    names = [name for name, asked in zip(units.names, units.member, strict=True) if asked]
    p_values, sizes = found.image_p_values, units.sizes()[units.member]
    for row in sorted(zip(names, sizes, p_values, q_values(p_values), strict=True), key=lambda row: sort_key(row[0])):
        yield row[0], int(row[1]), float(row[2]), float(row[3])


def _invalid(blind: Tested) -> str:
    return (
        "The images in question and the controls differ without the model: a scorer that never sees it tells them apart "
        f"(p = {blind.p_value:.2g}). High scores could come from that difference, so no answer is given. Take controls from the same "
        "source, saved and resized in the same way."
    )


def _warnings(
    prepared: Prepared, constant: Sequence[str], placebo: Tested, across: Bool[np.ndarray, " n"], repeated: int
) -> tuple[str, ...]:
    found, member = about_models(prepared), prepared.scan.cohort.member
    if prepared.membership and prepared.membership.status == "contradicted, ignored":
        found.append(
            f"{of_controls(prepared.membership)} If controls were trained on, the test can miss training on the images in question"
        )
    if placebo.p_value <= LEVEL:
        found.append(
            f"the placebo finds a difference (p = {placebo.p_value:.2g}) between two random halves of the controls, where there is none. "
            f"By chance this happens in at most one inquiry of {round(1 / LEVEL)}: repeat with another --seed, and do not use the result "
            "if it happens again"
        )
    found += [f"{attack} gives every image the same score, and was left out" for attack in constant]
    if across.any():
        question, controls = int((across & member).sum()), int((across & ~member).sum())
        beside = f"{one_or_more(question, 'image')} in question and {one_or_more(controls, 'control')}"
        found.append(
            f"{beside} are near-duplicates of each other and were not tested: a control must not show what an image in question shows. "
            "To ask about these images, take the controls out"
        )
    if repeated:
        are = one_or_more(repeated, "image is a near-duplicate", "images are near-duplicates")
        found.append(f"{are} of another on {'its' if repeated == 1 else 'their'} side; each cluster counts once")
    if prepared.plan.captions == "empty":
        own, every = prepared.plan.captions_found or 0, len(member)
        some = f" ({own} of {every} have one of their own: --captions FILE can give the others theirs)" if 0 < own < every else ""
        found.append(f"the model was given the empty caption with every image: with the captions it was trained on, more may show{some}")
    return (*found, *about_reading(prepared))


def save(record: InquiryRecord, folder: Path) -> None:
    """Writes inquiry.csv, inquiry.html and inquiry.json; of an invalid inquiry no inquiry.csv."""
    from diffleak.report.pages.inquiry import page

    files = {PAGE: to_html(page(record)), FILE: record.model_dump_json(indent=2)}
    if record.valid:
        files[TABLE] = to_csv(record)
    else:
        (folder / TABLE).unlink(missing_ok=True)
    write_recorded(folder, files, [*scored(folder), *made_with_scores(folder)], replaces=(TABLE, "scores/"))


def refuse_invalid(record: InquiryRecord) -> None:
    """Raises `InvalidAudit` where the two sides differ without the model."""
    if not record.valid:
        raise InvalidAudit(record.invalid_reason or "the inquiry is invalid")


def inquire(
    model: auditing.Model,
    *,
    images: Any,
    control: Any,
    attacks: auditing.Attacks = "all",
    reference: auditing.Model | None = None,
    output: str | Path | None = None,
    **settings: Any,
) -> InquiryRecord:
    """Were images of unknown membership in the training set of a model?

    Args:
        model: As for `diffleak.audit`.
        images: The images in question, as DATA or a uint8 array (N, H, W[, C]).
        control: Images of the same source that were certainly not trained on.
        attacks: As for `diffleak.audit`.
        reference: As for `diffleak.audit`.
        output: A run folder; an interrupted call with the same arguments resumes there. Without it nothing is left on disk.
        **settings: Any key of `InquireConfig`, such as repeats=11 or timesteps="10:300:10".

    Returns:
        The record: `set.p_value`, `set.auc`, `images[0].q_value`. Where the two sides differ without the model, `valid` is False and it
            holds no answer.

    Raises:
        UserError: For input that cannot be used.
    """
    name = lambda data: str(data) if isinstance(data, str | Path) else IN_MEMORY
    given = {"images": name(images), "control": name(control), "output": output, **settings}
    asked = auditing.called(InquireConfig, model, attacks, reference, given)
    sources = (None if isinstance(data, str | Path) else open_source(data, asked.config.decoding) for data in (images, control))
    ready = prepared(asked.config, asked.target, inquired(asked.config, *sources), asked.reference, asked.made)
    with TemporaryDirectory() as scratch:
        record = run(ready, Path(output) if output else Path(scratch))
        if record is None:
            raise UserError("other shards have not finished; run them, then this call again")
        if output:
            save(record, Path(output))
    return record
