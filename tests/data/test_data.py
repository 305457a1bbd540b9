"""Images from every kind of source, what is refused and how, and who is on which side."""

import json
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures.pictures import encoded, image
from PIL import Image
from sklearn.datasets import load_digits

from diffleak.data import decoding
from diffleak.data.cohort import one_source, two_sources
from diffleak.data.decoding import UnreadableImage
from diffleak.data.draw import choose_members
from diffleak.data.pixels import ImageShape, fit, pixel_hash, to_model, to_uint8
from diffleak.data.scan import scan
from diffleak.data.sources import ImageSource, open_source
from diffleak.data.split import read_split
from diffleak.errors import UserError


def pictures(n, height=8, width=6, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def decode(content, name):
    return decoding.decode(content, name).pixels


def folder(path, images, suffix=".png"):
    path.mkdir(parents=True)
    for i, pixels in enumerate(images):
        image(pixels).save(path / f"{i:03d}{suffix}")
    return path


def parquet(path, cells, column="image", group=None):
    pq.write_table(pa.table({"label": list(range(len(cells))), column: cells}), path, row_group_size=group or len(cells))
    return path


def read_all(source):
    return [source.read(i) for i in range(len(source))]


def one_line(error, match):
    assert "\n" not in str(error.value)
    assert re.search(match, str(error.value))


# sources


def sources_of(tmp_path, images):
    """The same images as every kind of DATA."""
    content = [encoded(image(p)) for p in images]
    np.save(tmp_path / "a.npy", images)
    np.savez(tmp_path / "one.npz", pictures=images, labels=np.arange(len(images)))
    np.savez_compressed(tmp_path / "two.npz", train=images, other=images[::-1])
    return {
        "folder": folder(tmp_path / "images", images),
        "npy": tmp_path / "a.npy",
        "npz": tmp_path / "one.npz",
        "npz with a key": f"{tmp_path / 'two.npz'}:train",
        "parquet of structs": parquet(tmp_path / "s.parquet", [{"bytes": c, "path": f"{i}.png"} for i, c in enumerate(content)]),
        "parquet of bytes": parquet(tmp_path / "b.parquet", content, column="img", group=2),
        "parquet with a key": f"{parquet(tmp_path / 'k.parquet', content, column='photo')}:photo",
        "array": images,
        "hf": f"hf:{folder(tmp_path / 'hub', images)}:train",
    }


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The datasets library with its cache in the test's own folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_kind_of_source_gives_the_same_pixels(tmp_path, channels):
    images = pictures(5, channels=channels)
    for kind, data in sources_of(tmp_path, images).items():
        source = open_source(data)
        assert len(source) == len(source.ids) == len(set(source.ids)) == 5, kind
        for got, expected in zip(read_all(source), images, strict=True):
            assert got.dtype == np.uint8
            np.testing.assert_array_equal(got, expected, err_msg=kind)


def test_grey_arrays_need_no_channel_axis():
    images = pictures(4, channels=1)
    np.testing.assert_array_equal(open_source(images[..., 0]).read(2), images[2])


def test_ids_of_a_folder_are_relative_posix_paths_and_other_files_are_ignored(tmp_path):
    root = folder(tmp_path / "data", pictures(1))
    folder(root / "b" / "deep", pictures(2))
    folder(root / "a b", pictures(1), suffix=".JPG")
    for other in ("metadata.jsonl", "notes.txt", "b/model.safetensors", "b/no_suffix"):
        (root / other).write_text("x")
    (root / "folder.png").mkdir()
    source = open_source(str(root))
    assert source.ids == ("000.png", "a b/000.JPG", "b/deep/000.png", "b/deep/001.png")
    np.testing.assert_array_equal(source.read(3), pictures(2)[1])


def test_ids_of_arrays_and_tables_are_row_numbers(tmp_path):
    images = pictures(12)
    path = parquet(tmp_path / "a.parquet", [encoded(image(p)) for p in images], group=5)
    for data in (images, path):
        assert open_source(data).ids == tuple(str(i) for i in range(12))


def test_rows_of_a_parquet_file_can_be_read_in_any_order_across_row_groups(tmp_path):
    images = pictures(11)
    source = open_source(parquet(tmp_path / "a.parquet", [encoded(image(p)) for p in images], group=3))
    for i in (10, 0, 3, 2, 9, 5, 6, 1):
        np.testing.assert_array_equal(source.read(i), images[i])


def test_digits_are_scikit_learns_stretched_to_eight_bits():
    source = open_source("digits")
    assert len(source) == 1797
    raw = load_digits().images
    np.testing.assert_allclose(source.read(7)[..., 0], raw[7] * 255 / 16, atol=0.5)
    assert source.read(7).shape == (8, 8, 1)


@pytest.mark.usefixtures("hub_cache")
def test_a_hub_locator_reads_a_local_folder_and_its_split(tmp_path):
    images = pictures(6)
    root = tmp_path / "set"
    for split in ("train", "test"):
        folder(root / split, images[:4] if split == "train" else images[4:])
    assert len(open_source(f"hf:{root}")) == 4
    test = open_source(f"hf:{root}:test")
    assert len(test) == 2
    np.testing.assert_array_equal(test.read(1), images[5])
    with pytest.raises(UserError, match="cannot be loaded") as error:
        open_source(f"hf:{root}:validation")
    one_line(error, "validation")


@pytest.mark.usefixtures("hub_cache")
def test_a_hub_locator_reads_local_parquet_files(tmp_path):
    images = pictures(4)
    (tmp_path / "set").mkdir()
    import datasets

    cells = [{"bytes": encoded(image(p)), "path": None} for p in images]
    table = datasets.Dataset.from_dict(
        {"picture": cells, "label": range(4)}, datasets.Features({"picture": datasets.Image(), "label": datasets.Value("int64")})
    )
    table.to_parquet(tmp_path / "set" / "train-00000.parquet")
    source = open_source(f"hf:{tmp_path / 'set'}")
    np.testing.assert_array_equal(read_all(source), images)


def test_a_source_passes_through_unchanged():
    source = open_source(pictures(2))
    assert open_source(source) is source


# modes


def gradient(mode):
    grey = np.tile(np.arange(0, 240, 30, dtype=np.uint8), (6, 1))
    base = Image.fromarray(grey)
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 256 + 99)
    return base.convert(mode) if mode != "P" else base.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)


