"""The model is asked about the images it was trained on: upright, in their own range, without alpha, none left out in silence."""

import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures.commands import call
from fixtures.pictures import encoded, image
from PIL import Image, ImageOps, PngImagePlugin

from diffleak import hub
from diffleak.auditing import run as auditing
from diffleak.config import build
from diffleak.data import listing
from diffleak.data.cohort import two_sources
from diffleak.data.decoding import UnreadableImage, decode
from diffleak.data.listing import list_images
from diffleak.data.pixels import ImageShape, without_alpha
from diffleak.data.scan import scan
from diffleak.data.sources import ImageSource, open_source
from diffleak.errors import UserError
from diffleak.records.images import AS_TRAINERS, NO_IMAGES, Decoding, Notes, Tally, first_reading, refuse_other_reading
from diffleak.report.judgement import read_record

IGNORE = Decoding(exif="ignore")
ORIENTATION = 0x0112


def pictures(n, height=6, width=8, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def opened(content):
    return Image.open(io.BytesIO(content))


def folder(path, contents, suffix=".png"):
    path.mkdir(parents=True)
    for i, content in enumerate(contents):
        (path / f"{i:03d}{suffix}").write_bytes(content)
    return path


def scanned(members, nonmembers, decoding=AS_TRAINERS, shape=None):
    return scan(two_sources(open_source(members, decoding), open_source(nonmembers, decoding)), shape, False, False)


def refusal(call):
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# orientation

SIDES = {  # the EXIF standard: which side of the upright picture the stored first row and first column are
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def as_stored(upright, orientation):
    """The picture as a camera stores it, pixel by pixel from the standard's table."""
    height, width = upright.shape[:2]
    sides = SIDES[orientation]
    upright_first = sides[0] in ("top", "bottom")
    stored = np.empty((height, width, *upright.shape[2:]) if upright_first else (width, height, *upright.shape[2:]), np.uint8)
    for place in np.ndindex(stored.shape[:2]):
        at = dict(zip(("y", "x") if upright_first else ("x", "y"), zip(place, sides, strict=True), strict=True))
        y = at["y"][0] if at["y"][1] == "top" else height - 1 - at["y"][0]
        x = at["x"][0] if at["x"][1] == "left" else width - 1 - at["x"][0]
        stored[place] = upright[y, x]
    return stored


def tagged(upright, orientation, kind="PNG", **options):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(image(as_stored(upright, orientation)), kind, exif=exif, **options)


LOSSLESS = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "TIFF through libtiff": {"compression": "tiff_lzw"},
}


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_every_orientation_is_turned_upright_in_every_lossless_format(kind, orientation):
    for channels in (3,) if kind == "WEBP" else (1, 3, 4):
        upright = pictures(1, channels=channels)[0]
        content = tagged(upright, orientation, kind.split()[0], **LOSSLESS[kind])
        pixels, notes = decode(content, "x")
        np.testing.assert_array_equal(pixels, upright)
        by_pillow = orientation != 1 and kind.startswith("TIFF")  # Image.open itself turns these, and so does a trainer that turns none
        assert (notes.turned or notes.by_pillow, notes.by_pillow, notes.left_turned) == (orientation != 1, by_pillow, False)
        np.testing.assert_array_equal(pixels.squeeze(), np.asarray(ImageOps.exif_transpose(opened(content))))
        pixels, notes = decode(content, "x", IGNORE)
        np.testing.assert_array_equal(pixels.squeeze(), np.asarray(opened(content)))
        assert (notes.by_pillow, notes.left_turned) == (by_pillow, orientation != 1 and not by_pillow) and not notes.turned
        if not by_pillow:
            np.testing.assert_array_equal(pixels, as_stored(upright, orientation))


@pytest.mark.parametrize("orientation", SIDES)
def test_every_orientation_is_turned_upright_in_jpegs(orientation):
    content = tagged(pictures(1, 16, 24)[0], orientation, "JPEG", quality=95)
    np.testing.assert_array_equal(decode(content, "x").pixels, np.asarray(ImageOps.exif_transpose(opened(content))))
    np.testing.assert_array_equal(decode(content, "x", IGNORE).pixels, np.asarray(opened(content)))
    assert decode(content, "x").notes.turned == (orientation != 1)


def test_deep_and_palette_images_are_turned_too():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    deep = Image.fromarray(pictures(1, channels=1)[0, ..., 0].astype(np.uint16) * 257)
    for picture in (deep, image(pictures(1)[0]).quantize(16)):
        content = encoded(picture, "PNG", exif=exif)
        turned, stored = (decode(content, "x", decoding).pixels for decoding in (AS_TRAINERS, IGNORE))
        np.testing.assert_array_equal(turned, np.rot90(stored, -1))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def test_every_source_of_files_turns_alike_and_as_datasets_does(tmp_path, hub_cache):
    upright = pictures(8)
    contents = [tagged(pixels, o) for pixels, o in zip(upright, SIDES, strict=True)]
    table = pa.table({"image": contents})
    pq.write_table(table, tmp_path / "bytes.parquet")
    pq.write_table(pa.table({"image": [{"bytes": c, "path": None} for c in contents]}), tmp_path / "structs.parquet")
    root = folder(tmp_path / "images", contents)
    for data in (root, tmp_path / "bytes.parquet", tmp_path / "structs.parquet", f"hf:{root}"):
        source, ignoring = open_source(data), open_source(data, IGNORE)
        for i, o in enumerate(SIDES):
            np.testing.assert_array_equal(source.read(i), upright[i], err_msg=str(data))
            np.testing.assert_array_equal(ignoring.read(i), as_stored(upright[i], o), err_msg=str(data))
            assert source.decoded(i).notes.turned == ignoring.decoded(i).notes.left_turned == (o != 1)
    theirs = hub_cache.load_dataset(str(root), split="train")["image"]
    for ours, pil in zip(upright, theirs, strict=True):
        np.testing.assert_array_equal(ours, np.asarray(pil))


def test_the_pass_over_the_images_counts_the_turned_and_checks_the_shape_they_have_upright(tmp_path):
    members = folder(tmp_path / "m", [tagged(p, 6) for p in pictures(12)])
    found = scanned(members, pictures(12, seed=1), shape=ImageShape(3, 6, 8))
    assert (found.tally.turned, found.tally.left_turned) == (12, 0)
    assert found.tally.described(AS_TRAINERS) == ("12 turned upright by EXIF",)
    assert (
        found.fingerprint == scanned(folder(tmp_path / "up", [encoded(image(p)) for p in pictures(12)]), pictures(12, seed=1)).fingerprint
    )
    assert "12 of 24 images do not have the shape the model takes" in refusal(
        lambda: scanned(members, pictures(12, seed=1), IGNORE, ImageShape(3, 6, 8))
    )


def test_damaged_exif_is_unreadable_where_it_matters_and_no_matter_where_it_is_ignored():
    content = encoded(image(pictures(1)[0]), "PNG", exif=b"Exif\0\0XXnothing of TIFF")
    assert "nothing says which way is up; --exif ignore reads it as stored" in refusal(lambda: decode(content, "x"))
    np.testing.assert_array_equal(decode(content, "x", IGNORE).pixels, pictures(1)[0])


# more than 8 bits


def deep_png(values):
    return encoded(Image.fromarray(np.asarray(values, dtype=np.uint16)))


def deep_pictures(n, largest, seed=0):
    values = np.random.default_rng(seed).integers(0, largest + 1, (n, 6, 8))
    values[:, 0, 0] = largest
    return values


def colour_png(values):
    """A PNG of 16 bits a channel, RGB, by hand: Pillow writes none."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(values).astype(">u2"))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_of_12_bits(values):
    """A TIFF of 12 bits a pixel, packed, by hand: Pillow writes none. An even number of columns."""
    bits = "".join(f"{value:012b}" for value in np.asarray(values).ravel())
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    tags = {256: values.shape[1], 257: values.shape[0], 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: values.shape[0], 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


def test_sixteen_bits_keep_their_upper_eight():
    values = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    pixels, notes = decode(deep_png(values), "x")
    np.testing.assert_array_equal(pixels[..., 0], values // 256)
    assert (notes.largest, notes.full, notes.dim, notes.upper) == (65_535, 65_535, False, False)
    for stretched in (257, 256):  # the two ways to write 8 bits in 16 both come back exactly
        eight = np.arange(256, dtype=np.uint16).reshape(16, 16)
        np.testing.assert_array_equal(decode(deep_png(eight * stretched), "x").pixels[..., 0], eight)


def test_twelve_bits_of_a_tiff_and_the_maximum_of_a_pgm_are_the_range_that_the_file_says():
    values = np.linspace(0, 4095, 48).astype(np.uint16).reshape(6, 8)
    pixels, notes = decode(tiff_of_12_bits(values), "x")
    np.testing.assert_array_equal(pixels[..., 0], values // 16)
    assert (notes.largest, notes.full, notes.dim) == (4095, 4095, False)
    pixels, notes = decode(b"P5\n8 6\n4095\n" + values.astype(">u2").tobytes(), "x")
    assert np.abs(pixels[..., 0] - values / 4095 * 255).max() <= 1
    assert (notes.largest, notes.full, notes.dim) == (65_535, 65_535, False)


@pytest.mark.parametrize("white", [255, 1023, 4095, 10_000, 65_535])
def test_white_scales_by_its_level_and_rounds(white):
    values = np.linspace(0, white, 96).astype(np.uint16).reshape(8, 12)
    expected = [round(255 * int(v) / white) for v in values.ravel()]
    assert decode(deep_png(values), "x", Decoding(white=white)).pixels.ravel().tolist() == expected
    content = encoded(Image.fromarray(values.astype(np.int32)), "TIFF")
    assert decode(content, "x", Decoding(white=white)).pixels.ravel().tolist() == expected


def test_a_value_above_white_is_refused_by_its_file():
    content = deep_png(np.full((4, 4), 5000))
    assert refusal(lambda: decode(content, "scan.png", Decoding(white=4095))) == (
        "--white must be at least the largest value of the images; scan.png has 5,000, got 4,095"
    )
    assert decode(content, "scan.png", Decoding(white=5000)).pixels.max() == 255


@pytest.mark.parametrize("largest", [255, 1023, 4095, 16_383])
def test_data_whose_values_all_lie_far_below_their_range_is_refused_until_white_is_given(tmp_path, largest):
    sides = [folder(tmp_path / str(i), map(deep_png, deep_pictures(12, largest, i))) for i in range(2)]
    said = refusal(lambda: scanned(*sides))
    assert f"use less than a quarter of it (largest value of all: {largest:,} of 65,535)" in said and "12 files in" in said
    assert "as --white LEVEL" in said and "pixel for pixel" not in said
    found = scanned(*sides, Decoding(white=largest))
    expected = np.rint(deep_pictures(12, largest, 0)[3] * 255 / largest)
    np.testing.assert_array_equal(found.cohort.of("members/003.png")[..., 0], expected)
    assert found.tally.deep == 24
    assert found.tally.described(Decoding(white=largest))[0].startswith(f"24 of more than 8 bits (white is {largest:,}")


def test_one_dark_image_among_others_that_use_the_range_is_kept_and_counted(tmp_path):
    values = [deep_pictures(12, 60_000, seed) for seed in range(2)]
    values[0][5] = deep_pictures(1, 200)[0]
    found = scanned(*(folder(tmp_path / str(i), map(deep_png, side)) for i, side in enumerate(values)))
    assert (found.tally.deep, found.tally.dim, found.tally.largest, found.tally.full) == (24, 1, 60_000, 65_535)
    assert found.tally.described(AS_TRAINERS) == (
        "24 of more than 8 bits (largest value 60,000 of 65,535, 1 of them uses less than a quarter of their range)",
    )


def test_one_side_in_another_range_is_refused_though_the_other_uses_it(tmp_path):
    bright, dark = (folder(tmp_path / str(m), map(deep_png, deep_pictures(12, m))) for m in (60_000, 4095))
    for sides in ((bright, dark), (dark, bright)):
        assert f"12 files in {dark} use less than a quarter of it (largest value of all: 4,095 of 65,535)" in refusal(
            lambda sides=sides: scanned(*sides)
        )


def test_a_quarter_of_the_range_is_where_dim_ends():
    assert Notes(largest=16_383, full=65_535).dim and not Notes(largest=16_384, full=65_535).dim


@pytest.mark.parametrize("largest", [255, 60_000])
def test_whole_numbers_of_32_bits_need_white_whatever_they_hold(tmp_path, largest):
    contents = [encoded(Image.fromarray(v.astype(np.int32)), "TIFF") for v in deep_pictures(24, largest)]
    sides = [folder(tmp_path / str(i), contents[12 * i : 12 * i + 12], ".tif") for i in range(2)]
    said = refusal(lambda: scanned(*sides))
    assert "12 files in" in said and f"{largest}" in said and "give --white LEVEL" in said
    found = scanned(*sides, Decoding(white=largest))
    np.testing.assert_array_equal(found.cohort.of("members/000.tif")[..., 0], np.rint(deep_pictures(24, largest)[0] * 255 / largest))


def test_colours_of_sixteen_bits_are_read_by_their_upper_eight_and_said(tmp_path):
    values = np.random.default_rng(0).integers(0, 65_536, (24, 6, 8, 3))
    sides = [folder(tmp_path / f"a{i}", map(colour_png, values[12 * i : 12 * i + 12])) for i in range(2)]
    found = scanned(*sides)
    np.testing.assert_array_equal(found.cohort.of("members/003.png"), values[3] // 256)
    assert found.tally.deep == 24
    dark = [folder(tmp_path / f"b{i}", map(colour_png, values[12 * i : 12 * i + 12] // 16)) for i in range(2)]
    assert "4,095 of 65,535), so that they would be nearly black: convert them to 8 bits" in refusal(lambda: scanned(*dark))
    assert "--white is for grey images" in refusal(lambda: scanned(*dark, Decoding(white=4095)))


def test_white_without_images_of_more_than_eight_bits_is_refused():
    assert "--white 4095 is for images of more than 8 bits, and there are none" in refusal(
        lambda: scanned(pictures(12), pictures(12, seed=1), Decoding(white=4095))
    )


def test_images_that_differ_in_their_lower_bits_only_are_not_called_equal_pixel_for_pixel(tmp_path):
    values = deep_pictures(12, 65_280) // 256 * 256
    sides = (folder(tmp_path / "m", map(deep_png, values)), folder(tmp_path / "n", map(deep_png, values + 1)))
    assert "12 images are on both sides, pixel for pixel as the model is given them (at 8 bits): " in refusal(lambda: scanned(*sides))


# transparency


def transparent_files():
    """A file of every kind of transparency."""
    colours = pictures(1, channels=4)[0]
    colours[0, 0, 3], colours[0, 1, 3] = 0, 255
    palette = image(colours[..., :3]).quantize(16)
    corner = tuple(map(int, colours[2, 3, :3]))
    ramp = bytes(range(0, 256, 16))
    return {
        "RGBA": encoded(image(colours)),
        "RGBA in WebP": encoded(image(colours), "WEBP", lossless=True, exact=True),
        "RGBA in TIFF": encoded(image(colours), "TIFF"),
        "LA": encoded(Image.merge("LA", image(colours).split()[::3])),
        "palette with one transparent entry": encoded(palette, transparency=3),
        "palette with partly transparent entries": encoded(palette, transparency=ramp),
        "GIF": encoded(palette, "GIF", transparency=int(np.asarray(palette)[1, 1])),
        "RGB with a transparent colour": encoded(image(colours[..., :3]), transparency=corner),
        "grey with a transparent value": encoded(image(colours[..., :1]), transparency=int(colours[4, 4, 0])),
        "black and white with one transparent": encoded(Image.fromarray(colours[..., 0] > 99), transparency=0),
    }


@pytest.mark.parametrize("kind", transparent_files())
def test_dropped_alpha_is_pillows_conversion_to_rgb_and_other_choices_lay_on_their_colour(kind):
    content = transparent_files()[kind]
    rgba = np.asarray(opened(content).convert("RGBA")).astype(float)
    assert rgba[..., 3].min() < 255
    pixels, notes = decode(content, "x")
    assert notes.transparent
    np.testing.assert_array_equal(without_alpha(pixels, 3), np.asarray(opened(content).convert("RGB")))
    np.testing.assert_array_equal(pixels, rgba)
    for colour, level in (("white", 255), ("black", 0)):
        alpha = rgba[..., 3:] / 255
        laid = decode(content, "x", Decoding(alpha=colour)).pixels
        assert np.abs(without_alpha(laid, 3) - (alpha * rgba[..., :3] + (1 - alpha) * level)).max() <= 1
        np.testing.assert_array_equal(laid[..., 3], rgba[..., 3])


def test_an_image_that_could_be_transparent_and_is_not_is_not_counted():
    opaque = pictures(1, channels=4)[0]
    opaque[..., 3] = 255
    assert not decode(encoded(image(opaque)), "x").notes.transparent
    red = np.zeros((4, 4, 3), np.uint8)
    pixels, notes = decode(encoded(image(red), transparency=(1, 2, 3)), "x")
    assert pixels.shape == (4, 4, 3) and not notes.transparent


def test_a_model_of_three_channels_is_given_the_colours_and_the_count_is_said(tmp_path):
    images = pictures(24, channels=4)
    np.save(tmp_path / "m.npy", images[:12])
    held_out = folder(tmp_path / "n", [encoded(image(p)) for p in images[12:]])
    found = scanned(tmp_path / "m.npy", held_out, shape=ImageShape(3, 6, 8))
    assert found.tally.transparent == 24 and found.tally.described(AS_TRAINERS) == ("24 transparent (alpha dropped)",)
    white = Decoding(alpha="white")
    other = scanned(tmp_path / "m.npy", held_out, white, ImageShape(3, 6, 8))
    assert other.fingerprint != found.fingerprint and other.tally.described(white) == ("24 transparent (laid on white)",)
    for cohort, expected in ((found.cohort, images), (other.cohort, None)):
        for row, image_id in enumerate(cohort.ids):
            i = int(image_id) if cohort.member[row] else 12 + int(image_id[:3])
            alpha = images[i, ..., 3:] / 255
            want = images[i, ..., :3] if expected is not None else np.rint(alpha * images[i, ..., :3] + (1 - alpha) * 255)
            assert np.abs(without_alpha(cohort.read(row), 3).astype(int) - want).max() <= (expected is None)


def test_a_model_of_four_channels_keeps_rgba_and_refuses_to_lay_it():
    images = pictures(24, channels=4)
    found = scanned(images[:12], images[12:], shape=ImageShape(4, 6, 8))
    np.testing.assert_array_equal(found.cohort.of("members/3"), images[3])
    assert found.tally.described(AS_TRAINERS, keeps_alpha=True) == ("24 transparent",)
    said = refusal(lambda: scanned(images[:12], images[12:], Decoding(alpha="black"), ImageShape(4, 6, 8)))
    assert said == "--alpha black lays transparent images on a colour, and this model takes RGBA: leave it out"


def test_images_that_differ_in_alpha_only_are_refused_as_alike_without_alpha():
    images = pictures(12, channels=4)
    other = images.copy()
    other[..., 3] //= 2
    said = refusal(lambda: scanned(images, other, shape=ImageShape(3, 6, 8)))
    assert "12 images are on both sides, pixel for pixel as the model is given them (without alpha): " in said
    assert len(scanned(images, other, shape=ImageShape(4, 6, 8)).cohort) == 24


def test_a_source_that_is_open_already_is_not_read_by_other_choices():
    source = open_source(pictures(3, channels=4))
    assert open_source(source) is source
    assert "leave them out" in refusal(lambda: open_source(source, Decoding(alpha="white")))
    own = ImageSource("own", ("0",), lambda i: pictures(1, channels=4)[0])
    assert own.decoded(0).notes.transparent


# several pictures in one file


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_of_several_pictures_in_a_file_the_first_is_read_and_counted(kind, options):
    frames = [Image.new("L", (8, 6), level).convert("RGB") for level in (40, 120, 200)]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    pixels, notes = decode(content, "x")
    assert (pixels[..., :3] == 40).all() and notes.first_frame
    assert not decode(encoded(frames[0], kind, **options), "x").notes.first_frame
    assert NO_IMAGES.plus(notes).described(AS_TRAINERS) == ("1 animated or of several pages (the first is read)",)


def test_a_phones_jpeg_with_a_second_picture_is_one_picture():
    frames = [Image.new("RGB", (8, 6), level) for level in ("red", "blue")]
    content = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert opened(content).n_frames == 2
    pixels, notes = decode(content, "phone.jpg")
    np.testing.assert_array_equal(pixels, np.asarray(opened(content)))
    assert not notes.first_frame


# what is in a folder


def test_everything_that_pillow_opens_and_trainers_use_is_read(tmp_path):
    kinds = {".png": "PNG", ".jfif": "JPEG", ".jpe": "JPEG", ".JPG": "JPEG", ".tif": "TIFF", ".gif": "GIF", ".bmp": "BMP", ".webp": "WEBP"}
    kinds |= {".jp2": "JPEG2000", ".avif": "AVIF", ".ppm": "PPM", ".tga": "TGA"}
    Image.init()
    kinds = {suffix: kind for suffix, kind in kinds.items() if kind in Image.SAVE}
    for suffix, kind in kinds.items():
        (tmp_path / f"x{suffix}").write_bytes(encoded(image(pictures(1, 16, 16)[0]), kind))
    source = open_source(tmp_path)
    assert {Path(i).suffix for i in source.ids} == set(kinds) and len(kinds) >= 10
    assert all(source.read(i).shape == (16, 16, 3) for i in range(len(source)))
    assert source.left_out.unopened == source.left_out.hidden == 0


def test_what_looks_like_an_image_and_is_not_opened_is_counted_and_named(tmp_path, monkeypatch):
    root = folder(tmp_path / "images", [encoded(image(p)) for p in pictures(12)])
    for name in ("b.heic", "a.CR2", "c.svg", "d.jxl", "paper.pdf", "figure.eps", "film.mp4", "metadata.jsonl", "notes.txt"):
        (root / name).write_bytes(b"x")
    found = open_source(root)
    assert len(found) == 12 and (found.left_out.unopened, found.left_out.first_unopened) == (4, "a.CR2")
    tally = scanned(root, pictures(12, seed=1)).tally
    assert tally.described(AS_TRAINERS) == ("4 not opened (look like images; first: 'a.CR2')",)
    monkeypatch.setitem(Image.EXTENSION, ".heic", "PNG")  # as a plugin that opens them does
    assert "b.heic" in open_source(root).ids and open_source(root).left_out.unopened == 3


def test_hidden_folders_and_files_are_left_out_and_counted(tmp_path):
    root = folder(tmp_path / ".data" / "images", [encoded(image(p)) for p in pictures(12)])  # hidden above the data is no matter
    folder(root / ".ipynb_checkpoints", [encoded(image(p)) for p in pictures(2)])
    folder(root / "a" / ".cache" / "deep", [encoded(image(p)) for p in pictures(1)])
    (root / ".hidden.png").write_bytes(b"x")
    (root / ".gitignore").write_bytes(b"x")
    (root / "._000.png").write_bytes(b"macOS")
    tally = scanned(root, pictures(12, seed=1)).tally
    assert (tally.hidden, tally.first_hidden) == (4, ".hidden.png")
    assert tally.described(AS_TRAINERS) == ("4 hidden and left out; first: '.hidden.png'",)


def test_folders_behind_links_are_followed_and_circles_end(tmp_path):
    root = folder(tmp_path / "images", [encoded(image(p)) for p in pictures(2)])
    elsewhere = folder(tmp_path / "elsewhere" / "deep", [encoded(image(p)) for p in pictures(3, seed=1)])
    (root / "linked").symlink_to(elsewhere.parent, target_is_directory=True)
    (root / "circle").symlink_to(root, target_is_directory=True)
    (elsewhere / "up").symlink_to(elsewhere.parent, target_is_directory=True)
    source = open_source(root)
    assert source.ids == ("000.png", "001.png", "linked/deep/000.png", "linked/deep/001.png", "linked/deep/002.png")
    np.testing.assert_array_equal(source.read(4), pictures(3, seed=1)[2])


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    root = folder(tmp_path / "images", [encoded(image(p)) for p in pictures(2)])
    (root / "locked").mkdir()
    (root / ".locked").mkdir()
    real = listing.os.scandir

    def scandir(path):
        if Path(path).name.endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(listing.os, "scandir", scandir)
    assert refusal(lambda: open_source(root)) == (
        f"every folder of the data must be readable; {root / 'locked'} is not (Permission denied): make it readable, or move it away"
    )
    (root / "locked").rmdir()
    assert len(open_source(root)) == 2  # a hidden one is left out all the same


def test_a_folder_of_what_is_not_opened_says_so(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"x")
    (tmp_path / ".b.png").write_bytes(b"x")
    said = refusal(lambda: open_source(tmp_path))
    assert "found none; 1 looks like an image and is of a kind that is not opened (first: a.heic); 1 is hidden (first: .b.png)" in said


# in every command


@pytest.fixture
def photos(tmp_path):
    """Two sides of 8 x 8 grey photos: 3 turned, 2 transparent, 1 animated, 1 hidden and 1 raw file."""
    sides = []
    for seed, name in enumerate(("members", "nonmembers")):
        upright = pictures(12, 8, 8, 1, seed)
        root = folder(tmp_path / name, [tagged(p, 6) if seed == 0 and i < 3 else encoded(image(p)) for i, p in enumerate(upright)])
        sides.append(root)
    (sides[0] / ".ipynb_checkpoints").mkdir()
    (sides[0] / ".ipynb_checkpoints" / "x.png").write_bytes(b"x")
    (sides[1] / "x.nef").write_bytes(b"x")
    return sides


SETTINGS = {"attacks": "sima", "timesteps": "100", "device": "cpu", "threads": 1, "batch_size": 8}
SAID = (
    "3 turned upright by EXIF, 1 not opened (looks like an image; first: 'x.nef'), 1 hidden and left out; first: '.ipynb_checkpoints/x.png'"
)


def test_an_audit_says_and_records_what_was_done_and_another_choice_is_another_plan(tmp_path, photos, model_folder):
    model, (members, nonmembers) = model_folder(), photos
    run = tmp_path / "run"
    given = {"members": str(members), "nonmembers": str(nonmembers), **SETTINGS}
    prepared = auditing.prepare(build(auditing.AuditConfig, {"model": str(model), **given}))
    assert prepared.describe().endswith(f", {SAID}") and prepared.summary()["images"]["turned"] == 3
    auditing.audit(model, output=run, **given)
    record = read_record(run)
    assert (record.plan.exif, record.plan.alpha, record.plan.white) == ("apply", "drop", None)
    assert (record.images.turned, record.images.unopened, record.images.hidden) == (3, 1, 1)
    assert any(SAID in warning for warning in record.warnings)
    written = json.loads((run / "audit.json").read_text())["images"]
    assert (written["turned"], written["first_unopened"], written["deep"]) == (3, "x.nef", 0)
    assert "belongs to another plan" in refusal(lambda: auditing.audit(model, output=run, exif="ignore", **given))
    other = auditing.prepare(build(auditing.AuditConfig, {"model": str(model), "exif": "ignore", **given}))
    assert (other.plan.exif, other.scan.tally.turned, other.scan.tally.left_turned) == ("ignore", 0, 3)
    assert " --exif ignore" in auditing.command_of(other.config, other.plan) and "--exif" not in record.command
    assert ", 3 not turned (EXIF ignored)" in other.describe()


def test_a_plan_names_the_choice_even_where_it_changes_no_pixel(tmp_path, model_folder):
    model, sides = model_folder(in_channels=3, out_channels=3), (pictures(12, 8, 8), pictures(12, 8, 8, seed=1))
    auditing.audit(model, members=sides[0], nonmembers=sides[1], output=tmp_path / "run", **SETTINGS)
    said = refusal(lambda: auditing.audit(model, members=sides[0], nonmembers=sides[1], output=tmp_path / "run", alpha="white", **SETTINGS))
    assert "--alpha was drop, now white" in said


def test_the_pictures_in_the_report_are_upright_and_without_alpha(tmp_path, photos, model_folder):
    from diffleak.auditing.config import read_cohort
    from diffleak.auditing.results import _thumbnails

    given = {"members": str(photos[0]), "nonmembers": str(photos[1]), **SETTINGS}
    auditing.audit(model_folder(), output=tmp_path / "run", thumbnails=True, **given)
    record = read_record(tmp_path / "run")
    cohort = read_cohort(build(auditing.AuditConfig, record.settings))
    np.testing.assert_array_equal(np.asarray(opened(_thumbnails(cohort, record)("members/000.png"))), pictures(12, 8, 8, 1)[0, ..., 0])
    clear = two_sources(*(open_source(pictures(2, 8, 8, 4, seed)) for seed in range(2)))
    assert opened(_thumbnails(clear, record)("members/0")).mode == "RGB"
    rgba = record.model_copy(update={"plan": record.plan.model_copy(update={"image_shape": "8 x 8 RGBA"})})
    assert opened(_thumbnails(clear, rgba)("members/0")).mode == "RGBA"


def training(data, output, **flags):
    from conftest import TINY

    from diffleak.training.config import train_config

    network = {key: list(value) if isinstance(value, tuple) else value for key, value in TINY.items()} | flags.pop("model", {})
    return train_config(data=str(data), output=output, device="cpu", steps=1, batch_size=4, threads=1, model=network, **flags)


def test_training_reads_the_same_pixels_and_records_the_choice_and_the_counts(tmp_path, photos, capsys):
    from diffleak.training.images import read_training_data
    from diffleak.training.run import train

    config = training(photos[0], tmp_path / "m")
    np.testing.assert_array_equal(read_training_data(config).images, pictures(12, 8, 8, 1))
    ignoring = read_training_data(training(photos[0], tmp_path / "m", exif="ignore"))
    np.testing.assert_array_equal(ignoring.images[0], as_stored(pictures(12, 8, 8, 1)[0], 6))
    train(config)
    assert "images: 3 turned upright by EXIF, 1 hidden" in capsys.readouterr().err
    record = json.loads((tmp_path / "m" / "train.json").read_text())
    assert (record["exif"], record["alpha"], record["white"], record["images"]["turned"]) == ("apply", "drop", None, 3)
    (photos[0] / ".y.png").write_bytes(b"x")  # what is left out may change between a run and its resumption
    train(config.model_copy(update={"steps": 2}))
    assert "--exif was apply, now ignore" in refusal(lambda: train(training(photos[0], tmp_path / "m", exif="ignore")))


def test_an_audit_that_reads_images_in_another_way_than_training_did_is_refused(tmp_path, photos, model_folder):
    model, given = model_folder(), {"members": str(photos[0]), "nonmembers": str(photos[1]), **SETTINGS}
    prepare = lambda **flags: auditing.prepare(build(auditing.AuditConfig, {"model": str(model), **given, **flags}))
    said_by_training = {"exif": "ignore", "alpha": "white", "images": {"left_turned": 2, "transparent": 2}}
    (model / "train.json").write_text(json.dumps(said_by_training))
    said = refusal(prepare)
    assert said.endswith("train.json has exif ignore, got apply, and 3 images differ by it: give --exif ignore")
    assert prepare(exif="ignore").plan.alpha == "drop"  # no image is transparent, so that nothing differs by alpha
    (model / "train.json").write_text(json.dumps({"schema_version": 1, "data": "x"}))  # by version 0.1, which never turned an image
    assert "train.json has exif ignore, got apply" in refusal(prepare) and prepare(exif="ignore").plan.exif == "ignore"
    for unknown in ({"steps": 1}, {"exif": "ignore", "images": {"left_turned": 0}}, [], {"exif": "ignore", "images": 3}):
        (model / "train.json").write_text(json.dumps(unknown))  # an older version, or training images that had no orientation
        assert prepare().plan.exif == "apply"


def test_the_training_of_two_networks_in_turn_or_of_a_teacher_says_how_images_are_read(tmp_path, photos):
    (tmp_path / "dual").mkdir()
    (tmp_path / "dual" / "dual.json").write_text("{}")
    for name in ("teacher-1", "teacher-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.json").write_text("{}")
    assert [path.parent.name for path in hub.training_records(tmp_path / "dual")] == ["teacher-1", "teacher-2"]
    assert [path.parent.name for path in hub.training_records(tmp_path / "teacher-2")] == ["teacher-2"]
    assert hub.training_records(tmp_path) == ()


def test_a_choice_that_changes_no_image_here_is_not_refused(tmp_path):
    record = tmp_path / "train.json"
    record.write_text(json.dumps({"exif": "ignore", "alpha": "white", "images": {"by_pillow": 3, "left_turned": 1, "transparent": 1}}))
    refuse_other_reading(record, AS_TRAINERS, Tally(by_pillow=5))  # TIFF files are turned under either choice
    refuse_other_reading(record, AS_TRAINERS, Tally(transparent=5), keeps_alpha=True)
    assert "alpha white, got drop" in refusal(lambda: refuse_other_reading(record, AS_TRAINERS, Tally(transparent=5)))
    assert first_reading({"turned": 1}) == {"exif": "ignore"} and first_reading({"deep": 4}) == {}


def test_a_run_of_version_0_1_is_not_extended_under_another_reading(tmp_path, photos):
    from diffleak.training.run import train

    folder = train(training(photos[0], tmp_path / "m", exif="ignore"))
    record = json.loads((folder / "train.json").read_text())
    older = {key: value for key, value in record.items() if key not in ("exif", "alpha", "white", "images", "data_path")}
    (folder / "train.json").write_text(json.dumps(older))
    assert "--exif was ignore, now apply" in refusal(lambda: train(training(photos[0], tmp_path / "m")))
    (folder / "train.json").write_text(json.dumps({key: value for key, value in older.items() if key != "classes"}))
    assert train(training(photos[0], tmp_path / "m", exif="ignore")) == folder, "no image of this side is transparent"


@pytest.mark.parametrize("error", [RuntimeError, IndexError, TypeError, KeyError, struct.error])
def test_whatever_a_reader_raises_for_a_damaged_file_is_an_unreadable_image(monkeypatch, error):
    content = tagged(pictures(1)[0], 1, "PNG")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: (_ for _ in ()).throw(error("broken")))
    with pytest.raises(UnreadableImage, match=r"x cannot be decoded \(.*broken.*\); replace it, or leave it out with --skip-unreadable"):
        decode(content, "x")


def test_a_link_to_itself_is_no_folder_and_no_traceback(tmp_path):
    folder(tmp_path / "p", [tagged(pictures(1)[0], 1, "PNG")])
    (tmp_path / "p" / "self").symlink_to(tmp_path / "p" / "self")
    assert len(list_images(tmp_path / "p").files) == 1
    (tmp_path / "p" / "self.png").symlink_to(tmp_path / "p" / "self.png")
    assert len(list_images(tmp_path / "p").files) == 2, "it looks like an image, and is reported as one that cannot be read"


def test_training_refuses_what_an_audit_refuses(tmp_path):
    from diffleak.training.images import read_training_data

    dark = folder(tmp_path / "dark", map(deep_png, deep_pictures(12, 4095)))
    assert "12 files in" in refusal(lambda: read_training_data(training(dark, tmp_path / "m")))
    read = read_training_data(training(dark, tmp_path / "m", white=4095)).images
    np.testing.assert_array_equal(read[..., 0], np.rint(deep_pictures(12, 4095) * 255 / 4095))
    np.save(tmp_path / "clear.npy", pictures(12, channels=4))
    rgba = training(tmp_path / "clear.npy", tmp_path / "m", alpha="white")
    assert "this model takes RGBA" in refusal(lambda: read_training_data(rgba, ImageShape(4, 6, 8)))
    opaque = {"model": {"in_channels": 3, "out_channels": 3}}
    assert "alpha must be" in refusal(lambda: training(tmp_path / "clear.npy", tmp_path / "m", alpha="lilac"))
    read = read_training_data(training(tmp_path / "clear.npy", tmp_path / "m", **opaque))
    np.testing.assert_array_equal(read.images, pictures(12, channels=4)[..., :3])
    assert read.tally.transparent == 12


def test_every_command_that_reads_images_has_the_three_flags(capsys):
    from diffleak.cli import app

    reading = {"audit", "geometry", "train", "defend", "quality", "caption", "check", "extract", "inquire", "lora", "split"}
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert reading < names
    for name in names:
        shown = call(capsys, name, "--help")[1]
        assert {flag in shown for flag in ("--exif", "--alpha", "--white")} == {name in reading}, name


def test_the_defaults_are_those_of_the_trainers():
    assert Decoding() == AS_TRAINERS == Decoding("apply", "drop", None)
    assert replace(AS_TRAINERS, exif="ignore") == IGNORE
    with pytest.raises(UnreadableImage):
        decode(b"", "x")


def test_a_few_bright_pixels_do_not_make_a_set_of_12_bit_images_one_of_16():
    dim, bright = Notes(largest=4000, full=65535), Notes(largest=65535, full=65535)
    tally = NO_IMAGES
    for notes in (*[dim] * 19, bright):
        tally = tally.plus(notes)
    said = refusal(lambda: tally.refuse("x", AS_TRAINERS))
    assert (
        "19 of 20 files in x use less than a quarter of it (largest value of all: 65,535 of 65,535)" in said
        and "or 65535 if they are" in said
    )
    night = NO_IMAGES.plus(dim).plus(bright).plus(bright)
    night.refuse("x", AS_TRAINERS)
    assert night.described(AS_TRAINERS) == (
        "3 of more than 8 bits (largest value 65,535 of 65,535, 1 of them uses less than a quarter of their range)",
    )


def test_images_without_an_ending_are_counted_and_texts_are_not(tmp_path):
    data = folder(tmp_path / "p", [tagged(pictures(1)[0], 1, "PNG")])
    for name in ("noext", "pic.jpg_large"):
        (data / name).write_bytes(tagged(pictures(1)[0], 1, "JPEG"))
    (data / "a.txt").write_bytes(b"GIF8 is a format")
    (data / "notes.odt").write_bytes(b"PK\3\4")
    found = list_images(data)
    assert (len(found.files), found.left_out.unopened, found.left_out.first_unopened) == (1, 2, "noext")


@pytest.mark.parametrize(
    ("trained", "here", "deep", "said"),
    [
        (None, 4095, 1, "has no value for white, got 4095, and 1 image differs by it: leave out --white"),
        (4095, None, 2, "has white 4095, got none, and 2 images differ by it: give --white 4095"),
    ],
)
def test_a_reading_without_a_value_is_said_in_words(tmp_path, trained, here, deep, said):
    (tmp_path / "train.json").write_text(json.dumps({"white": trained, "images": {"deep": 1}}))
    with pytest.raises(UserError) as stopped:
        refuse_other_reading(tmp_path / "train.json", Decoding(white=here), Tally(deep=deep))
    assert str(stopped.value).endswith(said)
