"""`diffleak compare`: what is paired with what, which attack counts, the swap audit, what is refused, what is printed."""

import io
import json
import re
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from fixtures import runs as run_fixtures
from fixtures.commands import call, refused
from fixtures.runs import gaussian, ids_of, make_run, swap_runs, write_quality
from rich.console import Console

from diffleak.comparison.compare import compare, refuse_invalid, save
from diffleak.comparison.runs import read_entries
from diffleak.comparison.swap import with_halves
from diffleak.errors import InvalidAudit, UserError
from diffleak.records.audit import Blind
from diffleak.records.comparison import Comparison
from diffleak.records.quality import Metric
from diffleak.records.run_folder import read_samples
from diffleak.report import print_page, to_html
from diffleak.report.judgement import read_record
from diffleak.report.pages import comparison
from diffleak.report.sections.comparison.swap import _caption
from diffleak.report.sections.comparison.verdict import _missed, comparison_verdict
from diffleak.stats import metrics
from diffleak.stats.calibration import PLAIN
from diffleak.work.folder import UNKNOWN

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An undefended model, a defended one, and one whose first attack alone is weakened."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "undefended", {"sima": gaussian(1.6), "loss": gaussian(0.8)}, seed=1)
    make_run(folder / "defended", {"sima": gaussian(0.1), "loss": gaussian(0.1)}, seed=2)
    make_run(folder / "partly", {"sima": gaussian(0.1), "loss": gaussian(0.8)}, seed=3)
    return folder


def copy(runs, tmp_path, name="undefended", **fields):
    """A run folder of its own, with changes to audit.json."""
    folder = tmp_path / name
    shutil.copytree(runs / name, folder)
    if fields:
        record = json.loads((folder / "audit.json").read_text())
        (folder / "audit.json").write_text(json.dumps(record | fields))
    return folder


def names(*folders):
    return [str(f) for f in folders]


def printed(record, width=100):
    stream = io.StringIO()
    print_page(comparison.page(record), Console(file=stream, width=width))
    return stream.getvalue()


# What is compared


def test_differences_are_the_paired_statistics_of_the_images_in_both_test_parts(runs):
    record = compare(names(runs / "undefended", runs / "defended"))
    a, b = (read_samples(runs / name) for name in ("defended", "undefended"))
    assert a.ids == b.ids
    both = a.test & b.test
    columns = np.stack([a.scores["sima"], b.scores["sima"]], axis=1)
    m, n = columns[both & a.member], columns[both & ~a.member]
    found = next(r.difference for r in record.entries[1].results if r.attack == "sima")
    assert found.auc == metrics.auc_difference(m, n)
    assert found.tpr_at_10pct == metrics.tpr_difference(m, n, 0.1)
    assert found.tpr_at_1pct == metrics.tpr_difference(m, n, 0.01)
    assert (found.members, found.nonmembers) == (320, 320)
    assert found.auc.high < -0.2, "the defence was planted"
    assert all(r.difference is None for r in record.baseline.results) and record.baseline.worst.difference is None


def test_the_number_of_an_entry_is_that_of_the_attack_with_the_highest_auc_on_the_calibrate_part(runs):
    record = compare(names(runs / "undefended", runs / "partly"))
    assert [e.worst.attack for e in record.entries] == ["sima", "loss"]
    for entry in record.entries:
        best = max(entry.results, key=lambda r: r.calibrate_auc)
        assert (entry.worst.attack, entry.worst.chosen_on) == (best.attack, "calibrate")
        assert entry.worst.not_excluded == best.auc.high
    against = record.entries[1].worst.difference
    assert against.against_attack == "sima", "worst against worst, though the attacks differ"
    same = next(r.difference for r in record.entries[1].results if r.attack == "loss")
    assert against.auc.value < same.auc.value


def test_the_worst_attack_is_not_picked_on_the_test_half(runs, tmp_path):
    folder = copy(runs, tmp_path)
    record = json.loads((folder / "audit.json").read_text())
    for result in record["results"]:
        if result["attack"] == "loss":
            result["per_timestep"][0]["auc"] = 0.999
    (folder / "audit.json").write_text(json.dumps(record))
    worst = compare(names(runs / "undefended", f"edited={folder}")).entries[1].worst
    assert worst.attack == "loss", "what calibrate says decides, whatever the test part says"


def test_the_worst_over_all_runs_of_an_entry_is_taken(runs):
    argument = f"both={runs / 'defended'},{runs / 'partly'}"
    entry = compare([str(runs / "undefended"), argument]).entries[1]
    assert (entry.name, len(entry.runs), len(entry.results)) == ("both", 2, 4)
    assert (entry.worst.run, entry.worst.attack) == (str(runs / "partly"), "loss")


def test_a_control_of_masks_is_shown_but_is_never_the_worst(tmp_path):
    label = "sima[random:0.4]"
    folders = [
        make_run(tmp_path / n, {"sima": gaussian(0.5), label: gaussian(2.0)}, seed=i, masks={label: "random:0.4"})
        for i, n in enumerate("ab")
    ]
    record = compare(names(*folders))
    assert record.attacks == ("sima", label)
    assert {e.worst.attack for e in record.entries} == {"sima"}
    with pytest.raises(
        UserError, match=r"controls of masks, and what is found in the reference, cannot be .*; name another beside sima\[random"
    ):
        compare(names(*folders), [label])


def test_a_calibrated_attack_of_which_nothing_was_taken_out_is_compared_where_it_is_asked_for(tmp_path):
    folders = [make_run(tmp_path / name, dict.fromkeys(("sima", "sima[calibrated]"), gaussian(1.0)), seed=i) for i, name in enumerate("ab")]
    compared = lambda *asked: compare(names(*folders), attacks=asked)
    assert compared().attacks == ("sima", "sima[calibrated]"), "something was taken out, as far as is known"

    def nothing_taken(folder):
        record = json.loads((folder / "audit.json").read_text())
        record["results"][1]["complexity"] = PLAIN
        (folder / "audit.json").write_text(json.dumps(record))

    nothing_taken(folders[0])
    assert compared().attacks == ("sima", "sima[calibrated]"), "of the other run something was"
    nothing_taken(folders[1])
    assert compared().attacks == ("sima",) and not any("left out" in line for line in compared().warnings)
    assert compared("sima[calibrated]").attacks == ("sima[calibrated]",)


