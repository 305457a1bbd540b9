"""`diffleak inquire` from images to page: what it finds, what it refuses, and that nothing of a model without answer is printed."""

import csv
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.commands import all_recorded, call, open_to_others, refused, written_again
from fixtures.models import ATTENTION, save_untrained
from fixtures.text import CAPTIONS, SIDE, text_folder
from PIL import Image
from scipy.stats import mannwhitneyu

import diffleak
from diffleak.auditing import plan as planning
from diffleak.auditing import score as scoring
from diffleak.config import build
from diffleak.data.draw import calibrate_part
from diffleak.data.features import FEATURES, image_features, names
from diffleak.data.pixels import to_model
from diffleak.diffusion.analytic import Memoriser, linear_schedule
from diffleak.errors import InvalidAudit, UserError
from diffleak.inquiry.config import InquireConfig
from diffleak.inquiry.run import prepared, refuse_invalid
from diffleak.records.audit import Membership
from diffleak.records.base import Estimate
from diffleak.records.inquiry import InquiryRecord, of_controls, read_inquiry
from diffleak.records.scores import read_columns
from diffleak.report import to_html, to_markdown
from diffleak.report.pages.inquiry import judged, page
from diffleak.reveal import reveal

pytestmark = pytest.mark.usefixtures("undrawn")

