"""`diffleak metrics FILE --images DATA`: the complexity of images taken out of finished scores, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
from fixtures.commands import call, refused
from fixtures.pictures import encoded
from PIL import Image

from diffleak.auditing.score_file import calibrate_file
from diffleak.data.complexity import complexity
from diffleak.errors import UserError

pytestmark = pytest.mark.usefixtures("undrawn")

N = 400


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Images of very different complexity, and scores -exp(complexity + noise - leak of members) in another order."""
    folder, rng = tmp_path_factory.mktemp("scores"), np.random.default_rng(0)
    levels = np.exp(rng.uniform(0, np.log(127), N))
    images = np.clip(128 + levels[:, None, None, None] * rng.normal(size=(N, 8, 8, 3)), 0, 255).astype(np.uint8)
    np.save(folder / "images.npy", images)
    member = rng.permutation(np.arange(N) % 2)
    simple = np.array([complexity(image)[0] for image in images])
    statistic = np.exp(8 * (simple - simple.mean()) + 0.3 * rng.normal(size=N) - 0.6 * member)
    frame = pd.DataFrame({"id": np.arange(N), "member": member, "score": -statistic}).sample(frac=1, random_state=1)
    frame.to_csv(folder / "scores.csv", index=False, float_format="%.17g")
    return folder


def test_a_leak_behind_complexity_is_found_and_both_results_are_of_the_same_images(planted, capsys):
    plain, found = calibrate_file(planted / "scores.csv", planted / "images.npy")
    assert (plain.n_members, plain.n_nonmembers) == (found.n_members, found.n_nonmembers) == (160, 160)
    assert found.gain.auc.low > 0 and found.gain.auc.value == pytest.approx(found.auc.value - plain.auc.value)
    code, out, _ = call(capsys, "metrics", planted / "scores.csv", "--images", planted / "images.npy")
    assert code == 0 and f"{plain.auc.value:.3f}" in out and f"{found.auc.value:.3f}" in out and "taken out: " in out
    code, out, _ = call(capsys, "metrics", planted / "scores.csv", "--images", planted / "images.npy", "--json")
    read = json.loads(out)
    assert list(read) == ["score", "score[calibrated]"] and read["score[calibrated]"]["auc"]["value"] == found.auc.value


def test_a_column_part_decides_what_is_fitted_and_what_is_reported(planted, tmp_path):
    frame = pd.read_csv(planted / "scores.csv")
    frame["part"] = np.where(frame["id"] % 4 == 0, "calibrate", "test")
    frame.to_csv(tmp_path / "parts.csv", index=False)
    found = calibrate_file(tmp_path / "parts.csv", planted / "images.npy")[1]
    test = frame[frame.part == "test"]
    assert (found.n_members, found.n_nonmembers) == (int(test.member.sum()), int((1 - test.member).sum()))
    frame.loc[frame.part == "test", "member"] = 1 - test.member
    frame.to_csv(tmp_path / "flipped.csv", index=False)
    flipped = calibrate_file(tmp_path / "flipped.csv", planted / "images.npy")[1]
    assert flipped.auc.value == pytest.approx(1 - found.auc.value) and flipped.complexity == found.complexity, "nothing is fitted to them"


@pytest.mark.parametrize(
    ("images", "flags", "said"),
    [
        ("few.npy", (), r"every id of .*scores.csv must be an image of .*few.npy; 100 of 400 are none (first: "),
        ("flat.npy", (), "the held-out images of .*flat.npy must differ in complexity; all 200 have the same"),
        ("images.npy", ("--convention", "secmi-grid"), "--images gives exact statistics; leave out --convention"),
        ("nothing.npy", (), "found nothing at"),
    ],
)
def test_images_that_do_not_fit_the_scores_are_one_line(planted, capsys, images, flags, said):
    whole = np.load(planted / "images.npy")
    np.save(planted / "few.npy", whole[:300])
    np.save(planted / "flat.npy", np.full_like(whole, 7))
    line = refused(capsys, "metrics", planted / "scores.csv", "--images", planted / images, *flags)
    assert all(part in line for part in said.split(".*"))


def test_a_damaged_image_is_refused_without_a_flag_that_the_command_does_not_have(planted, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    frame = pd.read_csv(planted / "scores.csv")
    frame.assign(id=frame.id.astype(str) + ".png").to_csv(tmp_path / "scores.csv", index=False)
    for name in frame.id:
        (tmp_path / "images" / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    line = refused(capsys, "metrics", tmp_path / "scores.csv", "--images", tmp_path / "images")
    assert line.endswith(("; remove it", "; replace it"))
    for name in frame.id:
        picture = Image.new("RGB", (8, 8))
        (tmp_path / "images" / f"{name}.png").write_bytes(encoded(picture, exif=b"Exif\0\0XXnothing of TIFF"))
    line = refused(capsys, "metrics", tmp_path / "scores.csv", "--images", tmp_path / "images")
    assert "nothing says which way is up" in line and "--exif" not in line and line.endswith("; replace it")


def test_too_few_held_out_images_to_fit_on_are_refused(planted, tmp_path):
    pd.read_csv(planted / "scores.csv").head(200).to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(UserError, match=r"calibration takes 30 held-out images in the calibrate part; .*few.csv has \d+$"):
        calibrate_file(tmp_path / "few.csv", planted / "images.npy")