def test_runs_without_a_calibrate_part_say_that_the_worst_was_picked_on_test(tmp_path):
    attacks = {"sima": gaussian(1.0), "loss": gaussian(0.5)}
    folders = [make_run(tmp_path / n, attacks, seed=i, calibration=False) for i, n in enumerate("ab")]
    record = compare(names(*folders))
    assert [e.worst.chosen_on for e in record.entries] == ["test", "test"]
    assert any("flatters the attack" in w for w in record.warnings)


def test_a_run_on_part_of_the_images_is_paired_on_what_both_were_tested_on(tmp_path):
    keep = np.ones(800, dtype=bool)
    keep[200:400] = False
    whole = make_run(tmp_path / "whole", {"sima": gaussian(1.5)}, seed=1)
    part = make_run(tmp_path / "part", {"sima": gaussian(1.5)}, seed=2, keep=keep)
    record = compare(names(whole, part))
    a, b = read_samples(whole), read_samples(part)
    both = {i for i, t in zip(a.ids, a.test, strict=True) if t} & {i for i, t in zip(b.ids, b.test, strict=True) if t}
    found = record.entries[1].worst.difference
    assert found.members + found.nonmembers == len(both)
    assert any("the 600 images with the same id" in w for w in record.warnings)
    back = compare(names(part, whole)).entries[1].worst.difference
    assert back.auc.value == pytest.approx(-found.auc.value)
    assert any("rest on the" in w for w in compare(names(part, whole)).warnings), "the whole run was tested on more"


def test_small_sets_are_paired_division_by_division_and_the_median_is_reported(tmp_path):
    ids, member = ids_of(60, 60)
    folders = [make_run(tmp_path / n, {"sima": gaussian(d)}, ids, member, seed=i) for i, (n, d) in enumerate([("a", 1.5), ("b", 0.2)])]
    assert read_record(folders[0]).split.repeats == 25
    record = compare(names(*folders))
    found = record.entries[1].worst.difference
    assert found.auc.low < found.auc.value < found.auc.high < 0
    assert (found.members, found.nonmembers) == (48, 48)
    assert any("medians over 25 calibrate/test divisions" in w for w in record.warnings)
    one = [read_samples(f) for f in folders]
    columns = np.stack([s.scores["sima"] for s in one[::-1]], axis=1)
    whole = metrics.auc_difference(columns[member], columns[~member])
    assert found.auc.value == pytest.approx(whole.value, abs=0.05)


def test_two_equal_models_have_a_difference_around_zero_and_nothing_is_claimed(tmp_path):
    folders = [make_run(tmp_path / n, {"sima": gaussian(1.0)}, seed=i) for i, n in enumerate("ab")]
    record = compare(names(*folders))
    assert record.entries[1].worst.difference.auc.low < 0 < record.entries[1].worst.difference.auc.high
    judged = comparison_verdict(record)
    assert judged.level == "not-shown" and judged.title == "b was not shown to weaken the strongest attack of a."


def test_only_the_named_attacks_are_compared_and_the_rest_is_said_to_be_left_out(runs):
    record = compare(names(runs / "undefended", runs / "defended"), ["loss"])
    assert record.attacks == ("loss",) and {r.attack for e in record.entries for r in e.results} == {"loss"}
    assert any("left out: sima" in w for w in record.warnings)
    assert record.differences == 2


def test_the_same_runs_give_the_same_record(runs):
    both = [compare(names(runs / "undefended", runs / "defended")).model_dump(exclude={"created"}) for _ in range(2)]
    assert both[0] == both[1]


# The swap audit


def test_where_images_differ_more_than_members_do_the_swap_audit_finds_what_one_teacher_hides(tmp_path):
    one, two, split = swap_runs(tmp_path, d=1.0, difficulty=4.0)
    swap = compare(names(one, two), halves=split).swap
    result = next(r for r in swap.results if r.attack == swap.best)
    assert result.auc.low > 0.85
    assert all(own.high < 0.7 for own in result.own), "one teacher alone is a weak attack"
    assert swap.members == (200, 200) and sum(swap.tested) == 320 and swap.nonmembers == (320, 320)
    assert result.timestep == 100, "the hill's top, chosen on the calibrate part"
    marked = "Marked: the attack with the highest swap AUC on the {} part."
    assert marked.format("calibrate") in _caption(swap)
    fixed = tuple(r.model_copy(update={"calibrate_auc": None}) for r in swap.results)
    assert marked.format("test") in _caption(swap.model_copy(update={"results": fixed}))


def test_where_neither_teacher_tells_anything_the_swap_audit_is_at_one_half(tmp_path):
    one, two, split = swap_runs(tmp_path, d=0.0, difficulty=4.0)
    swap = compare(names(one, two), halves=split).swap
    assert all(r.auc.low < 0.5 < r.auc.high for r in swap.results)


def test_split_json_beside_the_audited_model_is_found(tmp_path):
    one, two, _ = swap_runs(tmp_path, d=1.0, difficulty=4.0)
    assert compare(names(one, two)).swap is not None


def test_a_small_swap_audit_is_a_median_over_divisions(tmp_path):
    one, two, split = swap_runs(tmp_path, d=1.0, difficulty=4.0, n=120, nonmembers=60)
    swap = compare(names(one, two), halves=split).swap
    assert swap.repeats == 25 and all(r.auc.low > 0.7 for r in swap.results)


def test_a_teacher_counts_its_own_half_as_members_and_the_other_half_not_at_all(tmp_path):
    one, two, _ = swap_runs(tmp_path, d=2.0, difficulty=0.5)
    whole = make_run(tmp_path / "undefended", {"sima": gaussian(2.0, 0.5), "loss": gaussian(2.0, 0.5)}, seed=7)
    record = compare([str(whole), f"dual={one},{two}"])
    dual, mixed = record.entries[1], read_record(one).result("sima")
    assert all(r.n_members == 160 and r.n_nonmembers == 320 for r in dual.results)
    assert all(r.auc.low > mixed.auc.high for r in dual.results), "half of the members of the mixed number are none"
    assert dual.worst.difference.members <= 160
    assert sum("left out of its numbers" in w for w in record.warnings) == 2


