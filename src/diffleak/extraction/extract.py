"""`diffleak extract`: images drawn, each member's nearest drawing, and whether that is nearer than chance brings held-out images.

    text-to-image models   n drawings for the caption of every member and of every held-out image; each is compared with its own n
    other models           one set of drawings, of all classes where there are classes; every image is compared with all of them

Members and held-out images are treated alike, so that a model that did not learn its members brings both equally near. Half of the
held-out images, by a keyed hash, sets the threshold; the rate of false copies is counted on the other half. Everything that can be
refused is refused before the first image is drawn, and the same call resumes: finished drawings are kept in the output folder.

The noise of a drawing for a caption is keyed by image and draw as `black_box` keys it, so it is the image that this attack is given at
the same seed, steps and guidance. With `drawings`, a folder, each of the two reads what the other has drawn.

Several workers draw a share each. The shard that finds all chunks done compares and writes; of those that a launcher started, the first.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from diffleak import hub
from diffleak.config import build
from diffleak.data.anonymity import Key, key_beside_audit
from diffleak.data.captions import choose_captions
from diffleak.data.cohort import IN_MEMORY, Cohort
from diffleak.data.distinct import Distinct
from diffleak.data.draw import calibrate_part
from diffleak.data.membership import check_membership
from diffleak.data.names import say_strays
from diffleak.data.pixels import ImageShape, png, shape_of
from diffleak.diffusion.environment import environment
from diffleak.diffusion.target import Target, side_by_side
from diffleak.errors import UserError, one_or_more
from diffleak.extraction.config import DRAWS, IMAGES, ExtractConfig, read_cohort
from diffleak.extraction.nearest import Distance, Nearest, distances
from diffleak.extraction.sides import Side, counted_once, read_sides, tally_of
from diffleak.generation import Drawing, Drawings, draw, draw_one, draw_share, drawings_of, images_read, plan_drawing
from diffleak.hub.encoders import Extractor, open_extractor, probe
from diffleak.records.audit import Membership
from diffleak.records.base import now
from diffleak.records.digests import write_recorded
from diffleak.records.extraction import FILE, PAGE, PAIRS, CopyRates, ExtractCosts, ExtractionRecord, Pair, read_extraction
from diffleak.records.images import refuse_other_reading
from diffleak.records.run_folder import refuse_other_command
from diffleak.report import to_html, wording
from diffleak.report.pages.extraction import page
from diffleak.report.sections.extraction import SHOWN, Pictures
from diffleak.report.wording import adapter
from diffleak.stats import extraction as stats
from diffleak.work.files import checked_folder, closing, open_to_others
from diffleak.work.progress import say
from diffleak.work.shares import Share, share_of, wait_for_others, workers_of

CALIBRATE = 0.5  # of the held-out images


@dataclass(frozen=True, eq=False)
class Extracted:
    """The record, the drawings, and the members beside which the page shows them."""

    record: ExtractionRecord
    drawings: UInt8[np.ndarray, "k h w c"]
    members: Side

    def member(self, image_id: str) -> bytes:
        """A member as a PNG, in the shape that the model draws."""
        return png(self.members.pixels[self.members.cohort.ids.index(image_id)])

    def drawing(self, image: int) -> bytes:
        """A drawing as a PNG, by its number."""
        return png(self.drawings[image])

    def save(self, folder: Path, thumbnails: bool = False) -> None:
        """Writes extract.html and extract.json; `thumbnails` shows the closest pairs, and writes them as images, for their owner only."""
        pictures = Pictures(self.member, self.drawing) if thumbnails else None
        text = {PAGE: to_html(page(self.record, pictures)), FILE: self.record.model_dump_json(indent=2)}
        if not thumbnails:
            return write_recorded(folder, text)
        for stale in (folder / PAIRS).glob("[0-9][0-9][0-9]-*.png"):
            stale.unlink()
        return write_recorded(folder, {**_pictures(self.record.pairs[:SHOWN], self), **text}, replaces=f"{PAIRS}/")


def _pictures(pairs: Sequence[Pair], found: Extracted) -> dict[str, bytes]:
    """Both pictures of each pair as a PNG, by its path in the folder."""
    named: dict[str, bytes] = {}
    for rank, pair in enumerate(pairs, 1):
        named[f"{PAIRS}/{rank:03d}-member.png"] = found.member(pair.id)
        named[f"{PAIRS}/{rank:03d}-drawing-{pair.image}.png"] = found.drawing(pair.image)
    return named


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that is known before the first image is drawn: the sides, what is drawn for whom, and the encoder."""

    config: ExtractConfig
    target: Target
    members: Side
    held_out: Side | None
    captions: tuple[str, ...] | None  # of members and then of held-out images
    drawing: Drawing
    encoder: Extractor | None
    membership: Membership
    distinct: Distinct  # who counts; held-out images that do not are in no other field
    key: Key | None = None

    @property
    def draws(self) -> int | None:
        """Drawings for each caption; None where all images are compared with all drawings."""
        return None if self.captions is None else self.drawing.n // len(self.captions)

    @property
    def calibrate(self) -> Bool[np.ndarray, " n"]:
        """Which held-out images set the threshold."""
        if self.held_out is None:
            return np.zeros(0, dtype=bool)
        cohort = self.held_out.cohort
        return calibrate_part(cohort.keys, cohort.member, CALIBRATE, self.config.seed)

    def describe(self) -> str:
        """The plan in one line."""
        drawing, target = self.drawing, self.target
        others = f" and {one_or_more(len(self.held_out), 'held-out image')}" if self.held_out else ""
        each = f" ({self.draws} for each caption, guidance {drawing.guidance_scale:g})" if self.draws else ""
        return (
            f"plan: {adapter(target.lora, target.lora_scale, target.embedding)}{one_or_more(len(self.members), 'member')}{others}; "
            f"{one_or_more(drawing.n, 'image')} ({drawing.shape}){each} by {drawing.sampler} in {one_or_more(drawing.steps, 'step')}, "
            f"{one_or_more(drawing.n * drawing.forwards, 'forward')}; "
            f"nearest by {self.encoder.name if self.encoder else 'tiled pixel distance'}"
        )