@pytest.mark.parametrize(
    ("mode", "kind", "channels"),
    [
        *[("L", "PNG", 1), ("RGB", "PNG", 3), ("RGBA", "PNG", 4), ("P", "PNG", 3), ("P", "GIF", 3), ("1", "PNG", 1), ("LA", "PNG", 4)],
        *[("I;16", "PNG", 1), ("I;16", "TIFF", 1), ("CMYK", "TIFF", 3), ("L", "BMP", 1), ("RGB", "WEBP", 3), ("L", "PPM", 1)],
    ],
)
def test_every_mode_decodes_to_eight_bits_of_one_three_or_four_channels(mode, kind, channels):
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode(encoded(gradient(mode), kind, **options), "x")
    assert pixels.dtype == np.uint8
    assert pixels.shape == (6, 8, channels)
    expected = np.arange(0, 240, 30) if mode != "1" else np.asarray(gradient("1").convert("L"))[0]
    np.testing.assert_array_equal(pixels[0, :, 0], expected)
    if channels == 4:
        assert (pixels[..., 3] == 255).all()


def test_a_palette_with_transparency_keeps_it():
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putpixel((0, 0), 0)
    pixels = decode(encoded(picture, transparency=0), "x")
    assert pixels.shape == (4, 4, 4)
    assert pixels[0, 0, 3] == 0
    assert pixels[1, 1].tolist() == [0, 255, 0, 255]


