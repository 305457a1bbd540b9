"""The list of the most exposed images with maps of where the model and its reference differ: what the page says, and its size."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from fixtures.reports import mapped_audit
from PIL import Image

from diffleak.data.pixels import ImageShape, fit, png
from diffleak.report import to_html
from diffleak.report.figures.heat import SIDE, heat_map, small
from diffleak.report.pages.audit import page as page_of


def pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def images(page: str) -> list[bytes]:
    return [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]*)"', page)]


def html(*made) -> str:
    """The page with this section alone, since figures take long."""
    whole = page_of(*made)
    return to_html(replace(whole, sections=tuple(section for section in whole.sections if section.name == "exposed")))


@pytest.fixture(scope="module")
def made() -> tuple:
    return mapped_audit()


@pytest.fixture(scope="module")
def section(made) -> str:
    return html(*made).partition('<section id="exposed"')[2].partition("</section>")[0]


def test_each_image_of_the_list_stands_beside_its_map_with_a_scale_and_words_that_claim_no_membership(made, section):
    *_, maps = made
    assert section.count('alt="Member ') == 12 and section.count('<img class="map"') == 11
    assert section.count("no map: the models give no finite numbers here") == 1
    assert section.count('alt="Map of where the two models differ: the two models do not differ"') == 1
    assert len(re.findall(r'alt="Map of where the two models differ: half of the difference lies in [\d.]+ % of the image"', section)) == 10
    assert [pixels(image).tolist() for image in images(section)[5::2]] == [pixels(heat_map(m)).tolist() for m in list(maps.of.values())[2:]]
    for said in (
        "no difference <img",
        "> largest difference. Each map has a scale of its own",
        "its reference, stabilityai/stable-diffusion-2-1-base, differ about it",
        "at timestep 60, with the same caption, summed over channels",
        "whether the image was learnt, the map does not say: held-out images have such maps too",
    ):
        assert said in section, said


def test_a_timestep_that_is_not_the_attack_s_own_is_said(made):
    record, samples, *pictures = made
    ruled = tuple(result.model_copy(update={"timestep": None}) for result in record.results)
    page = html(record.model_copy(update={"results": ruled}), samples, *pictures)
    assert "at timestep 60 (a tenth of the schedule, since the attack has no timestep of its own), with the same caption" in page


def test_maps_are_shown_where_images_are_and_the_page_is_the_same_without_either(made):
    record, samples, thumbnail, maps = made
    assert html(record, samples, None, maps) == html(record, samples)
    without = html(record, samples, thumbnail)
    assert '<ol class="exposed">' in without and ".maps" not in without
    said = "There are no maps of where the model and its reference differ"
    assert said in without and said not in html(record, samples)
    for absent in ("reference", "captions"):
        plan = record.plan.model_copy(update={absent: None})
        assert said not in html(record.model_copy(update={"plan": plan}), samples, thumbnail), absent


def test_the_size_of_a_page_does_not_grow_with_that_of_its_images_and_maps():
    noise = png(np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8))
    page = html(*mapped_audit(lambda image_id: noise, side=512))
    assert max(max(pixels(image).shape[:2]) for image in images(page)) == SIDE
    assert len(page) < 3_500_000, "of pure noise, which no PNG makes smaller"


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (48, 48)])
def test_of_an_image_that_was_cut_the_part_that_the_model_is_given_is_shown(size):
    image = np.add.outer(np.arange(size[0]), 2 * np.arange(size[1])).astype(np.uint8)[..., None]
    given = fit(image, ImageShape(1, min(size), min(size)), resize=True, name="image")
    assert small(png(image), np.zeros((8, 8), dtype=np.float32)) == small(png(given))
    assert pixels(small(png(image))).shape[:2] == tuple(side * (SIDE // max(size)) for side in size), "and where nothing was cut all of it"