def extract(
    model: "str | Path | Target", cohort: Cohort | None = None, *, extractor: Any = None, output: str | Path | None = None, **settings: Any
) -> Extracted:
    """Draws images of a model and looks for its training images among them; the Python form of `diffleak extract`.

    Args:
        model: A diffusers folder, hub id or `Target`.
        cohort: As `diffleak.cohort` makes it; or give members=DATA, with nonmembers=DATA, or data=DATA and split=FILE among the settings.
        extractor: A spec or a function (see `diffleak.hub.encoders`); None for the tiled pixel distance alone.
        output: A folder; an interrupted call with the same arguments resumes there. Without it nothing is left on disk.
        **settings: Any key of `ExtractConfig` but `only`.

    Returns:
        `record`, as in extract.json, and what its page shows.

    Raises:
        UserError: For what cannot be searched, and where other workers have not finished.
    """
    spec = {"extractor": str(extractor)} if isinstance(extractor, str | Path) else {}
    name = {} if isinstance(model, Target) else {"model": str(model)}
    named = {} if cohort is None else cohort.given or {"members": IN_MEMORY, "nonmembers": IN_MEMORY}
    config = build(ExtractConfig, settings, spec, name, dict(named), {"output": output})
    if config.only is not None:
        raise UserError("only is for the command line: in Python, the drawings of a search are in its `drawings`, by number")
    target = model if isinstance(model, Target) else None
    found = search(config, target, extractor if callable(extractor) else None, cohort)
    if found is None and not config.shard:  # of a launcher
        share = share_of(None)
        raise UserError(f"worker {share.rank + 1} of {share.count} has drawn its share; worker 1 returns what was found")
    if found is None:
        raise UserError("other shards have not finished; run them, then this call again")
    if config.output:
        found.save(config.output, config.thumbnails)
    return found


def prepare(
    config: ExtractConfig, target: Target | None = None, extractor: Callable[..., Any] | None = None, cohort: Cohort | None = None
) -> Prepared:
    """Loads the model and the encoder, reads the images, and checks that all of it fits together."""
    refuse_other_command(config.output, FILE)
    cohort = read_cohort(config) if cohort is None else cohort  # before the model is loaded
    target = hub.target_of(config, target)
    key = key_beside_audit(config, FILE, read_extraction)
    if key:
        renamed = cohort.renamed(key)
        cohort = renamed.taken(renamed.by_id)  # drawings are numbered by this order, and that of file names would tell of them
    sides = f"{cohort.names[0]} (members)" + ("" if cohort.member.all() else f" and {cohort.names[1]} (held out)")
    given = f"the split file {config.split}" if config.split else sides
    membership = check_membership([cohort], given, target.split_file, config.split, config.ignore_model_split)
    shape = target.shape or shape_of(cohort.read(0))
    if min(shape.height, shape.width) < stats.TILES:
        raise UserError(f"images must be at least {stats.TILES} pixels a side, since each is cut into tiles; they are {shape}")
    texts = _captions(config, target, cohort)
    _plan(config, target, shape, texts, cohort)
    spec = extractor or config.extractor
    encoder = None if spec is None else open_extractor(spec, target.device)
    if encoder:
        probe(encoder, shape)
    members, held_out = read_sides(cohort, shape, config, encoder if config.only is None else None)
    tally = tally_of(members, held_out)
    tally.refuse_white(config.decoding)
    distinct, held_out = counted_once(members, held_out)
    for trained in target.trained:
        refuse_other_reading(trained, config.decoding, tally, shape.channels == 4)
    cohorts = [side.cohort for side in (members, held_out) if side is not None]
    drawing, captions = _plan(config, target, shape, texts, *cohorts)
    return Prepared(config, target, members, held_out, captions, drawing, encoder, membership, distinct, key)


