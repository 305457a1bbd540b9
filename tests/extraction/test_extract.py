"""`diffleak extract` from images to report: models that memorised or learnt nothing, planted copies, refusals, drawing a pair again."""

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.blocks import blocks
from fixtures.commands import all_recorded, call, refused, written_again
from fixtures.text import captioned_sides, text_folder
from PIL import Image

import diffleak
from diffleak import hub
from diffleak.attacks.subject import Subject
from diffleak.data.pixels import ImageShape, to_model, to_uint8
from diffleak.diffusion.analytic import Gaussian, Memoriser, linear_schedule
from diffleak.diffusion.conditions import Prompts
from diffleak.diffusion.denoiser import Denoiser
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.target import Target
from diffleak.errors import UserError
from diffleak.extraction.extract import extract
from diffleak.records.extraction import read_extraction
from diffleak.report import to_html
from diffleak.report.pages.extraction import page
from diffleak.reveal import reveal
from diffleak.stats import extraction as stats

pytestmark = pytest.mark.usefixtures("undrawn")

SCHEDULE = linear_schedule()
MEMBERS, HELD_OUT = 40, 260
SPLIT = {"members": [str(i) for i in range(MEMBERS)], "nonmembers": [str(i) for i in range(MEMBERS, MEMBERS + HELD_OUT)]}


class Text:
    """Captions as they are, without an embedding."""

    def __call__(self, texts: Sequence[str], together: bool = False) -> Prompts:
        return Prompts(tuple(texts), {"prompt_embeds": torch.zeros(len(texts), 1, 2)}, self)

    def truncated(self, texts: Sequence[str]) -> list[int]:
        return []


def target(denoiser: Denoiser, side: int = 8, **keys: Any) -> Target:
    return Target(denoiser, ImageShape(1, side, side), name="analytic", fingerprint=type(denoiser).__name__, **keys)


def memoriser(images: np.ndarray, texts: tuple[str, ...] | None = None) -> Memoriser:
    return Memoriser(torch.from_numpy(to_model(images)), SCHEDULE, texts)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(SPLIT))
    return path


@pytest.fixture(scope="module")
def captioned(tmp_path_factory, digits) -> tuple[str, str]:
    """Folders of 12 members and 60 held-out digits, each with a caption of its own, by number."""
    root, sides = tmp_path_factory.mktemp("captioned"), []
    for name, rows in (("members", range(12)), ("held-out", range(12, 72))):
        folder = root / name
        folder.mkdir()
        for row in rows:
            Image.fromarray(digits[row, :, :, 0]).save(folder / f"{row:02d}.png")
            (folder / f"{row:02d}.txt").write_text(f"picture {row}")
        sides.append(str(folder))
    return sides[0], sides[1]


@pytest.mark.parametrize("extractor", [None, "pixels"])
def test_a_memoriser_gives_every_member_back(digits, split, extractor):
    found = extract(
        target(memoriser(digits[:MEMBERS])), data="digits", split=split, images=400, steps=20, extractor=extractor, false_copies=0.05
    )
    record = found.record
    assert record.copy_rate.value == 1.0 and record.copy_rate.low > 0.85
    assert record.held_out_rate.value < 0.15 and record.decisive.chance < 1e-9
    assert [rates.distance for rates in record.distances] == (["tiles"] if extractor is None else ["pixels", "tiles"])
    assert all(pair.is_copy and pair.distances["tiles"] < 0.02 for pair in record.pairs)
    assert {pair.id for pair in record.pairs} == {*SPLIT["members"]}
    drawn = {pair.id: found.drawings[pair.image] for pair in record.pairs}
    assert all(np.abs(drawn[str(i)].astype(int) - digits[i]).max() <= 2 for i in range(MEMBERS))


def test_a_gaussian_gives_no_member_back(split):
    record = extract(target(Gaussian(0.0, 1 / 3, SCHEDULE)), data="digits", split=split, images=200, steps=10).record
    assert record.decisive.chance > 0.025 and record.copy_rate.low <= 0.01
    assert record.decisive.closest > 0.3
    assert record.calibrate == HELD_OUT / 2 and record.held_out.n == HELD_OUT


