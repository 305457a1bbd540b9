"""`diffleak epsilon`: how much epsilon the training of an audited model gives away, at least.

The bound is `diffleak.stats.epsilon`'s, so the sides must have been drawn by coin and every coin must be there: an image that is left out
because of its side takes the chance out of others. Attack, timestep and numbers of guesses are chosen on a division of this command's own,
which is drawn without looking at the sides; that of the audit has as many of each in a part.

Guesses are of images whose coin no other image shares. Near-duplicates are left out too, whatever their sides: an audit refuses equal
images on both sides, so the coins of those that it lets pass fell together. In an audit by group guesses are of groups, where each had a
coin of its own, and the bound is for one group. No torch here.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from diffleak.errors import GateFailed, InvalidAudit, UserError, of_them, one_or_more, shown
from diffleak.records import digests
from diffleak.records.audit import AuditRecord, Draw, Promise, Result
from diffleak.records.base import written
from diffleak.records.epsilon import FILE, EpsilonRecord
from diffleak.records.run_folder import read_samples, read_scores
from diffleak.records.scores import Samples, Scores, chunk_files
from diffleak.report.judgement import read_record
from diffleak.report.written import refresh_report
from diffleak.stats.blind import finding
from diffleak.stats.epsilon import LEVEL, calibrate_units, choose, count, lower_bound
from diffleak.stats.rules import Key, settled

DELTA = 1e-5  # where neither the user nor a promise says another one
FEWEST = 20  # units of the calibrate part below which nothing can be chosen
DRAW_IT = (
    "train with `diffleak train --split-coin`, or draw the sides with `diffleak split DATA --coin -o split.json` and train with --split, "
    "then audit all images with --sweep all"
)


@dataclass(frozen=True, eq=False)
class Coins:
    """What the guesses are of: images, or groups of them, and which of these have a fair coin that says nothing of another one's."""

    names: tuple[str, ...]
    member: Bool[np.ndarray, " u"]
    alone: Bool[np.ndarray, " u"]
    of: Int64[np.ndarray, " n"] | None
    """The number of each image's group; None where images are guessed."""
    shared: int
    """Images left out since their coin was thrown for others too."""
    alike: int
    """Images left out since they are near-duplicates of others, though their coins were thrown apart."""


class Candidate(NamedTuple):
    """One column of scores that may guess."""

    attack: str
    key: Key


