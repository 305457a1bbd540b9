"""The pages of folders that are no audit's, from their records: what `diffleak report` writes for them. No torch."""

from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from diffleak.data.pixels import png
from diffleak.errors import WHY, UserError, refusing
from diffleak.records import check, comparison, extraction, inquiry, lora, prompts, quality
from diffleak.records.base import Record
from diffleak.records.digests import AUDIT, refuse_edited_or_say, update_report
from diffleak.records.extraction import PAIRS, ExtractionRecord
from diffleak.records.gate import read_gate
from diffleak.records.plan import Adapter
from diffleak.records.run_folder import read_audit
from diffleak.report.media.card import page_card
from diffleak.report.media.html import PICTURE, to_html
from diffleak.report.media.markdown import to_markdown
from diffleak.report.pages import check as check_page
from diffleak.report.pages import comparison as comparison_page
from diffleak.report.pages import extraction as extraction_page
from diffleak.report.pages import inquiry as inquiry_page
from diffleak.report.pages import lora as lora_page
from diffleak.report.pages import prompts as prompts_page
from diffleak.report.pages import quality as quality_page
from diffleak.report.prompt_pictures import read_pictures
from diffleak.report.section import Page
from diffleak.report.sections.extraction import SHOWN, Pictures
from diffleak.report.sections.quality import Pictures as QualityPictures
from diffleak.work.files import check_seal, hash_file, write_text
from diffleak.work.reading import Unreadable, load_npy


class Kind(NamedTuple):
    """How the record of a folder is read, and how its page is made of both and called; the page of a model card, where it has one."""

    read: Callable[[Path], Any]
    page: Callable[[Any, Path], Page]
    file: str
    card: Callable[[Any, Path], Page] | None = None


def _quality(record: quality.QualityRecord, folder: Path) -> Page:
    """The page with the images that were drawn, which lie in the folder, and without training images, which do not."""
    return quality_page.page(record, QualityPictures(_drawn(folder, record.images), None))


def _drawn(folder: Path, images: int) -> Callable[[int], bytes]:
    """The images of a quality measurement as PNGs, by number; raises `UserError` where the folder does not have them."""
    files = sorted((folder / quality.DRAWN).glob("images-[0-9]*.npy"))
    with refusing(Unreadable, f"an image in {folder / quality.DRAWN} cannot be read ({WHY}); repeat the quality command"):
        for file in files:
            check_seal(file)
        chunks = [load_npy(file) for file in files]
    found = sum(map(len, chunks))
    if found != images:
        raise UserError(
            f"the page of {quality.FILE} shows images that were drawn, and {folder / quality.DRAWN} has {found} of {images}: "
            "repeat the quality command with this folder as its -o"
        )
    starts = [sum(map(len, chunks[:number])) for number in range(len(chunks))]

    def drawn(image: int) -> bytes:
        number = bisect_right(starts, image) - 1
        return png(chunks[number][image - starts[number]])

    return drawn


def _prompts(record: prompts.PromptsRecord, folder: Path) -> Page:
    """The page with the pictures that the command left; raises `UserError` where it left none, and its page shows some."""
    pictures, path = read_pictures(folder, record), folder / prompts.PAGE
    if not pictures and path.is_file() and PICTURE in path.read_text(encoding="utf-8", errors="replace"):
        raise UserError(
            f"{path} shows images that the model decodes, and its folder has none: repeat the prompts command, which keeps them"
        )
    return prompts_page.page(record, pictures)


def _of_record(page: Callable[[Any], Page]) -> Callable[[Any, Path], Page]:
    """A page that is made of the record alone."""
    return lambda record, folder: page(record)


def _lora_card(record: lora.LoraRecord, folder: Path) -> Page:
    """The card of an adapter's checkpoints, each with the hash that its audit or its drawings recorded."""
    adapters = {each.name: _adapters(folder / each.run) for each in record.checkpoints}
    return lora_page.on_card(record, adapters, _digest(folder, lora.FILE))


def _adapters(run: Path) -> tuple[Adapter, ...]:
    """The adapters of an audit or of drawings; none where the folder is gone."""
    if (run / AUDIT).is_file():
        return read_audit(run).adapters
    return extraction.read_extraction(run / extraction.FILE).adapters if (run / extraction.FILE).is_file() else ()


def _digest(folder: Path, name: str) -> tuple[tuple[str, str], ...]:
    return ((name, hash_file(folder / name)),)