def _captions(config: ExtractConfig, target: Target, cohort: Cohort) -> dict[str, str] | None:
    """The caption of every image by its id; None for a model that takes none."""
    unused = ("images",) if target.text is not None else ("draws", "captions", "guidance_scale", "drawings")
    given = next((key for key in unused if getattr(config, key) is not None), None)
    if given and target.text is not None:
        raise UserError("a text-to-image model draws for each caption: give the number for each with --draws in place of --images")
    if given:
        instead = ": give the number of all images with --images" if given == "draws" else ""
        raise UserError(f"{target.name} takes no captions; leave out --{given.replace('_', '-')}{instead}")
    if target.text is None:
        return None
    chosen = choose_captions(cohort, config.captions or "own", config.seed)
    say_strays(chosen.names, cohort.ids[0])
    return dict(zip(cohort.ids, chosen.texts, strict=True))


def _plan(
    config: ExtractConfig, target: Target, shape: ImageShape, texts: dict[str, str] | None, *sides: Cohort
) -> tuple[Drawing, tuple[str, ...] | None]:
    """What is drawn: for the caption of every image of the sides, or as many images as the settings say, and so many of every class."""
    n, draws = config.images or IMAGES, config.draws or DRAWS
    labels, prompts, ids, captions = None, None, None, None
    if texts is not None:
        captions = tuple(texts[image_id] for side in sides for image_id in side.ids)
        prompts = [text for text in captions for _ in range(draws)]
        ids = [f"{key}\0{j}" for side in sides for key in side.keys for j in range(draws)]
    elif target.classes is not None:
        labels = np.repeat(np.arange(target.classes), n)
    drawing = plan_drawing(
        target,
        n * (target.classes or 1) if prompts is None else len(prompts),
        config.seed,
        config.steps,
        config.sampler,
        shape=shape,
        labels=labels,
        prompts=prompts,
        guidance_scale=config.guidance_scale,
        ids=ids,
        batch_size=config.batch_size,
    )
    return drawing, captions


def draw_again(config: ExtractConfig) -> Path:
    """Draws the one image `only` of a search again, and returns its file, which its owner alone may read."""
    prepared, output, only = prepare(config), config.output, config.only
    assert output is not None and only is not None, "checked by the config"
    file = checked_folder(output) / f"drawing-{only}.png"
    write_recorded(output, {file.name: png(draw_one(prepared.drawing, only, config.batch_size))})
    return file


def search(
    config: ExtractConfig,
    target: Target | None = None,
    extractor: Callable[..., Any] | None = None,
    cohort: Cohort | None = None,
    share: Share | None = None,
) -> Extracted | None:
    """Everything that a config says; keeps the drawings in its output folder, nothing without one.

    share: of the drawings, by default that of `--shard` or of a launcher. None when other workers still have some to do.
    """
    started = time.monotonic()
    share = share_of(config.shard) if share is None else share
    if share.count > 1 and config.output is None:
        raise UserError("workers that share the drawing need one folder: give -o DIR")
    prepared = prepare(config, target, extractor, cohort)
    kept = _kept(prepared)
    if kept:
        kept.claim()
    say(prepared.describe())
    needed, calibrate = stats.images_needed(config.false_copies), int(prepared.calibrate.sum())
    if prepared.held_out and calibrate < needed:
        few = stats.too_few(config.false_copies, calibrate)
        say(f"there will be no rate: one {few}. Give more, or a larger share with --false-copies")
    folder = checked_folder(config.output) if config.output else None
    if prepared.key:
        say(f"anonymous: images go by keyed ids; keep their key {prepared.key.path}, and never pass it on with the results")
    if folder and open_to_others(folder):
        names = "" if prepared.key else "names images and "
        say(f"others on this machine may read {folder}, which {names}may hold copies of them: {closing(folder)}")
    before = time.monotonic()
    if folder and share.count > 1 and not _share_drawn(prepared, folder, kept, share):
        return None
    drawings, read = _drawn(prepared, folder, kept)
    drawn = time.monotonic()
    found = [_compared(prepared, each) for each in distances(drawings, prepared.encoder)]
    pairs = _pairs(prepared, found)
    costs = ExtractCosts(
        forwards=(len(drawings) - read) * prepared.drawing.forwards,
        drawings_read=read,
        seconds_drawing=round(drawn - before, 3),
        seconds_comparing=round(before - started + time.monotonic() - drawn, 3),
    )
    return Extracted(_record(prepared, found, pairs, costs), drawings, prepared.members)


