"""What the page and the terminal say of quality and copies: the verdict, bounds, nothing of the user's as markup."""

import io

import pytest
from fixtures.quality import quality_page, quality_record
from fixtures.reports import EVIL
from rich.console import Console

from diffleak.report import print_page, to_html, to_markdown
from diffleak.report.pages import quality
from diffleak.report.pages.quality import Pictures
from diffleak.report.sections.quality import decimal, metrics_table, verdict


def test_copies_lead_the_verdict():
    judged = verdict(quality_record(copies=0.3))
    assert judged.level == "leak"
    assert judged.title == "The model draws images that are too close to its training images."
    assert "nearer to a training image than 99 % of unseen real images are" in judged.sentences[0]


def test_without_copies_the_verdict_says_what_cannot_be_excluded():
    judged = verdict(quality_record())
    assert judged.level == "no-leak-found"
    assert "a model that copies nothing has 1 %" in judged.sentences[0]
    assert "No difference between generated and real images was found; one cannot be excluded (KID" in judged.sentences[2]


def test_every_metric_has_a_line_with_its_interval_or_the_reason():
    shown = {row.attack: [cell.text for cell in row.cells] for row in metrics_table(quality_record(long=True), page=True).rows}
    value, _, _, why = shown["Fréchet distance"]
    assert value == "n/e" and "needs at least 2048 images a side" in why
    assert shown["Precision"][1].startswith("[")
    assert "jackknife" in shown["KID"][-1]


def test_the_terminal_prints_all_of_it_in_eighty_columns():
    out = io.StringIO()
    print_page(quality.page(quality_record()), Console(file=out, width=80))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for part in ("Fréchet distance", "KID", "Copy rate", "Inception score: the feature extractor gives no class probabilities"):
        assert part in text


def test_the_same_record_gives_the_same_page_and_names_are_no_markup():
    assert quality_page() == quality_page()
    record = quality_record().model_copy(update={"model": "<script>alert(1)</script>", "command": "diffleak quality '<b>'"})
    page = to_html(quality.page(record, Pictures(lambda i: b"", None)))
    assert "<script" not in page
    assert "<b>'" not in page
    assert "--thumbnails" in page


def test_no_text_of_a_record_moves_the_cursor_of_a_terminal_or_keeps_the_page_from_being_written():
    record, printed = quality_record(copies=0.3), io.StringIO()
    texts = {name: EVIL for name, field in type(record).model_fields.items() if field.annotation in (str, str | None)}
    made = quality.page(record.model_copy(update={**texts, "created": record.created, "warnings": (EVIL,)}))
    print_page(made, Console(file=printed, width=100))
    for line in (printed.getvalue() + to_markdown(made)).split("\n"):
        assert line.isprintable()
    assert to_html(made).encode()


@pytest.mark.parametrize(
    ("x", "text"), [(0.0, "0.00"), (1.00001, "1.00"), (0.03217, "0.0322"), (123.4, "123"), (54321.0, "54,321"), (2.5e-6, "2.5e-06")]
)
def test_numbers_have_three_digits(x, text):
    assert decimal(x) == text