RNG = np.random.default_rng(0)
IMAGES, CONTROL = RNG.integers(0, 256, (24, 8, 8), dtype=np.uint8), RNG.integers(0, 256, (40, 8, 8), dtype=np.uint8)
FAST = {"attacks": "sima", "timesteps": "50:100:50", "repeats": 3, "device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("model"), **ATTENTION)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    np.save(folder / "images.npy", IMAGES)
    np.save(folder / "control.npy", CONTROL)
    return folder


@pytest.fixture
def settings(data) -> list[str]:
    flags = {"images": data / "images.npy", "control": data / "control.npy", "chunk-size": 16, **FAST, "attacks": "sima,loss"}
    return [str(part) for key, value in flags.items() for part in (f"--{key}", value)]


@pytest.fixture(scope="module")
def memoriser(digits) -> Memoriser:
    points = torch.from_numpy(to_model(digits[:60])).double()
    return Memoriser(points, linear_schedule())


def test_images_that_were_trained_on_are_found_and_others_are_not(memoriser, digits, tmp_path):
    control = digits[100:160]
    found = diffleak.inquire(memoriser, images=digits[:40], control=control, output=tmp_path / "run", **FAST)
    assert found.valid and found.set.p_value < 1e-4 and found.set.auc.low > 0.8 and found.set.images_for_power_80 < 40
    assert all(image.q_value < 0.07 for image in found.images), "2 / 31 is the least p-value that 30 controls a half allow"
    assert found.placebo.p_value > 0.05 and (found.placebo.images, found.placebo.controls) == (30, 30)
    assert judged(found).level == "leak" and judged(found).title.startswith("Yes: as a set")
    assert found == read_inquiry(tmp_path / "run") and found.command.startswith("diffleak.inquire(...) from Python")
    assert len(found.cuts) == 6 and {each.chosen for each in found.cuts} <= {"sima at t = 50", "sima at t = 100"}
    refuse_invalid(found)

    others = diffleak.inquire(memoriser, images=digits[200:240], control=control, **FAST)
    assert others.valid and others.set.p_value > 0.05 and min(image.q_value for image in others.images) > 0.05
    verdict = judged(others)
    assert verdict.level == "undecided" and "This does not show that they were not trained on." in verdict.sentences
    assert "score higher: check" not in " ".join(verdict.sentences)
    swapped = others.model_copy(update={"set": others.set.model_copy(update={"auc": Estimate(value=0.2, low=0.1, high=0.3)})})
    assert "Here the controls score higher: check that the two sides are not swapped" in " ".join(judged(swapped).sentences)
    assert others.set.detectable_auc is not None and f"AUC {others.set.detectable_auc:.2f}" in " ".join(verdict.sentences)


def test_a_placebo_that_finds_a_difference_asks_for_another_seed_whatever_the_answer_is(memoriser, digits, monkeypatch):
    monkeypatch.setattr("diffleak.inquiry.run.placebo_sides", lambda keys, seed: np.arange(len(keys)) < 30)  # 30 that were trained on
    found = diffleak.inquire(memoriser, images=digits[160:200], control=digits[30:90], **FAST)
    assert found.placebo.p_value <= 0.05 < found.set.p_value
    (said,) = (line for line in found.warnings if "placebo" in line)
    assert said.startswith(f"the placebo finds a difference (p = {found.placebo.p_value:.2g}) between two random halves of the controls")
    assert "one inquiry of 20: repeat with another --seed, and do not use the result if it happens again" in said


def test_the_command_leaves_a_record_a_table_and_a_page_and_resumes(model, data, settings, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    run.mkdir(mode=0o755)  # a folder that is open to others stays so, and what names images in it is not
    code, out, err = call(capsys, "inquire", model, *settings, "-o", run, "--json")
    assert open_to_others(run / "scores") <= {"scores"} and f"others on this machine may read {run}" in err
    assert code == 0 and "plan: 24 images in question and 40 controls (8 x 8 grey), 2 attacks" in err
    record = InquiryRecord.model_validate_json(out)
    given = json.loads(out)
    assert set(given["set"]) >= {"p_value", "auc", "images", "controls", "images_for_power_80"}
    assert set(given["set"]["auc"]) >= {"value", "low", "high"} and "p_value" in given["placebo"] and "p_value" in given["blind"]
    assert [set(image) for image in given["images"]] == [{"id", "p_value", "q_value"}] * 24
    assert given["set"]["images_for_power_80"] is not None or given["set"]["reason"]
    assert (record.set.images, record.set.controls, record.plan.n_members, record.plan.n_nonmembers) == (24, 40, 24, 40)
    with (run / "inquiry.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], float(row["p_value"]), float(row["q_value"])) for row in rows] == [
        (image.id, image.p_value, image.q_value) for image in record.images
    ]
    html = (run / "inquiry.html").read_text()
    for words in (
        "Were these images in the training set?",
        "Placebo",
        "Blind test",
        "What this does not show",
        "q-value",
        judged(record).title,
    ):
        assert words in html
    assert not (run / "audit.json").exists() and not (run / "report.html").exists()
    assert all_recorded(run) and {path.stat().st_mode & 0o777 for path in run.glob("inquiry.*")} == {0o600}
    assert written_again(capsys, run / "inquiry.html")
    assert "no pictures" in refused(capsys, "report", run, "--thumbnails")
    assert "--format latex is of an audit" in refused(capsys, "report", run, "--format", "latex")
    card = call(capsys, "report", run, "--format", "card")[1]
    assert judged(record).title in card and not [each.id for each in record.images if each.id in card] and str(run) not in card
    assert call(capsys, "report", run, "--markdown")[1].startswith("## Were these images in the training set?")

    def fail(*_):
        raise AssertionError("every score is there")

    monkeypatch.setattr(scoring, "_score_chunk", fail)
    assert InquiryRecord.model_validate_json(call(capsys, "inquire", model, *settings, "-o", run, "--json")[1]).set == record.set
    monkeypatch.undo()
    assert "belongs to another plan" in refused(capsys, "inquire", model, *settings, "--seed", 1, "-o", run)
    sides = ["--members", data / "images.npy", "--nonmembers", data / "control.npy"]
    assert "is the folder of an inquiry" in refused(capsys, "audit", model, *sides, "--attacks", "sima", "-o", run)

    code, out, _ = call(capsys, "inquire", model, *settings, "-o", tmp_path / "shards", "--shard", "1/2")
    assert code == 0 and "this shard is done" in out and not (tmp_path / "shards" / "inquiry.json").exists()
    code, out, _ = call(capsys, "inquire", model, *settings, "-o", tmp_path / "shards", "--shard", "2/2", "--json")
    assert InquiryRecord.model_validate_json(out).cuts == record.cuts

    code, out, _ = call(capsys, "inquire", model, *settings, "-o", tmp_path / "keyed", "--anonymous", "--json")
    keyed = InquiryRecord.model_validate_json(out)
    assert keyed.cuts == record.cuts and sorted(i.p_value for i in keyed.images) == sorted(i.p_value for i in record.images)
    assert {image.id for image in keyed.images}.isdisjoint(image.id for image in record.images)
    assert [image.id for image in keyed.images] == sorted(image.id for image in keyed.images), "not in the order of the names"
    assert call(capsys, "reveal", tmp_path / "keyed")[0] == 0
    with (tmp_path / "keyed" / "ids.csv").open() as file:
        revealed = {row["id"]: row["name"] for row in csv.DictReader(file)}
    assert {revealed[image.id] for image in keyed.images} == {image.id for image in record.images} and len(revealed) == 64

    code, out, _ = call(capsys, "inquire", model, *settings, "-o", tmp_path / "text")
    assert code == 0 and judged(record).title.split(":")[0] in out and "inquiry.html" in out
    code, out, _ = call(capsys, "inquire", model, *settings, "--dry-run")
    assert code == 0 and "24 images in question and 40 controls" in out


def test_sides_that_differ_without_the_model_give_no_answer(model, tmp_path, capsys):
    np.save(tmp_path / "dark.npy", IMAGES // 2)
    np.save(tmp_path / "control.npy", CONTROL)
    sides = ["--images", tmp_path / "dark.npy", "--control", tmp_path / "control.npy"]
    run = [*sides, "--attacks", "sima", "--timesteps", 50, "--repeats", 3, "--device", "cpu", "--threads", 1, "-o", tmp_path / "run"]
    code, out, err = call(capsys, "inquire", model, *run, "--json")
    record = InquiryRecord.model_validate_json(out)
    assert code == 4 and "differ without the model" in err
    assert record.valid is False and record.blind.p_value <= 0.05
    assert record.set.p_value is None and record.set.auc.value is None and record.images == () and record.cuts == ()
    assert not (tmp_path / "run" / "inquiry.csv").exists() and "No answer" in (tmp_path / "run" / "inquiry.html").read_text()
    code, out, _ = call(capsys, "inquire", model, *run)
    assert code == 4 and "No answer" in out and "q-value" not in out
    with pytest.raises(InvalidAudit):
        refuse_invalid(record)


def inquired(model, images, control, **changes):
    return diffleak.inquire(model, images=images, control=control, **{**FAST, **changes})


@pytest.mark.parametrize(
    ("images", "control", "said"),
    [
        (IMAGES[:9], CONTROL, "at least 10 images in question, 5 in every half that is tested; got 9"),
        (IMAGES, CONTROL[:19], "at least 20 controls, 5 in every half that is tested; got 19"),
        (
            np.concatenate([IMAGES, CONTROL[:1]]),
            CONTROL,
            "and controls must not share an image; 1 image is on both sides, pixel for pixel: images/24 = control/0: remove it",
        ),
        (np.concatenate([IMAGES[:9], IMAGES[:9]]), CONTROL, "at least 10 images in question, 5 in every half that is tested; got 9"),
    ],
    ids=["few images", "few controls", "shared", "copies of few"],
)
def test_sides_that_cannot_be_tested_are_refused(model, images, control, said):
    with pytest.raises(UserError) as stopped:
        inquired(model, images, control)
    assert said in str(stopped.value) and "\n" not in str(stopped.value)


def test_each_picture_counts_once(model):
    record = inquired(model, np.concatenate([IMAGES, IMAGES[:4]]), CONTROL)
    assert record.set.images == 24 and len(record.images) == 24 and len(record.repeated) == 4
    assert any("each cluster counts once" in line for line in record.warnings)
    assert record.repeated[0] in to_html(page(record))
    assert record.repeated[0] not in to_markdown(page(record)), "a name below no heading, which the page alone has"


@pytest.fixture(scope="module")
def artists(digits, tmp_path_factory) -> tuple[Path, Path]:
    """Folders of digits, two an artist: 24 that the memoriser holds, and 48 others; the column `both` has artists of both sides."""
    folders = []
    for name, rows in (("mine", range(24)), ("later", range(100, 148))):
        folder, lines = tmp_path_factory.mktemp(name), []
        for i, row in enumerate(rows):
            Image.fromarray(digits[row, ..., 0]).save(folder / f"{name}-{i:02}.png")
            more = {"both": f"team-{i}", "few": f"{name}-{i % 8}"}
            lines.append(json.dumps({"file_name": f"{name}-{i:02}.png", "artist": f"{name}son-{i // 2:02}", **more}))
        (folder / "metadata.jsonl").write_text("\n".join(lines))
        folders.append(folder)
    return folders[0], folders[1]


def test_groups_are_tested_by_their_mean_scores(memoriser, artists, tmp_path):
    """One attack at one timestep leaves no choice, so every half is scipy's exact test of the means of its groups."""
    flags = {**FAST, "timesteps": "50", "complexity": False, "repeats": 5}
    found = diffleak.inquire(memoriser, images=artists[0], control=artists[1], group="artist", output=tmp_path / "run", **flags)
    assert (found.set.images, found.set.controls, found.group, found.images) == (12, 24, "artist", ())
    assert found.valid and found.set.p_value < 0.01 and all(group.images == 2 for group in found.groups)
    ids = [*(f"mine-{k:02}.png" for k in range(24)), *(f"later-{k:02}.png" for k in range(48))]
    _, statistic = read_columns(tmp_path / "run", "sima", {image_id: row for row, image_id in enumerate(ids)})
    score = -statistic.reshape(36, 2).mean(axis=1)
    names = tuple(f"{side}son-{k:02}" for side, n in (("mine", 12), ("later", 24)) for k in range(n))
    question, p_values = np.arange(36) < 12, {group.group: [] for group in found.groups}
    for repeat in range(5):
        first = calibrate_part(names, question, 0.5, 0, repeat)
        for half, test in (("B", ~first), ("A", first)):
            asked, controls = score[test & question], score[test & ~question]
            expected = mannwhitneyu(asked, controls, alternative="greater", method="exact").pvalue
            assert next(c for c in found.cuts if (c.repeat, c.half) == (repeat, half)).p_value == pytest.approx(expected)
            for row in np.flatnonzero(test & question):
                p_values[names[row]].append((1 + (controls >= score[row]).sum()) / (1 + len(controls)))
    assert {g.group: g.p_value for g in found.groups} == {name: min(1, 2 * np.median(each)) for name, each in p_values.items()}
    with (tmp_path / "run" / "inquiry.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["group"], row["images"], float(row["q_value"])) for row in table] == [(g.group, "2", g.q_value) for g in found.groups]
    html = " ".join((tmp_path / "run" / "inquiry.html").read_text().replace("<wbr>", "").split())
    for words in (
        "12 groups in question, 24 groups of controls, by artist",
        "Group by group",
        "a group in question scores above a group of",
    ):
        assert words in html
    assert "mineson-00" in html

    keyed = diffleak.inquire(
        memoriser, images=artists[0], control=artists[1], group="artist", anonymous=True, output=tmp_path / "keyed", **flags
    )
    assert keyed.cuts == found.cuts and sorted(g.p_value for g in keyed.groups) == sorted(g.p_value for g in found.groups)
    assert all(re.fullmatch("g[0-9a-f]{16}", group.group) for group in keyed.groups)
    written = [path.read_bytes() for path in (tmp_path / "keyed").rglob("*") if path.is_file()]
    assert not any(b"mineson" in text or b"laterson" in text for text in written)
    with reveal(tmp_path / "keyed").open() as file:
        revealed = {row["id"]: row["name"] for row in csv.DictReader(file)}
    assert {revealed[g.group]: g.p_value for g in keyed.groups} == {g.group: g.p_value for g in found.groups}


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("both", "24 groups by both are on both (first: team-0, with images in question: 1, controls: 1)"),
        ("few", "--group needs at least 10 groups in question and 20 groups of controls; the column few has 8 and 8"),
        ("artst", "no column artst"),
    ],
)
def test_columns_that_make_no_groups_for_an_inquiry_are_refused(memoriser, artists, column, said):
    with pytest.raises(UserError) as stopped:
        inquired(memoriser, *artists, group=column)
    assert said in str(stopped.value) and "\n" not in str(stopped.value)


def test_groups_of_other_sizes_on_either_side_give_no_answer(memoriser, digits, tmp_path):
    """The mean of a large group spreads less, so a group of many images is not exchangeable with one of few."""
    for name, rows, of in (("mine", range(200, 272), 6), ("later", range(300, 324), 1)):
        folder = tmp_path / name
        folder.mkdir()
        lines = [json.dumps({"file_name": f"{name}-{i:02}.png", "artist": f"{name}-{i // of}"}) for i in range(len(rows))]
        for i, row in enumerate(rows):
            Image.fromarray(digits[row, ..., 0]).save(folder / f"{name}-{i:02}.png")
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    record = inquired(memoriser, tmp_path / "mine", tmp_path / "later", group="artist")
    assert not record.valid and record.groups == () and record.blind.p_value < 0.05


def test_near_duplicates_on_both_sides_are_left_out_of_both_and_listed(model, monkeypatch):
    scan = planning.scan
    together = {"images/3": 1, "control/4": 1, "images/5": 2, "images/6": 2, "control/7": 2, "control/10": 3, "control/11": 3}

    def clustered(these):
        def with_clusters(*given):
            found = scan(*given)
            return replace(found, clusters=np.array([these.get(i, 10 + row) for row, i in enumerate(found.cohort.ids)]))

        return with_clusters

    monkeypatch.setattr(planning, "scan", clustered(together))
    record = inquired(model, IMAGES, CONTROL)
    assert set(record.across) == {"images/3", "images/5", "images/6", "control/4", "control/7"} and record.repeated == ("control/11",)
    assert (record.set.images, record.set.controls) == (21, 37) and len(record.images) == 21
    assert any("3 images in question and 2 controls are near-duplicates of each other and were not tested" in w for w in record.warnings)
    assert any(line.startswith("1 image is a near-duplicate of another on its side") for line in record.warnings)
    html = to_html(page(record))
    assert "Near-duplicates of images on the other side, which were not tested:" in html and "control/4" in html
    monkeypatch.setattr(planning, "scan", clustered({"images/0": 0, "control/0": 0, "images/1": 1, "control/1": 1}))
    with pytest.raises(
        UserError, match="at least 20 controls, 5 in every half that is tested; got 18, since near-duplicates count once, and not at all"
    ):
        inquired(model, IMAGES, CONTROL[:20])


@pytest.mark.parametrize(("attacks", "said"), [("sima", "sima gives"), ("sima,loss", "sima, loss give")])
def test_scores_that_are_all_equal_are_refused_and_kept(model, tmp_path, monkeypatch, attacks, said):
    for attack in (diffleak.SimA, diffleak.Loss):
        residuals = attack.residuals
        monkeypatch.setattr(attack, "residuals", lambda self, subject, r=residuals: (0 * each for each in r(self, subject)))
    with pytest.raises(UserError, match=rf"an attack must give images different scores; {said} all 64 the same.*scores are kept"):
        inquired(model, IMAGES, CONTROL, output=tmp_path / "run", attacks=attacks)
    assert list((tmp_path / "run" / "scores").glob("*.parquet")) and not (tmp_path / "run" / "inquiry.json").exists()


def test_controls_that_the_model_was_trained_on_are_refused(data, tmp_path):
    own = save_untrained(tmp_path / "model", **ATTENTION)
    source = str(data / "control.npy")
    (own / "train.json").write_text(json.dumps({"data": source}))
    (own / "split.json").write_text(json.dumps({"members": ["3", "7"], "nonmembers": [str(i) for i in range(8, 40)]}))
    given = {"images": data / "images.npy", "control": data / "control.npy"}
    with pytest.raises(UserError) as stopped:
        diffleak.inquire(own, **given, **FAST)
    said = str(stopped.value)
    assert "controls must be images that were certainly not trained on; by" in said
    assert "2 of the controls are trained on (first: control/3): leave them out" in said
    record = diffleak.inquire(own, **given, **FAST, ignore_model_split=True)
    assert any("If controls were trained on, the test can miss" in line for line in record.warnings)
    (own / "split.json").write_text(json.dumps({"members": ["3"], "nonmembers": []}))
    np.save(tmp_path / "trained.npy", CONTROL)
    (own / "train.json").write_text(json.dumps({"data": str(tmp_path / "trained.npy")}))
    with pytest.raises(UserError, match="1 of the controls is trained on"):
        diffleak.inquire(own, **given, **FAST)


def test_what_is_said_of_controls_names_the_file_that_it_speaks_of():
    trust = partial(Membership, source="IMAGES and CONTROL", status="taken on trust")
    begin = "It is taken on trust that the controls were not trained on"
    said = of_controls(trust(model_split="out/split.json", reason="3 of 20 images are not listed there by name (first: a.png)"))
    assert said == f"{begin}, and out/split.json does not confirm it: 3 of 20 images are not listed there by name (first: a.png)."
    said = of_controls(trust(model_split="out/split.json", reason="only names could be compared", same_names=True))
    assert said == f"{begin}. out/split.json lists the same names as held out; only names could be compared."
    assert of_controls(trust(reason="the model has no split.json to compare with")).startswith(f"{begin}: the model has no split.json")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"control": None}, "give --images DATA and --control DATA"),
        ({"members": "a"}, "members is a setting of an audit, and this is an inquiry: the two sides are --images and --control"),
        ({"group": ""}, "group"),
        ({"max_auc": 0.6}, "max_auc is a setting of an audit, and this is an inquiry: leave it out"),
        ({"calibration": False}, "calibration is a setting of an audit"),
        ({"calibrate_fraction": 0.2}, "calibrate_fraction is a setting of an audit"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"image": "a"}, "did you mean 'images'"),
    ],
)
def test_settings_that_mean_nothing_here_are_refused(given, said):
    settings = {"model": "m", "images": "a", "control": "b", **given}
    with pytest.raises(UserError) as stopped:
        build(InquireConfig, settings)
    assert said in str(stopped.value)


