"""What can be said of two sides before any model is used: copies, sources, sizes, captions, and what so many images can show."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffleak.checking.config import CheckConfig
from diffleak.config import build
from diffleak.data.cohort import IN_MEMORY, Cohort, one_source, two_sources
from diffleak.data.complexity import NAMES, complexity
from diffleak.data.draw import calibrate_size, images_for
from diffleak.data.duplicates import beside_members
from diffleak.data.enough import counted, images_of, since
from diffleak.data.features import FEATURES, image_features
from diffleak.data.labels import possible_classes
from diffleak.data.pixels import ImageShape, fit
from diffleak.data.scan import FEWEST, fingerprint
from diffleak.data.sources import open_source
from diffleak.data.survey import Survey, survey
from diffleak.errors import InvalidAudit, one_or_more, shown
from diffleak.records.audit import Blind
from diffleak.records.base import written
from diffleak.records.check import FILE, PAGE, CheckRecord, DuplicatePair, Duplicates, Needed, Power, Side, Where
from diffleak.records.digests import write_recorded
from diffleak.records.run_folder import refuse_model
from diffleak.stats.blind import INVALID_P, finding
from diffleak.stats.metrics import LEVEL
from diffleak.stats.power import POWER, detectable_auc, detectable_tpr, images_for_auc, images_for_tpr
from diffleak.stats.units import Units, units_of
from diffleak.work.progress import progress, say

LISTED = 500  # pairs in the record
NAMED = 3  # examples in a sentence
AUCS, TPRS = (0.55, 0.6, 0.7), (0.02, 0.03, 0.05, 0.1)  # leaks whose images are worked out


@dataclass(frozen=True, eq=False)
class Check:
    """A finished check."""

    record: CheckRecord

    def save(self, folder: str | Path) -> Path:
        """Writes check.json and check.html; returns the folder."""
        from diffleak.report import to_html
        from diffleak.report.pages.check import page

        folder = Path(folder)
        write_recorded(folder, {PAGE: to_html(page(self.record)), FILE: self.record.model_dump_json(indent=2)})
        return folder


def check(
    members: Any = None, nonmembers: Any = None, *, data: Any = None, split: str | Path | None = None, **settings: Any
) -> CheckRecord:
    """Looks at both sides of an audit without a model.

    Args:
        members: The images that the model was trained on, as `cohort` takes them.
        nonmembers: The held-out images.
        data: One set for both sides, with `split`.
        split: A split file.
        **settings: Any other key of `CheckConfig`.

    Returns:
        The record, as in check.json. Where the sides make an audit invalid, `valid` is False and nothing is raised.

    Raises:
        UserError: For data that cannot be read.
    """
    given = {"members": members, "nonmembers": nonmembers, "data": data, "split": split}
    named = {key: str(value) if isinstance(value, str | Path) else IN_MEMORY for key, value in given.items() if value is not None}
    return check_images(build(CheckConfig, {**named, **settings}), given).record


def check_images(config: CheckConfig, given: dict[str, Any] | None = None) -> Check:
    """The check of a config; `given` are the images where they are in memory."""
    refuse_model(config.output, FILE)
    named = lambda key: getattr(config, key) if given is None or given.get(key) is None else given[key]
    read = lambda key: open_source(named(key), config.decoding)
    if config.split:
        cohort = one_source(read("data"), config.split, config.limit, config.seed)
    else:
        cohort = two_sources(read("members"), read("nonmembers"), config.limit, config.seed)
    for line in cohort.found:
        say(line)
    looked = survey(cohort)
    kept, member = looked.cohort, looked.cohort.member
    looked.tally.refuse(cohort.names[0], config.decoding)
    looked.tally.refuse_white(config.decoding)
    found = _duplicates(looked)
    units = units_of(kept.ids, kept.keys, member, looked.duplicates.clusters)
    blind = _blind(looked, units, config.resize, config.seed)
    labels = _classes(kept)
    p_value = None if labels is None or member.all() or not member.any() else units.classes_p_value(labels, config.seed)
    distinct = counted(looked.duplicates.clusters, member)
    sides = _sides(cohort, looked, distinct)
    problems = tuple(_problems(looked, found, blind))
    return Check(
        CheckRecord(
            **written(config.command if IN_MEMORY not in (config.members, config.data) else "diffleak.check(...) from Python"),
            settings=config.model_dump(mode="json"),
            valid=not problems,
            problems=problems,
            warnings=tuple(_warnings(looked, found, blind, p_value, sides, config)),
            members=sides[0],
            nonmembers=sides[1],
            data_fingerprint=fingerprint(kept, looked.hashes, None, None),
            duplicates=found,
            blind=blind,
            classes_p_value=p_value,
            power=_power(distinct[0], distinct[1], config.calibrate_fraction),
            images=looked.tally,
            unreadable=looked.unreadable,
        )
    )


def refuse_invalid(record: CheckRecord) -> None:
    """Raises `InvalidAudit` where an audit of these sides would be invalid or refused."""
    if not record.valid:
        few, shared = min(record.members.distinct, record.nonmembers.distinct) < FEWEST, record.duplicates.exact_across > 0
        raise InvalidAudit(f"an audit of these sides would be {'refused' if few or shared else 'invalid'}: {record.problems[0]}")


def _duplicates(looked: Survey) -> Duplicates:
    member, (pairs, clusters) = looked.cohort.member, looked.duplicates
    across = member[pairs.first] != member[pairs.second]
    keys = looked.hashes.view(f"S{looked.hashes.shape[1]}")[:, 0]
    same = ~member & np.isin(keys, keys[member])
    shared = beside_members(clusters, member)
    sizes = np.bincount(clusters)
    order = np.argsort(~across, kind="stable")[:LISTED]
    rows = []
    for k in order:
        one, other = int(pairs.first[k]), int(pairs.second[k])
        one, other = (other, one) if across[k] and not member[one] else (one, other)
        where: Where = "across" if across[k] else "members" if member[one] else "nonmembers"
        ids, exact = looked.cohort.ids, bool(pairs.exact[k])
        rows.append(DuplicatePair(first=ids[one], second=ids[other], where=where, exact=exact, distance=round(float(pairs.distance[k]), 5)))
    return Duplicates(
        exact_across=int(same.sum()),
        near_across=int((shared & ~same).sum()),
        exact_within=int((pairs.exact & ~across).sum()),
        near_within=int((~pairs.exact & ~across).sum()),
        clusters=int((sizes > 1).sum()),
        clustered=int(sizes[sizes > 1].sum()),
        pairs=tuple(rows),
        listed=len(pairs.first),
    )


def _blind(looked: Survey, units: Units, size: int | None, seed: int) -> Blind:
    """The blind baseline of audits, on images brought to the size of the model, else to the shape that most of them have.

    A model of grey images sees them in grey, and one of buckets each at a size of its own; without a model neither is known.
    """
    member = looked.cohort.member
    if min(images_of(units.member)) < FEWEST:
        return Blind(reason=f"fewer than {FEWEST} readable images on a side, near-duplicates counted once")
    shape = Counter(looked.shapes).most_common(1)[0][0]
    shape = ImageShape(min(shape.channels, 3), size or shape.height, size or shape.width)
    features, complexities = np.zeros((len(member), FEATURES)), np.zeros((len(member), len(NAMES)))
    with progress("blind baseline", len(member), "images") as advance:
        for row, image_id in enumerate(looked.cohort.ids):
            pixels = fit(looked.cohort.read(row), shape, True, image_id)
            features[row], complexities[row] = image_features(pixels), complexity(pixels)
            advance(1)
    return units.blind(features, complexities, seed)


def _classes(cohort: Cohort) -> np.ndarray | None:
    """The number of the class of every image; None unless every image has one."""
    sides = [possible_classes(source.labels()) for source in cohort.sources]
    if not all(sides):
        return None
    values = [str(sides[0 if m else 1][int(i)]) for m, i in zip(cohort.member, cohort.position, strict=True)]
    missing = any(sides[0 if m else 1][int(i)] is None for m, i in zip(cohort.member, cohort.position, strict=True))
    return None if missing else np.unique(values, return_inverse=True)[1].astype(np.int64)


def _sides(cohort: Cohort, looked: Survey, distinct: Sequence[int]) -> tuple[Side, Side]:
    member = looked.cohort.member
    texts = cohort.captions()
    found = []
    for number, side in enumerate((True, False)):
        source, rows = cohort.sources[number], np.flatnonzero(cohort.member == side)
        said, values = source.said(), possible_classes(source.labels())
        shapes = Counter(str(shape) for shape, m in zip(looked.shapes, member, strict=True) if m == side)
        found.append(
            Side(
                source=cohort.names[number],
                images=len(rows),
                readable=int((member == side).sum()),
                distinct=distinct[number],
                captions=sum(bool(texts[row]) for row in rows) if texts else 0,
                captions_from=said.captions,
                labels=sum(values[int(cohort.position[row])] is not None for row in rows) if values else 0,
                labels_from=said.labels if values else "",
                shapes=tuple(shapes.most_common()),
            )
        )
    return found[0], found[1]


def _problems(looked: Survey, found: Duplicates, blind: Blind) -> Iterator[str]:
    """Why an audit would be invalid, or would not start."""
    member = looked.cohort.member
    m, n = int(member.sum()), int((~member).sum())
    words = lambda members, held_out: f"{one_or_more(members, 'member')} and {one_or_more(held_out, 'held-out image')}"
    if min(m, n) < FEWEST:
        yield f"an audit needs at least {FEWEST} images on each side; {words(m, n)} can be read: add more"
    elif min(left := counted(looked.duplicates.clusters, member)) < FEWEST:
        yield f"an audit needs at least {FEWEST} images on each side; got {words(left[0], left[1])}{since(left, (m, n))}: add more"
    if found.exact_across:
        pairs = [f"{shown(p.first)} = {shown(p.second)}" for p in found.pairs if p.where == "across" and p.exact][:NAMED]
        copies = "held-out image equals a member", "held-out images equal members"
        yield f"{one_or_more(found.exact_across, *copies)} pixel for pixel ({'; '.join(pairs)}): remove from one side"
    if finding(blind) == "different":
        size = f"p = {blind.p_value:.2g}" if blind.p_value is not None else f"AUC {blind.value:.2f}, lower end {blind.low:.2f}"
        yield f"the two sides differ without a model ({size}): hold out images of the same source (`diffleak split`)"


def _warnings(
    looked: Survey, found: Duplicates, blind: Blind, p_value: float | None, sides: tuple[Side, Side], config: CheckConfig
) -> Iterator[str]:
    if found.near_across:
        near = [p for p in found.pairs if p.where == "across" and not p.exact][:NAMED]
        pairs = "; ".join(f"{shown(p.first)} ~ {shown(p.second)}" for p in near)
        near_copies = "held-out image is a near-duplicate of a member", "held-out images are near-duplicates of members"
        yield (
            f"{one_or_more(found.near_across, *near_copies)} ({pairs}): a model that knows the one knows the other, "
            "which hides leaks; remove them, or draw the sides with `diffleak split`"
        )
    if found.clusters and found.exact_within + found.near_within:
        within = found.exact_within + found.near_within
        stand = one_or_more(within, "pair of copies or near-duplicates stands", "pairs of copies or near-duplicates stand")
        yield f"{stand} on one side: an audit counts a cluster as one image"
    if looked.unreadable:
        lost = one_or_more(len(looked.unreadable), "image cannot be read: replace it", "images cannot be read: replace them")
        yield f"{lost}, or audit with --skip-unreadable"
    shapes = dict.fromkeys(name for side in sides for name, _ in side.shapes)
    if len(shapes) > 1:
        first = ", ".join(list(shapes)[:NAMED]) + (", ..." if len(shapes) > NAMED else "")
        size = "" if config.resize else "; check with --resize SIZE, the size of the model, since the sides may differ more, or less, there"
        yield f"the images have {len(shapes):,} shapes ({first}): audit with --resize or --buckets{size}"
        most = [side.shapes[0][0] for side in sides if side.shapes]
        if len(set(most)) > 1:
            yield (
                f"the commonest shape is {most[0]} among members and {most[1]} among held-out images: an attack may tell the sides apart "
                "by their size alone"
            )
    if read := looked.tally.described(config.decoding):
        yield f"how the images were read: {', '.join(read)}"
    if finding(blind) == "perhaps":
        yield "the two sides differ without a model, more than by chance: part of what an audit finds may come from that difference"
    if p_value is not None and p_value <= INVALID_P:
        yield f"the classes of the two sides differ (p = {p_value:.2g}): an audit of a class-conditional model would be invalid"
    for name, counts in (("captions", [s.captions for s in sides]), ("labels", [s.labels for s in sides])):
        if any(counts) and counts != [s.images for s in sides]:
            yield (
                f"{name} are there for {counts[0]:,} of {sides[0].images:,} members and {counts[1]:,} of {sides[1].images:,} held-out "
                f"images: a model that takes {name} needs them for every image"
            )
    column = looked.cohort.column("group")
    if column:
        of = [{str(v) for v, m in zip(column, looked.cohort.member, strict=True) if v is not None and m == side} for side in (True, False)]
        if both := sorted(of[0] & of[1]):
            have = one_or_more(len(both), "group has", "groups have")
            yield f"{have} images on both sides (first: {shown(both[0])}); `diffleak split` keeps groups whole"


def _power(members: int, nonmembers: int, fraction: float) -> Power:
    """What an audit of so many images can show; clusters count as one image, and calibration takes its share."""
    m, n = (size - calibrate_size(size, fraction) for size in (members, nonmembers))
    whole = lambda tested: None if tested is None else images_for(tested, fraction)
    return Power(
        level=LEVEL,
        probability=POWER,
        members=m,
        nonmembers=n,
        auc=_rounded(detectable_auc(m, n)),
        tpr_at_1pct=_rounded(detectable_tpr(m, n)),
        needed=(
            *(Needed(quantity="AUC", value=value, images=whole(images_for_auc(value))) for value in AUCS),
            *(Needed(quantity="TPR at 1 % FPR", value=value, images=whole(images_for_tpr(value))) for value in TPRS),
        ),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