def test_sixteen_bits_are_scaled_not_saturated_in_every_format(tmp_path):
    deep = np.arange(0, 60_000, 7_500, dtype=np.uint16).reshape(2, 4)
    expected = (deep >> 8).astype(np.uint8)
    for name in ("a.png", "a.tif", "a.pgm"):
        if name == "a.pgm":
            (tmp_path / name).write_bytes(b"P5\n4 2\n65535\n" + deep.astype(">u2").tobytes())
        else:
            Image.fromarray(deep).save(tmp_path / name)
        np.testing.assert_allclose(decode(tmp_path / name, name)[..., 0].astype(int), expected.astype(int), atol=1, err_msg=name)


# what cannot be read


def noisy_jpeg():
    return encoded(image(pictures(1, 64, 64)[0]), "JPEG")


def png_of_size(width, height):
    """A valid header that promises width x height pixels, with next to no data."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


DAMAGED = {
    "truncated JPEG": (noisy_jpeg()[:-400], "cannot be decoded"),
    "truncated PNG": (encoded(image(pictures(1, 64, 64)[0]))[:-4000], "cannot be decoded"),
    "JPEG header only": (noisy_jpeg()[:40], "is no image|cannot be decoded"),
    "text": (b"this is no picture", "is no image"),
    "zero bytes": (b"", "is no image"),
    "decompression bomb": (png_of_size(60_000, 60_000), "decompression bomb"),
    "moderate bomb": (png_of_size(9_000, 8_000), "9000 x 8000 pixels is above the limit"),
    "no pixels": (png_of_size(0, 0), "is no image|cannot be decoded"),
    "wrong checksum": (encoded(image(pictures(1)[0])).replace(b"IDAT", b"IDAX"), "is no image|cannot be decoded"),
}


@pytest.mark.parametrize(("content", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_a_one_line_error_that_names_it_and_the_way_out(tmp_path, content, message):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    for read in (lambda: open_source(tmp_path).read(0), lambda: decode(content, str(path))):
        with pytest.raises(UnreadableImage, match=message) as error:
            read()
        one_line(error, re.escape(str(path)))
        one_line(error, "--skip-unreadable")


def test_an_image_above_the_pixel_limit_is_refused(monkeypatch):
    content = encoded(image(pictures(1, 10, 10)[0]))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 100)
    assert decode(content, "x").shape == (10, 10, 3)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 99)
    with pytest.raises(UnreadableImage, match="x: 10 x 10 pixels is above the limit of 99"):
        decode(content, "x")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on damaged TIFF tags
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_a_corrupted_file_either_decodes_or_is_reported_as_unreadable(kind):
    rng = np.random.default_rng(0)
    content = encoded(image(pictures(1, 24, 24)[0]), kind)
    unreadable = 0
    for _ in range(300):
        broken = bytearray(content[: rng.integers(1, len(content) + 1)] if rng.random() < 0.3 else content)
        for position in rng.integers(0, min(len(broken), 200 if rng.random() < 0.7 else len(broken)), rng.integers(1, 6)):
            broken[position] = rng.integers(256)
        try:
            pixels = decode(bytes(broken), "x")
        except UnreadableImage as error:
            unreadable += "\n" not in str(error)
        else:
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] in (1, 3, 4)
    assert unreadable > 20


def test_a_missing_file_of_a_folder_that_shrank_is_unreadable(tmp_path):
    source = open_source(folder(tmp_path / "a", pictures(2)))
    (tmp_path / "a" / "001.png").unlink()
    with pytest.raises(UnreadableImage, match=r"001\.png"):
        source.read(1)


def test_a_table_cell_without_an_image_is_unreadable_by_its_row(tmp_path):
    good = encoded(image(pictures(1)[0]))
    for cells in ([good, None], [{"bytes": good, "path": "a"}, {"bytes": None, "path": "b"}]):
        source = open_source(parquet(tmp_path / "a.parquet", cells))
        assert source.read(0).shape == (8, 6, 3)
        with pytest.raises(UnreadableImage, match="row 1: column 'image' holds no encoded image"):
            source.read(1)


# data that is none


def bad_data(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("no table")
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "zero.npy").write_bytes(b"")
    np.save(tmp_path / "float.npy", np.zeros((3, 8, 8, 3)))
    np.save(tmp_path / "two.npy", np.zeros((3, 8), dtype=np.uint8))
    np.save(tmp_path / "five.npy", np.zeros((3, 8, 8, 5), dtype=np.uint8))
    np.save(tmp_path / "none.npy", np.zeros((0, 8, 8), dtype=np.uint8))
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "object.npz", a=np.array([{"a": 1}], dtype=object))
    np.savez(tmp_path / "several.npz", train=pictures(2), test=pictures(2))
    np.savez(tmp_path / "floats.npz", x=np.zeros((3, 8, 8)), y=np.arange(3))
    np.savez(tmp_path / "whole.npz", x=pictures(20))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:1000])
    pq.write_table(pa.table({"label": [1], "text": ["a"]}), tmp_path / "no_image.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "no_rows.parquet")
    return tmp_path


BAD_DATA = {
    "missing": "found nothing at .*missing",
    "empty": "must contain images .*found none",
    "text.parquet": "cannot be read as Parquet",
    "no_image.parquet": r"must have an image column \(image, img, .*it has label, text: say which as .*:NAME",
    "no_rows.parquet": "must hold at least one image",
    "no_image.parquet:photo": r"no_image\.parquet has no column photo; it has label, text: name one of them",
    "text.npy": "cannot be read as numpy data",
    "zero.npy": "cannot be read as numpy data",
    "float.npy": r"must hold uint8 images .*got float64 \(3, 8, 8, 3\)",
    "two.npy": r"must hold uint8 images .*got uint8 \(3, 8\)",
    "five.npy": r"must hold uint8 images .*got uint8 \(3, 8, 8, 5\)",
    "none.npy": "must hold at least one image|empty",
    "object.npy": "without pickle",
    "object.npz": "without pickle",
    "several.npz": r"must hold one uint8 image array; found train, test: say which as .*several\.npz:NAME",
    "several.npz:valid": "has no array 'valid'; it holds train, test",
    "floats.npz": r"must hold images as uint8 \(N, H, W\) .*; found x, float64 \(3, 8, 8\), y, int64 \(3,\): write them so",
    "cut.npz": "cannot be read as numpy data",
}


@pytest.mark.parametrize(("name", "message"), BAD_DATA.items(), ids=BAD_DATA.keys())
def test_data_that_cannot_be_used_is_a_one_line_error(tmp_path, name, message):
    with pytest.raises(UserError, match=message) as error:
        open_source(str(bad_data(tmp_path) / name))
    one_line(error, message)


@pytest.mark.parametrize("array", [np.zeros((3, 8, 8)), np.zeros((3, 8, 8, 2), np.uint8), np.zeros((0, 8, 8), np.uint8)])
def test_arrays_must_be_uint8_images(array):
    with pytest.raises(UserError, match="array must hold"):
        open_source(array)


# the pass over all images


def a_cohort(members, nonmembers, **options):
    return two_sources(open_source(members), open_source(nonmembers), **options)


def scanned(members, nonmembers, shape=None, resize=False, skip_unreadable=False):
    return scan(a_cohort(members, nonmembers), shape, resize, skip_unreadable)


def test_a_sound_cohort_is_kept_whole_with_features_of_every_image():
    found = scanned(pictures(12), pictures(15, seed=1))
    assert len(found.cohort) == 27
    assert found.cohort.member.sum() == 12
    assert found.shape == ImageShape(channels=3, height=8, width=6)
    assert len(found.features) == 27
    assert np.isfinite(found.features).all()
    assert (found.omitted, found.repeated) == ((), 0)


def test_repeated_images_on_one_side_are_counted_not_refused():
    members = pictures(12)
    members[3] = members[7] = members[0]
    assert scanned(members, pictures(12, seed=1)).repeated == 2


def test_unreadable_images_are_counted_and_the_first_is_named(tmp_path):
    members = folder(tmp_path / "m", pictures(12))
    (members / "005.png").write_bytes(b"no picture")
    (members / "007.png").write_bytes(b"")
    image(pictures(1, 9, 6)[0]).save(members / "009.png")
    with pytest.raises(UserError) as error:
        scanned(members, pictures(12, seed=1))
    one_line(error, r"^2 of 24 images cannot be read \(first: .*005\.png is no image; remove it, or leave it out with --skip-unreadable\)$")


def test_a_numpy_file_that_goes_away_is_unreadable_by_its_row(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, pictures(12))
    source = open_source(path)
    path.unlink()
    with pytest.raises(UnreadableImage, match=r"a\.npy row 3 cannot be read any more") as error:
        source.read(3)
    one_line(error, "put the file back, or leave it out with --skip-unreadable")


def test_a_numpy_file_in_any_order_or_without_a_channel_axis_gives_its_images(tmp_path):
    images = pictures(5, channels=1)
    for name, stored in (("c", images), ("fortran", np.asfortranarray(images)), ("grey", images[..., 0])):
        np.save(tmp_path / f"{name}.npy", stored)
        np.testing.assert_array_equal(read_all(open_source(tmp_path / f"{name}.npy")), images)


def test_skipped_images_are_recorded_and_left_out(tmp_path):
    members, held_out = folder(tmp_path / "m", pictures(12)), folder(tmp_path / "h", pictures(13, seed=1))
    (members / "005.png").write_bytes(b"no picture")
    (held_out / "002.png").write_bytes(b"")
    found = scanned(members, held_out, skip_unreadable=True)
    assert len(found.cohort) == len(found.features) == 23
    assert found.cohort.member.sum() == 11
    assert [note.partition(":")[0] for note in sorted(found.omitted)] == ["members/005.png", "nonmembers/002.png"]
    assert not {"members/005.png", "nonmembers/002.png"} & set(found.cohort.ids)
    for i, image_id in enumerate(found.cohort.ids):
        np.testing.assert_array_equal(found.cohort.read(i), found.cohort.of(image_id))


def test_a_side_that_becomes_too_small_by_skipping_is_refused(tmp_path):
    members = folder(tmp_path / "m", pictures(10))
    (members / "005.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="needs at least 10 members and 10 held-out images; got 9 and 12"):
        scanned(members, pictures(12, seed=1), skip_unreadable=True)


@pytest.mark.parametrize(("m", "n"), [(9, 20), (20, 9), (1, 1)])
def test_fewer_than_ten_images_a_side_are_refused(m, n):
    with pytest.raises(UserError, match=f"needs at least 10 members and 10 held-out images; got {m} and {n}"):
        scanned(pictures(m), pictures(n, seed=1))


def test_images_of_another_size_are_counted_and_named(tmp_path):
    members = folder(tmp_path / "m", pictures(12))
    for name in ("004.png", "007.png"):
        image(pictures(1, 9, 6)[0]).save(members / name)
    with pytest.raises(UserError) as error:
        scanned(members, pictures(12, seed=1))
    one_line(error, r"all images must have one shape; 2 of 24 images are not 8 x 6 RGB as the first image is")
    one_line(error, r"first: .*004\.png is 9 x 6 RGB.*--resize")


def test_images_with_other_channels_than_the_models_are_counted_and_named():
    with pytest.raises(UserError, match=r"24 of 24 images do not have .*8 x 6 grey \(first: .* is 8 x 6 RGB\)"):
        scanned(pictures(12), pictures(12, seed=1), shape=ImageShape(1, 8, 6))


def test_resize_makes_mixed_images_fit():
    found = scanned(pictures(12, 20, 16), pictures(12, 9, 9, channels=1), shape=ImageShape(3, 8, 8), resize=True)
    assert found.shape == ImageShape(3, 8, 8)
    assert len(found.cohort) == 24


def test_the_same_image_on_both_sides_is_refused_whatever_its_format(tmp_path):
    members, held_out = pictures(12), pictures(12, seed=1)
    held_out[[4, 6]] = members[[9, 2]]
    with pytest.raises(UserError) as error:
        scanned(folder(tmp_path / "m", members), folder(tmp_path / "h", held_out, suffix=".bmp"))
    one_line(error, "must not share an image; 2 images are on both sides")
    one_line(error, r"009\.png = 004\.bmp")
    one_line(error, r"002\.png = 006\.bmp")


def test_many_shared_images_are_counted_and_five_listed():
    images = pictures(12)
    with pytest.raises(UserError) as error:
        scanned(images, images)
    one_line(error, "12 images are on both sides.* and 7 more")
    assert str(error.value).count(" = ") == 5


def test_one_different_pixel_makes_a_different_image():
    images = pictures(12)
    other = images.copy()
    other[:, 0, 0, 0] ^= 1
    assert scanned(images, other).cohort.member.sum() == 12


def test_images_of_equal_bytes_and_different_shape_are_different():
    flat = np.arange(48, dtype=np.uint8)
    assert pixel_hash(flat.reshape(4, 4, 3)) != pixel_hash(flat.reshape(2, 8, 3))
    assert pixel_hash(flat.reshape(4, 4, 3)) == pixel_hash(np.asfortranarray(flat.reshape(4, 4, 3)))


def test_the_fingerprint_changes_with_one_pixel_one_side_or_one_name_and_not_with_the_format(tmp_path):
    members, held_out = pictures(12), pictures(12, seed=1)
    base = scanned(members, held_out).fingerprint
    assert scanned(members.copy(), held_out.copy()).fingerprint == base
    assert scanned(held_out, members).fingerprint != base
    touched = members.copy()
    touched[7, 3, 2, 1] ^= 1
    assert scanned(touched, held_out).fingerprint != base
    assert scanned(members, held_out[:11]).fingerprint != base
    swapped = (np.r_[members[:11], held_out[:1]], np.r_[members[11:], held_out[1:]])
    assert scanned(*swapped).fingerprint != base
    named = [scanned(folder(tmp_path / str(i), members, suffix), held_out).fingerprint for i, suffix in enumerate((".png", ".png", ".bmp"))]
    assert named[0] == named[1]
    assert len({base, *named}) == 3


# fitting


def test_an_image_that_fits_is_passed_through_and_another_is_refused_without_resize():
    pixels = pictures(1)[0]
    assert fit(pixels, ImageShape(3, 8, 6), resize=False, name="x") is pixels
    with pytest.raises(UserError, match="x is 8 x 6 RGB, the model takes 8 x 8 grey; --resize converts it"):
        fit(pixels, ImageShape(1, 8, 8), resize=False, name="x")


def test_resizing_is_antialiased():
    board = np.indices((64, 64)).sum(axis=0) % 2 * np.uint8(255)
    small = fit(board.astype(np.uint8)[..., None], ImageShape(1, 8, 8), resize=True, name="x")
    assert small.shape == (8, 8, 1)
    # every output pixel covers an equal number of black and white ones; without antialiasing it would be one of them
    assert np.abs(small.astype(float) - 127.5).max() < 3


def test_resizing_keeps_the_aspect_and_crops_the_centre():
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 200
    np.testing.assert_array_equal(fit(wide, ImageShape(3, 8, 8), resize=True, name="x"), np.full((8, 8, 3), 200))
    tall = wide.transpose(1, 0, 2).copy()
    half = fit(tall, ImageShape(3, 4, 4), resize=True, name="x")
    assert half.shape == (4, 4, 3)
    assert np.abs(half[1:3].astype(int) - 200).max() < 20
    assert half.mean() > 150


@pytest.mark.parametrize("size", [(5, 9), (9, 5), (100, 3), (3, 100), (1, 1), (8, 8)])
@pytest.mark.parametrize("target", [(8, 8), (7, 4)])
def test_resizing_gives_the_size_and_channels_of_the_model(size, target):
    for channels in (1, 3, 4):
        for wanted in (1, 3, 4):
            shape = ImageShape(wanted, *target)
            assert fit(pictures(1, *size, channels)[0], shape, resize=True, name="x").shape == (*target, wanted)


def test_alpha_is_dropped_where_the_model_takes_none_and_kept_where_it_does():
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    pixels[..., 0] = 255  # red, fully transparent on the left, opaque on the right
    pixels[:, 2:, 3] = 255
    for resize in (False, True):
        np.testing.assert_array_equal(fit(pixels, ImageShape(3, 4, 4), resize, "x"), np.asarray(image(pixels).convert("RGB")))
        assert fit(pixels, ImageShape(4, 4, 4), resize, "x") is pixels
    assert fit(pixels, ImageShape(1, 4, 4), resize=True, name="x")[0, 0, 0] == 76  # the grey of red
    with pytest.raises(UserError, match="x is 4 x 4 RGB, the model takes 4 x 4 grey; --resize converts it"):
        fit(pixels, ImageShape(1, 4, 4), resize=False, name="x")
    grey = np.dstack([pixels[..., :1]] * 3 + [pixels[..., 3]])
    np.testing.assert_array_equal(fit(grey, ImageShape(1, 4, 4), resize=False, name="x"), grey[..., :1])


def test_a_shape_is_written_as_height_times_width():
    assert str(ImageShape(3, 8, 6)) == "8 x 6 RGB"
    assert str(ImageShape(1, 32, 32)) == "32 x 32 grey"


def test_model_floats_run_from_minus_one_to_one_and_come_back_exactly():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    images = np.concatenate([values, values[:, ::-1]], axis=3).repeat(2, axis=0)[..., [0, 1, 0]]
    x = to_model(images)
    assert x.dtype == np.float32
    assert x.shape == (2, 3, 16, 16)
    assert (x.min(), x.max()) == (-1.0, 1.0)
    np.testing.assert_allclose(x, images.transpose(0, 3, 1, 2) / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(to_uint8(x), images)


def test_floats_beyond_the_range_are_clipped_to_pixels():
    x = np.array([-7.0, -1.0, 0.0, 1.0, 7.0], dtype=np.float32).reshape(1, 1, 1, 5)
    assert to_uint8(x).ravel().tolist() == [0, 0, 128, 255, 255]


# sides


def test_ids_that_both_sides_use_get_their_side_as_prefix():
    both = a_cohort(pictures(3), pictures(2, seed=1))
    assert both.ids == ("members/0", "members/1", "members/2", "nonmembers/0", "nonmembers/1")
    assert both.member.tolist() == [True, True, True, False, False]
    np.testing.assert_array_equal(both.of("nonmembers/1"), pictures(2, seed=1)[1])


def test_ids_that_differ_are_kept_and_sorted(tmp_path):
    members = folder(tmp_path / "m", pictures(2))
    both = a_cohort(members, pictures(12, seed=1))
    assert both.ids == (*map(str, range(12)), "000.png", "001.png")  # numbers in their own order, shorter names first
    for i, image_id in enumerate(both.ids):
        expected = pictures(2)[int(image_id[:3])] if both.member[i] else pictures(12, seed=1)[int(image_id)]
        np.testing.assert_array_equal(both.read(i), expected)


def test_the_limit_is_per_side_deterministic_and_a_function_of_id_and_seed():
    members, held_out = pictures(40), pictures(30, seed=1)
    first, again, other = (a_cohort(members, held_out, limit=12, seed=s) for s in (0, 0, 1))
    assert (first.member.sum(), (~first.member).sum()) == (12, 12)
    assert first.ids == again.ids != other.ids
    larger = a_cohort(members, held_out, limit=20)
    assert set(first.ids) < set(larger.ids)
    assert len(a_cohort(members, held_out, limit=1000)) == 70
    np.testing.assert_array_equal(first.read(0), members[int(first.ids[0].removeprefix("members/"))])


def write_split(path, members, nonmembers):
    path.write_text(json.dumps({"members": members, "nonmembers": nonmembers}))
    return path


def test_a_split_file_divides_one_source(tmp_path):
    split = write_split(tmp_path / "split.json", ["3", 0], ["1", "4"])
    cohort = one_source(open_source(pictures(6)), split)
    assert cohort.ids == ("0", "1", "3", "4")
    assert cohort.member.tolist() == [True, False, True, False]
    np.testing.assert_array_equal(cohort.of("3"), pictures(6)[3])
    assert len(one_source(open_source(pictures(6)), split, limit=1)) == 2
    split.write_bytes(b"\xef\xbb\xbf" + split.read_bytes())  # the mark that some editors write
    assert one_source(open_source(pictures(6)), split).ids == cohort.ids


BAD_SPLITS = {
    "no JSON": ("{members", "must be JSON of the form"),
    "a list": ("[1, 2]", "must be JSON of the form"),
    "missing key": ('{"members": ["0"]}', "must be JSON of the form"),
    "null": ('{"members": null, "nonmembers": ["1"]}', "must be JSON of the form"),
    "not UTF-8": (b"\xff\xfe\x00", "must be JSON of the form"),
    "unknown ids": (
        '{"members": ["0", "99", "7"], "nonmembers": ["1"]}',
        r"names 2 ids that array does not have \(first: 99; .* look like 0\)",
    ),
    "both sides": ('{"members": ["0", "2"], "nonmembers": ["2", "1"]}', r"has 1 id on both sides \(first: 2\)"),
    "twice": ('{"members": ["0", "0"], "nonmembers": ["1"]}', "must list each id once"),
    "no members": ('{"members": [], "nonmembers": ["1"]}', "must name at least one member"),
    "no held-out": ('{"members": ["1"], "nonmembers": []}', "must name held-out images; it has none"),
}


@pytest.mark.parametrize(("content", "message"), BAD_SPLITS.values(), ids=BAD_SPLITS.keys())
def test_a_bad_split_file_is_a_one_line_error(tmp_path, content, message):
    path = tmp_path / "split.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        one_source(open_source(pictures(6)), path)
    one_line(error, re.escape(str(path)))


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_split_file_that_is_no_file_says_so(tmp_path, name):
    with pytest.raises(UserError, match=r"split file .* cannot be read"):
        read_split(tmp_path / name, open_source(pictures(6)))


def test_members_are_chosen_at_random_by_seed_and_the_rest_is_held_out():
    ids = tuple(f"i{i}" for i in range(100))
    members, held_out = choose_members(ids, 30, seed=0)
    assert (len(members), len(held_out)) == (30, 70)
    assert set(members) | set(held_out) == set(ids)
    assert list(members) == [i for i in ids if i in members]
    assert members != ids[:30]
    assert choose_members(ids, 30, seed=0) == (members, held_out)
    assert choose_members(ids, 30, seed=1)[0] != members


def test_all_images_are_members_without_a_size():
    assert choose_members(("a", "b"), None, seed=0) == (("a", "b"), ())


@pytest.mark.parametrize("size", [3, 4])
def test_choosing_members_must_leave_held_out_images(size):
    with pytest.raises(UserError, match=f"at most 2 of 3; got {size}"):
        choose_members(("a", "b", "c"), size, seed=0)


def test_images_are_read_only_when_asked_for():
    calls = []

    def read(i):
        calls.append(i)
        return pictures(20)[i]

    source = ImageSource("counted", tuple(f"{i:02d}" for i in range(20)), read)
    cohort = two_sources(source, open_source(pictures(20, seed=1)), limit=15)
    assert calls == []
    cohort.of(cohort.ids[int(np.flatnonzero(cohort.member)[4])])
    assert len(calls) == 1


def test_a_folder_is_opened_by_path_object_or_text(tmp_path):
    root = folder(tmp_path / "a", pictures(2))
    assert open_source(Path(root)).ids == open_source(str(root)).ids


def test_dead_links_are_reported_and_companions_of_macos_are_not_images(tmp_path):
    root = folder(tmp_path / "images", pictures(3))
    (root / "._000.png").write_bytes(b"Mac OS X")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "000.png").write_bytes(b"Mac OS X")
    assert open_source(root).ids == ("000.png", "001.png", "002.png")
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(root)
    assert "gone.png" in source.ids
    with pytest.raises(UnreadableImage, match=r"gone.png cannot be decoded"):
        source.read(source.ids.index("gone.png"))


def test_a_pipe_in_the_place_of_an_image_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match=r"a.png cannot be decoded \(it is a pipe\)"):
        decode(tmp_path / "a.png", str(tmp_path / "a.png"))