def _kept(prepared: Prepared) -> Drawings | None:
    """Where the drawings are kept that other commands may read; None without --drawings."""
    drawing, folder = prepared.drawing, prepared.config.drawings
    if folder is None:
        return None
    assert drawing.guidance_scale is not None and drawing.at_once is not None, "of text-to-image models"
    return drawings_of(
        folder,
        drawing.target,
        str(drawing.shape),
        drawing.seed,
        drawing.sampler,
        drawing.steps,
        drawing.guidance_scale,
        drawing.at_once,
        prepared.key,
    )


def _share_drawn(prepared: Prepared, folder: Path, kept: Drawings | None, share: Share) -> bool:
    """Draws a worker's share; True when all shares are drawn and this worker is the one that compares and writes."""
    config, chunks = prepared.config, [*prepared.drawing.chunks]
    missing = draw_share(prepared.drawing, folder, share, config.batch_size, config.threads, kept)
    if config.shard:
        if left := missing():
            say(
                f"shard {config.shard} is done; of shard {workers_of(chunks, left, share.count)}, "
                f"{one_or_more(len(left), 'chunk of drawings is', 'chunks of drawings are')} not: run what is left, or this same command "
                "again when it is done"
            )
        return not left
    if share.rank:
        say(f"worker {share.rank + 1} of {share.count} is done; worker 1 compares the drawings when all are there")
        return False
    wait_for_others(missing, chunks, share, ("chunk of drawings", "chunks of drawings"))
    return True


def _drawn(prepared: Prepared, folder: Path | None, kept: Drawings | None) -> tuple[UInt8[np.ndarray, "k h w c"], int]:
    """The drawings, and how many of them were read from those that are kept."""
    config, drawing = prepared.config, prepared.drawing
    if folder:
        return draw(drawing, folder, config.batch_size, config.threads, kept), images_read(drawing, folder)
    with tempfile.TemporaryDirectory() as temporary:
        return _drawn(prepared, Path(temporary), kept)


class Compared(NamedTuple):
    """What one distance says: of the members, and of the held-out images that set the threshold."""

    by: Distance
    members: Nearest
    calibrate: np.ndarray
    rates: CopyRates


def _compared(prepared: Prepared, by: Distance) -> Compared:
    members = by.nearest(prepared.members, 0, prepared.draws)
    held_out, part = np.zeros(0), prepared.calibrate
    if prepared.held_out:
        held_out = by.nearest(prepared.held_out, len(prepared.members) * (prepared.draws or 0), prepared.draws).distance
    counted = members.distance[prepared.distinct.members]
    rates = stats.copy_rates(counted, held_out[part], held_out[~part], prepared.config.false_copies)
    copies = None if rates.threshold is None else int((counted < rates.threshold).sum())
    described = CopyRates(
        distance=by.name,
        fingerprint=by.fingerprint,
        threshold=rates.threshold,
        copies=copies,
        copy_rate=rates.members,
        held_out_rate=rates.held_out,
        chance=rates.chance,
        closest=float(members.distance.min()),
        closest_held_out=float(held_out.min()) if len(held_out) else None,
    )
    return Compared(by, members, held_out[part], described)