def epsilon(run: str | Path, delta: float | None = None, level: float = LEVEL) -> EpsilonRecord:
    """The lower bound on epsilon of a finished audit whose sides were drawn by coin; writes epsilon.json into its folder.

    Args:
        run: The run folder.
        delta: In (0, 1); by default that of the model's promise, else 1e-5.
        level: Confidence, in (0, 1).

    Returns:
        The record; `epsilon` is 0 where the guesses are not significantly better than chance.

    Raises:
        UserError: For a run from which no bound can be computed.
        InvalidAudit: Where the sides differ without the model.

    Source:
        Steinke, Nasr and Jagielski 2023, arXiv 2305.08846.
    """
    folder = Path(run)
    if delta is not None and not 0 < delta < 1:
        raise UserError(f"--delta must be in (0, 1), and well below one over the number of images; got {delta:g}")
    if not 0 < level < 1:
        raise UserError(f"--level must be in (0, 1), such as 0.95; got {level:g}")
    digests.refuse_edited(folder, but=(FILE,))
    audited = read_record(folder)
    draw = _fair(audited, folder)
    samples = read_samples(folder)
    promise = audited.promise if audited.promise and audited.promise.autoencoder is None else None
    chosen_delta = delta if delta is not None else promise.delta if promise else DELTA
    plan = audited.plan
    coins = _coins_of_images(audited, samples, draw) if plan.group is None else _coins_of_groups(audited, samples, draw, folder)
    member, alone = coins.member, coins.alone
    calibrate = np.zeros(len(alone), dtype=bool)
    calibrate[alone] = calibrate_units([*compress(coins.names, alone)], plan.calibrate_fraction, plan.seed)
    tested = alone & ~calibrate
    if calibrate.sum() < FEWEST:
        raise UserError(_too_few(int(calibrate.sum()), coins, len(samples.ids), folder))
    rows = {image_id: row for row, image_id in enumerate(samples.ids)}
    offered = (replace(scores, unit=coins.of) for scores in _scores(audited, folder, rows))
    columns = [column for scores in offered for column in _columns(scores, member, calibrate)]
    if not columns:
        raise UserError(f"{folder} holds no scores of an attack that can guess coins: audit again with one that can, such as sima")
    candidates, values = [candidate for candidate, _ in columns], np.stack([value for _, value in columns], axis=1)
    guesser = choose(values[calibrate], member[calibrate], chosen_delta, level, plan.seed, int(tested.sum()))
    counted = count(guesser, values[tested], member[tested], plan.seed)
    bound = lower_bound(*counted, chosen_delta, level)
    top = round(guesser.top * counted.units)
    attack, key = candidates[guesser.column]
    comparable = promise if promise and promise.delta <= chosen_delta and plan.group is None else None
    record = EpsilonRecord(
        **written(shlex.join(["diffleak", "epsilon", str(run), "--delta", f"{chosen_delta:g}", "--level", f"{level:g}"])),
        run=str(run),
        model=plan.model,
        model_fingerprint=plan.model_fingerprint,
        epsilon=bound,
        delta=chosen_delta,
        level=level,
        guesses=counted.guesses,
        right=counted.right,
        promised=comparable.epsilon if comparable else None,
        promised_delta=comparable.delta if comparable else None,
        exceeds=comparable is not None and bound > comparable.epsilon,
        reason=None if bound else _why_zero(*counted, chosen_delta, level, "images" if plan.group is None else "groups"),
        attack=attack,
        timestep=key if isinstance(key, int) else None,
        setting=key if isinstance(key, str) else None,
        candidates=tuple(dict.fromkeys(candidate.attack for candidate in candidates)),
        top=top,
        bottom=counted.guesses - top,
        units=counted.units,
        calibrate_units=int(calibrate.sum()),
        shared_coins=coins.shared,
        near_duplicates=coins.alike,
        group=plan.group,
        split=draw.file,
        seed=plan.seed,
        warnings=tuple(_warnings(audited, coins, chosen_delta, audited.promise, comparable)),
    )
    digests.write_recorded(folder, {FILE: record.model_dump_json(indent=2)})
    refresh_report(folder)
    return record


def gate(record: EpsilonRecord) -> None:
    """Raises `GateFailed` where the bound is above what the model's training promised."""
    if record.exceeds:
        raise GateFailed(
            f"the promise is broken: epsilon is at least {record.epsilon:.3f} ({record.level * 100:g} %) at delta {record.delta:g}, and "
            f"DP-SGD promised {record.promised:.3f} at delta {record.promised_delta:g}: look for a mistake in the training or "
            "in its accounting"
        )


def _fair(audited: AuditRecord, folder: Path) -> Draw:
    """How the sides were drawn; raises `UserError` unless every image of the audit has a fair coin, and every coin its image."""
    draw, settings = audited.drawn, audited.settings
    if audited.membership and audited.membership.status == "contradicted, ignored":
        raise UserError(f"the coins must have decided who is a member; {audited.membership.reason}: audit with the model's own split.json")
    if draw is None or draw.how != "coin":
        said = "no split.json that fits its sides says how they were drawn" if draw is None else f"{draw.file} says a fixed share"
        raise UserError(f"a bound on epsilon needs sides that were drawn by coin; of {folder} {said}: {DRAW_IT}")
    if settings.get("limit") is not None:
        raise UserError(
            f"--limit took the same number of images from each side, so their coins are no longer fair; {folder} was audited with --limit "
            f"{settings['limit']}: audit again without it"
        )
    if audited.plan.sweep != "all":
        raise UserError(
            f"timesteps must not be chosen on images whose coins are guessed; in {folder} the calibrate part chose the timesteps at "
            "which all images are scored: audit again with --sweep all"
        )
    here = audited.plan.n_members + audited.plan.n_nonmembers + len(audited.omitted)
    if here != draw.images:
        raise UserError(
            f"every image that a coin was thrown for must be audited, or the coins left are not fair; {shown(draw.file)} has "
            f"{draw.images:,} images and {folder} {here:,}: audit with --data DATA --split {shown(draw.file)}"
        )
    if finding(audited.blind) == "different":
        raise InvalidAudit(
            f"the two sides of {folder} differ without the model, which fair coins do by accident only: look for what else decided them, "
            "such as other files or other image settings on one side"
        )
    return draw