def test_a_defence_that_the_swap_audit_undoes_is_not_said_to_weaken_the_attack(tmp_path):
    one, two, _ = swap_runs(tmp_path, d=1.0, difficulty=4.0)
    whole = make_run(tmp_path / "undefended", {"sima": gaussian(3.0), "loss": gaussian(3.0)}, seed=7)
    record = compare([str(whole), f"dual={one},{two}"])
    assert record.entries[1].worst.difference.auc.high < 0
    judged = comparison_verdict(record)
    assert judged.level == "not-shown" and any("But an attacker who has both teachers" in s for s in judged.sentences)


# Near-duplicates that count as one image


def by_hand(runs, attack, cluster, rows):
    """The mean over each cluster of these images of an attack's scores in one run, or of their difference in two, by cluster."""
    columns = [pd.Series(read_samples(run).scores[attack], read_samples(run).ids) for run in runs]
    ids = np.array(read_samples(runs[0]).ids)[rows]
    values = columns[0] if len(columns) == 1 else columns[0] - columns[1]
    return values[ids].groupby(cluster[rows]).mean().to_numpy()


def test_the_swap_audit_counts_near_duplicates_of_a_half_as_one_image_and_never_mixes_halves(tmp_path):
    """Clusters of three; the second hundred of members is in clusters with an image of either half."""
    _, member = ids_of(400, 200)
    cluster = np.arange(600) // 3
    cluster[100:200] = cluster[200:300] = 1000 + np.arange(100)
    one, two, split = swap_runs(tmp_path, 1.0, 2.0, 400, 200, clusters=cluster, calibration=False)
    swap = compare(names(one, two), halves=split).swap
    first, second = np.arange(600) < 200, member & (np.arange(600) >= 200)
    sides = [by_hand((one, two), "sima", cluster, np.flatnonzero(half)) for half in (first, second)]
    result = next(r for r in swap.results if r.attack == "sima")
    assert result.auc == metrics.auc_estimate(*sides)
    assert swap.members == swap.tested == tuple(map(len, sides)) == (134, 134)
    assert (swap.unit, swap.across) == ("cluster", 100)
    held_out = np.flatnonzero(~member)
    for own, half, run in zip(result.own, (first, second), (one, two), strict=True):
        alone = [by_hand((run,), "sima", cluster, rows) for rows in (np.flatnonzero(half), held_out)]
        assert own == metrics.auc_estimate(*alone)
    page = " ".join(to_html(comparison.page(compare(names(one, two), halves=split))).split())
    assert "100 clusters of near-duplicates have images in both halves" in page and "Near-duplicates of a half count as one image" in page


def test_a_teacher_on_its_own_half_counts_clusters_and_its_division_says_so(tmp_path):
    ids, _ = ids_of(400, 200)
    cluster = np.arange(600) // 3
    cluster[100:200] = cluster[200:300] = 1000 + np.arange(100)
    one, two, split = swap_runs(tmp_path, 1.0, 2.0, 400, 200, clusters=cluster, calibration=False)
    entries, *_ = with_halves(read_entries(names(one, two)), split)
    for entry, half, whole in zip(entries, (range(200), range(200, 400)), (one, two), strict=True):
        (run,) = entry.runs
        rows = [*half, *range(400, 600)]
        assert run.images.ids == tuple(ids[row] for row in rows)
        sides = [by_hand((whole,), "sima", cluster, np.array(part)) for part in (half, range(400, 600))]
        assert run.record.split.unit == "cluster" and (run.record.split.members, run.record.split.nonmembers) == (134, len(sides[1]))
        assert run.result("sima").auc == metrics.auc_estimate(*sides)
        assert run.images.unit == "cluster" and len(run.samples.ids) == 134 + len(sides[1])


def test_runs_that_count_other_images_together_are_paired_on_what_either_counts_together(tmp_path):
    """Clusters {0, 1} in the first run and {1, 2} in the second make {0, 1, 2}; a run of single images pairs with clusters too."""
    ids, member = ids_of(400, 400)
    n = np.arange(800)
    pairs, shifted, chained = n // 2, (n + 1) // 2, n.copy()
    shifted[100:] = n[100:] + 1000
    chained[:100], chained[100:] = 0, pairs[100:] + 1
    shifted[400], shifted[401] = 5000, 5000
    runs = {"pairs": pairs, "shifted": shifted, "single": None}
    folders = {
        name: make_run(tmp_path / name, {"sima": gaussian(0.2 * k)}, ids, member, k, clusters=cluster, calibration=False)
        for k, (name, cluster) in enumerate(runs.items())
    }
    for other, expected in (("shifted", chained), ("single", pairs)):
        record = compare(names(folders["pairs"], folders[other]))
        found = record.entries[1].worst.difference
        sides = [
            [by_hand((folders[run],), "sima", expected, np.flatnonzero(side)) for run in (other, "pairs")] for side in (member, ~member)
        ]
        m, nonmembers = (np.stack(columns, axis=1) for columns in sides)
        assert found.auc == metrics.auc_difference(m, nonmembers)
        assert (found.members, found.nonmembers) == (len(m), len(nonmembers))
        said = f"the 800 images of both are {len(m) + len(nonmembers)}"
        assert sum("do not count the same images together" in line and said in line for line in record.warnings) == 1
    same = make_run(tmp_path / "same", {"sima": gaussian(0.1)}, ids, member, 9, clusters=pairs)
    assert not any("do not count the same" in line for line in compare(names(folders["pairs"], same)).warnings)


# Groups