def _pairs(prepared: Prepared, found: Sequence[Compared]) -> tuple[Pair, ...]:
    """Every member with its nearest drawing by the first distance, the nearest pair first."""
    decisive, drawing, draws = found[0], prepared.drawing, prepared.draws
    images, threshold = decisive.members.image, decisive.rates.threshold
    others = {each.by.name: each.by.between(prepared.members, images) for each in found[1:]}
    by_name = {decisive.by.name: decisive.members.distance, **others}
    ids, stands = prepared.members.cohort.ids, prepared.distinct.stands
    p = stats.p_values(decisive.members.distance, decisive.calibrate) if len(decisive.calibrate) else None

    def pair(row: int) -> Pair:
        image = int(images[row])
        return Pair(
            id=ids[row],
            counted_as=None if stands[row] == row else ids[stands[row]],
            image=image,
            draw=image % draws if draws else image,
            seed=drawing.seed,
            prompt=drawing.prompts[image] if drawing.prompts and not prepared.key else None,  # a caption may name who is shown
            label=int(drawing.labels[image]) if drawing.labels is not None else None,
            distances={name: float(values[row]) for name, values in by_name.items()},
            p_value=None if p is None else float(p[row]),
            is_copy=None if threshold is None else bool(decisive.members.distance[row] < threshold),
        )

    return tuple(pair(row) for row in np.argsort(decisive.members.distance, kind="stable").tolist())


def _record(prepared: Prepared, found: Sequence[Compared], pairs: tuple[Pair, ...], costs: ExtractCosts) -> ExtractionRecord:
    config, target, drawing, first = prepared.config, prepared.target, prepared.drawing, found[0].rates
    held_out = prepared.held_out
    return ExtractionRecord(
        created=now(),
        command=config.command,
        **target.named,
        adapters=target.adapters,
        embeddings=target.embeddings,
        images=drawing.n,
        draws=prepared.draws,
        image_shape=str(drawing.shape),
        sampler=drawing.sampler,
        steps=drawing.steps,
        seed=drawing.seed,
        guidance_scale=drawing.guidance_scale,
        captions=(config.captions or "own") if prepared.captions else None,
        classes=None if target.classes is None else f"{drawing.n // target.classes} of each of {target.classes} classes",
        members=prepared.members.described,
        held_out=held_out.described if held_out else None,
        distinct_members=int(prepared.distinct.members.sum()),
        near_duplicates=prepared.distinct.beside,
        near_duplicates_held_out=prepared.distinct.again,
        calibrate=int(prepared.calibrate.sum()),
        false_copies=config.false_copies,
        decides=first.distance,
        copy_rate=first.copy_rate,
        held_out_rate=first.held_out_rate,
        distances=tuple(each.rates for each in found),
        pairs=pairs,
        warnings=_warnings(prepared),
        environment=environment(target, config.threads or side_by_side(target), config.seed, prepared.members.described.fingerprint),
        costs=costs,
        membership=prepared.membership,
        anonymous=prepared.key.name if prepared.key else None,
        settings=config.model_dump(mode="json"),
        **asdict(config.decoding),
        real_images=tally_of(prepared.members, held_out),
    )


def _warnings(prepared: Prepared) -> tuple[str, ...]:
    target, drawing, held_out, encoder = prepared.target, prepared.drawing, prepared.held_out, prepared.encoder
    found = [*target.warnings, *(encoder.warnings if encoder else ())]
    if held_out is None:
        found.append(
            "no held-out images were given, so nothing says how near a drawing comes by chance: there are distances and pairs, and no rate"
        )
    if near := prepared.distinct.beside:
        left = one_or_more(near, "held-out image was left out: it", "held-out images were left out: each")
        found.append(f"{left} is a near-duplicate of a member, so a drawing near to it is no false copy")
    if again := prepared.distinct.again:
        left = one_or_more(again, "held-out image was left out: it", "held-out images were left out: each")
        found.append(f"{left} is a near-duplicate of another held-out image, and these count once")
    if prepared.membership.status != "confirmed":
        found.append(prepared.membership.sentence)
    if len(target.denoiser.exposed) > 1:
        found.append("two models take turns, one per step")
    if prepared.captions and target.text:
        distinct = tuple(dict.fromkeys(prepared.captions))
        found += target.unnamed(distinct)
        if cut := len(target.text.truncated(distinct)):
            found.append(wording.cut_captions(cut))
    if resized := prepared.members.resized + (held_out.resized if held_out else 0):
        found.append(wording.resized(resized, drawing.shape, "real image"))
    if images := tally_of(prepared.members, held_out).described(prepared.config.decoding, drawing.shape.channels == 4):
        found.append(f"how the real images were read: {', '.join(images)}")
    if omitted := prepared.members.omitted + (held_out.omitted if held_out else 0):
        found.append(wording.omitted(omitted))
    if repeated := int((~prepared.distinct.members).sum()):
        alike = one_or_more(repeated, "member is a near-duplicate", "members are near-duplicates")
        found.append(
            f"{alike} of others: each cluster counts as one image, the one whose name comes first, and the list of pairs has all of them"
        )
    return tuple(found)