def _coins_of_images(audited: AuditRecord, samples: Samples, draw: Draw) -> Coins:
    """Images whose coin was thrown for them alone, and that are nobody's near-duplicate.

    Whether an image is left out does not depend on how a coin fell: clusters are those of both sides together.
    """
    shared = {image_id for unit in draw.together for image_id in unit}
    alike = {image_id for cluster in audited.clusters or () for image_id in cluster} - shared
    alone = np.array([image_id not in shared and image_id not in alike for image_id in samples.ids], dtype=bool)
    return Coins(samples.ids, samples.member, alone, None, len(shared), len(alike))


def _coins_of_groups(audited: AuditRecord, samples: Samples, draw: Draw, folder: Path) -> Coins:
    """Groups that one coin was thrown for, which no other group shares, nor has near-duplicates of.

    Raises `UserError` where several coins were thrown for the images of one group: it is whole on one side by accident only.
    """
    of, counted = samples.number, samples.counted
    assert of is not None, "an audit by group says which group each image is in"
    row = {image_id: number for number, image_id in enumerate(samples.ids)}
    groups_of = lambda ids: {int(of[row[image_id]]) for image_id in ids if image_id in row}
    coin = {image_id: number for number, unit in enumerate(draw.together) for image_id in unit}
    thrown: list[set[int | str]] = [set() for _ in counted.ids]
    for image_id, group in zip(samples.ids, of.tolist(), strict=True):
        thrown[group].add(coin.get(image_id, image_id))
    several = [group for group, coins in enumerate(thrown) if len(coins) > 1]
    if several:
        all_of = f"{one_or_more(len(thrown), 'group')} by {shown(str(audited.plan.group))}"
        raise UserError(
            f"a bound for groups needs one coin for each; of {folder} {of_them(len(several), all_of, 'has', 'have')} images with several "
            f"coins (first: {shown(counted.ids[several[0]])}): draw the sides "
            f"with `diffleak split DATA --coin --group {shlex.quote(shown(str(audited.plan.group)))} -o split.json`, train and audit "
            "again, or audit without --group"
        )
    alone, shared = np.ones(len(thrown), dtype=bool), np.zeros(len(thrown), dtype=bool)
    for unit in draw.together:
        if len(groups := groups_of(unit)) > 1:
            shared[[*groups]] = True
    for cluster in audited.clusters or ():
        if len(groups := groups_of(cluster)) > 1:
            alone[[*groups]] = False
    images = lambda which: int(which[of].sum())
    return Coins(counted.ids, counted.member, alone & ~shared, of, images(shared), images(~alone & ~shared))


def _too_few(found: int, coins: Coins, images: int, folder: Path) -> str:
    """Why nothing can be chosen, with the way on."""
    what = "images" if coins.of is None else "groups"
    share = of_them(coins.shared, f"its {one_or_more(images, 'image')}", "shares", "share")
    left = f"{share} a coin with others, {one_or_more(coins.alike, 'is a near-duplicate', 'are near-duplicates')}"
    by_group = "audit with --group COLUMN if coins were thrown for groups, else "
    way = by_group if coins.of is None and coins.shared else ""
    return (
        f"at least {FEWEST} {what} with coins of their own must be in the calibrate part, which chooses the attack; in {folder} there are "
        f"{found} ({left}): {way}raise --calibrate-fraction, or draw and train with more {what}"
    )