KINDS = {
    lora.FILE: Kind(lora.read_lora, _of_record(lora_page.page), lora.PAGE, _lora_card),
    inquiry.FILE: Kind(
        inquiry.read_inquiry,
        _of_record(inquiry_page.page),
        inquiry.PAGE,
        lambda record, folder: inquiry_page.on_card(record, _digest(folder, inquiry.FILE)),
    ),
    extraction.FILE: Kind(
        lambda folder: extraction.read_extraction(folder / extraction.FILE),
        _of_record(extraction_page.page),
        extraction.PAGE,
        lambda record, folder: extraction_page.on_card(record, _digest(folder, extraction.FILE)),
    ),
    comparison.FILE: Kind(
        lambda folder: comparison.read_comparison(folder / comparison.FILE),
        lambda record, folder: comparison_page.page(record, read_gate(folder)),
        comparison.PAGE,
    ),
    check.FILE: Kind(check.read_check, _of_record(check_page.page), check.PAGE),
    quality.FILE: Kind(lambda folder: quality.read_record(folder / quality.FILE), _quality, quality.PAGE),
    prompts.FILE: Kind(prompts.read_prompts, _prompts, prompts.PAGE),
}
FORMS = ("html", "markdown", "pdf")


class Written(NamedTuple):
    """A record, its page, and where that was written."""

    record: Record
    page: Page
    file: Path


def kinds_in(folder: Path) -> tuple[str, ...]:
    """The records in a folder that have a page here, by their file names; none for the folder of an audit or a sweep."""
    if any((folder / name).is_file() for name in ("audit.json", "sweep.json")):
        return ()
    return tuple(name for name in KINDS if (folder / name).is_file())


def write_again(folder: Path, form: str, thumbnails: bool = False) -> tuple[Written, ...]:
    """Writes the page of every record in a folder again, as HTML or PDF; for Markdown, too, as HTML.

    thumbnails: show the pairs of pictures that an extraction has left in pairs/. Raises `UserError` for another form, for pictures that
    are not there, and for a record that was edited.
    """
    names = kinds_in(folder)
    if form not in FORMS:
        forms = (*FORMS, "card") if any(KINDS[name].card for name in names) else FORMS
        of = "an audit, lora, inquire or extract" if form == "card" else "an audit"
        raise UserError(f"--format {form} is of {of}; {folder} has {' and '.join(names)}: give {', '.join(forms)}")
    refuse_edited_or_say(folder)
    return tuple(_write(folder, KINDS[name], form, thumbnails) for name in names)


def cards(folder: Path) -> tuple[str, ...]:
    """A section for a model card of every record in a folder that has one; none where no record has. Nothing is written."""
    refuse_edited_or_say(folder)
    found = [KINDS[name] for name in kinds_in(folder)]
    return tuple(page_card(kind.card(kind.read(folder), folder)) for kind in found if kind.card)


def _write(folder: Path, kind: Kind, form: str, thumbnails: bool) -> Written:
    record = kind.read(folder)
    page = extraction_page.page(record, _pictures(folder, record)) if thumbnails else kind.page(record, folder)
    file = folder / kind.file
    if form == "pdf":
        from diffleak.report.media.pdf import write_pdf

        file = file.with_suffix(".pdf")
        write_pdf(page, file)
    else:
        write_text(file, to_html(page), private=True)
    update_report(folder, file.name)
    return Written(record, page, file)


def _pictures(folder: Path, record: Record) -> Pictures:
    """The pictures of the closest pairs, which the command leaves with --thumbnails."""
    if not isinstance(record, ExtractionRecord):
        raise UserError(f"{folder} keeps no pictures of pairs, which --thumbnails shows: leave it out")
    ranked = {pair.id: f"{rank:03d}-member.png" for rank, pair in enumerate(record.pairs[:SHOWN], 1)}
    drawn = {pair.image: f"{rank:03d}-drawing-{pair.image}.png" for rank, pair in enumerate(record.pairs[:SHOWN], 1)}
    lost = next((name for name in (*ranked.values(), *drawn.values()) if not (folder / PAIRS / name).is_file()), None)
    if lost:
        raise UserError(f"{folder / PAIRS / lost} is not there: repeat the extract command with --thumbnails, which keeps its drawings")
    return Pictures(lambda image: (folder / PAIRS / ranked[image]).read_bytes(), lambda image: (folder / PAIRS / drawn[image]).read_bytes())


def as_markdown(written: tuple[Written, ...]) -> str:
    """The pages one after the other."""
    return "\n".join(to_markdown(each.page) for each in written)
