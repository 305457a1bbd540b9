"""Who is a member by the model's own word: the split.json that training left beside it, compared with the sides of an audit.

    contradicted     a member that the file holds out, sets aside for validation or does not list; a held-out image that it
                     trains on or sets aside
    confirmed        every image was found in the file, on its side
    taken on trust   there is no such file, or the images could not be looked up in it, or only by name: a split.json of `diffleak
                     split` that lies beside a model says of no data that the model was trained on it

Ids mean the same where the audit reads the data that train.json names. Elsewhere, as in folders of copies, an image is looked
up by its name and counts only if its pixels are those of the training data: two files have rows of the same number by accident.
Where the training data is gone, nothing is refused but a whole swap, which is no accident. The other half of a teacher's
defence is on neither side of it: all models of a defence are audited with one split.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffleak.data.cohort import Cohort
from diffleak.data.image_source import ImageSource
from diffleak.data.names import matched
from diffleak.data.sources import open_source
from diffleak.data.split import ModelSplit, find_split, read_model_split
from diffleak.errors import UserError, of_them, shown
from diffleak.records.audit import Draw, Membership, Promise
from diffleak.records.images import Decoding
from diffleak.work.reading import load_json

SAMPLE = 100  # images whose pixels are compared before names are believed
FEWEST = 10  # images a side that make a swap no accident


class Match(NamedTuple):
    """One audited image: its row, its side, its id in the model's split (None: not found) and whether ids mean the same there."""

    cohort: Cohort
    row: int
    member: bool
    known: str | None
    same: bool

    @property
    def id(self) -> str:
        return self.cohort.ids[self.row]


