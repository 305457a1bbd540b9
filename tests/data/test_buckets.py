"""Aspect-ratio buckets: the sizes of kohya's scripts, and how a setting says them."""

import math

import numpy as np
import pytest

from diffleak.data.buckets import Buckets, parse_buckets
from diffleak.errors import UserError

SD, XL = parse_buckets("512"), parse_buckets("1024")


def test_the_buckets_of_512_are_those_that_kohyas_scripts_print():
    """As `make_bucket_resolutions((512, 512))` gives them."""
    narrow = {(256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576)}
    assert set(SD.sizes) == {(512, 512), *narrow, *((b, a) for a, b in narrow)}
    assert list(SD.sizes) == sorted(SD.sizes) and (SD.largest, XL.largest) == (1024, 2048)


@pytest.mark.parametrize("buckets", [SD, XL, Buckets(768, 32, 320, 1280)])
def test_a_bucket_is_as_large_as_the_area_allows_and_the_nearest_by_aspect_ratio(buckets):
    for width, height in buckets.sizes:
        assert width % buckets.step == height % buckets.step == 0 and width * height <= buckets.side**2
        assert buckets.size_of(height, width) == (height, width), "an image of a bucket's own size stays as it is"
    ratios = np.array([width / height for width, height in buckets.sizes])
    for height, width in np.random.default_rng(0).integers(20, 4000, (200, 2)).tolist():
        h, w = buckets.size_of(height, width)
        assert math.isclose(abs(w / h - width / height), np.abs(ratios - width / height).min())


def test_photos_go_where_trainers_put_them():
    assert SD.size_of(3000, 4000) == (448, 576)
    assert XL.size_of(1080, 1920) == (768, 1344) and XL.size_of(4000, 3000) == (1152, 896) and XL.size_of(99, 99) == (1024, 1024)


@pytest.mark.parametrize("text", ["", "big", "512:64", "512:64:256:1024:1", "-512", "512:0:256:1024", "512:64:250:1024", "128", "99999999"])
def test_a_setting_that_means_no_buckets_is_one_line(text):
    with pytest.raises(UserError, match=r"^--buckets ") as error:
        parse_buckets(text)
    assert "\n" not in str(error.value)
