"""The page of memorised prompts: its images and maps, what it says of records without them, its size."""

import base64
import io
import re

import numpy as np
import pytest
from fixtures.prompts import PLAIN, QUICK, SECRET, planted
from PIL import Image

from diffleak.prompts.score import find_memorised
from diffleak.report import to_html, to_markdown
from diffleak.report.figures.heat import SIDE, half_lies_in, heat_map, shrunk
from diffleak.report.pages.prompts import page
from diffleak.report.sections.prompts import Picture, verdict


@pytest.fixture(scope="module")
def found():
    return find_memorised(planted(), SECRET, PLAIN, **QUICK)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def images(html: str) -> list[bytes]:
    """The images of a page and their maps, after the scale of these."""
    _, *shown = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]*)"', html)]
    return shown


def test_the_page_shows_an_image_and_a_map_of_each_of_the_twelve_highest_prompts(found):
    html = to_html(page(found.record, found.pictures()))
    assert html == to_html(page(found.record, found.pictures())), "the same bytes"
    shown = images(html)
    assert len(shown) == 24 and all(pixels(png).size for png in shown)
    for row in found.record.prompts[:12]:
        assert f'alt="Drawn for: {row.prompt}"' in html and f"memorised, magnitude {row.magnitude:.4g}; half of what it changes" in html
    assert html.count('alt="Map of where the prompt acts: half of what it changes lies in 50 % of the image"') == 12
    assert "copies of private training images: look before you pass this page on" in html
    assert "<img" not in to_html(page(found.record)) and "Images and maps" not in to_html(page(found.record))


def test_a_map_is_dark_where_nothing_changes_and_light_where_most_does():
    squares = np.zeros((3, 4), dtype=np.float32)
    squares[1, 2], squares[0, 0] = 8.0, 4.0
    drawn = pixels(heat_map(squares)).astype(int)
    assert drawn.shape == (3, 4, 3)
    assert drawn[1, 2].tolist() == [253, 231, 36] and drawn[2, 3].tolist() == [68, 1, 84]
    assert drawn[2, 3].sum() < drawn[0, 0].sum() < drawn[1, 2].sum()
    assert {tuple(colour) for colour in pixels(heat_map(np.zeros((2, 2), dtype=np.float32))).reshape(-1, 3)} == {(68, 1, 84)}


def test_half_of_a_map_lies_where_its_largest_values_are():
    assert half_lies_in(np.ones((4, 5), dtype=np.float32)) == 0.5
    assert half_lies_in(np.array([[9, 1, 1, 1]], dtype=np.float32)) == 0.25
    assert half_lies_in(np.array([[2, 2, 1, 1]], dtype=np.float32)) == 0.5


def test_the_size_of_a_page_does_not_grow_with_that_of_its_images(found):
    noise = np.random.default_rng(0)
    row = found.record.prompts[0]
    large = [
        Picture(row, noise.integers(0, 256, (1024, 768, 3), dtype=np.uint8), noise.random((512, 384), dtype=np.float32)) for _ in range(12)
    ]
    html = to_html(page(found.record, large))
    assert {pixels(png).shape[:2] for png in images(html)} == {(SIDE, SIDE * 3 // 4)}
    assert len(html) < 3_000_000, "of pure noise, which no PNG makes smaller"
    assert pixels(shrunk(np.zeros((8, 6, 1), dtype=np.uint8))).shape[:2] == (SIDE, SIDE * 3 // 4)
    assert pixels(shrunk(np.zeros((300, 300, 1), dtype=np.uint8))).shape[:2] == (SIDE, SIDE)


def test_an_image_that_cannot_be_shown_is_said_and_a_prompt_is_no_markup(found):
    row = found.record.prompts[0].model_copy(update={"prompt": 'a "<b>' + "\u202e"})
    html = to_html(page(found.record, [Picture(row, None, np.zeros((2, 2), dtype=np.float32))]))
    assert "no image: what the autoencoder gives is not finite" in html and len(images(html)) == 1
    assert "The prompt of the largest magnitude. Left, " in html, "one, and not 1 prompts"
    assert "it changes nothing" in html and "<b>" not in html and "\u202e" not in html


def test_one_interval_above_one_half_counts_only_if_it_survives_looking_at_all_statistics(found):
    def judged(value: float, low: float) -> tuple[str, str]:
        auc = found.record.results[0].auc.model_copy(update={"value": 0.5, "low": 0.4, "high": 0.6})
        results = [result.model_copy(update={"auc": auc}) for result in found.record.results]
        results[2] = results[2].model_copy(update={"auc": auc.model_copy(update={"value": value, "low": low, "high": 0.8})})
        said = verdict(found.record.model_copy(update={"results": tuple(results)}))
        return said.level, " ".join(said.sentences)

    assert judged(0.7, 0.6)[0] == "leak" and judged(0.5, 0.4)[0] == "no-leak-found"
    level, said = judged(0.65, 0.52)
    assert level == "no-leak-found" and "With 4 statistics, chance alone puts at least one interval above one half more often" in said
    assert "by chance" not in judged(0.5, 0.4)[1] + judged(0.7, 0.6)[1]


def test_a_page_without_drawn_images_says_so_and_ranks_by_the_noise_norm():
    record = find_memorised(planted(), SECRET, PLAIN, draw=False, steps=4).record
    html, text = to_html(page(record)), to_markdown(page(record))
    for shown in (html, text):
        assert "nothing was drawn (--no-draw)" in shown.replace("\\", "") and "Noise norm" in shown and "Alignment" in shown
    assert "Prompts, the largest noise norm first" in html and "1 noise was taken for each prompt" in html
    assert "26, none drawn, 1 noise each" in html and "t-error</th>" not in html and "<dt>Drawing</dt>" not in html


def test_a_page_of_an_earlier_record_shows_its_two_statistics(found):
    rows = tuple(row.model_copy(update={"noise_norm": None, "alignment": None}) for row in found.record.prompts)
    plan = found.record.plan.model_copy(update={"noise_norm_timestep": None, "alignment_timestep": None})
    html = to_html(page(found.record.model_copy(update={"prompts": rows, "results": found.record.results[:2], "plan": plan})))
    assert "Histogram of the magnitude" in html and "Histogram of the alignment" not in html and "From noise" not in html
