"""`diffleak epsilon`: what it counts, on whose coins, what it compares with and what it refuses."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from fixtures.commands import call, refused
from fixtures.runs import gaussian, ids_of, make_run

import diffleak
from diffleak.bounds.epsilon import Coins, _too_few
from diffleak.errors import UserError
from diffleak.records.epsilon import EpsilonRecord, read_epsilon
from diffleak.records.run_folder import read_samples, read_scores
from diffleak.report.judgement import read_record
from diffleak.stats.epsilon import calibrate_units, lower_bound

pytestmark = pytest.mark.usefixtures("undrawn")

IMAGES = 1000


def tossed(seed=0):
    """Ids, and the sides that coins gave them."""
    ids, _ = ids_of(IMAGES, 0)
    return ids, np.random.default_rng(seed).random(IMAGES) < 0.5


def edit(folder, **changes):
    """Changes of audit.json, given as keys or as functions of what was there."""
    record = json.loads((folder / "audit.json").read_text())
    record |= {key: change(record[key]) if callable(change) else change for key, change in changes.items()}
    (folder / "audit.json").write_text(json.dumps(record))
    return folder


def drawn(**changes):
    return {"how": "coin", "seed": 0, "images": IMAGES, "together": [], "file": "model/split.json", **changes}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run in which sima sees a third of the members and loss nothing, of sides drawn by coin."""
    folder, (ids, member) = tmp_path_factory.mktemp("runs") / "run", tossed()

    def sees(member, rng):
        return rng.normal(size=(len(member), 3)) + np.array([0, 7, 0]) * (member & (rng.random(len(member)) < 0.3))[:, None]

    make_run(folder, {"sima": sees, "loss": gaussian(0.0)}, ids, member)
    return edit(folder, drawn=drawn())


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def test_the_bound_is_that_of_the_guesses_on_images_that_chose_nothing(run, capsys):
    code, out, err = call(capsys, "epsilon", run, "--delta", "1e-6", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert {"epsilon", "delta", "level", "guesses", "right", "promised", "reason"} <= set(found)
    assert (found["attack"], found["timestep"], found["bottom"], found["promised"], found["reason"]) == ("sima", 100, 0, None, None)
    assert (found["delta"], found["level"], found["units"], found["calibrate_units"]) == (1e-6, 0.95, 800, 200)

    samples = read_samples(run)
    rows = {image_id: row for row, image_id in enumerate(samples.ids)}
    scores = read_scores(run, read_record(run).result("sima"), rows)
    tested = ~calibrate_units(samples.ids, 0.2, 0)
    order = np.argsort(-scores.membership[tested, scores.timesteps.index(100)])[: found["guesses"]]
    assert found["right"] == samples.member[tested][order].sum()
    assert found["epsilon"] == lower_bound(800, found["guesses"], found["right"], 1e-6) > 2
    assert read_epsilon(run) == EpsilonRecord.model_validate(found)


def test_what_it_says_and_the_report_say_the_same(run, capsys):
    code, out, _ = call(capsys, "epsilon", run)
    record = read_epsilon(run)
    assert code == 0 and record.delta == 1e-5
    said = f"epsilon is at least {record.epsilon:.3f} (95 %), delta 1e-05, {record.guesses} guesses of which {record.right} right"
    assert out.startswith(said)
    assert call(capsys, "report", run)[0] == 0
    assert said.replace(" %", "&nbsp;%") in (run / "report.html").read_text()


def test_a_run_without_signal_has_epsilon_0_and_says_why(tmp_path, capsys):
    ids, member = tossed(1)
    folder = edit(make_run(tmp_path / "run", {"loss": gaussian(0.0)}, ids, member), drawn=drawn())
    record = diffleak.epsilon(folder, delta=1e-5)
    assert record.epsilon == 0 and record.reason.startswith("not significant") and "does not show that nothing leaks" in record.reason
    assert call(capsys, "epsilon", folder)[0] == 0


@pytest.mark.parametrize(("promised", "delta", "code"), [(0.5, 1e-5, 3), (9.0, 1e-5, 0), (0.5, 1e-4, 0)])
def test_a_bound_above_the_promise_is_exit_3(run, capsys, promised, delta, code):
    edit(run, promise={"epsilon": promised, "delta": delta, "autoencoder": None})
    found, out, err = call(capsys, "epsilon", run, "--delta", "1e-5")
    assert found == code
    record = read_epsilon(run)
    assert record.exceeds == (code == 3) and ("the promise is broken" in err) == (code == 3)
    if delta > 1e-5:
        assert record.promised is None and "give --delta 0.0001 to compare" in out
    else:
        assert record.promised == promised and f"promised by DP-SGD: epsilon {promised:.3f}" in out


def test_the_delta_is_that_of_the_promise_unless_one_is_given(run):
    edit(run, promise={"epsilon": 9.0, "delta": 1e-4, "autoencoder": None})
    assert (diffleak.epsilon(run).delta, diffleak.epsilon(run).promised) == (1e-4, 9.0)
    assert diffleak.epsilon(run, delta=1e-3).promised == 9.0, "what holds at a delta holds at a larger one"


def test_a_promise_that_leaves_out_the_autoencoder_is_not_compared(run):
    edit(run, promise={"epsilon": 0.1, "delta": 1e-5, "autoencoder": "vae"})
    record = diffleak.epsilon(run)
    assert record.promised is None and not record.exceeds and any("does not cover the autoencoder" in line for line in record.warnings)


def test_images_that_share_a_coin_are_left_out(run):
    ids = read_samples(run).ids
    units = [list(ids[i : i + 2]) for i in range(0, 100, 2)]
    edit(run, drawn=drawn(together=units))
    record = diffleak.epsilon(run)
    assert (record.shared_coins, record.units + record.calibrate_units) == (100, IMAGES - 100)
    assert any("100 images shared their coin" in line for line in record.warnings)
    edit(run, drawn=drawn(together=[list(ids[:950])]))
    with pytest.raises(
        UserError, match=r"at least 20 images with coins of their own must be in the calibrate part.* in .* there are 10 .950 of its 1,000"
    ) as caught:
        diffleak.epsilon(run)
    assert "else raise --calibrate-fraction, or draw and train with more images" in str(caught.value)


@pytest.mark.parametrize(
    ("coins", "said"),
    [
        ((1, 1), "1 of its 60 images shares a coin with others, 1 is a near-duplicate"),
        ((2, 3), "2 of its 60 images share a coin with others, 3 are near-duplicates"),
    ],
)
def test_what_is_left_out_has_its_verb(coins, said):
    none = np.zeros(0, dtype=bool)
    assert f"in run there are 12 ({said})" in _too_few(12, Coins((), none, none, None, *coins), 60, Path("run"))


def test_near_duplicates_are_left_out_whatever_their_sides_and_counted(run):
    samples = read_samples(run)
    ids, (members, held_out) = np.array(samples.ids), (np.flatnonzero(samples.member == side)[:60] for side in (True, False))
    across = [ids[[m, n]].tolist() for m, n in zip(members[:30], held_out[:30], strict=True)]
    within = [ids[side[30:33]].tolist() for side in (members, held_out)]
    edit(run, drawn=drawn(together=[across[0]]), clusters=[*across, *within])
    record = diffleak.epsilon(run)
    assert (record.shared_coins, record.near_duplicates, record.units + record.calibrate_units) == (2, 64, IMAGES - 66)
    assert any("64 images are near-duplicates of others and were left out" in line for line in record.warnings)
    edit(run, clusters=[], warnings=["3 images occur more than once on their side; intervals treat them as independent"])
    assert not any("may be too high" in line for line in diffleak.epsilon(run).warnings)


def grouped(folder, together, column="artist", **changes):
    """A run by group of two images each, whose members' groups score higher, of coins that were thrown for `together`."""
    ids, _ = ids_of(IMAGES, 0)
    group = np.arange(IMAGES) // 2
    member = (np.random.default_rng(3).random(IMAGES // 2) < 0.5)[group]
    sees = lambda member, rng: 1.5 * member[:, None] + rng.normal(size=(IMAGES, 3)) + rng.normal(size=(IMAGES // 2, 1))[group]
    make_run(folder, {"sima": sees}, ids, member, clusters=group)
    text = (folder / "samples.csv").read_text().replace("id,member,part,cluster", "id,member,part,group")
    (folder / "samples.csv").write_text(text)
    return edit(folder, drawn=drawn(together=together), plan=lambda plan: plan | {"group": column}, **changes), ids, member


def test_where_coins_were_thrown_for_groups_the_guesses_are_of_groups(tmp_path, capsys):
    pairs = [[f"{i:05d}.png", f"{i + 1:05d}.png"] for i in range(0, IMAGES, 2)]
    folder, ids, member = grouped(tmp_path / "run", pairs, promise={"epsilon": 0.1, "delta": 1e-5, "autoencoder": None})
    record = diffleak.epsilon(folder)
    tested = ~calibrate_units(ids[::2], 0.2, 0)
    scores = read_scores(folder, read_record(folder).result("sima"), {image_id: row for row, image_id in enumerate(ids)})
    means = scores.membership[:, scores.timesteps.index(record.timestep)].reshape(-1, 2).mean(axis=1)[tested]
    order, sides = np.argsort(-means), member[::2][tested]
    right = int(sides[order[: record.top]].sum() + (~sides[order[::-1][: record.bottom]]).sum())
    assert (record.group, record.units, record.right) == ("artist", 400, right) and record.epsilon > 0.3
    assert record.epsilon == lower_bound(400, record.guesses, right, 1e-5)
    assert (
        record.promised is None and not record.exceeds and any("is for one image and the bound for one group" in w for w in record.warnings)
    )
    assert "guesses of groups by artist of which" in call(capsys, "epsilon", folder)[1]

    joined = [[*pairs[0], *pairs[1]], *pairs[2:]]  # near-duplicates joined two groups
    edit(folder, drawn=drawn(together=joined), clusters=[[ids[10], ids[12]], [ids[20], ids[21]]])
    record = diffleak.epsilon(folder)
    assert (record.shared_coins, record.near_duplicates, record.units + record.calibrate_units) == (4, 4, 496)


def test_groups_of_images_with_several_coins_are_refused_with_the_way_on(tmp_path, capsys):
    pairs = [[f"{i:05d}.png", f"{i + 1:05d}.png"] for i in range(0, IMAGES - 6, 2)]
    folder, *_ = grouped(tmp_path / "run", pairs)
    said = refused(capsys, "epsilon", folder)
    assert "3 of 500 groups by artist have images with several coins (first: 00994.png)" in said
    assert "`diffleak split DATA --coin --group artist -o split.json`" in said


def test_images_whose_coins_were_thrown_for_groups_are_sent_to_an_audit_by_group(run, capsys):
    ids = read_samples(run).ids
    edit(run, drawn=drawn(together=[list(ids[i : i + 10]) for i in range(0, IMAGES, 10)]))
    said = refused(capsys, "epsilon", run)
    assert "audit with --group COLUMN if coins were thrown for groups, else raise --calibrate-fraction" in said


def test_equal_images_are_said_to_weaken_the_bound_of_a_record_that_does_not_name_them(run):
    edit(run, warnings=["3 images occur more than once on their side; intervals treat them as independent"])
    assert any("so the bound may be too high" in line for line in diffleak.epsilon(run).warnings)


def test_results_that_took_something_from_the_audits_own_division_do_not_guess(run):
    planned = json.loads((run / "audit.json").read_text())["plan"]["attacks"]
    planned = [*[a for a in planned if a["attack"] != "sima"], {"attack": "sima", "bandwidth": None, "timesteps": [100]}]
    edit(
        run,
        plan=lambda plan: plan | {"attacks": planned},
        results=lambda results: [r | ({"parameters": {"bandwidth": 3.0}} if r["attack"] == "sima" else {}) for r in results],
    )
    assert diffleak.epsilon(run).candidates == ("loss",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"drawn": None}, "sides that were drawn by coin; of .* no split.json that fits its sides .*--split-coin"),
        ({"drawn": drawn(how="share")}, "says a fixed share: train with"),
        ({"settings": {"model": "m", "limit": 300}}, "--limit took the same number of images from each side.*audit again without it"),
        ({"plan": lambda plan: plan | {"sweep": "calibrate"}}, "must not be chosen on images whose coins are guessed.*with --sweep all"),
        ({"drawn": drawn(images=1200)}, "every image that a coin was thrown for must be audited.*1,200 images.*1,000"),
        (
            {"membership": {"source": "u", "status": "contradicted, ignored", "model_split": "s", "reason": "3 are held out"}},
            "the coins must have decided who is a member; 3 are held out",
        ),
    ],
)
def test_a_run_without_fair_coins_is_refused_with_the_way_on(run, capsys, changes, said):
    edit(run, **changes)
    assert re.search(said, refused(capsys, "epsilon", run))
    assert not (run / "epsilon.json").exists()


@pytest.mark.parametrize("delta", ["0", "1", "-0.5", "1.5"])
def test_a_delta_that_is_no_probability_is_refused(run, capsys, delta):
    assert "--delta must be in (0, 1)" in refused(capsys, "epsilon", run, "--delta", delta)


def test_a_level_that_is_no_probability_and_a_folder_without_a_run_are_refused(run, capsys, tmp_path):
    assert "--level must be in (0, 1)" in refused(capsys, "epsilon", run, "--level", "1")
    assert "has no audit.json" in refused(capsys, "epsilon", tmp_path)
    shutil.rmtree(run / "scores")
    assert "has no files under scores/" in refused(capsys, "epsilon", run)


def test_sides_that_differ_without_the_model_are_invalid_whatever_was_allowed(run, capsys):
    blind = {"value": 0.9, "low": 0.87, "high": 0.93, "method": "DeLong"}
    edit(run, blind=blind, settings={"model": "m", "allow_shift": True})
    code, _, err = call(capsys, "epsilon", run)
    assert code == 4 and "differ without the model" in err


def test_the_level_of_a_broken_promise_is_not_rounded_to_certainty(run, capsys):
    edit(run, promise={"epsilon": 0.1, "delta": 1e-5, "autoencoder": None})
    code, _, err = call(capsys, "epsilon", run, "--level", "0.999")
    assert code == 3 and "(99.9 %) at delta" in err
