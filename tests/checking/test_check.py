"""`diffleak check`: what is found on two sides, when it is invalid, and what its record and page say."""

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures.commands import all_recorded, call, refused, written_again
from PIL import Image

import diffleak
from diffleak.auditing.config import AuditConfig
from diffleak.auditing.plan import checked
from diffleak.config import build
from diffleak.data.cohort import two_sources
from diffleak.data.scan import scan
from diffleak.data.sources import open_source
from diffleak.records.audit import Blind
from diffleak.records.check import read_check
from diffleak.report.judgement import FAIR, sources
from diffleak.report.sections.check import verdict as judge

RESIZED = {"resize": True, "attacks": "loss", "timesteps": "100", "device": "cpu"}


def fields(n: int, seed: int, size: int = 16) -> np.ndarray:
    rng = np.random.default_rng(seed)
    make = lambda: Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    return np.stack([np.asarray(make()) for _ in range(n)])


@pytest.fixture
def sides(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """30 members and 25 held-out images of one source, as folders."""
    monkeypatch.chdir(tmp_path)
    for name, images in (("m", fields(30, 0)), ("n", fields(25, 1))):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{name}{i:02}.png")
    return tmp_path / "m", tmp_path / "n"


def test_fair_sides_pass_and_are_recorded(sides, capsys):
    code, out, err = call(capsys, "check", "--members", "m", "--nonmembers", "n", "-o", "out", "--json")
    said = json.loads(out)
    assert code == 0 and said["valid"] and said["problems"] == [] and said["warnings"] == []
    assert (said["members"]["images"], said["nonmembers"]["distinct"]) == (30, 25)
    assert said["power"]["members"] == 24 and said["power"]["nonmembers"] == 20 and said["power"]["tpr_at_1pct"] is None
    assert 0.7 < said["power"]["auc"] < 0.8 and "m: 30 images" in err
    assert read_check(Path("out")).model_dump(mode="json") == said and all_recorded(Path("out"))
    assert {path.stat().st_mode & 0o777 for path in (Path("out/check.json"), Path("out/check.html"))} == {0o600}
    page = Path("out/check.html").read_text()
    assert written_again(capsys, Path("out/check.html"))
    assert "With fewer than 546 the interval of a TPR begins at 0" in page, "why 5 % and 10 % take as many images"
    assert "These two sides can be audited: no copies" in page and "--members m --nonmembers n" in page
    found = scan(two_sources(open_source("m"), open_source("n")), None, False, False)
    assert said["data_fingerprint"] == found.fingerprint, "that of an audit of the same images"


def test_copies_across_the_sides_are_listed_and_exact_ones_are_invalid(sides, capsys):
    members, held = sides
    image = Image.open(members / "m03.png")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(held / "twin.png")
    code, out, _ = call(capsys, "check", "--members", "m", "--nonmembers", "n", "--json")
    said = json.loads(out)
    assert code == 0 and said["valid"] and said["duplicates"]["near_across"] == 1
    assert "1 held-out image is a near-duplicate of a member (m03.png ~ twin.png)" in said["warnings"][0]
    image.save(held / "same.bmp")
    image.save(members / "again.png")
    code, out, err = call(capsys, "check", "--members", "m", "--nonmembers", "n", "-o", "out", "--json")
    said, found = json.loads(out), json.loads(out)["duplicates"]
    assert code == 4 and not said["valid"] and "would be refused" in err and "same.bmp" in err
    assert (found["exact_across"], found["near_across"], found["clusters"], found["clustered"]) == (1, 1, 1, 4)
    assert said["members"]["distinct"] == 30 and said["nonmembers"]["distinct"] == 26
    assert found["pairs"][0]["where"] == "across" and found["pairs"][0]["exact"] and found["pairs"][0]["distance"] == 0
    html = Path("out/check.html").read_text()
    assert "same.bmp" in html and "an audit refuses two sides that share images" in html and "would be invalid" not in html


def test_sides_of_different_sources_are_invalid(sides, capsys):
    for file in sides[1].iterdir():
        Image.fromarray((np.asarray(Image.open(file)) * 0.5).astype(np.uint8)).save(file)
    code, out, err = call(capsys, "check", "--members", "m", "--nonmembers", "n")
    assert code == 4 and "the two sides differ without a model" in err and "Not fair" in out


def test_the_sides_are_compared_at_the_size_that_the_model_takes(sides, capsys):
    for side, other in zip(sides, ("m8", "n8"), strict=True):
        Path(other).mkdir()
        for file in side.iterdir():
            Image.open(file).resize((8, 8), Image.Resampling.BICUBIC).save(Path(other) / file.name)
    at_size, small, large = diffleak.check(*sides, resize=8), diffleak.check("m8", "n8"), diffleak.check(*sides)
    assert at_size.blind == small.blind != large.blind
    assert "--resize 8" in at_size.command and "--resize" not in large.command
    assert "resize" in refused(capsys, "check", "--members", "m", "--nonmembers", "n", "--resize", "2")


def with_alpha(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.dstack([image, rng.integers(0, 256, image.shape[:2], dtype=np.uint8)])


@pytest.mark.parametrize("each", [30, 60], ids=["permutation test", "classifier"])
def test_check_and_audit_compare_the_sides_alike(tmp_path, model_folder, each):
    """Near-duplicates, classes whose names sort otherwise than their numbers, transparent pictures and another size than the model's."""
    rng, sides = np.random.default_rng(7), ("m", "n")
    for number, side in enumerate(sides):
        images = fields(each, 20 + number, size=24)
        images[5:12] = [np.roll(images[4], 8 * k, axis=2) if k else images[4, :, ::-1] for k in range(7)]  # one cluster of eight or so
        for i, image in enumerate(images):
            folder = tmp_path / side / str((i * (i + number)) % 12)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(with_alpha(image, rng) if i % 9 == 4 or i == 5 else image).save(folder / f"{side}{i:02}.png")
    given = {"members": str(tmp_path / "m"), "nonmembers": str(tmp_path / "n"), "seed": 3}
    found = diffleak.check(**given, resize=16)
    assert found.members.distinct < each and found.duplicates.clusters, "there are near-duplicates on a side"
    model = str(model_folder(sample_size=16, in_channels=3, out_channels=3, num_class_embeds=12))
    audited = checked(build(AuditConfig, given, {"model": model}, RESIZED))
    assert audited.units.kind == "cluster" and (audited.blind.p_value is not None) == (each < 50)
    assert found.blind == audited.blind.model_copy(update={"labels_p_value": None})
    assert found.classes_p_value == audited.blind.labels_p_value is not None
    model = str(model_folder("plain", sample_size=16, in_channels=3, out_channels=3))
    plain = checked(build(AuditConfig, given, {"model": model}, RESIZED))
    assert found.data_fingerprint == plain.plan.data_fingerprint


def test_few_damaged_mixed_and_half_captioned_images_are_said(sides, capsys):
    members, held = sides
    (held / "bad.png").write_bytes(b"no image")
    Image.new("L", (20, 10), 90).save(members / "grey.png")
    for i in range(5):
        (members / f"m{i:02}.txt").write_text("a field")
    record = diffleak.check(members, held)
    said = " / ".join(record.warnings)
    assert record.valid and record.unreadable[0].startswith("bad.png: ") and record.nonmembers.readable == 25
    assert "1 image cannot be read: replace it, or audit" in said and "2 shapes (16 x 16 RGB, 10 x 20 grey)" in said
    assert "check with --resize SIZE" in said and "check with" not in " ".join(diffleak.check(members, held, resize=16).warnings)
    assert "captions are there for 5 of 31 members and 0 of 26 held-out images" in said
    for file in list(held.glob("n*.png"))[9:]:
        file.unlink()
    record = diffleak.check(members, held)
    assert not record.valid and "31 members and 9 held-out images can be read" in record.problems[0]
    assert record.blind.value is None and record.blind.reason


def test_classes_and_groups_that_differ_are_said(tmp_path):
    images = fields(60, 3)
    labels = np.r_[np.zeros(30), np.ones(30)].astype(int)
    np.savez(tmp_path / "a.npz", images=images, labels=labels, group=np.arange(60) // 4)
    (tmp_path / "s.json").write_text(json.dumps({"members": [str(i) for i in range(30)], "nonmembers": [str(i) for i in range(30, 60)]}))
    record = diffleak.check(data=tmp_path / "a.npz", split=tmp_path / "s.json")
    assert record.classes_p_value < 0.01 and record.members.labels == 30
    assert any("classes of the two sides differ" in line for line in record.warnings)
    assert any("1 group has images on both sides (first: 7)" in line for line in record.warnings)
    judged = judge(record)
    assert judged.level == "undecided" and "with a reservation" in judged.title, "an audit of such a model would be invalid"
    assert FAIR not in " ".join(judged.sentences)


@pytest.mark.parametrize(
    ("copies", "said"), [(1, "1 held-out image equals a member pixel for pixel ("), (2, "2 held-out images equal members")]
)
def test_copies_across_the_sides_are_counted_in_the_singular_too(copies, said):
    members, others = fields(20, 1), fields(20, 2)
    problems = diffleak.check(members=members, nonmembers=np.concatenate([others, members[:copies]])).problems
    assert any(line.startswith(said) for line in problems)


def test_a_check_does_not_speak_of_attacks_that_were_run():
    few = " ".join(judge(diffleak.check(members=fields(9, 1), nonmembers=fields(20, 2))).sentences)
    assert "the numbers of an audit do not measure membership" in few
    perhaps = sources(Blind(value=0.7, p_value=0.02))
    assert "part of what attacks find may come from the images" in perhaps


def test_arrays_in_memory_are_checked_too():
    record = diffleak.check(fields(20, 7), fields(12, 8))
    assert record.valid and (record.members.images, record.nonmembers.images) == (20, 12) and "from Python" in record.command


def test_a_drawn_split_passes(tmp_path):
    np.save(tmp_path / "a.npy", np.concatenate([fields(80, 4), fields(80, 4)[:10, :, ::-1]]))
    diffleak.split(tmp_path / "a.npy", tmp_path / "s.json", held_out=0.4)
    record = diffleak.check(data=tmp_path / "a.npy", split=tmp_path / "s.json")
    assert record.valid and record.duplicates.near_across == 0 and record.duplicates.near_within == 10


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--members", "m"], "two sides must be given"),
        (["--members", "m", "--nonmembers", "n", "--data", "m"], "not both"),
        (["--members", "m", "--nonmembers", "missing"], "found nothing"),
        (["--data", "m", "--split", "missing.json"], "--split must be a file; found nothing at missing.json"),
    ],
)
def test_sides_that_are_not_given_as_they_should_be_are_refused(sides, capsys, given, said):
    assert said in refused(capsys, "check", *given)


def test_an_audit_warns_of_near_duplicates_across_the_sides():
    from diffleak.auditing.warnings import about_copies

    members, held = fields(20, 5), fields(20, 6)
    held[4] = members[7, :, ::-1]
    found = scan(two_sources(open_source(members), open_source(held)), None, False, False)
    (line,) = about_copies(found)
    assert line.startswith("1 held-out image is a near-duplicate of a member: ") and "members/7" not in line
    assert about_copies(scan(two_sources(open_source(members), open_source(fields(20, 6))), None, False, False)) == ()


def test_too_few_images_are_called_so_and_captions_of_one_data_are_counted_by_side(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("p").mkdir()
    for i, image in enumerate(fields(30, 3)):
        Image.fromarray(image).save(f"p/{i:02}.png")
        Path(f"p/{i:02}.txt").write_text(f"field {i}")
    names = [f"{i:02}.png" for i in range(30)]
    Path("s.json").write_text(json.dumps({"members": names[:24], "nonmembers": names[24:]}))
    code, out, err = call(capsys, "check", "--data", "p", "--split", "s.json", "-o", "out")
    assert code == 4 and "an audit of these sides would be refused: an audit needs at least 10 images on each side" in err
    assert "Too few images: an audit needs at least 10 on each side." in out and "Not fair" not in out
    assert "captions from 30 .txt files (24 of members, 6 of held-out images)" in " ".join(Path("out/check.html").read_text().split())


def test_one_image_on_a_side_is_not_several(sides, capsys):
    members, _ = sides
    for path in sorted(members.iterdir())[1:]:
        path.unlink()
    _, _, err = call(capsys, "check", "--members", "m", "--nonmembers", "n")
    assert "at least 10 images on each side; 1 member and " in err


def test_the_commonest_shape_is_not_called_most_images(sides, capsys):
    members, _ = sides
    for i, path in enumerate(sorted(members.iterdir())):
        Image.open(path).resize((20 + i // 2, 20)).save(path)
    _, out, _ = call(capsys, "check", "--members", "m", "--nonmembers", "n", "--json")
    assert "the commonest shape is 20 x 20 RGB among members" in " ".join(json.loads(out)["warnings"]), "two of them have it"