def check_membership(
    cohorts: Sequence[Cohort],
    given: str,
    split_file: Path | None,
    audited_split: Path | None = None,
    ignore: bool = False,
    must: str = "the two sides must be those that the model was trained with",
    todo: str = "take the sides from that split",
) -> Membership:
    """What the model's own split says of the sides of an audit; raises `UserError` where it contradicts them, unless `ignore`.

    given: where the sides come from, in words. split_file: that of the model (see `own_split`). audited_split: the --split.
    must, todo: how the refusal begins, and what it advises.
    """
    trust = partial(Membership, source=given, status="taken on trust")
    if split_file is None:
        return trust(reason="the model has no split.json to compare with")
    own = read_model_split(split_file, audited_split)
    trust = partial(trust, model_split=str(split_file))
    if own is None:
        return trust(reason=f"{split_file} {'cannot be read' if find_split(split_file) is None else 'lists no members'}")
    training = None if own.data is None else _opened(own.data, cohorts[0].decoding)
    found = [match for cohort in cohorts for match in _matches(cohort, own)]
    against = [match for match in found if _contradicts(match, own)]
    elsewhere = any(not match.same for match in found)
    if training is not None:
        same_pixels = partial(_same_pixels, training, {image_id: i for i, image_id in enumerate(training.ids)})
        against = [match for match in against if match.same or same_pixels(match)]
    otherwise = len(against)  # by name, whatever their pixels
    if training is None and elsewhere and not _whole_swap(found, against):
        against = [match for match in against if match.same]
    if against:
        said = _said(against, own)
        if not ignore:
            raise UserError(f"{must}; by {split_file}, {said}: {todo}, or add --ignore-model-split to go on all the same")
        return Membership(source=given, status="contradicted, ignored", model_split=str(split_file), reason=said)
    halves = sum(match.known is not None and own.roles[match.known] == "other half" and match.member for match in found)
    belong = of_them(halves, "the members", "belongs", "belong")
    also = f"{belong} to the half of the other teacher, which this model never saw" if halves else None
    lost = [match for match in found if match.known is None and not match.same]
    if lost:
        return trust(reason=f"{of_them(len(lost), f'{len(found):,} images')} not listed there by name (first: {shown(lost[0].id)})")
    if elsewhere and training is None:
        why = f"the training data {own.data} is not there to compare with" if own.data else "nothing says where the training images lie"
        if otherwise:
            names = of_them(otherwise, f"{len(found):,} images", "has a name", "have names")
            check = f"where the images are the same too, the sides or {split_file} are wrong"
            return trust(reason=f"{names} that it lists on another side, and {why}; {check}")
        return trust(reason=f"only names could be compared, because {why}", same_names=True)
    if elsewhere:
        sample = [match for match in found if not match.same]
        sample = sample[:: max(1, len(sample) // SAMPLE)]
        other = next((match for match in sample if same_pixels(match) is False), None)
        if other is not None:
            return trust(reason=f"the model's training data has other images under these names (first: {shown(other.id)})")
    return Membership(source=given, status="confirmed", model_split=str(split_file), reason=also)


def draw_of(
    cohort: Cohort, membership: Membership | None, split_file: Path | None, audited_split: Path | None, unreadable: int = 0
) -> Draw | None:
    """How the sides of an audit were drawn; None where no file says it, or says it of sides that are not those of the audit.

    split_file: that of the model, which counts where it confirms the sides. audited_split: the --split. unreadable: how many images that
    one of them may name were left out of the cohort.
    """
    if membership is None or membership.status == "contradicted, ignored":
        return None
    for file in (split_file if membership.status == "confirmed" else None, audited_split):
        split = find_split(file, "members", "nonmembers") if file else None
        if file is None or split is None or split.drawn is None or split.validation:
            continue  # images that were set aside for validation are not where their coins put them
        named = [name for unit in split.drawn.together for name in unit]
        meant = _meant(file, named, cohort)
        if len(meant) + unreadable < len(named):
            continue
        units = [tuple(meant[name] for name in unit if name in meant) for unit in split.drawn.together]
        return Draw(
            how=split.drawn.how,
            seed=split.drawn.seed,
            images=len(split.members) + len(split.nonmembers),
            together=tuple(unit for unit in units if unit),
            file=str(file),
        )
    return None


def _meant(file: Path, names: Sequence[str], cohort: Cohort) -> dict[str, str]:
    """The id in the cohort of each name in a file, by the name as the data spells it or by its last part where one image alone has it."""
    found = matched(file, names, cohort.keys, cohort.folders())
    once = _by_last_part(cohort.keys)
    keys = {name: found.get(name) or once.get(_last_part(name)) for name in names}
    shown_as = dict(zip(cohort.keys, cohort.ids, strict=True))
    return {name: shown_as[key] for name, key in keys.items() if key is not None}


def _last_part(name: str) -> str:
    return name.rpartition("/")[2]


def _by_last_part(ids: Iterable[str]) -> dict[str, str]:
    """The images whose last part no other one has, by it."""
    ids = [*ids]
    times = Counter(map(_last_part, ids))
    return {_last_part(image_id): image_id for image_id in ids if times[_last_part(image_id)] == 1}


def promise_of(split_file: Path | None) -> Promise | None:
    """What DP-SGD promises of a model by the train.json beside its split.json; None where none says it, or the run is not finished."""
    try:
        record = load_json(split_file.with_name("train.json")) if split_file else {}
        spent = record.get("spent")
        return Promise(epsilon=spent["epsilon"], delta=spent["delta"], autoencoder=record.get("autoencoder")) if spent else None
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None  # somebody else's train.json, or a damaged one: nothing is known


def _opened(data: str, decoding: Decoding) -> ImageSource | None:
    """The training data, where it still is; nothing is downloaded for this."""
    try:
        return None if data.startswith("hf:") else open_source(data, decoding)
    except UserError:
        return None


def _matches(cohort: Cohort, own: ModelSplit) -> Iterable[Match]:
    once = _by_last_part(own.roles)
    same = [own.data is not None and _same_data(source.name, own.data) for source in cohort.sources]
    for row in range(len(cohort)):
        member = bool(cohort.member[row])
        side = 0 if member else 1
        image_id = cohort.sources[side].ids[int(cohort.position[row])]
        known = image_id if image_id in own.roles else None if same[side] else once.get(_last_part(image_id))
        yield Match(cohort, row, member, known, same[side])


def _same_data(name: str, data: str) -> bool:
    return name == data or (Path(data).exists() and Path(name).resolve() == Path(data).resolve())


def _contradicts(match: Match, own: ModelSplit) -> bool:
    """True if the file has the image on another side; members that it does not list are only known where ids mean the same."""
    role = own.roles.get(match.known) if match.known is not None else None
    if match.member:
        return role in ("nonmember", "validation") or (role is None and match.same)
    return role in ("member", "validation")


def _same_pixels(training: ImageSource, position: dict[str, int], match: Match) -> bool | None:
    """True if an image is that of the training data; None where one of them cannot be read, which says nothing."""
    try:
        return match.known in position and np.array_equal(match.cohort.read(match.row), training.read(position[match.known]))
    except UserError:
        return None


def _whole_swap(found: Sequence[Match], against: Sequence[Match]) -> bool:
    """True if every image was found on the other side, each of them once, with enough on both sides to be no accident."""
    members = sum(match.member for match in found)
    once = len({match.known for match in found}) == len(found)
    return len(against) == len(found) and once and min(members, len(found) - members) >= FEWEST


def _said(against: Sequence[Match], own: ModelSplit) -> str:
    """What contradicts, counted, with the first image of each kind."""
    where = {"nonmember": "held out", "validation": "set aside for validation", "member": "trained on", None: "not listed"}
    parts = []
    for member, what in ((True, against[0].cohort.calls[0]), (False, against[0].cohort.calls[1])):
        for role, place in where.items():
            these = [m for m in against if m.member == member and (own.roles.get(m.known) if m.known else None) == role]
            if these:
                parts.append(f"{of_them(len(these), f'the {what}')} {place} (first: {shown(these[0].id)})")
    return " and ".join(parts)
