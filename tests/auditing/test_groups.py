"""`--group` and clusters of near-duplicates from the command to the page: what is counted, resumed, keyed, compared and refused."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fixtures.commands import call, refused
from PIL import Image

from diffleak.auditing import plan as planning
from diffleak.records.run_folder import read_audit, read_plan, read_samples
from diffleak.stats import metrics

pytestmark = pytest.mark.usefixtures("few_divisions", "undrawn")
FLAGS = ["--attacks", "sima", "--timesteps", "50:100:50", "--device", "cpu", "--threads", "1", "--batch-size", "8"]
PLAIN = [*FLAGS[:3], "100", *FLAGS[4:], "--no-calibration"]
A_SIDE, OF = 12, 2  # groups, and images of each


@pytest.fixture
def people(tmp_path, digits):
    """Two folders of digits, two images a person; column `person`, column `alone` with a name for each image, column `few` with two."""
    folders = []
    for side, name in enumerate(("in", "out")):
        root, rows = tmp_path / name, []
        root.mkdir()
        for i in range(A_SIDE * OF):
            Image.fromarray(digits[side * 100 + i, ..., 0]).save(root / f"{name}-{i:02}.png")
            row = {"file_name": f"{name}-{i:02}.png", "person": f"{name}son-{i // OF}", "alone": f"{name}{i:02}", "few": f"{name}{i % 2}"}
            rows.append({**row, "shared": f"team-{i}", "one": name})
        (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        folders.append(root)
    return folders


def audit(capsys, model, people, folder, *flags):
    return call(capsys, "audit", model, "--members", people[0], "--nonmembers", people[1], *flags, "-o", folder)


def test_an_audit_by_group_counts_groups_everywhere(capsys, model_folder, people, tmp_path):
    folder = tmp_path / "run"
    code, out, err = audit(capsys, model_folder(), people, folder, *PLAIN, "--group", "person")
    assert code == 0 and "24 members and 24 held-out images (8 x 8 grey), counted as 12 and 12 groups by person" in err
    record, samples = read_audit(folder), pd.read_csv(folder / "samples.csv")
    assert list(samples.columns) == ["id", "member", "part", "group", "sima"] and len(samples) == 48
    means = samples.groupby("group").agg({"sima": "mean", "member": "first"})
    by_hand = metrics.auc_estimate(means.sima[means.member == 1].to_numpy(), means.sima[means.member == 0].to_numpy())
    result = record.results[0]
    assert result.auc.value == pytest.approx(by_hand.value) and result.auc.low == pytest.approx(by_hand.low)
    assert (result.n_members, result.n_nonmembers, record.split.unit, record.split.members) == (12, 12, "group", 12)
    assert (record.plan.n_members, record.plan.group, record.groups.column) == (24, "person", "person")
    assert record.groups.members == 12 and record.groups.images == (2, 2, 2) and record.groups.attack == "sima"
    top = means[means.member == 1].sima.sort_values(ascending=False)
    assert [group.group for group in record.groups.exposed] == top.index.tolist()
    assert [group.score for group in record.groups.exposed] == pytest.approx(top.tolist())
    held = means.sima[means.member == 0]
    assert record.groups.exposed[0].exposure == pytest.approx((held >= top.iloc[0]).mean())

    markdown = call(capsys, "report", folder, "--markdown")[1]
    page = re.sub(r"<[^>]+>|\s+", " ", (folder / "report.html").read_text())
    for text in (" ".join(out.split()), " ".join(markdown.split()), " ".join(page.split())):
        assert "Given one group of members and one held-out group" in text
        assert "12 groups of members, 12 held-out groups" in text and "of 2 images each" in text
        assert text.count(top.index[0]) >= 1 and "held-out groups score" in text
    assert "images that belong together, such as those of one person" in page
    written = (folder / "report.html").read_bytes()
    assert call(capsys, "report", folder)[0] == 0 and (folder / "report.html").read_bytes() == written


def test_groups_of_one_image_give_the_numbers_of_an_audit_of_images_to_the_bit_and_a_run_resumes(capsys, model_folder, people, tmp_path):
    model = model_folder()
    assert audit(capsys, model, people, tmp_path / "images", *FLAGS)[0] == 0
    assert audit(capsys, model, people, tmp_path / "groups", *FLAGS, "--group", "alone", "--shard", "1/2", "--chunk-size", "8")[0] == 0
    code, _, _ = audit(capsys, model, people, tmp_path / "groups", *FLAGS, "--group", "alone", "--chunk-size", "8")
    images, groups = (read_audit(tmp_path / name) for name in ("images", "groups"))
    assert code == 0 and groups.split.unit == "group"
    assert [r.auc.value for r in images.results] != [None]
    assert groups.blind == images.blind
    assert groups.split.model_copy(update={"unit": "image"}) == images.split
    # which images calibrate is drawn by the names of what is counted
    samples = [pd.read_csv(tmp_path / name / "samples.csv") for name in ("images", "groups")]
    assert samples[1].group.tolist() == [f"{i[:-7]}{i[-6:-4]}" for i in samples[1].id]
    assert samples[0].drop(columns=["part", "sima"]).equals(samples[1].drop(columns=["part", "sima", "group"]))
    said = refused(
        capsys, "audit", model, "--members", people[0], "--nonmembers", people[1], *FLAGS, "--group", "person", "-o", tmp_path / "groups"
    )
    assert "belongs to another plan" in said and "group" in said
    said = refused(capsys, "audit", model, "--members", people[0], "--nonmembers", people[1], *FLAGS, "-o", tmp_path / "groups")
    assert "belongs to another plan" in said
    assert read_plan(tmp_path / "images").units is None and images.groups is None and images.plan.group is None


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("persn", "no column persn: it has file_name, person"),
        ("shared", "a group must stand on one side; 24 groups by shared are on both (first: team-0, with members: 1, held-out images: 1"),
        ("one", "at least 10 groups of members and 10 held-out groups; the column one has 1 and 1"),
        ("few", "at least 10 groups of members and 10 held-out groups; the column few has 2 and 2"),
        ("", "group"),
    ],
)
def test_columns_that_make_no_groups_are_refused_before_anything_is_written(capsys, model_folder, people, tmp_path, column, said):
    line = refused(
        capsys,
        "audit",
        model_folder(),
        "--members",
        people[0],
        "--nonmembers",
        people[1],
        *FLAGS,
        "--group",
        column,
        "-o",
        tmp_path / "run",
    )
    assert said in line and not (tmp_path / "run").exists()


def test_a_limit_that_so_few_groups_cannot_meet_is_refused_with_the_number_of_groups(capsys, model_folder, people, tmp_path):
    sides = ["--members", people[0], "--nonmembers", people[1], "--group", "person", "--max-auc", "0.6"]
    line = refused(capsys, "audit", model_folder(), *sides, *FLAGS, "-o", tmp_path / "run")
    assert "cannot be met with 12 groups of members and 12 held-out groups" in line and "give at least 80 groups on each side" in line


def test_an_anonymous_run_keys_the_names_of_groups_and_its_owner_finds_them(capsys, model_folder, people, tmp_path):
    folder, model = tmp_path / "run", model_folder()
    code, out, err = audit(capsys, model, people, folder, *PLAIN, "--group", "person", "--anonymous")
    assert code == 0, err
    markdown = call(capsys, "report", folder, "--markdown")[1]
    texts = [out, err, markdown, *(path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file())]
    assert not any(name in text for text in texts for name in ("inson-", "outson-", "in-0"))
    record = read_audit(folder)
    assert len(record.groups.exposed) == 12 and all(re.fullmatch("g[0-9a-f]{16}", group.group) for group in record.groups.exposed)
    assert set(read_samples(folder).units) >= {group.group for group in record.groups.exposed}
    assert audit(capsys, model, people, tmp_path / "named", *PLAIN, "--group", "person")[0] == 0
    named = read_audit(tmp_path / "named")
    assert record.results[0].auc == named.results[0].auc and record.split == named.split
    assert call(capsys, "reveal", folder)[0] == 0
    found = pd.read_csv(folder / "ids.csv").set_index("id").name
    assert [found[group.group] for group in record.groups.exposed] == [group.group for group in named.groups.exposed]


def test_near_duplicates_count_as_one_image_and_the_report_says_so(capsys, model_folder, people, tmp_path, monkeypatch):
    scan = planning.scan

    def with_clusters(cohort, *more):
        found = scan(cohort, *more)
        clusters = np.arange(len(found.cohort))
        clusters[[1, 2, 30]] = clusters[0]  # three members, and one on the other side
        return replace(found, clusters=clusters)

    monkeypatch.setattr(planning, "scan", with_clusters)
    folder = tmp_path / "run"
    code, _, err = audit(capsys, model_folder(), people, folder, *PLAIN)
    assert code == 0 and "counted as 22 and 24 where near-duplicates count as one image" in err
    record, samples = read_audit(folder), pd.read_csv(folder / "samples.csv")
    assert any(
        line.startswith("3 images have a near-duplicate on their side: each cluster counts as one image") for line in record.warnings
    )
    assert (record.split.unit, record.split.members, record.split.nonmembers, record.results[0].n_members) == ("cluster", 22, 24, 22)
    assert record.clusters == (tuple(sorted(samples.id[[0, 1, 2, 30]], key=lambda i: (len(i), i))),), "whatever their sides"
    assert samples.cluster.tolist()[:4] == [samples.id[0]] * 3 + [samples.id[3]] and samples.cluster[30] == samples.id[30]
    means = samples.groupby("cluster").agg({"sima": "mean", "member": "first"})
    by_hand = metrics.auc(means.sima[means.member == 1].to_numpy(), means.sima[means.member == 0].to_numpy())
    assert record.results[0].auc.value == pytest.approx(by_hand)
    assert "22 members, 24 held-out images, of 24 members, 24 held-out images" in " ".join((folder / "report.html").read_text().split())
    monkeypatch.undo()
    line = refused(capsys, "audit", tmp_path / "model", "--members", people[0], "--nonmembers", people[1], *PLAIN, "-o", folder)
    assert "belongs to another plan" in line


def test_an_anonymous_run_divides_clusters_as_a_named_one_does(capsys, model_folder, people, tmp_path, monkeypatch):
    scan = planning.scan

    def in_pairs(cohort, *more):
        found = scan(cohort, *more)
        rank = np.argsort(np.argsort(found.cohort.keys))  # of the file names, in whatever order the rows stand
        return replace(found, clusters=rank // 2)

    monkeypatch.setattr(planning, "scan", in_pairs)
    model, runs = model_folder(), {"named": [], "keyed": ["--anonymous"]}
    for name, flags in runs.items():
        code, _, err = audit(capsys, model, people, tmp_path / name, *FLAGS, *flags)
        assert code == 0 and "counted as 12 and 12 where near-duplicates" in err
    named, keyed = (read_audit(tmp_path / name) for name in runs)
    assert named.split == keyed.split and named.results[0].auc == keyed.results[0].auc
    assert len(keyed.clusters) == len(named.clusters) == 24 and [c[0] for c in keyed.clusters] == sorted(c[0] for c in keyed.clusters)
    assert all(list(cluster) == sorted(cluster) for cluster in keyed.clusters), "not in the order of the file names"
    assert named.results[0].per_timestep == keyed.results[0].per_timestep


def test_runs_by_group_are_compared_by_group_and_not_with_runs_by_image(capsys, model_folder, people, tmp_path):
    for name, model, flags in (
        ("one", "a", ["--group", "person"]),
        ("two", "b", ["--group", "person"]),
        ("three", "b", []),
    ):
        assert audit(capsys, model_folder(model), people, tmp_path / name, *PLAIN, *flags)[0] == 0
    code, out, _ = call(capsys, "compare", tmp_path / "one", tmp_path / "two", "-o", tmp_path / "both")
    assert code == 0 and "the 12 groups of members and 12 held-out groups that both were tested on" in " ".join(out.split())
    found = json.loads((tmp_path / "both" / "compare.json").read_text())
    difference = found["entries"][1]["worst"]["difference"]
    assert (difference["members"], difference["nonmembers"], difference["auc"]["value"]) == (12, 12, 0.0), "the same weights"
    assert any("count groups by person and not images" in line for line in found["warnings"])
    line = refused(capsys, "compare", tmp_path / "one", tmp_path / "three")
    assert "counts groups by person" in line and "counts images" in line