def _scores(audited: AuditRecord, folder: Path, rows: dict[str, int]) -> Iterator[Scores]:
    """The scores of the attacks that may guess."""
    if not chunk_files(folder):
        raise UserError(f"the bound is chosen among all timesteps; {folder} has no files under scores/: repeat its audit command")
    planned = {attack["attack"]: attack for attack in audited.plan.attacks}
    for result in audited.results:
        if _may_guess(result, planned.get(result.base)) and (scores := read_scores(folder, result, rows)) is not None:
            yield scores


def _may_guess(result: Result, planned: dict[str, object] | None) -> bool:
    """True for an attack on the model, or on what it has beyond a reference, whose parameters took nothing from the audit's calibrate part.

    That part was drawn from either side, so what was taken from it may say something of other coins.
    """
    own = result.plain or (result.variant == "excess" and result.complexity is None and result.mask is None)
    return own and result.leads and all(planned is None or planned.get(name) == value for name, value in result.parameters.items())


def _columns(scores: Scores, member: Bool[np.ndarray, " n"], calibrate: Bool[np.ndarray, " n"]) -> Iterator[tuple[Candidate, np.ndarray]]:
    """The columns that scores offer, settled on the calibrate part."""
    if scores.rule and (member[calibrate].all() or not member[calibrate].any()):
        return
    membership, keys = settled(scores, member, calibrate)
    for column, key in enumerate(keys):
        yield Candidate(scores.attack, key), membership[:, column]


def _why_zero(units: int, guesses: int, right: int, delta: float, level: float, called: str) -> str:
    """Why the guesses give no bound above 0, with the most that so many images, or groups, could have given."""
    most = lower_bound(units, units, units, delta, level)
    return (
        f"not significant: of {one_or_more(guesses, 'guess', 'guesses')} {one_or_more(right, 'is', 'are')} right, which guessing at random "
        f"reaches too often; that does not show that nothing leaks ({units:,} {called} can show epsilon {most:.1f} at most)"
    )


def _warnings(audited: AuditRecord, coins: Coins, delta: float, promise: Promise | None, comparable: Promise | None) -> Iterator[str]:
    members, one = audited.split.members, "image" if coins.of is None else "group"
    if coins.shared:
        with_others = "others (near-duplicates, groups)" if coins.of is None else "those of other groups (near-duplicates)"
        shared = f"image shared its coin with {with_others} and was", f"images shared their coin with {with_others} and were"
        yield (
            f"{one_or_more(coins.shared, *shared)} left out: the bound is for one {one}, and of {one}s that come and go together more leaks"
        )
    if coins.alike:
        group = "" if coins.of is None else ", or in a group with such,"
        alike = f"image is a near-duplicate of others{group} and was", f"images are near-duplicates of others{group} and were"
        yield (
            f"{one_or_more(coins.alike, *alike)} left out: once equal images on both sides are refused, the coins of those that are left "
            "fell together"
        )
    if audited.clusters is None:
        yield from (
            f"{line}: coins of equal images are not independent once those on both sides were removed, so the bound may be too high; audit "
            "again, and they are left out"
            for line in audited.warnings
            if "images occur more than once" in line or "have a near-duplicate on their side" in line
        )
    if delta * members >= 1:
        yield f"delta {delta:g} is no smaller than one over the {members:,} members: publishing one of them whole would be within it"
    if promise and coins.of is not None:
        yield f"the promise of DP-SGD (epsilon {promise.epsilon:.3f}) is for one image and the bound for one group: they are not compared"
    elif promise and promise.autoencoder is not None:
        yield (
            f"the promise of DP-SGD (epsilon {promise.epsilon:.3f}) does not cover the autoencoder {promise.autoencoder}, which an attack "
            "asks too, so the bound is not compared with it"
        )
    elif promise and comparable is None:
        yield (
            f"the promise of DP-SGD (epsilon {promise.epsilon:.3f}) is for delta {promise.delta:g}, and says nothing of the smaller delta "
            f"{delta:g}: give --delta {promise.delta:g} to compare"
        )
