"""`diffleak epsilon`: how much epsilon the training of an audited model gives away, at least.

The bound is `diffleak.stats.epsilon`'s, so the sides must have been drawn by coin and every coin must be there: an image that is left out
because of its side takes the chance out of others. Attack, timestep and numbers of guesses are chosen on a division of this command's own,
which is drawn without looking at the sides; that of the audit has as many of each in a part. No torch here.
"""

import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from diffleak.errors import GateFailed, InvalidAudit, UserError, shown
from diffleak.records import digests
from diffleak.records.audit import AuditRecord, Draw, Promise, Result
from diffleak.records.epsilon import FILE, EpsilonRecord
from diffleak.records.run_folder import read_samples, read_scores
from diffleak.records.scores import Scores, chunk_files
from diffleak.report.judgement import read_record
from diffleak.report.written import refresh_report
from diffleak.stats.blind import finding
from diffleak.stats.epsilon import LEVEL, calibrate_units, choose, count, lower_bound
from diffleak.stats.rules import Key, settled

DELTA = 1e-5  # where neither the user nor a promise says another one
FEWEST = 20  # units of the calibrate part below which nothing can be chosen
DRAW_IT = (
    "train with `diffleak train --split-coin`, or draw the sides with `diffleak split DATA --coin -o split.json` and train with --split, "
    "then audit all images"
)


class Candidate(NamedTuple):
    """One column of scores that may guess."""

    attack: str
    key: Key


def epsilon(run: str | Path, delta: float | None = None, level: float = LEVEL) -> EpsilonRecord:
    """The lower bound on epsilon of a finished audit whose sides were drawn by coin; writes epsilon.json into its folder.

    run: the run folder. delta: in (0, 1); by default that of the model's promise, else 1e-5. level: confidence, in (0, 1).
    Raises `UserError` for a run that it cannot be had from, and `InvalidAudit` where the sides differ without the model.
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
    shared = {image_id for unit in draw.together for image_id in unit}
    alone = np.array([image_id not in shared for image_id in samples.ids], dtype=bool)
    ids = [image_id for image_id, kept in zip(samples.ids, alone, strict=True) if kept]
    plan = audited.plan
    calibrate = np.zeros(len(samples.ids), dtype=bool)
    calibrate[alone] = calibrate_units(ids, plan.calibrate_fraction, plan.seed)
    tested = alone & ~calibrate
    if calibrate.sum() < FEWEST:
        raise UserError(
            f"at least {FEWEST} images with coins of their own must be there to choose the attack on; {folder} has {calibrate.sum()} "
            f"({len(shared):,} of its {len(samples.ids):,} images share a coin with others): audit more images"
        )
    rows = {image_id: row for row, image_id in enumerate(samples.ids)}
    columns = [column for scores in _scores(audited, folder, rows) for column in _columns(scores, samples.member, calibrate)]
    if not columns:
        raise UserError(f"{folder} holds no scores of an attack that could guess; repeat its audit command with at least one, as sima")
    candidates, values = [candidate for candidate, _ in columns], np.stack([value for _, value in columns], axis=1)
    guesser = choose(values[calibrate], samples.member[calibrate], chosen_delta, level, plan.seed, int(tested.sum()))
    counted = count(guesser, values[tested], samples.member[tested], plan.seed)
    bound = lower_bound(*counted, chosen_delta, level)
    top = round(guesser.top * counted.units)
    attack, key = candidates[guesser.column]
    comparable = promise if promise and promise.delta <= chosen_delta else None
    record = EpsilonRecord(
        diffleak=version("diffleak"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["diffleak", "epsilon", str(run), "--delta", f"{chosen_delta:g}", "--level", f"{level:g}"]),
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
        reason=None if bound else _why_zero(counted.guesses, counted.right, counted.units, chosen_delta, level),
        attack=attack,
        timestep=key if isinstance(key, int) else None,
        setting=key if isinstance(key, str) else None,
        candidates=tuple(dict.fromkeys(candidate.attack for candidate in candidates)),
        top=top,
        bottom=counted.guesses - top,
        units=counted.units,
        calibrate_units=int(calibrate.sum()),
        shared_coins=int((~alone).sum()),
        split=draw.file,
        seed=plan.seed,
        warnings=tuple(_warnings(audited, len(shared), chosen_delta, audited.promise, comparable)),
    )
    digests.write_recorded(folder, {FILE: record.model_dump_json(indent=2)})
    refresh_report(folder)
    return record


def gate(record: EpsilonRecord) -> None:
    """Raises `GateFailed` where the bound is above what the model's training promised."""
    if record.exceeds:
        raise GateFailed(
            f"the promise is broken: epsilon is at least {record.epsilon:.3f} ({record.level:.0%}) at delta {record.delta:g}, and DP-SGD "
            f"promised {record.promised:.3f} at delta {record.promised_delta:g}: look for a mistake in the training or in its accounting"
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
            f"--limit took as many images of each side, so their coins are no longer fair; {folder} was audited with --limit "
            f"{settings['limit']}: audit again without it"
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


def _why_zero(guesses: int, right: int, units: int, delta: float, level: float) -> str:
    """Why the guesses give no bound above 0, with the most that so many images could have given."""
    most = lower_bound(units, units, units, delta, level)
    return (
        f"not significant: of {guesses:,} guesses {right:,} are right, which guessing at random reaches too often; that does not show that "
        f"nothing leaks ({units:,} images can show epsilon {most:.1f} at most)"
    )


def _warnings(audited: AuditRecord, shared: int, delta: float, promise: Promise | None, comparable: Promise | None) -> Iterator[str]:
    members = audited.split.members
    if shared:
        yield (
            f"{shared:,} images shared their coin with others (near-duplicates, groups) and were left out: the bound is for one image, and "
            "of images that come and go together more leaks"
        )
    yield from (
        f"{line}: coins of equal images are not independent once those on both sides were removed, so the bound may be too high"
        for line in audited.warnings
        if "images occur more than once" in line or "have a near-duplicate on their side" in line
    )
    if delta * members >= 1:
        yield f"delta {delta:g} is no smaller than one over the {members:,} members: publishing one of them whole would be within it"
    if promise and promise.autoencoder is not None:
        yield (
            f"the promise of DP-SGD (epsilon {promise.epsilon:.3f}) does not cover the autoencoder {promise.autoencoder}, which an attack "
            "asks too, so the bound is not compared with it"
        )
    elif promise and comparable is None:
        yield (
            f"the promise of DP-SGD (epsilon {promise.epsilon:.3f}) is for delta {promise.delta:g}, and says nothing of the smaller delta "
            f"{delta:g}: give --delta {promise.delta:g} to compare"
        )