def test_a_command_without_its_sides_says_which(model, capsys):
    assert "give --images DATA and --control DATA" in refused(capsys, "inquire", model, "-o", "run")


def pictures(folder: Path, count: int, captioned: int, seed: int) -> Path:
    folder.mkdir(parents=True)
    rng, lines = np.random.default_rng(seed), []
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        if i < captioned:
            lines.append(json.dumps({"file_name": f"{i}.png", "text": CAPTIONS[i % len(CAPTIONS)]}))
    if lines:
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_captions_are_their_own_or_empty_and_never_some_of_each(tmp_path, capsys):
    text_folder(tmp_path / "sd")
    sides = {
        name: (pictures(tmp_path / name / "images", 10, n, 0), pictures(tmp_path / name / "control", 20, k, 1))
        for name, n, k in (
            ("none", 0, 0),
            ("all", 10, 20),
            ("some", 4, 20),
            ("one side", 10, 0),
        )
    }
    asked = lambda name, **more: build(
        InquireConfig,
        {"model": str(tmp_path / "sd"), "images": sides[name][0], "control": sides[name][1], **FAST, "timesteps": "50", **more},
    )
    assert prepared(asked("all")).plan.captions == "own" and prepared(asked("all", captions="empty")).plan.captions == "empty"
    for name in ("none", "some", "one side"):
        assert prepared(asked(name)).plan.captions == "empty"
        if name != "none":
            with pytest.raises(UserError, match="every image needs one"):
                prepared(asked(name, captions="own"))
    for name, own in (("none", 0), ("some", 24)):
        flags = ["--images", sides[name][0], "--control", sides[name][1], "--attacks", "sima", "--timesteps", 50, "--repeats", 1]
        flags += ["--device", "cpu", "--threads", 1, "-o", tmp_path / "run" / name, "--json"]
        code, out, err = call(capsys, "inquire", tmp_path / "sd", *flags)
        assert code in (0, 4) and f"captions: the empty caption for every image (empty; {own}/30 have one of their own)" in err
        record = InquiryRecord.model_validate_json(out)
        (said,) = (line for line in record.warnings if "empty caption" in line)
        assert record.plan.captions == "empty" and ("24 of 30 have one of their own" in said) is bool(own)