def test_a_planted_copy_is_found_and_listed_first(digits, split, tmp_path):
    """The model draws normals, and for one number the one member that it was given."""
    gaussian, copier = Gaussian(0.0, 1 / 3, SCHEDULE), memoriser(digits[17:18])

    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        return torch.cat([gaussian(x[:37], t), copier(x[37:38], t), gaussian(x[38:], t)])

    made = target(Denoiser.from_function(predict, SCHEDULE.alphas_cumprod))
    found = extract(made, data="digits", split=split, images=64, steps=20, batch_size=64, output=tmp_path / "out", thumbnails=True)
    pair = found.record.pairs[0]
    assert (pair.id, pair.image, pair.is_copy) == ("17", 37, True)
    assert pair.distances["tiles"] < 0.02 < 0.2 < found.record.pairs[1].distances["tiles"]
    written = tmp_path / "out" / "pairs"
    drawing = np.asarray(Image.open(written / "001-drawing-37.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(written / "001-member.png")), digits[17, :, :, 0])
    np.testing.assert_array_equal(drawing, found.drawings[37, :, :, 0])


def test_a_text_model_draws_for_members_and_held_out_images_alike_and_each_is_compared_with_its_own(captioned, digits):
    texts = tuple(f"picture {i}" for i in range(12))
    sides = dict(zip(("members", "nonmembers"), captioned, strict=True))
    settings = {**sides, "steps": 10, "guidance_scale": 1, "false_copies": 0.05}
    found = extract(target(memoriser(digits[:12], texts), text=Text()), **settings, draws=2)
    record = found.record
    assert (record.images, record.draws, record.copy_rate.value) == (72 * 2, 2, 1.0)
    assert record.held_out_rate.value < 0.2
    for pair in record.pairs:
        row = int(pair.id.removesuffix(".png"))
        assert pair.prompt == f"picture {row}" and pair.image == 2 * row + pair.draw
        assert np.abs(found.drawings[pair.image].astype(int) - digits[row]).max() <= 2
    swapped = extract(target(memoriser(digits[:12], texts[1:] + texts[:1]), text=Text()), **settings, draws=2).record
    assert swapped.copy_rate.value < 0.5, "a member that another caption draws is not this member's drawing"


def test_drawings_for_a_caption_depend_on_image_and_draw_alone_and_are_those_that_black_box_is_given(captioned, digits):
    made = target(Gaussian(0.1, 0.3, SCHEDULE), text=Text())
    settings = {"members": captioned[0], "steps": 4, "guidance_scale": 1.5}
    few = extract(made, **settings, draws=2).drawings.reshape(12, 2, 8, 8, 1)
    many = extract(made, **settings, nonmembers=captioned[1], draws=3).drawings.reshape(72, 3, 8, 8, 1)
    assert np.abs(few.astype(int) - many[:12, :2]).max() <= 1
    ids = tuple(f"{i:02d}.png" for i in range(12))
    noise = Noise(0, ids, (1, 8, 8))
    sampler = lambda steps: hub.new_sampler("ddim", SCHEDULE, steps, clip=True)
    subject = Subject(made.denoiser, torch.zeros(12, 1, 8, 8), noise, Text()([f"picture {i}" for i in range(12)]), sampler=sampler)
    seen = to_uint8(subject.draw(4, 1.5, 2).numpy()).reshape(2, 12, 8, 8, 1)
    assert np.abs(few.astype(int) - seen.transpose(1, 0, 2, 3, 4)).max() <= 1


def test_a_class_conditional_model_draws_as_many_of_every_class(tmp_path, model_folder, digits):
    folder = model_folder("classes", num_class_embeds=3)
    np.save(tmp_path / "members.npy", digits[:15])
    record = extract(folder, members=tmp_path / "members.npy", images=4, steps=2, device="cpu").record
    assert record.images == 12 and record.classes == "4 of each of 3 classes"
    assert all(pair.label == pair.image // 4 for pair in record.pairs)


@pytest.fixture
def command(model_folder, split, tmp_path) -> list[Any]:
    own = ["--data", "digits", "--split", split, "--images", "70", "--steps", "3", "--device", "cpu", "--threads", "1"]
    return ["extract", model_folder(), *own, "-o", tmp_path / "out"]


def test_the_command_writes_the_record_and_the_page_resumes_and_draws_a_pair_again(capsys, command, tmp_path):
    code, out, err = call(capsys, *command)
    folder = tmp_path / "out"
    assert code == 0, err
    assert "plan: 40 members and 260 held-out images; 70 images (8 x 8 grey) by ddim in 3 steps, 210 forwards; nearest by tiled" in err
    assert f"report: {folder / 'extract.html'}" in out and "Closest members" in out
    record = read_extraction(folder / "extract.json")
    raw = json.loads((folder / "extract.json").read_text())
    assert {"value", "low", "high"} <= set(raw["copy_rate"]) and {"value", "low", "high"} <= set(raw["held_out_rate"])
    assert [pair["distances"]["tiles"] for pair in raw["pairs"]] == sorted(pair["distances"]["tiles"] for pair in raw["pairs"])
    assert {(folder / name).stat().st_mode & 0o777 for name in ("extract.json", "extract.html")} == {0o600}
    assert "<img" not in (folder / "extract.html").read_text() and not (folder / "pairs").exists()
    chunks = {path: path.stat().st_mtime_ns for path in (folder / "generated").glob("*.npy")}
    assert len(chunks) == 2
    code, out, _ = call(capsys, *command, "--thumbnails", "--json")
    assert code == 0 and {path: path.stat().st_mtime_ns for path in chunks} == chunks, "drawings are read, not drawn again"
    assert json.loads(out)["pairs"] == raw["pairs"]
    assert (folder / "extract.html").read_text().count("<img") == 48
    files = sorted((folder / "pairs").iterdir())
    assert written_again(capsys, folder / "extract.html", "--thumbnails")
    assert len(files) == 48 and {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert (folder / "pairs").stat().st_mode & 0o777 == 0o700
    drawn = np.concatenate([np.load(path, allow_pickle=False) for path in sorted(chunks)])
    for pair in record.pairs[:2]:
        printed = shlex.split(record.reproduce(pair))
        code, out, err = call(capsys, *printed[1:])
        file = folder / f"drawing-{pair.image}.png"
        assert (code, out.strip()) == (0, f"drawing: {file}"), err
        np.testing.assert_array_equal(np.asarray(Image.open(file)), drawn[pair.image, :, :, 0])
        assert file.stat().st_mode & 0o777 == 0o600
    assert read_extraction(folder / "extract.json").pairs == record.pairs and all_recorded(folder)
    assert "numbered from 0 to 69; got 70" in refused(capsys, *command, "--only", "70")
    (folder / "digests.json").unlink()
    (folder / "pairs" / "001-member.png").unlink()
    assert f"{folder / 'pairs' / '001-member.png'} is not there: repeat the extract command" in refused(
        capsys, "report", folder, "--thumbnails"
    )


def test_an_anonymous_search_finds_the_same_and_names_no_file(tmp_path, captioned, digits):
    made = target(memoriser(digits[:12], tuple(f"picture {i}" for i in range(12))), text=Text())
    settings = {"members": captioned[0], "nonmembers": captioned[1], "steps": 4, "guidance_scale": 1, "draws": 2, "false_copies": 0.05}
    named = extract(made, **settings, output=tmp_path / "named").record
    record = extract(made, **settings, output=tmp_path / "keyed", anonymous=True).record
    assert (record.copy_rate, record.held_out_rate) == (named.copy_rate, named.held_out_rate)
    by_distance = lambda found: sorted(pair.distances["tiles"] for pair in found.pairs)
    np.testing.assert_allclose(by_distance(record), by_distance(named), atol=0.005)
    assert [pair.id for pair in sorted(record.pairs, key=lambda pair: pair.image)] == sorted(pair.id for pair in record.pairs)
    for file in ("extract.json", "extract.html"):
        text = (tmp_path / "keyed" / file).read_text()
        assert "05.png" not in text and "picture 5" not in text and record.pairs[0].id in text
    assert "05.png" in (tmp_path / "named" / "extract.json").read_text()
    table = reveal(tmp_path / "keyed").read_text()
    names = dict(line.split(",") for line in table.splitlines()[1:])
    assert {names[pair.id] for pair in record.pairs} == {pair.id for pair in named.pairs}
    with pytest.raises(UserError, match="is of an anonymous run; add --anonymous"):
        extract(made, **settings, output=tmp_path / "keyed")
    with pytest.raises(UserError, match="leave out one of them"):
        extract(made, **settings, output=tmp_path / "other", anonymous=True, thumbnails=True)


@pytest.mark.slow
def test_the_drawing_of_a_caption_is_drawn_again(capsys, tmp_path):
    members, others = captioned_sides(tmp_path)
    model = text_folder(tmp_path / "sd")
    own = ["--members", members, "--nonmembers", others, "-n", "2", "--steps", "2", "--device", "cpu", "-o", tmp_path / "out"]
    assert call(capsys, "extract", model, *own)[0] == 0
    record = read_extraction(tmp_path / "out" / "extract.json")
    pair = record.pairs[0]
    assert record.images == 48 and record.held_out_rate.reason
    assert call(capsys, *shlex.split(record.reproduce(pair))[1:])[0] == 0
    drawn = np.load(tmp_path / "out" / "generated" / "images-00000.npy")[pair.image]
    again = np.asarray(Image.open(tmp_path / "out" / f"drawing-{pair.image}.png"))
    np.testing.assert_array_equal(again, drawn)


def test_too_few_held_out_images_for_a_rate_are_said_before_anything_is_drawn_and_in_the_record(digits, tmp_path, capsys):
    for name, images in (("members", digits[:6]), ("held-out", digits[6:20])):
        np.save(tmp_path / f"{name}.npy", images)
    sides = {"members": tmp_path / "members.npy", "nonmembers": tmp_path / "held-out.npy"}
    record = extract(target(memoriser(digits[:6])), **sides, images=40, steps=10).record
    few = "at 1 % false copies needs at least 198 held-out images, of which half (99) set the threshold; here 7 set it"
    assert f"there will be no rate: one {few}. Give more, or a larger share with --false-copies" in capsys.readouterr().err
    assert record.copy_rate.reason == record.held_out_rate.reason == f"a rate {few}"


def test_without_held_out_images_there_are_pairs_and_no_rate(digits, tmp_path):
    np.save(tmp_path / "members.npy", digits[:6])
    record = extract(target(memoriser(digits[:6])), members=tmp_path / "members.npy", images=40, steps=10).record
    assert (record.copy_rate.value, record.held_out, record.calibrate) == (None, None, 0)
    assert all(pair.is_copy is None and pair.p_value is None for pair in record.pairs)
    assert record.pairs[0].distances["tiles"] < 0.02
    assert "there are distances and pairs, and no rate" in record.warnings[0]
    shown = to_html(page(record))
    assert "No held-out images were given, so no threshold" in shown
    assert " 0 held-out images" not in shown and "compare its distances" not in shown


def test_a_pair_says_which_of_its_captions_drawings_it_is(captioned, digits):
    record = extract(target(Gaussian(0.1, 0.3, SCHEDULE), text=Text()), members=captioned[0], steps=2, draws=3).record
    shown = to_html(page(record))
    assert f"number {record.pairs[0].draw + 1} of 3 for this caption" in shown


def test_held_out_images_that_are_nearly_members_are_left_out(tmp_path):
    rng = np.random.default_rng(0)
    images = np.repeat(np.repeat(rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8), 4, axis=1), 4, axis=2)
    near = np.clip(images[:3].astype(int) + rng.integers(-4, 5, images[:3].shape), 0, 255).astype(np.uint8)
    for name, pictures in {"members": images[:20], "others": np.concatenate([images[20:], near]), "near": near}.items():
        np.save(tmp_path / f"{name}.npy", pictures)
    made = target(memoriser(images[:20]), side=32)
    settings = {"members": tmp_path / "members.npy", "images": 20, "steps": 2, "false_copies": 0.1}
    record = extract(made, nonmembers=tmp_path / "others.npy", **settings).record
    assert (record.near_duplicates, record.held_out.n) == (3, 40)
    assert any(line.startswith("3 held-out images were left out: each is a near-duplicate of a member") for line in record.warnings)
    assert "3 near-duplicates of members were left out" in to_html(page(record))
    assert record.copy_rate.value > 0.5, "with copies of members among them the threshold would be that of copies"
    with pytest.raises(UserError, match=r"every held-out image \(3 in all\) is a near-duplicate of a member"):
        extract(made, nonmembers=tmp_path / "near.npy", **settings)


def test_near_duplicates_count_once_and_are_all_listed(tmp_path):
    """The rates are those of the same search without them; a held-out one is not even drawn for."""
    members, others = blocks(12, 0), blocks(60, 1)
    texts = tuple(f"picture {i}" for i in range(12))
    made = target(memoriser(members, texts), side=32, text=Text())
    sides = {"once": (members, others), "again": (np.r_[members, members[:5, :, ::-1], members[:1]], np.r_[others, others[:20, :, ::-1]])}
    found = {}
    for name, pair in sides.items():
        for side, images in zip(("m", "n"), pair, strict=True):
            (folder := tmp_path / name / side).mkdir(parents=True)
            for row, image in enumerate(images):
                Image.fromarray(image[..., 0]).save(folder / f"{side}{row:02d}.png")
                (folder / f"{side}{row:02d}.txt").write_text(f"picture {row}" if side == "m" else f"other {row}")
        given = {"members": tmp_path / name / "m", "nonmembers": tmp_path / name / "n", "draws": 2, "steps": 3, "false_copies": 0.1}
        found[name] = extract(made, **given).record
    once, again = found["once"], found["again"]
    assert (again.distinct_members, again.members.n, again.near_duplicates_held_out, again.held_out.n) == (12, 18, 20, 60)
    assert (once.distinct_members, once.near_duplicates_held_out) == (12, 0) and again.images == 2 * (18 + 60)
    assert again.copy_rate == once.copy_rate and again.decisive.chance == once.decisive.chance
    assert (again.decisive.copies, again.held_out_rate, again.calibrate) == (once.decisive.copies, once.held_out_rate, once.calibrate)
    as_which = {pair.id: pair.counted_as for pair in again.pairs}
    assert {name: of for name, of in as_which.items() if of} == {**{f"m{12 + k}.png": f"m0{k}.png" for k in range(5)}, "m17.png": "m00.png"}
    assert not any(pair.counted_as for pair in once.pairs) and len(as_which) == 18
    html = to_html(page(again)).replace("<wbr>", "")
    assert f"{again.decisive.copies} of 12 members (near-duplicates counted once) have a copy" in html
    assert "a near-duplicate of m00.png, which counts for both" in html and "20 near-duplicates of other held-out images" in html
    assert any(line.startswith("6 members are near-duplicates of others: each cluster") for line in again.warnings)
    assert "counted once" not in to_html(page(once)) and not any("near-duplicate" in line for line in once.warnings)


def test_only_images_of_another_shape_are_said_to_be_resized(tmp_path, digits):
    made = target(Gaussian(0.0, 1 / 3, SCHEDULE))
    np.save(tmp_path / "members.npy", digits[:6])
    resized = lambda record: [line for line in record.warnings if "resized to" in line]
    assert not resized(extract(made, members=tmp_path / "members.npy", images=4, steps=2, resize=True).record)
    folder = tmp_path / "images"
    folder.mkdir()
    for row, side in enumerate((8, 8, 12)):
        Image.fromarray(digits[row, :, :, 0]).resize((side, side)).save(folder / f"{row}.png")
    (line,) = resized(extract(made, members=folder, images=4, steps=2, resize=True).record)
    assert line.startswith("1 real image of another shape was resized to 8 x 8")


def test_a_call_from_python_takes_a_cohort_and_leaves_nothing_without_an_output(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = diffleak.cohort(members=digits[:12], nonmembers=digits[12:60])
    found = diffleak.extract(target(memoriser(digits[:12])), made, images=60, steps=5, false_copies=0.05)
    assert found.record.copy_rate.value > 0.8 and not list(tmp_path.iterdir())
    assert found.record.command.startswith("diffleak.extract(...) from Python")
    again = f"with the settings recorded in extract.json: drawing {found.record.pairs[0].image} of its .drawings"
    assert found.record.reproduce(found.record.pairs[0]).endswith(again) and found.record.command.endswith("extract.json")


def test_members_that_cannot_be_read_are_left_out_where_that_is_wished(tmp_path, digits):
    folder = tmp_path / "members"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(digits[i, :, :, 0]).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes(b"no image")
    settings = {"members": folder, "images": 10, "steps": 2}
    with pytest.raises(UserError, match=r"2\.png"):
        extract(target(memoriser(digits[:4])), **settings)
    record = extract(target(memoriser(digits[:4])), **settings, skip_unreadable=True).record
    assert record.members.n == 3 and "1 unreadable image was left out" in record.warnings


BAD = [
    (["--images", "0"], "images': Input should be greater than or equal to 1"),
    (["--draws", "2"], "takes no captions; leave out --draws: give the number of all images with --images"),
    (["--captions", "own"], "takes no captions; leave out --captions"),
    (["--steps", "2000"], "--steps must lie in [1, 1000]"),
    (["--extractor", "sscd"], "the extractor sscd needs its TorchScript file: sscd:FILE"),
    (["--extractor", "torchscript:none.pt"], "--extractor must be a TorchScript file; found nothing at none.pt"),
    (["--extractor", "pixel"], "pixels"),
    (["--false-copies", "0.9"], "--false-copies must be at most 0.5"),
    (["--members", "digits"], "leave out --members and --nonmembers"),
]


@pytest.mark.parametrize(("more", "said"), BAD, ids=lambda each: " ".join(each) if isinstance(each, list) else "")
def test_bad_input_is_one_line_before_anything_is_drawn(capsys, command, more, said, tmp_path):
    assert said in refused(capsys, *command, *more)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "the training images must be given: --members DATA, or --data DATA with --split FILE"),
        (["--data", "digits"], "--data and --split belong together"),
        (["--members", "digits", "--thumbnails"], "--thumbnails and --only write images: give -o DIR"),
        (["--members", "digits", "--only", "3"], "--thumbnails and --only write images: give -o DIR"),
    ],
)
def test_images_and_a_place_to_write_must_be_given(capsys, given, said):
    assert said in refused(capsys, "extract", "model", *given)


def test_models_that_cannot_draw_and_images_that_do_not_fit_are_refused(tmp_path, captioned, digits):
    np.save(tmp_path / "small.npy", digits[:12, :3, :3])
    np.save(tmp_path / "members.npy", digits[:12])
    gaussian = Gaussian(0.0, 1 / 3, SCHEDULE)
    refusals = [
        ("images must be at least 4 pixels a side, since each is cut into tiles", target(gaussian, 3), {"members": tmp_path / "small.npy"}),
        ("steps must lie in", target(gaussian), {"members": tmp_path / "members.npy", "steps": 1001}),
        ("with --draws in place of --images", target(gaussian, text=Text()), {"members": captioned[0], "images": 5}),
        ("the data has none", target(gaussian, text=Text()), {"members": tmp_path / "members.npy"}),
        ("the model takes 8 x 8 grey", target(gaussian), {"members": tmp_path / "small.npy"}),
    ]
    for said, model, settings in refusals:
        with pytest.raises(UserError, match=said):
            extract(model, **settings)
    broken = Denoiser.from_function(lambda x, t: x * float("nan"), SCHEDULE.alphas_cumprod)
    with pytest.raises(UserError, match="the model must draw finite numbers"):
        extract(target(broken), members=tmp_path / "members.npy", images=3, steps=2)


def test_a_member_without_a_caption_and_an_image_on_both_sides_are_refused(tmp_path, captioned, digits):
    text = target(Gaussian(0.0, 1 / 3, SCHEDULE), text=Text())
    folder = tmp_path / "members"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(digits[i, :, :, 0]).save(folder / f"{i}.png")
        if i:
            (folder / f"{i}.txt").write_text("a picture")
    with pytest.raises(UserError, match=r"captions found: 2/3; every image needs one \(first without: 0\.png"):
        extract(text, members=folder)
    with pytest.raises(UserError, match=r"members and held-out images must not share an image; 3 images are on both sides"):
        extract(target(Gaussian(0.0, 1 / 3, SCHEDULE)), members=folder, nonmembers=captioned[0], images=3)


def test_drawings_of_another_search_are_refused(split, tmp_path):
    gaussian = target(Gaussian(0.0, 1 / 3, SCHEDULE))
    settings = {"data": "digits", "split": split, "steps": 2, "output": tmp_path / "out"}
    extract(gaussian, **settings, images=20)
    before = (tmp_path / "out" / "extract.json").read_text()
    with pytest.raises(UserError, match="holds images drawn with another number of images \(20, now 30\); choose another folder"):
        extract(gaussian, **settings, images=30)
    assert (tmp_path / "out" / "extract.json").read_text() == before


def test_tiles_see_what_the_record_says(digits, split):
    found = extract(target(memoriser(digits[:MEMBERS])), data="digits", split=split, images=30, steps=5, extractor="pixels")
    for pair in found.record.pairs[:5]:
        both = digits[int(pair.id)][None], found.drawings[pair.image][None]
        assert pair.distances["tiles"] == pytest.approx(stats.tiled_distances(*both)[0])


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
@pytest.mark.parametrize(
    ("flags", "names"), [((), "names images and may hold copies of them"), (("--anonymous",), "may hold copies of them")]
)
def test_a_folder_that_others_may_read_is_said_to_name_images_only_where_it_does(capsys, command, tmp_path, flags, names):
    folder = tmp_path / "my out"
    folder.mkdir()
    folder.chmod(0o755)
    _, _, err = call(capsys, *command[:-1], folder, *flags)
    assert f"others on this machine may read {folder}, which {names}: chmod 700 '{folder}'" in err
