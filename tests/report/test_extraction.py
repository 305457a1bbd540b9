"""What the page and the terminal say of training images that a model gives back: the verdict, its limits, nothing as markup."""

import io

import pytest
from fixtures.extraction import extraction_page, extraction_record
from fixtures.reports import EVIL
from rich.console import Console

from diffleak.report import print_page, to_html, to_markdown
from diffleak.report.pages.extraction import page
from diffleak.report.sections.extraction import verdict


def test_copies_lead_the_verdict_with_the_rate_of_held_out_images_beside_theirs():
    judged = verdict(extraction_record(copied=9))
    assert (judged.level, judged.title) == ("leak", "The model reproduces training images.")
    assert judged.sentences[0].startswith("10 of 60 members have a copy, 16.7 % (95 % interval ")
    assert judged.sentences[0].endswith("closer to a drawing than 99 % of the held-out images are.")
    assert judged.sentences[1].startswith("Some held-out images set how close a copy must be; of the others, ")
    assert "because few held-out images set the threshold" in judged.sentences[1], "the lower end is 0, and yet it is a finding"


def test_without_copies_the_verdict_says_what_cannot_be_excluded_and_to_look_at_the_pairs():
    judged = verdict(extraction_record())
    assert judged.level == "no-leak-found"
    assert "These drawings rule out that more than" in judged.sentences[1]
    assert "a pair that shows the same picture is a finding, whatever the rate is" in judged.sentences[-1]


@pytest.mark.parametrize(
    ("held_out", "title", "why"),
    [
        (0, "but not how close they come by chance", "no held-out images were given"),
        (
            60,
            "too few held-out images to say how close a drawing comes",
            "a rate at 1 % false copies needs at least 198 held-out images, of which half (99) set the threshold; here 30 set it",
        ),
    ],
)
def test_without_a_threshold_the_verdict_is_undecided_and_says_why(held_out, title, why):
    judged = verdict(extraction_record(copied=9, held_out=held_out))
    assert judged.level == "undecided" and title in judged.title and why in judged.sentences[0]
    assert "at a distance of 0.0" in judged.sentences[1]
    shown = to_html(page(extraction_record(copied=9, held_out=held_out)))
    assert "so no threshold says which distances are copies" in shown
    assert "of such images lie below it" not in shown and "says which pairs are copies" not in shown


def test_the_page_has_each_pair_with_the_command_that_draws_it_again_and_pictures_only_when_asked_for():
    record = extraction_record(copied=9)
    plain, shown = to_html(page(record)), extraction_page()
    assert "<img" not in plain and "--thumbnails" in plain and shown.count("<img") == 48
    see, again = "diffleak extract model --members in --nonmembers out -o run --thumbnails", "nothing is drawn again"
    assert plain.index(again) < plain.index(f"{see}</code>") < plain.index("--only ") and again not in shown
    with_flag = to_html(page(record.model_copy(update={"command": see})))
    assert f"{see}</code>" in with_flag and "--thumbnails --thumbnails" not in with_flag
    for command, line in ((record.command, f"To look at the pairs: {see}"), (see, "The folder pairs has the pairs as images.")):
        print_page(page(record.model_copy(update={"command": command})), Console(file=(out := io.StringIO()), width=200))
        printed = " ".join(out.getvalue().split())
        assert line in printed and ("To look at the pairs" in printed) == (command != see), "not what has just been run"
    assert see not in to_html(page(record.model_copy(update={"anonymous": "key"}))), "pictures of an anonymous search are refused"
    for pair in record.pairs[:24]:
        assert f"diffleak extract model --members in --nonmembers out -o run --only {pair.image}</code>" in plain
    assert plain.index(record.pairs[0].id) < plain.index(record.pairs[1].id)
    assert "<b>drawn" not in plain and "shows training images and names them" in shown
    assert shown == extraction_page()


def test_the_terminal_prints_all_of_it_in_eighty_columns():
    out = io.StringIO()
    print_page(page(extraction_record(9)), Console(file=out, width=80))
    assert max(map(len, out.getvalue().splitlines())) <= 80
    for part in ("The model reproduces training images", "Held-out images", "Closest members", "tiled pixel distance"):
        assert part in out.getvalue()


def test_no_text_of_a_record_moves_the_cursor_of_a_terminal_or_keeps_the_page_from_being_written():
    record, printed = extraction_record(9), io.StringIO()
    texts = {name: EVIL for name, field in type(record).model_fields.items() if field.annotation in (str, str | None)}
    pairs = tuple(pair.model_copy(update={"id": EVIL, "prompt": EVIL}) for pair in record.pairs)
    made = page(record.model_copy(update={**texts, "created": record.created, "warnings": (EVIL,), "pairs": pairs}))
    print_page(made, Console(file=printed, width=100))
    for text in (printed.getvalue(), to_html(made), to_markdown(made)):
        assert "\x1b[2J" not in text and "\u202e" not in text
        text.encode("utf-8")
    assert "<script" not in to_html(made)
