"""The caption of each image for a text-to-image model: its own, none, a fixed one, another image's, or those of a file.

Where the user chooses none:

    audit, extract, quality   own; an image without one is refused
    lora                      own if any picture has one, so that one without is refused; else the words of kohya's folder; else empty
    inquire                   own if every image has one; else empty, and how many have one is said

What was trained on has the captions it was trained with, so a gap is a mistake. Nobody knows this of the images of an inquiry.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffleak.data.cohort import Cohort
from diffleak.data.draw import keyed_order
from diffleak.data.image_source import CAPTION_COLUMNS, Texts, not_blank, texts_of
from diffleak.data.metadata import needed
from diffleak.data.names import Names, by_id
from diffleak.errors import SettingError, UserError, of_them, shown
from diffleak.records.plan import FIXED, one_for_all
from diffleak.work.reading import found_at, load_json, load_lines, load_table

IDS = ("file_name", "id")
KINDS = (".json", ".jsonl", ".csv")


@dataclass(frozen=True)
class Captions:
    """The text given with every image of a cohort, and for how many images there was one of their own; `names`: in files of captions."""

    texts: tuple[str, ...]
    found: int
    choice: str
    names: tuple[Names, ...] = ()


def choose_captions(cohort: Cohort, choice: str, seed: int) -> Captions:
    """The captions that a choice means: own, empty, fixed:TEXT, swapped, or a file that `read_captions` reads.

    swapped: every image is given the caption of another one, drawn by id and seed, with another text wherever there is one.
    Raises `UserError` for a choice that is none of these, and where an image has no caption that the choice needs.
    """
    if choice == "own":
        return Captions(_own(cohort), len(cohort), choice, _names(cohort))
    if choice == "swapped":
        own = _own(cohort)
        if len({*own}) == 1:
            raise UserError(
                f"swapped needs images with different captions; every one has the same ('{shown(own[0])}'): choose own, empty or fixed:TEXT"
            )
        return Captions(_swapped(cohort.keys, own, seed), len(own), choice, _names(cohort))
    if one_for_all(choice):
        text = "" if choice == "empty" else choice.removeprefix(FIXED)
        return Captions((text,) * len(cohort), sum(map(bool, cohort.captions() or ())), choice)
    refuse_no_captions(choice)
    texts, names = _listed(cohort, Path(choice))
    return Captions(texts, len(cohort), choice, (names,))


def refuse_no_captions(choice: str) -> None:
    """Raises `SettingError` for a choice of captions that is neither a known one nor a file; nothing is read."""
    if choice not in ("own", "swapped") and not one_for_all(choice) and (found := found_at(Path(choice))) != "a file":
        raise SettingError("captions", f"must be own, empty, fixed:TEXT, swapped or a file; got '{shown(choice)}', and found {found} there")


def own_if_any(texts: Sequence[Texts] | None, otherwise: str) -> str:
    """The choice "own" where an image has a caption; raises `UserError` later, in `choose_captions`, where another has none."""
    return "own" if any(texts or ()) else otherwise


def own_if_all(texts: Sequence[Texts] | None, otherwise: str) -> str:
    """The choice "own" where every image has a caption."""
    return "own" if texts and all(texts) else otherwise


def read_captions(path: Path) -> dict[str, Texts]:
    """The texts of every image in a file, by its id: one or several, the image's own caption first.

    A .json holds {id: text or [texts]}, a .jsonl a line {"file_name" (or "id"): id, "text" (or "caption"): text or [texts]}, a .csv the
    columns file_name (or id) and text (or caption); several lines of one id are several texts. Blank texts are none. Raises `UserError`
    for anything else.
    """
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise SettingError("captions", f"must be in a {', '.join(KINDS[:-1])} or {KINDS[-1]} file; got {path}: convert it")
    found: dict[str, Texts] = {}
    try:
        for image_id, texts in _rows(path):
            found[image_id] = not_blank([*found.get(image_id, ()), *texts_of(texts)])
    except ValueError as error:  # also `Unreadable`
        form = {
            ".json": "an object {id: text or [texts]}",
            ".jsonl": "an object with file_name or id, and text or caption, per line",
            ".csv": "the columns file_name or id, and text or caption",
        }
        raise UserError(f"{path} must hold {form[kind]} ({error})") from None
    return found


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix.lower() == ".json":
        content = load_json(path)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        yield from content.items()
    else:
        lines = path.suffix.lower() == ".jsonl"
        for number, row in enumerate(load_lines(path) if lines else load_table(path), 1):
            where = f"row {number:,}" if lines else "it"  # the rows of a table have the same columns
            image_id, text = needed(row, *IDS, where=where), needed(row, *CAPTION_COLUMNS, where=where)
            if image_id in (None, ""):
                raise ValueError(f"row {number:,} names no image")
            yield str(image_id), text


def _own(cohort: Cohort) -> tuple[str, ...]:
    captions = cohort.captions()
    hint = (
        'give them with --captions FILE, or choose --captions "fixed:TEXT" (one text for all images, as DreamBooth trains with) '
        "or --captions empty"
    )
    if captions is None:
        raise UserError(
            f"the model takes a caption with every image, and the data has none{cohort.columns()}: add a `text` to metadata.jsonl or a "
            f"column, or a .txt beside each image, {hint}"
        )
    missing = [row for row, texts in enumerate(captions) if not texts]
    if missing:
        count, image_id, names = len(captions), cohort.ids[missing[0]], cohort.names_in_files()[0 if cohort.member[missing[0]] else 1]
        first = names.beside(image_id) if names else shown(image_id)
        raise UserError(f"captions found: {count - len(missing)}/{count}; every image needs one (first without: {first}): {hint}")
    return tuple(texts[0] for texts in captions)


def _names(cohort: Cohort) -> tuple[Names, ...]:
    return tuple(dict.fromkeys(filter(None, cohort.names_in_files())))


def _listed(cohort: Cohort, path: Path) -> tuple[tuple[str, ...], Names]:
    with cohort.without_names():
        captions = by_id(path, read_captions(path), cohort.keys, cohort.folders())
    names = Names.of(path, captions, cohort.keys)
    names = names.unnamed() if cohort.anonymous else names
    missing = [image_id for image_id, key in zip(cohort.ids, cohort.keys, strict=True) if not captions.get(key)]
    if missing:
        count, first = len(missing), names.beside(missing[0], "it")
        todo = "name the images as the data does" if names.strays else "add them"
        without = of_them(count, f"{len(cohort):,}", "has", "have")
        raise UserError(f"{path} must give every image a caption; {without} none (first: {first}): {todo}")
    return tuple(captions[key][0] for key in cohort.keys), names


def _swapped(ids: tuple[str, ...], own: tuple[str, ...], seed: int) -> tuple[str, ...]:
    """Each image's text becomes that of the next image, in a keyed cyclic order, whose text is another one."""
    row = {image_id: i for i, image_id in enumerate(ids)}
    order = [row[image_id] for image_id in keyed_order(ids, "captions", seed)]
    told = list(own)
    for here, after in 2 * list(zip(order[::-1], [order[0], *order[:0:-1]], strict=True)):  # twice: past the end the order starts again
        told[here] = own[after] if own[after] != own[here] else told[after]
    return tuple(told)