def test_every_number_of_an_image_has_a_name():
    assert len(names()) == FEATURES == len(image_features(IMAGES[0][..., None])) and len(set(names())) == FEATURES
    dark, bright = (image_features(np.full((8, 8, 3), level, dtype=np.uint8)) for level in (0, 255))
    changed = {name for name, a, b in zip(names(), dark, bright, strict=True) if a != b}
    assert {"brightness", "share of black", "share of white", "dark level", "brightness of part 1,1"} <= changed
    assert changed.isdisjoint({"contrast", "noise", "colour cast", "sharpness across"})


def test_of_controls_that_the_models_split_does_not_confirm_it_is_said_which_file_does_not():
    of = lambda file, reason: of_controls(Membership(source="c", status="taken on trust", model_split=file, reason=reason))
    otherwise = "9 of 20 images have names that it lists on another side, and nothing says where the training images lie"
    said = of("m/split.json", otherwise)
    assert said == f"It is taken on trust that the controls were not trained on, and m/split.json does not confirm it: {otherwise}."
    assert of(None, "the model has no split.json to compare with").startswith(
        "It is taken on trust that the controls were not trained on: the"
    )


def test_groups_that_are_too_few_say_which_images_were_left_out(memoriser, artists, monkeypatch):
    scan, of_one = planning.scan, ("mine-00", "mine-01", "mine-02", "mine-03", "mine-04", "mine-05", "later-00")

    def with_clusters(*given):
        found = scan(*given)
        return replace(found, clusters=np.array([1 if Path(i).stem in of_one else 10 + row for row, i in enumerate(found.cohort.ids)]))

    monkeypatch.setattr(planning, "scan", with_clusters)
    with pytest.raises(UserError, match="got 9, without 7 images with a near-duplicate on the other side"):
        inquired(memoriser, *artists, group="artist")
