"""`diffleak split`: shares and coins, what stays together, folders, and what is refused."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from fixtures.commands import call, open_to_others, refused
from PIL import Image
from scipy.stats import binom

import diffleak
from diffleak.data.sources import open_source
from diffleak.data.split import Split, read_split
from diffleak.splitting.draw import draw_coins, draw_share, units_of
from diffleak.splitting.split import too_few

pytestmark = pytest.mark.usefixtures("undrawn")


def field(rng: np.random.Generator) -> np.ndarray:
    """An image that is like no other."""
    return np.asarray(Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((16, 16), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """60 images in 2 classes, of which 3 are mirrored copies of others, with captions beside them."""
    folder, rng = tmp_path_factory.mktemp("made") / "pictures", np.random.default_rng(0)
    image = field(rng)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(30):
            image = field(rng) if i < 28 or name == "dog" else image[:, ::-1]
            Image.fromarray(np.ascontiguousarray(image)).save(folder / name / f"{i:02}.png")
            (folder / name / f"{i:02}.txt").write_text(f"a {name} {i}")
    return folder


@pytest.fixture
def data(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "pictures"))


def ids(n: int) -> tuple[str, ...]:
    return tuple(f"{i:04}.png" for i in range(n))


ALONE = [np.array([i]) for i in range(400)]


def test_units_are_clusters_and_groups_and_what_they_chain_together():
    units = units_of(np.array([0, 1, 2, 1, 3, 4]), ["a", None, "a", "b", "b", None])
    assert [unit.tolist() for unit in units] == [[0, 2], [1, 3, 4], [5]]
    assert [unit.tolist() for unit in units_of(np.array([0, 1]), [None, None])] == [[0], [1]]


def test_a_share_is_exact_for_single_images_balanced_by_class_and_another_with_another_seed():
    classes = ["a"] * 100 + ["b"] * 250 + ["c"] * 50
    held = draw_share(ids(400), ALONE, 0.2, 0, classes)
    assert [int(held[part].sum()) for part in (slice(100), slice(100, 350), slice(350, 400))] == [20, 50, 10]
    assert (draw_share(ids(400), ALONE, 0.2, 0, classes) == held).all()
    assert (draw_share(ids(400), ALONE, 0.2, 1, classes) != held).any()


def test_a_share_holds_units_together_and_gives_every_image_the_same_chance():
    units = [np.arange(0, 40), np.arange(40, 60), np.array([60, 61]), *(np.array([i]) for i in range(62, 200))]
    draws = np.stack([draw_share(ids(200), units, 0.3, seed) for seed in range(250)])
    assert (draws.sum(axis=1) == 60).all(), "single images fill the share up"
    for unit in units[:3]:
        assert (draws[:, unit] == draws[:, unit[:1]]).all()
    error = 4 * np.sqrt(0.3 * 0.7 / 250)
    assert abs(draws.mean(axis=0) - 0.3).max() < error + 0.02


def test_coins_are_fair_and_independent_and_follow_the_ids_and_not_their_order():
    draws = np.stack([draw_coins(ids(400), ALONE, seed) for seed in range(200)])
    heads = draws.sum()
    low, high = binom.ppf([0.0005, 0.9995], draws.size, 0.5)
    assert low <= heads <= high
    totals = draws.sum(axis=1)  # a draw of a fixed number would have no spread
    assert 0.75 < totals.std() / 10 < 1.25
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.25
    back = draw_coins(ids(400)[::-1], ALONE, 7)[::-1]
    assert (back == draw_coins(ids(400), ALONE, 7)).all()


def test_a_unit_gets_one_coin():
    units = [np.array([0, 5, 9]), *(np.array([i]) for i in range(10) if i not in (0, 5, 9))]
    draws = np.stack([draw_coins(ids(10), units, seed) for seed in range(100)])
    assert (draws[:, [5, 9]] == draws[:, [0]]).all() and 30 < draws[:, 0].sum() < 70


def test_the_command_writes_a_split_that_says_how_it_was_drawn(data, tmp_path, capsys):
    code, out, _ = call(capsys, "split", data, "--held-out", "0.2", "-o", tmp_path / "split.json", "--seed", 3, "--json")
    said = json.loads(out)
    assert code == 0 and (said["members"], said["nonmembers"]) == (48, 12)
    assert said["drawn"] == {"how": "share", "seed": 3, "held_out": 0.2} and said["classes"] == {"cat": [24, 6], "dog": [24, 6]}
    written = json.loads((tmp_path / "split.json").read_text())
    assert set(written) == {"members", "nonmembers", "drawn"} and {"how", "seed", "held_out"} <= set(written["drawn"])
    members, held = read_split(tmp_path / "split.json", open_source(data))
    assert {*members, *held} == set(open_source(data).ids) and not {*members} & {*held}
    twins = {"cat/27.png", "cat/28.png", "cat/29.png"}
    assert written["drawn"]["together"] == [sorted(twins)] and (twins <= {*members} or twins <= {*held})
    again = (tmp_path / "split.json").read_bytes()
    code, out, _ = call(capsys, "split", data, "--held-out", "0.2", "-o", tmp_path / "split.json", "--seed", 3)
    assert code == 0 and "classes: 2, with 20.0% held out" in out.splitlines()
    assert (tmp_path / "split.json").read_bytes() == again
    line = refused(capsys, "split", data, "--held-out", "0.2", "-o", tmp_path / "split.json", "--seed", 4)
    assert "holds another split" in line and (tmp_path / "split.json").read_bytes() == again


def test_groups_of_the_metadata_stay_whole_and_coins_are_of_groups(tmp_path, capsys):
    folder, rng = tmp_path / "faces", np.random.default_rng(1)
    folder.mkdir()
    rows = []
    for i in range(40):
        Image.fromarray(field(rng)).save(folder / f"{i:02}.png")
        rows.append({"file_name": f"{i:02}.png", "person": f"p{i // 4}", "text": f"face {i}"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    outcome = diffleak.split(folder, tmp_path / "coin.json", coin=True, group="person", copy=tmp_path / "laid")
    assert outcome.groups == 10 and len(outcome.split.drawn.together) == 10 and outcome.split.drawn.held_out == 0.5
    for unit in outcome.split.drawn.together:
        assert len(unit) == 4 and ({*unit} <= {*outcome.split.members} or {*unit} <= {*outcome.split.nonmembers})
    assert Split.read(tmp_path / "coin.json") == outcome.split
    laid = open_source(tmp_path / "laid" / "members")
    assert (
        set(laid.ids) == {*outcome.split.members} and laid.captions()[0][0].startswith("face") and laid.column("person")[0].startswith("p")
    )
    assert "no column persson" in refused(capsys, "split", folder, "--coin", "--group", "persson", "-o", tmp_path / "x.json")


@pytest.mark.parametrize("how", ["link", "copy"])
def test_folders_hold_the_images_with_their_captions(data, tmp_path, capsys, how):
    code, _, _ = call(capsys, "split", data, "--held-out", "0.25", "-o", tmp_path / "s.json", f"--{how}", tmp_path / "laid")
    split = Split.read(tmp_path / "s.json")
    assert code == 0
    for side, listed in (("members", split.members), ("nonmembers", split.nonmembers)):
        laid = open_source(tmp_path / "laid" / side)
        assert set(laid.ids) == set(listed)
        captions = dict(zip(laid.ids, laid.captions(), strict=True))
        for image_id in listed:
            file = tmp_path / "laid" / side / image_id
            assert file.is_symlink() == (how == "link") and file.read_bytes() == (data / image_id).read_bytes()
            assert captions[image_id] == (f"a {image_id[:3]} {int(image_id[4:6])}",)
        inside = {each.name for each in (tmp_path / "laid" / side).iterdir() if each.is_dir()}
        assert open_to_others(tmp_path / "laid" / side) <= inside, "folders in a folder that nobody else may enter"
    assert (tmp_path / "s.json").stat().st_mode & 0o777 == 0o600
    assert "is there already" in refused(
        capsys, "split", data, "--held-out", "0.25", "-o", tmp_path / "t.json", f"--{how}", tmp_path / "laid"
    )
    assert not (tmp_path / "t.json").exists()


def test_arrays_are_copied_as_files(tmp_path):
    rng = np.random.default_rng(2)
    images, labels = np.stack([field(rng) for _ in range(20)]), np.arange(20) % 2
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    outcome = diffleak.split(tmp_path / "a.npz", tmp_path / "s.json", held_out=0.3, copy=tmp_path / "laid")
    laid = open_source(tmp_path / "laid" / "nonmembers")
    assert open_to_others(tmp_path / "laid") == set()
    assert len(laid) == 6 and outcome.classes == {"0": (7, 3), "1": (7, 3)}
    for i, name in enumerate(laid.ids):
        assert (laid.read(i) == images[int(name.removesuffix(".png"))]).all()
    assert laid.labels().values == tuple(int(labels[int(name.removesuffix(".png"))]) for name in laid.ids)


BAD = {
    "no share": (["-o", "s.json"], "--held-out 0.2"),
    "share and coin": (["--held-out", "0.2", "--coin", "-o", "s.json"], "--coin is a fair coin"),
    "none held out": (["--held-out", "0.001", "-o", "s.json"], "both sides must have images"),
    "all held out": (["--held-out", "0.999", "-o", "s.json"], "both sides must have images"),
    "impossible share": (["--held-out", "1.5", "-o", "s.json"], "--held-out must be less than 1; got 1.5"),
    "two layouts": (["--coin", "--link", "a", "--copy", "b", "-o", "s.json"], "leave out one"),
    "a folder for a file": (["--coin", "-o", "."], "is a folder"),
    "layout in the data": (["--coin", "--link", "pictures/laid", "-o", "s.json"], "lies in the data"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_done_is_one_line_and_nothing_is_written(data, tmp_path, capsys, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    given, said = BAD[case]
    assert said in refused(capsys, "split", "pictures", *given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


def test_links_to_no_files_damaged_images_and_foreign_files_are_refused(data, tmp_path, capsys):
    sides = tmp_path / "my sides"
    assert f"give --copy '{sides}'" in refused(capsys, "split", "digits", "--coin", "-o", tmp_path / "s.json", "--link", sides)
    (data / "cat" / "00.png").write_bytes(b"no image")
    assert "--skip-unreadable" in refused(capsys, "split", data, "--coin", "-o", tmp_path / "s.json")
    outcome = diffleak.split(data, tmp_path / "s.json", held_out=0.2, skip_unreadable=True)
    assert outcome.unreadable == 1 and "cat/00.png" not in {*outcome.split.members, *outcome.split.nonmembers}
    (tmp_path / "notes.json").write_text("[]")
    assert "no split file" in refused(capsys, "split", data, "--coin", "--skip-unreadable", "-o", tmp_path / "notes.json")
    assert (tmp_path / "notes.json").read_text() == "[]"


@pytest.mark.parametrize(
    ("sides", "said"),
    [
        ((24, 6), "24 members and 6 held out; an audit needs at least 10 of each: give --held-out 0.34 or more, and another -o"),
        ((6, 24), "6 members and 24 held out; an audit needs at least 10 of each: give --held-out 0.66 or less, and another -o"),
        ((12, 7), "12 members and 7 held out; an audit needs at least 10 of each: take more images, 20 at least"),
        ((10, 10), None),
        (
            (24, 6, True),
            "24 members and 6 held out; an audit needs at least 10 of each: give another --seed and another -o, or take more images",
        ),
    ],
)
def test_too_few_held_out_images_are_said_with_the_share_that_is_enough(sides, said):
    assert too_few(*sides) == said
    if said and "--held-out" in said:
        share = float(said.partition("--held-out ")[2].partition(" ")[0])
        assert 10 <= round(share * sum(sides)) <= sum(sides) - 10


def test_the_command_warns_of_a_split_that_no_audit_takes(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.stack([field(np.random.default_rng(i)) for i in range(30)]))
    code, _, err = call(capsys, "split", tmp_path / "x.npy", "--held-out", "0.2", "-o", tmp_path / "s.json")
    assert code == 0 and "warning: 24 members and 6 held out; an audit needs at least 10 of each: give --held-out 0.34 or more" in err


@pytest.mark.parametrize("flag", ["--copy", "--link"])
def test_folders_that_cannot_be_made_leave_no_split_behind(capsys, tmp_path, made, flag):
    (tmp_path / "file").write_text("x")
    command = ("split", made, "--coin", "-o", tmp_path / "s.json", flag, tmp_path / "file" / "laid")
    assert f"cannot be written (Not a directory); choose another with {flag}" in refused(capsys, *command)
    assert not (tmp_path / "s.json").exists()
    assert call(capsys, "split", made, "--coin", "-o", tmp_path / "s.json")[0] == 0
    other = ("split", made, "--coin", "--seed", 1, "-o", tmp_path / "s.json", flag, tmp_path / "laid")
    assert "holds another split" in refused(capsys, *other) and not (tmp_path / "laid").exists()


def test_an_image_whose_name_is_no_place_in_a_folder_leaves_no_split_behind(capsys, tmp_path):
    rng = np.random.default_rng(1)
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        for name in ("a", "../b", *"cdefgh"):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "one.png")
            tar.add(tmp_path / "one.png", f"{name}.png")
    command = ("split", tmp_path / "data.tar", "--coin", "-o", tmp_path / "s.json", "--copy", tmp_path / "laid")
    assert "is no place in a folder" in refused(capsys, *command) and not (tmp_path / "s.json").exists()


def grouped(folder: Path, groups: list[str]) -> Path:
    """Images that are like no other, each in a group of the metadata."""
    folder.mkdir()
    for i in range(len(groups)):
        Image.fromarray(field(np.random.default_rng(i))).save(folder / f"{i:02}.png")
    rows = [{"file_name": f"{i:02}.png", "group": group} for i, group in enumerate(groups)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize(
    ("flags", "how"),
    [(("--held-out", 0.4), "to hold out 0.4"), (("--coin",), "by a fair coin for each image, or for what is kept together")],
)
def test_a_group_of_one_image_is_not_counted_as_kept_together(tmp_path, capsys, flags, how):
    folder = grouped(tmp_path / "faces", [*(f"p{i}" for i in range(28)), "both", "both"])
    _, out, _ = call(capsys, "split", folder, *flags, "-o", tmp_path / "s.json")
    assert "2 images (1 group; the largest has 2)" in out and f"drawn {how}, seed 0" in out
    _, out, _ = call(capsys, "split", folder, *flags, "-o", tmp_path / "s.json", "--json")
    assert json.loads(out)["groups"] == 29


def test_one_image_is_too_few_and_stays_with_no_other(tmp_path, capsys):
    np.save(tmp_path / "one.npy", np.random.default_rng(0).integers(0, 256, (1, 8, 8), dtype=np.uint8))
    said = refused(capsys, "split", tmp_path / "one.npy", "--coin", "-o", tmp_path / "split.json")
    assert said.endswith("both sides must have images; the data has one that can be read: take more images")


def test_one_group_of_all_images_is_not_to_be_divided_by_another_share(tmp_path, capsys):
    line = refused(capsys, "split", grouped(tmp_path / "x", ["a"] * 24), "--held-out", 0.4, "-o", tmp_path / "s.json")
    assert "all 24 images stay together, as near-duplicates or as one group: take more images, or name another column" in line
