"""Draws who is held out, writes the split file and lays out the two folders that trainers read."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffleak.config import build
from diffleak.data.cohort import Cohort, images_alone
from diffleak.data.enough import counted as counted_once
from diffleak.data.groups import group_name, groups_of
from diffleak.data.image_source import ImageSource
from diffleak.data.labels import possible_classes
from diffleak.data.scan import FEWEST
from diffleak.data.sources import open_source
from diffleak.data.split import Drawn, Split
from diffleak.data.survey import survey
from diffleak.errors import WHY, UserError, one_or_more, refusing, shown
from diffleak.splitting.config import COLUMN, FAIR, SplitConfig
from diffleak.splitting.draw import draw_coins, draw_share, units_of
from diffleak.splitting.folders import lay_out, make_folders, refuse_folder
from diffleak.work.files import write_new
from diffleak.work.progress import say


@dataclass(frozen=True)
class Outcome:
    """What was drawn and written."""

    split: Split
    drawn: Drawn
    path: Path
    clusters: int
    """Clusters of two near-duplicates or more, each on one side."""
    groups: int
    """Groups of the metadata, each on one side."""
    kept_groups: int
    """Groups of two images or more."""
    classes: dict[str, tuple[int, int]]
    """Members and held-out images of every class; empty where the data has none."""
    unreadable: int
    """Images that could not be read, and are on neither side."""
    folder: Path | None

    @property
    def summary(self) -> dict[str, Any]:
        """For `--json`."""
        drawn = self.drawn
        counts = {"members": len(self.split.members), "nonmembers": len(self.split.nonmembers), "units_together": len(drawn.together)}
        found = {"clusters": self.clusters, "groups": self.groups, "classes": self.classes, "unreadable": self.unreadable}
        how = {key: value for key, value in asdict(drawn).items() if key != "together"}
        return {"split": str(self.path), **counts, **found, "drawn": how, "folder": str(self.folder) if self.folder else None}

    def describe(self) -> str:
        """Sentences for people."""
        members, held, drawn = len(self.split.members), len(self.split.nonmembers), self.drawn
        coin = "by a fair coin for each image" + (", or for what is kept together" if drawn.together else "")
        how = coin if drawn.how == "coin" else f"to hold out {drawn.held_out:g}"
        lines = [f"split: {self.path} (names the training images: do not release it with the model)"]
        lines.append(f"drawn {how}, seed {drawn.seed}: {one_or_more(members, 'member')}, {held:,} held out ({held / (members + held):.1%})")
        if drawn.together:
            images, largest = sum(map(len, drawn.together)), max(map(len, drawn.together))
            kinds = ((self.clusters, "cluster", " of near-duplicates"), (self.kept_groups, "group", ""))
            why = [f"{one_or_more(n, unit)}{of}" for n, unit, of in kinds if n]
            coins = " (one coin each, recorded under drawn.together)" if drawn.how == "coin" else ""
            lines.append(f"kept together{coins}: {images:,} images ({', '.join(why)}; the largest has {largest:,})")
        if self.classes:
            shares = [held / (members + held) for members, held in self.classes.values()]
            least, most = (f"{share:.1%}" for share in (min(shares), max(shares)))
            lines.append(f"classes: {len(self.classes):,}, with {least if least == most else f'{least} to {most}'} held out")
        if self.unreadable:
            lost = one_or_more(self.unreadable, "image cannot be read and is", "images cannot be read and are")
            lines.append(f"{lost} on neither side")
        if self.folder:
            lines.append(f"folders: {self.folder / 'members'} to train on, {self.folder / 'nonmembers'} to keep back")
        return "\n".join(lines)


def split(
    data: str | Path | np.ndarray | ImageSource, output: str | Path, held_out: float | None = None, coin: bool = False, **settings: Any
) -> Outcome:
    """Draws the held-out images of `data` and writes the split file `output`.

    Args:
        data: The images, as `cohort` takes them.
        output: The split file; one that is there is never replaced by another content.
        held_out: The share of images to hold out, in (0, 1); or give coin=True.
        coin: Throw a fair coin for each image, as a bound on epsilon needs it.
        **settings: Any other key of `SplitConfig`, such as group="patient" or link="DIR".

    Returns:
        What was drawn: the split and a summary.

    Raises:
        UserError: For data that cannot be read or drawn from, and for a file or folder that is there already with another content.
    """
    named = data if isinstance(data, str | Path) else getattr(data, "name", "array")
    return draw(build(SplitConfig, {"data": named, "output": output, "held_out": held_out, "coin": coin, **settings}), data)


def draw(config: SplitConfig, data: Any = None) -> Outcome:
    """The split of a config; `data` is the images where they are in memory."""
    source = open_source(config.data if data is None else data, config.decoding)
    say(source.found)
    refuse_folder(source, config)
    every = images_alone(source)
    groups = _groups(every, config.group)
    classes = possible_classes(source.labels())
    looked = survey(every)
    if looked.unreadable and not config.skip_unreadable:
        them = "it" if len(looked.unreadable) == 1 else "them"
        raise UserError(
            f"{len(looked.unreadable):,} of {len(every):,} images cannot be read (first: {looked.unreadable[0]}): replace {them}, or leave "
            f"{them} out with --skip-unreadable"
        )
    kept = looked.cohort
    rows = {image_id: row for row, image_id in enumerate(every.ids)}
    kept_rows = [rows[image_id] for image_id in kept.ids]
    units = units_of(looked.duplicates.clusters, [groups[row] for row in kept_rows])
    of = [classes[every.position[row]] for row in kept_rows] if classes else []
    held = draw_coins(kept.ids, units, config.seed) if config.coin else draw_share(kept.ids, units, config.held_out or 0, config.seed, of)
    _refuse_one_sided(held, len(units), config)
    together = tuple(tuple(kept.ids[row] for row in sorted(unit)) for unit in units if len(unit) > 1)
    how = Drawn("coin", config.seed, FAIR, together) if config.coin else Drawn("share", config.seed, config.held_out or 0, together)
    members, nonmembers = (tuple(kept.ids[row] for row in np.flatnonzero(side)) for side in (~held, held))
    drawn = Split(members, nonmembers, drawn=how)
    _refuse_other(drawn, config.output)
    make_folders(config)  # before the split is written, which a second call with other folders would find
    _write(drawn, config.output)
    left = counted_once(looked.duplicates.clusters, ~held)
    if few := too_few(*left, config.coin):
        more = (
            ""
            if left == (len(members), len(nonmembers))
            else f" (near-duplicates count once: {len(members):,} and {len(nonmembers):,} files)"
        )
        say(f"warning: {few}{more}")
    if config.folder:
        lay_out(source, drawn, config)
    sizes = np.bincount(looked.duplicates.clusters)
    counted = Counter((str(name), bool(side)) for name, side in zip(of, held, strict=bool(of)))
    in_group = Counter(group for row in kept_rows if (group := groups[row]) is not None)
    return Outcome(
        drawn,
        how,
        config.output,
        int((sizes > 1).sum()),
        len(in_group),
        sum(n > 1 for n in in_group.values()),
        {name: (counted[name, False], counted[name, True]) for name in sorted({name for name, _ in counted})},
        len(looked.unreadable),
        config.folder,
    )


def too_few(members: int, held_out: int, coin: bool = False) -> str | None:
    """What to do where an audit would refuse sides of these sizes; None where they are enough."""
    if min(members, held_out) >= FEWEST:
        return None
    found, total = (
        f"{one_or_more(members, 'member')} and {held_out:,} held out; an audit needs at least {FEWEST} of each",
        members + held_out,
    )
    if total < 2 * FEWEST:
        return f"{found}: take more images, {2 * FEWEST} at least"
    if coin:
        return f"{found}: give another --seed and another -o, or take more images"
    share = -(-100 * FEWEST // total) / 100  # in whole percent, rounded up
    way = f"--held-out {share:g} or more" if held_out < FEWEST else f"--held-out {1 - share:g} or less"
    return f"{found}: give {way}, and another -o"


def _groups(cohort: Cohort, column: str | None) -> list[str | None]:
    """The group of every image; without --group an image may lack the column, and then stands alone."""
    if column is not None:
        return list(groups_of(cohort, column))
    values = cohort.column(COLUMN)
    with refusing(ValueError, f"the column {COLUMN} must hold texts or whole numbers; it has {WHY}: correct it, or name another"):
        return [None] * len(cohort) if values is None else [group_name(value) for value in values]


def _refuse_one_sided(held: np.ndarray, units: int, config: SplitConfig) -> None:
    if held.any() and not held.all():
        return
    if len(held) == 1:
        raise UserError("both sides must have images; the data has one that can be read: take more images")
    if units == 1:
        raise UserError(
            f"both sides must have images; all {len(held):,} images stay together, as near-duplicates or as one group: take more images, "
            "or name another column with --group"
        )
    what = "no image would be" if not held.any() else "every image would be"
    way = "another --seed" if config.coin else "another --held-out"
    raise UserError(
        f"both sides must have images; {what} held out of {len(held):,}, which form {units:,} units that stay together: give {way}"
    )


def _write(drawn: Split, path: Path) -> None:
    """Writes the file; raises `UserError` where another split is there meanwhile."""
    if not write_new(path, drawn.text, private=True):
        _refuse_other(drawn, path)


def _refuse_other(drawn: Split, path: Path) -> None:
    """Raises `UserError` for a folder, and where another split is there, which a model may have been trained with."""
    if path.is_dir():
        raise UserError(f"-o must be a file, such as {path / 'split.json'}; {path} is a folder")
    if path.exists() and not _same(drawn, path):
        raise UserError(f"{path} holds another split, and a model may have been trained with it; choose another -o, or remove it")


def _same(drawn: Split, path: Path) -> bool:
    with refusing((OSError, ValueError), f"{path} is there and is no split file ({WHY}); choose another -o", shown):
        return Split.read(path, "members", "nonmembers") == drawn