def people(across=0, n=400, nonmembers=200, each=4):
    """The number of the person of each image, `each` images a person and none in both halves but for the first `across` of either."""
    group = np.arange(n + nonmembers) // each
    for person in range(across):
        group[n // 2 + each * person : n // 2 + each * person + each // 2] = person
    return group


def test_the_swap_audit_and_a_teachers_own_half_count_groups_where_the_audits_do(tmp_path):
    _, member = ids_of(400, 200)
    group = people()
    one, two, split = swap_runs(tmp_path, 1.0, 2.0, 400, 200, groups=group, calibration=False)
    record = compare(names(one, two), halves=split)
    swap, first, held_out = record.swap, np.arange(600) < 200, np.flatnonzero(~member)
    sides = [by_hand((one, two), "sima", group, np.flatnonzero(half)) for half in (first, member & ~first)]
    result = next(r for r in swap.results if r.attack == "sima")
    assert result.auc == metrics.auc_estimate(*sides)
    assert (swap.unit, swap.members, swap.nonmembers, swap.across) == ("group", (50, 50), (50, 50), 0)
    for entry, half, own, whole in zip(record.entries, (first, member & ~first), result.own, (one, two), strict=True):
        alone = [by_hand((whole,), "sima", group, rows) for rows in (np.flatnonzero(half), held_out)]
        assert own == metrics.auc_estimate(*alone) == next(r for r in entry.results if r.attack == "sima").auc
        assert (entry.runs[0].group, entry.runs[0].members, entry.runs[0].nonmembers) == ("person", 50, 50)
    page = " ".join(to_html(comparison.page(record)).split())
    assert "a group of the first half (50 tested)" in page and "given one group of each half" in page
    by_image = swap_runs(tmp_path / "images", 1.0, 2.0, 400, 200, calibration=False)
    assert compare(names(*by_image[:2]), halves=by_image[2]).swap.members == (200, 200)


def test_groups_are_divided_as_their_audit_divided_them(tmp_path):
    """A group is in the calibrate or in the test part by its name, not by those of its images."""
    one, two, split = swap_runs(tmp_path, 1.0, 2.0, 1600, 1600, groups=people(0, 1600, 1600))
    entries, *_ = with_halves(read_entries(names(one, two)), split)
    for entry, whole in zip(entries, (one, two), strict=True):
        before, own = read_samples(whole), entry.runs[0].images
        tested = dict(zip(before.ids, before.test, strict=True))
        part = [tested[i] for i in own.ids]
        assert own.unit == "group" and np.mean(own.test == part) > 0.6, "drawn by the same keys, among other groups"


@pytest.mark.parametrize(("across", "have"), [(3, "3 of the groups by person have"), (1, "1 of the groups by person has")])
def test_a_swap_audit_of_groups_that_stand_in_both_halves_is_refused_and_each_half_alone_is_not(tmp_path, across, have):
    one, two, split = swap_runs(tmp_path, 1.0, 2.0, 400, 200, groups=people(across=across), calibration=False)
    record = compare(names(one, two))
    assert record.swap is None and f"each group in one half; {have} images in both" in record.swap_reason
    assert [entry.runs[0].members for entry in record.entries] == [50, 50 + across]
    with pytest.raises(UserError, match="draw the halves with diffleak defend --group person"):
        compare(names(one, two), halves=split)


def test_a_swap_audit_of_other_groups_or_of_groups_and_images_is_refused(tmp_path):
    one, two, split = swap_runs(tmp_path, 1.0, 2.0, 400, 200, groups=people(), calibration=False)
    ids, member = ids_of(400, 200)
    again = {"ids": ids, "member": member, "fingerprint": f"sha256:{2:064x}", "calibration": False}
    signals = {"sima": gaussian(1.0), "loss": gaussian(1.0)}
    for name, more, said in (
        ("images", {}, "must count the same .*images counts images and .* counts groups by person"),
        ("column", {"groups": people(), "column": "site"}, "must count the same .*groups by site"),
        ("others", {"groups": people(each=2)}, "needs the same groups in both runs; .* put some images in different groups"),
    ):
        other = make_run(tmp_path / name, signals, **again, **more)
        with pytest.raises(UserError, match=said):
            compare(names(one, other), halves=split)
    assert compare(names(one, two), halves=split).swap is not None


def edited(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return path


WRONG_HALVES = {
    "no halves": (lambda c: {"halves": None}, r"must be JSON of the form .*halves.*teachers"),
    "one teacher": (lambda c: {"teachers": ["x"]}, r"must be JSON of the form"),
    "strangers": (
        lambda c: {"halves": [["zebra.png"], c["halves"][1]]},
        r"must be made of members; 1 of their ids is not \(first: zebra.png\)",
    ),
    "overlap": (lambda c: {"halves": [c["halves"][0], c["halves"][0]]}, r"must be disjoint and hold images; 200 ids are in both"),
    "empty": (lambda c: {"halves": [c["halves"][0], []]}, r"must be disjoint and hold images; one is empty"),
    "other models": (
        lambda c: {"teachers": ["sha256:aa", "sha256:bb"]},
        r"none of the runs is on teacher 1 \(sha256:aa\): audit it .*, or leave out --halves$",
    ),
    "held out": (
        lambda c: {"members": c["members"] + c["nonmembers"], "halves": [c["nonmembers"], c["members"]]},
        r"run-teacher-1 holds out 400 of their ids",
    ),
    "not audited": (
        lambda c: {"members": [*c["members"], "y", "z"], "halves": [c["halves"][0], ["y", "z"]]},
        r"share 0 of the 2 images of half 2",
    ),
}


@pytest.mark.parametrize("case", WRONG_HALVES)
def test_a_halves_file_that_does_not_fit_is_refused(tmp_path, case):
    one, two, split = swap_runs(tmp_path, d=1.0, difficulty=1.0)
    change, message = WRONG_HALVES[case]
    path = edited(split, **change(json.loads(split.read_text())))
    with pytest.raises(UserError, match=message):
        compare(names(one, two), halves=path)


def test_a_halves_file_that_nobody_asked_for_and_does_not_fit_is_a_remark(tmp_path):
    one, two, split = swap_runs(tmp_path, d=1.0, difficulty=1.0)
    edited(split, teachers=["sha256:aa", "sha256:bb"])
    record = compare(names(one, two))
    assert record.swap is None and "no run audits either of them" in record.swap_reason
    assert "teacher" not in " ".join(record.warnings), "no number is of a teacher"


def test_halves_that_nobody_asked_for_are_not_to_be_left_out(tmp_path):
    one, _, _ = swap_runs(tmp_path, d=1.0, difficulty=1.0)
    other = make_run(tmp_path / "another", {"sima": gaussian(1.0), "loss": gaussian(1.0)})
    record = compare(names(one, other))
    assert record.swap is None and "none of the runs is on teacher 2" in record.swap_reason and "--halves" not in record.swap_reason


def test_a_teacher_audited_on_the_other_half_alone_is_refused(tmp_path):
    _, two, split = swap_runs(tmp_path, d=1.0, difficulty=1.0)
    keep = np.arange(800) >= 200
    other = make_run(tmp_path / "other", {"sima": gaussian(1.0)}, fingerprint=f"sha256:{1:064x}", keep=keep)
    with pytest.raises(UserError, match=r"other is on a teacher that .*split.json names and must hold images of that teacher's own half"):
        compare(names(other, two), halves=split)


def test_a_missing_halves_file_and_missing_scores_are_refused(tmp_path):
    one, two, split = swap_runs(tmp_path, d=1.0, difficulty=1.0)
    with pytest.raises(UserError, match=r"the halves file .*none.json cannot be read \(No such file"):
        compare(names(one, two), halves=tmp_path / "none.json")
    shutil.rmtree(one / "scores")
    record = compare(names(one, two))
    assert record.swap is None and any("would count images it never saw as members" in w for w in record.warnings)
    with pytest.raises(UserError, match=r"needs the scores of every timestep; .*run-teacher-1 has none under scores/"):
        compare(names(one, two), halves=split)
    (one / "scores").mkdir()
    (one / "scores" / "chunk-00000-00-sima.parquet").write_text("no parquet")
    with pytest.raises(UserError, match=r"chunk-00000-00-sima.parquet cannot be read \(.*\); repeat the audit command of .*run-teacher-1"):
        compare(names(one, two), halves=split)


def test_teachers_without_a_shared_timestep_and_incomplete_scores_are_refused(tmp_path, monkeypatch):
    one, two, split = swap_runs(tmp_path, d=1.0, difficulty=1.0)
    monkeypatch.setattr(run_fixtures, "TIMESTEPS", (60, 110, 160))
    other = make_run(tmp_path / "other", {"sima": gaussian(1.0), "loss": gaussian(1.0)}, fingerprint=f"sha256:{2:064x}")
    with pytest.raises(
        UserError, match=r"needs scores of both teachers at a shared timestep; .*teacher-1 and .*other have none: audit them"
    ):
        compare(names(one, other), halves=split)
    file = next((two / "scores").glob("*sima.parquet"))
    pq.write_table(pq.read_table(file).slice(3), file)
    with pytest.raises(UserError, match=r"chunk-00000-00-sima.parquet cannot be read .*; repeat the audit command of .*run-teacher-2"):
        compare(names(one, two), halves=split)


# Quality


def test_without_quality_files_the_page_says_how_to_get_them(runs):
    record = compare(names(runs / "undefended", runs / "defended"))
    assert record.quality_metric is None and record.quality_reason == "no entry has a quality.json"
    page = to_html(comparison.page(record))
    assert "diffleak quality MODEL --real HELDOUT --training TRAIN -o RUN" in page and "privacy-quality" not in page


def test_quality_is_read_from_the_first_run_that_has_it_or_from_the_file_named(runs, tmp_path):
    a, b = copy(runs, tmp_path), copy(runs, tmp_path, "defended")
    other = tmp_path / "elsewhere"
    other.mkdir()
    write_quality(b, kid=0.02)
    record = compare([str(a), f"two={runs / 'partly'},{b}"], quality=[f"undefended={write_quality(other, kid=0.01)}"])
    assert [e.quality.metric("kid").value for e in record.entries] == [0.01, 0.02]
    assert record.quality_metric == "kid"
    page = to_html(comparison.page(record))
    assert 'id="privacy-quality' in page and "KID 0.02" in page
    assert "Quality: KID 0.02, against 0.01 of undefended" in printed(record).replace("\n  ", " ")


def test_a_quality_file_of_another_model_in_the_run_does_not_stand_in_the_way_of_the_one_named(runs, tmp_path):
    a, b = copy(runs, tmp_path), copy(runs, tmp_path, "defended")
    named = tmp_path / "elsewhere"
    named.mkdir()
    write_quality(a)
    edited(write_quality(b), model_fingerprint="sha256:another")
    with pytest.raises(UserError, match="or name the file with --quality defended=FILE"):
        compare(names(a, b))
    record = compare(names(a, b), quality=[f"defended={write_quality(named, kid=0.03)}"])
    assert record.entries[1].quality.metric("kid").value == 0.03


def test_without_a_kid_of_all_the_frechet_distance_is_plotted(runs, tmp_path):
    a, b = copy(runs, tmp_path), copy(runs, tmp_path, "defended")
    write_quality(a), write_quality(b, kid=None)
    assert compare(names(a, b)).quality_metric == "frechet"


@pytest.mark.parametrize("difference", [{"extractor_fingerprint": "dino"}, {"images": 2048}], ids=["extractor", "images"])
def test_quality_by_another_extractor_or_number_of_images_is_not_plotted_together(runs, tmp_path, difference):
    a, b = copy(runs, tmp_path), copy(runs, tmp_path, "defended")
    write_quality(a), write_quality(b, **difference)
    record = compare(names(a, b))
    assert record.quality_metric is None and "not comparable" in record.quality_reason
    assert "not comparable" in to_html(comparison.page(record)) and "privacy-quality" not in to_html(comparison.page(record))


def test_copy_rates_that_count_every_near_duplicate_are_told_from_those_that_count_each_once(runs, tmp_path):
    a, b = copy(runs, tmp_path), copy(runs, tmp_path, "defended")
    said = lambda: [line for line in compare(names(a, b)).warnings if "near-duplicates one by one" in line]
    write_quality(a), write_quality(b)
    assert said() == []
    write_quality(a, unit="image")
    (mixed,) = said()
    assert mixed.startswith("undefended: copy rate and KID difference are of an earlier version")
    assert "do not compare them with those of defended: repeat the quality command, which keeps the images drawn" in mixed
    write_quality(b, unit="image")
    (both,) = said()
    assert both.startswith("undefended, defended: ") and "do not compare" not in both
    for folder in (a, b):
        write_quality(folder, unit="image", metrics=(Metric(name="kid", value=0.01),))
    assert said() == [], "nothing that is compared counts otherwise"


def test_quality_of_a_later_version_is_read_by_the_keys_that_a_comparison_shows(runs, tmp_path):
    a, b = copy(runs, tmp_path), copy(runs, tmp_path, "defended")
    write_quality(a), write_quality(b)
    before = compare(names(a, b))
    later = json.loads((b / "quality.json").read_text())
    for part in (later, later["reference"], later["environment"], later["metrics"][0]):
        part["new"] = 1
    del later["costs"]
    (b / "quality.json").write_text(json.dumps(later))
    assert compare(names(a, b)).entries == before.entries


def test_bad_quality_is_refused(runs, tmp_path):
    a, b = copy(runs, tmp_path), str(runs / "defended")
    (a / "quality.json").write_text("{}")
    with pytest.raises(UserError, match=r"must be a quality.json as `diffleak quality` writes it \(model: Field required\)"):
        compare([str(a), b])
    (a / "quality.json").unlink()
    for given, message in (
        ("defended", "--quality must be NAME=FILE; got 'defended'"),
        ("defendd=x.json", "unknown entry 'defendd'; did you mean 'defended'"),
        ("defended=x.json", r"the quality file x.json cannot be read \(No such file"),
    ):
        with pytest.raises(UserError, match=message):
            compare([str(a), b], quality=[given])


# What is refused


def test_input_that_cannot_be_compared_is_refused(runs, tmp_path):
    a, b = runs / "undefended", runs / "defended"
    unfinished = copy(runs, tmp_path)
    (unfinished / "audit.json").unlink()
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([a], "at least two entries, the baseline first; got 1"),
        ([a, tmp_path / "empty"], "RUN must be the folder of a finished audit; .*empty has no audit.json"),
        ([a, tmp_path / "nowhere"], "RUN must be the folder of a finished audit; .*nowhere has no audit.json"),
        ([a, f"x={unfinished}"], "undefended is not finished: repeat its command"),
        ([a, b, f"defended={a}"], "each entry needs a name of its own; 'defended' is there twice: write NAME=RUN"),
        ([a, f"x={b},{b}"], "an entry must list each run once; 'x' has .*defended twice"),
        ([a, f"={b}"], r"an entry must be RUN or NAME=RUN\[,RUN...\]"),
        ([a, f"x={b},"], r"an entry must be RUN or NAME=RUN\[,RUN...\]"),
    ):
        with pytest.raises(UserError, match=message):
            compare([str(x) for x in arguments])
    with pytest.raises(UserError, match="unknown attack, or one that not every run has: 'sma'; did you mean 'sima'"):
        compare(names(a, b), ["sma"])


def test_runs_without_a_shared_attack_or_a_shared_image_are_refused(runs, tmp_path):
    a = runs / "undefended"
    other = make_run(tmp_path / "other", {"pia": gaussian(1.0)})
    with pytest.raises(
        UserError, match=r"must share at least one attack.*undefended has sima, loss; .*other has pia: audit them with the same"
    ):
        compare(names(a, other))
    ids, member = ids_of(400, 400)
    apart = make_run(tmp_path / "apart", {"sima": gaussian(1.0)}, [f"x-{i}" for i in ids], member)
    with pytest.raises(UserError, match=r"must share ids; these share none \(ids look like x-00000.png in .*apart and 00000.png in"):
        compare(names(a, apart))


def test_an_image_that_is_a_member_in_one_run_only_is_refused(runs, tmp_path):
    ids, member = ids_of(400, 400)
    swapped = member.copy()
    swapped[[3, 700]] = ~swapped[[3, 700]]
    other = make_run(tmp_path / "other", {"sima": gaussian(1.0)}, ids, swapped)
    with pytest.raises(UserError, match=r"on the same side in both runs; 2 ids are members in only one of .* \(first: 00003.png\)"):
        compare(names(runs / "undefended", other))


# What is said


def test_the_verdict_names_the_defence_the_difference_with_its_interval_and_what_is_not_excluded(runs):
    record = compare(names(runs / "undefended", runs / "defended", runs / "partly"))
    judged, worst = comparison_verdict(record), record.entries[1].worst
    d = worst.difference.auc
    assert judged.level == "lowers"
    assert judged.title.startswith("2 of 2 weaken the strongest attack, defended most by point estimate: its AUC is")
    assert f"{-d.value:.3f} lower (95 % interval {-d.high:.3f} to {-d.low:.3f}) than that of undefended" in judged.title
    assert any(f"an AUC up to {worst.not_excluded:.3f} cannot be excluded" in s for s in judged.sentences)
    assert any("highest AUC on the calibrate part" in s for s in judged.sentences)


def test_a_reversed_attack_is_no_sign_of_safety(tmp_path):
    folders = [make_run(tmp_path / n, {"sima": gaussian(d)}, seed=i) for i, (n, d) in enumerate([("a", 1.0), ("b", -1.0)])]
    text = " ".join(comparison_verdict(compare(names(*folders))).sentences)
    assert "the scores point the wrong way, and an attacker who turns them round may reach an AUC of" in text
    assert "So b does not count as weakening the attack." in text


def test_an_entry_with_an_attack_that_works_reversed_is_not_said_to_weaken_the_strongest(tmp_path):
    """Its strongest attack, by the calibrate part, is never the reversed one, so the difference alone would look like safety."""
    aucs = {"a": (1.5, 1.2), "b": (0.0, -1.5), "c": (0.0, 0.0), "d": (-1.5, -1.4)}
    a, b, c, d = (
        make_run(tmp_path / name, {"sima": gaussian(x), "loss": gaussian(y)}, seed=i) for i, (name, (x, y)) in enumerate(aucs.items())
    )
    judged = comparison_verdict(compare(names(a, b)))
    text = " ".join(judged.sentences)
    assert judged.level == "not-shown" and judged.title.startswith("b was not shown to weaken the strongest attack of a.")
    assert "But loss has AUC 0." in text and text.count("So b does not count as weakening the attack.") == 1
    assert comparison_verdict(compare(names(a, c))).level == "lowers"
    both = comparison_verdict(compare(names(a, b, c)))
    assert both.level == "lowers" and both.title.startswith("1 of 2 weakens the strongest attack: c;")
    judged = comparison_verdict(compare(names(d, c)))
    assert judged.level == "undecided" and judged.title.startswith("Undecided: on d the scores of ")
    assert "does better" not in judged.title and "Check that the sides are not swapped" in " ".join(judged.sentences)


def test_an_entry_on_which_another_attack_is_clearly_stronger_is_not_said_to_weaken_the_strongest(tmp_path):
    """A small calibrate part can choose a weak attack, so the difference alone would look like safety."""
    strong, weak = {"sima": gaussian(1.5), "loss": gaussian(1.2)}, {"sima": gaussian(0.3), "loss": gaussian(0.0)}
    record = compare(names(*(make_run(tmp_path / name, d, seed=i) for i, (name, d) in enumerate([("a", strong), ("b", weak)]))))
    judged, b = comparison_verdict(record), record.entries[1]
    assert judged.level == "lowers" and " But " not in " ".join(judged.sentences)

    loss = next(r for r in b.results if r.attack == "loss")

    def with_loss(low: float) -> Comparison:
        auc = loss.auc.model_copy(update={"low": low, "value": low + 0.03, "high": low + 0.06})
        results = tuple(r.model_copy(update={"auc": auc}) if r.attack == "loss" else r for r in b.results)
        return record.model_copy(update={"entries": (record.entries[0], b.model_copy(update={"results": results}))})

    bound, strongest = b.worst.not_excluded, record.baseline.worst_result.auc
    said = lambda low: f"But loss has AUC {low + 0.03:.3f} [{low:.3f}, {low + 0.06:.3f}] on b; the calibrate part did not choose it"
    assert b.worst.attack == "sima" and "But loss" not in " ".join(comparison_verdict(with_loss(bound - 0.001)).sentences)
    for low, level in ((bound + 0.001, "lowers"), (strongest.low - 0.061, "lowers"), (strongest.low - 0.059, "not-shown")):
        judged = comparison_verdict(with_loss(low))
        undone = f"{said(low)}, but an attacker may. So b does not count as weakening the attack."
        assert judged.level == level and any(f"{said(low)}, but an attacker may." in each for each in judged.sentences)
        assert any(undone in each for each in judged.sentences) == (level == "not-shown")
    assert judged.title == "b was not shown to weaken the strongest attack of a."
    twice = with_loss(bound + 0.001).entries[1]
    twice = twice.model_copy(update={"name": "two", "runs": twice.runs * 2})
    assert " on b; the calibrate" in _missed(twice), "the run, where an entry has several"

    record = compare(names(tmp_path / "b", tmp_path / "a"))
    assert comparison_verdict(record).title.endswith(" On a the strongest attack does better.")
    weak, other = record.entries
    stronger = tuple(
        r.model_copy(update={"auc": a.auc}) if r.attack == "loss" else r for r, a in zip(weak.results, other.results, strict=True)
    )
    judged = comparison_verdict(record.model_copy(update={"entries": (weak.model_copy(update={"results": stronger}), other)}))
    assert judged.level == "not-shown" and "does better" not in judged.title
    assert "but an attacker may, and the other entries are compared with less than that." in judged.sentences[0]


def test_audits_of_one_model_are_called_so(tmp_path):
    run = lambda name, print: make_run(tmp_path / name, {"sima": gaussian(1.0)}, fingerprint=print)
    first, again, other, memory, too = (run(*each) for each in (("a", "1"), ("b", "1"), ("c", "2"), ("d", UNKNOWN), ("e", UNKNOWN)))
    said = lambda *runs: [line for line in compare([str(each) for each in runs]).warnings if "audits of the same model" in line]
    assert len(said(first, again)) == 1 and said(again, first)[0].startswith(f"{again}, {first} are audits of the same model (same weights")
    assert said(other, f"x={first},{again}")[0].startswith(f"{first}, {again} are"), "two runs of one entry"
    assert not said(first, other) and not said(memory, too), "nothing tells models in memory apart"


def test_an_audit_whose_sides_differ_without_the_model_makes_the_comparison_invalid(runs, tmp_path):
    bad = make_run(tmp_path / "bad", {"sima": gaussian(0.1)}, blind=0.8)
    record = compare(names(runs / "undefended", bad))
    assert comparison_verdict(record).level == "invalid" and record.valid is False and str(bad) in record.invalid_reason
    page, text = to_html(comparison.page(record)), printed(record)
    for shown in (page, text):
        assert "Invalid: in some audits" in shown and "bad" in shown
        assert f"{record.entries[0].worst_result.auc.value:.3f}" not in shown
    assert re.findall(r'<section[^>]* id="(\w+)"', page) == ["verdict", "reproduce"] and "<table" not in page
    assert "AUC" not in text
    with pytest.raises(InvalidAudit, match="Invalid: in some audits"):
        refuse_invalid(record)


def test_a_difference_of_the_sources_that_was_allowed_is_the_headline_of_a_comparison(runs, tmp_path):
    shifted = make_run(tmp_path / "shifted", {"sima": gaussian(0.1)}, blind=0.8)
    content = json.loads((shifted / "audit.json").read_text())
    (shifted / "audit.json").write_text(json.dumps({**content, "settings": {**content["settings"], "allow_shift": True}}))
    record = compare(names(runs / "undefended", shifted))
    judged = comparison_verdict(record)
    assert judged.level == "undecided" and "mix membership with that difference" in judged.title and record.valid
    assert "<table" in to_html(comparison.page(record))
    refuse_invalid(record)


def test_a_rate_that_too_few_shared_images_allow_asks_for_the_images_that_must_be_given(tmp_path):
    folders = [make_run(tmp_path / n, {"sima": gaussian(1.0)}, *ids_of(100, 100), seed=i) for i, n in enumerate("ab")]
    record = compare(names(*folders))
    rates = record.entries[1].worst.difference.tpr_at_1pct, record.entries[1].worst_result.tpr_at_1pct
    assert all("needs 125 held-out images, since a fifth" in rate.reason and "counts 100" in rate.reason for rate in rates)


def test_a_model_that_leaks_more_is_said_to(runs):
    judged = comparison_verdict(compare(names(runs / "defended", runs / "undefended")))
    assert judged.level == "not-shown" and judged.title.endswith(" On undefended the strongest attack does better.")


def test_the_page_has_no_script_no_outside_address_and_says_how_many_comparisons_were_made(runs):
    record = compare(names(runs / "undefended", runs / "defended"), output=None, seed=3)
    page = to_html(comparison.page(record))
    assert "<script" not in page and not re.findall(r'(?:src|href)="(?!#|data:)', page)
    assert f"{record.differences} differences in AUC were looked at" in page
    assert record.command in page.replace("&#39;", "'") and "--seed 3" in record.command
    assert page == to_html(comparison.page(record))


def test_names_cannot_break_out_of_the_page_or_the_terminal(runs):
    evil = "<script>alert(1)</script>\x1b[2J"
    record = compare([str(runs / "undefended"), f"{evil}={runs / 'defended'}"])
    assert "<script" not in to_html(comparison.page(record)) and "\x1b" not in to_html(comparison.page(record)) + printed(record)


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_terminal_table_fits(runs, width):
    text = printed(compare(names(runs / "undefended", runs / "defended")), width)
    assert max(map(len, text.splitlines())) <= width and "undefended" in text


# The command


def test_the_command_writes_a_record_that_reads_back_and_a_page(runs, tmp_path, capsys):
    arguments = ["compare", runs / "undefended", f"mine={runs / 'defended'}", "-o", tmp_path / "out", "--attack", "sima", "--json"]
    code, out, _ = call(capsys, *arguments)
    assert code == 0
    record = Comparison.model_validate_json(out)
    assert record == Comparison.model_validate_json((tmp_path / "out" / "compare.json").read_text())
    assert [e.name for e in record.entries] == ["undefended", "mine"] and record.attacks == ("sima",)
    assert "mine" in (tmp_path / "out" / "compare.html").read_text()
    code, out, _ = call(capsys, "compare", runs / "undefended", runs / "defended")
    assert code == 0 and "weakens the strongest attack" in out


def test_a_mistake_on_the_command_line_is_one_line(runs, capsys):
    assert "at least two entries" in refused(capsys, "compare", runs / "undefended")
    assert "has no audit.json" in refused(capsys, "compare", runs / "undefended", runs)


def test_an_output_folder_that_cannot_be_written_is_refused(runs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save(compare(names(runs / "undefended", runs / "defended")), tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("what", "values"),
    [
        ("captions", ("own", "empty")),
        ("guidance_scale", (None, 7.5)),
        ("guidance_scale", (0.0, None)),
        ("attacks", [({"attack": "sima", "timesteps": [60], "code": code},) for code in ("ab", "cd")]),
    ],
)
def test_runs_that_gave_their_models_other_things_or_ran_other_code_are_compared_with_a_warning(tmp_path, what, values):
    runs = []
    for name, value in zip(("one", "other"), values, strict=True):
        runs.append(make_run(tmp_path / name, {"sima": gaussian(1.0)}))
        path = runs[-1] / "audit.json"
        content = json.loads(path.read_text())
        content["plan"][what] = value
        path.write_text(json.dumps(content))
    warned = compare(names(*runs)).warnings
    name = what.replace("_", " ")
    own, other = ("none" if value is None else value for value in values)
    said = f"{runs[1]} was audited with {name} {other} and {runs[0]} with {own}"
    said = f"the code of sima is another in {runs[1]} than in {runs[0]}" if what == "attacks" else said
    said += ", and the difference may be due to that"
    assert any(said in warning for warning in warned), warned


# what a restricted or unchecked run may say


def test_the_reference_s_leak_never_becomes_a_teachers_own_on_its_half(tmp_path):
    ids, member = ids_of(120, 80)
    signals = {"sima": gaussian(0.5), "sima[reference]": gaussian(2.5)}
    runs = [make_run(tmp_path / name, signals, ids, member, seed, f"sha256:{seed}") for seed, name in enumerate(("one", "two"))]
    for run in runs:
        record = json.loads((run / "audit.json").read_text())
        next(r for r in record["results"] if r["attack"] == "sima[reference]")["variant"] = "reference"
        (run / "audit.json").write_text(json.dumps(record))
    halves = tmp_path / "h.json"
    teachers = ["sha256:0", "sha256:1"]
    halves.write_text(json.dumps({"members": ids[:120], "halves": [ids[:60], ids[60:120]], "teachers": teachers}))
    record = compare([f"one={runs[0]}", f"two={runs[1]}"], halves=halves)
    assert {entry.worst.attack for entry in record.entries} == {"sima"}
    reasons = [r.tpr_at_1pct.reason for entry in record.entries for r in entry.results if r.tpr_at_1pct.reason]
    assert reasons and all("held-out images" in reason and "non-members" not in reason for reason in reasons)


@pytest.mark.parametrize("blind", [Blind(reason="needs >= 50 images a side, has 30"), Blind(p_value=0.3, detectable_auc=0.99)])
def test_a_comparison_of_runs_whose_sources_were_not_checked_well_enough_is_undecided(tmp_path, blind):
    ids, member = ids_of(60, 60)
    runs = [make_run(tmp_path / f"r{i}", {"sima": gaussian(d)}, ids, member, i, f"sha256:{i}") for i, d in enumerate((3.0, 0.5))]
    checked = compare([str(run) for run in runs])
    for run in runs:
        record = json.loads((run / "audit.json").read_text()) | {"blind": blind.model_dump()}
        (run / "audit.json").write_text(json.dumps(record))
    unsure = compare([str(run) for run in runs])
    assert checked.verdict == "lowers" and unsure.verdict == "undecided" and unsure.valid
    judged = comparison_verdict(unsure)
    assert judged.title.startswith("Undecided: in some audits a difference between the sources") and "r0" in judged.sentences[-1]


def test_warnings_on_few_pairs_count_groups_where_the_audits_do(tmp_path):
    given = *ids_of(200, 200), 0
    kept = np.arange(400) % 200 < 120
    whole = make_run(tmp_path / "a", {"sima": gaussian(1.0)}, *given, groups=people(0, 200, 200))
    part = make_run(tmp_path / "b", {"sima": gaussian(1.0)}, *given, groups=people(0, 200, 200), keep=kept)
    said = " ".join(compare(names(whole, part)).warnings)
    assert re.search(r"differences rest on the \d+ groups of members and \d+ held-out groups in the test part", said)
    assert "fewer than 200 groups on a side" in said and "fewer than 200 images" not in said
