"""The caption of each image for a text-to-image model: its own, none, a fixed one, another image's, or those of a file."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffleak.data.cohort import Cohort
from diffleak.data.draw import keyed_order
from diffleak.data.metadata import read_lines, whole_rows
from diffleak.data.sources import Texts, not_blank, texts_of
from diffleak.errors import UserError
from diffleak.work.reading import load_json

FIXED = "fixed:"
KINDS = (".json", ".jsonl", ".csv")


@dataclass(frozen=True)
class Captions:
    """The text given with every image of a cohort, and for how many images there was one of their own."""

    texts: tuple[str, ...]
    found: int
    choice: str


def choose_captions(cohort: Cohort, choice: str, seed: int) -> Captions:
    """The captions that a choice means: own, empty, fixed:TEXT, swapped, or a file that `read_captions` reads.

    swapped: every image is given the caption of another one, drawn by id and seed, with another text wherever there is one.
    Raises `UserError` for a choice that is none of these, and where an image has no caption that the choice needs.
    """
    if choice == "own":
        return Captions(_own(cohort), len(cohort), choice)
    if choice == "swapped":
        own = _own(cohort)
        if len({*own}) == 1:
            raise UserError(
                f"swapped needs images with different captions; all {len(own)} have the same ({own[0][:60]!r}): "
                "choose own, empty or fixed:TEXT"
            )
        return Captions(_swapped(cohort.keys, own, seed), len(own), choice)
    if choice == "empty" or choice.startswith(FIXED):
        text = "" if choice == "empty" else choice.removeprefix(FIXED)
        return Captions((text,) * len(cohort), sum(map(bool, cohort.captions() or ())), choice)
    if not Path(choice).is_file():
        raise UserError(f"captions must be own, empty, fixed:TEXT, swapped or a file; got '{choice}', and there is no such file")
    return Captions(_listed(cohort, Path(choice)), len(cohort), choice)


def read_captions(path: Path) -> dict[str, Texts]:
    """The texts of every image in a file, by its id: one or several, the image's own caption first.

    A .json holds {id: text or [texts]}, a .jsonl a line {"file_name" (or "id"): id, "text": text or [texts]}, a .csv the columns
    file_name (or id) and text; several lines of one id are several texts. Blank texts are none. Raises `UserError` for anything else.
    """
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise UserError(f"captions must be in a {', '.join(KINDS[:-1])} or {KINDS[-1]} file; got {path}: convert it")
    found: dict[str, Texts] = {}
    try:
        for image_id, texts in _rows(path):
            found[image_id] = not_blank([*found.get(image_id, ()), *texts_of(texts)])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        form = {
            ".json": "an object {id: text or [texts]}",
            ".jsonl": "an object with file_name or id, and text, per line",
            ".csv": "the columns file_name or id, and text",
        }
        raise UserError(f"{path} must hold {form[kind]} ({type(error).__name__}: {error})") from None
    return found


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix.lower() == ".json":
        yield from load_json(path).items()
    elif path.suffix.lower() == ".jsonl":
        yield from ((str(row["file_name"] if "file_name" in row else row["id"]), row["text"]) for row in read_lines(path))
    else:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from ((row["file_name" if "file_name" in row else "id"], row["text"]) for row in whole_rows(file))


def _own(cohort: Cohort) -> tuple[str, ...]:
    captions = cohort.captions()
    hint = "give them with --captions FILE, or choose --captions empty or fixed:TEXT"
    if captions is None:
        raise UserError(
            f"the model takes a caption with every image, and the data has none: add a `text` to metadata.jsonl or a column, {hint}"
        )
    missing = [image_id for image_id, texts in zip(cohort.ids, captions, strict=True) if not texts]
    if missing:
        raise UserError(
            f"captions found: {len(captions) - len(missing)}/{len(captions)}; every image needs one (first without: {missing[0]}): {hint}"
        )
    return tuple(texts[0] for texts in captions)


def _listed(cohort: Cohort, path: Path) -> tuple[str, ...]:
    captions = read_captions(path)
    missing = [image_id for image_id, key in zip(cohort.ids, cohort.keys, strict=True) if not captions.get(key)]
    if missing:
        looks = f"; its ids look like {next(iter(captions))}" if captions and not cohort.anonymous else ""
        todo = "add them" if len(missing) < len(cohort) else "name the images as the data does"
        raise UserError(
            f"{path} must give every image a caption; {len(missing)} of {len(cohort)} have none (first: {missing[0]}{looks}): {todo}"
        )
    return tuple(captions[key][0] for key in cohort.keys)


def _swapped(ids: tuple[str, ...], own: tuple[str, ...], seed: int) -> tuple[str, ...]:
    """Each image's text becomes that of the next image, in a keyed cyclic order, whose text is another one."""
    row = {image_id: i for i, image_id in enumerate(ids)}
    order = [row[image_id] for image_id in keyed_order(ids, "captions", seed)]
    told = list(own)
    for here, after in 2 * list(zip(order[::-1], [order[0], *order[:0:-1]], strict=True)):  # twice: past the end the order starts again
        told[here] = own[after] if own[after] != own[here] else told[after]
    return tuple(told)
