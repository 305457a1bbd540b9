"""`train --split-coin`: whose coins, what is written of them, and that DP-SGD promises what it says although the members are random."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fixtures.commands import refused
from fixtures.models import LEVELS, few_steps
from scipy import stats

import diffleak
from diffleak.data.draw import toss
from diffleak.errors import UserError
from diffleak.training.images import read_training_data
from diffleak.training.private import plan_privacy, poisson

TINY = {**LEVELS, "attention_head_dim": 4}
PRIVATE = {"dp_noise_multiplier": 1.0, "dp_delta": 1e-3}


def config(data, output, **changes):
    return few_steps(data, output, **{"model": TINY, **changes})


def test_coins_are_fair_and_independent_of_each_other_and_of_the_order():
    ids = tuple(map(str, range(4000)))
    draws = np.array([np.isin(ids, toss(ids, seed)[0]) for seed in range(8)])
    assert stats.binomtest(int(draws.sum()), draws.size).pvalue > 1e-3
    assert stats.binomtest(int((draws[:, 1:] == draws[:, :-1]).sum()), draws[:, 1:].size).pvalue > 1e-3, "neighbours"
    assert stats.binomtest(int((draws[1:] == draws[:-1]).sum()), draws[1:].size).pvalue > 1e-3, "seeds"
    assert np.var(draws.sum(axis=1)) > 0, "a coin for each image, and no fixed number"
    members, held_out = toss(ids[::-1], 3)
    assert (set(members), set(held_out)) == tuple(map(set, toss(ids, 3)))
    assert set(toss(ids[:100], 3)[0]) == set(toss(ids, 3)[0]) & set(ids[:100])


def test_coins_that_leave_no_side_are_refused():
    with pytest.raises(UserError, match="the coins put every image on one side, 1 in all; give more images"):
        toss(("a",), 0)


def test_a_run_by_coin_says_so_and_a_run_on_its_split_says_the_same(data, tmp_path):
    folder = diffleak.train(config(data, tmp_path / "coin", split_coin=True, steps=1))
    split = json.loads((folder / "split.json").read_text())
    assert split["drawn"] == {"how": "coin", "seed": 0, "held_out": 0.5, "together": []}
    assert (tuple(split["members"]), tuple(split["nonmembers"])) == toss(tuple(map(str, range(30))), 0)
    split["drawn"]["together"] = [split["members"][:2]]
    (tmp_path / "split.json").write_text(json.dumps(split))
    again = diffleak.train(config(data, tmp_path / "again", split=tmp_path / "split.json", steps=1))
    assert json.loads((again / "split.json").read_text()) == split
    aside = diffleak.train(config(data, tmp_path / "aside", split=tmp_path / "split.json", steps=2, validation=0.3))
    assert "drawn" not in json.loads((aside / "split.json").read_text()), "members that were set aside are not where their coins put them"


def test_the_sampling_rate_of_private_training_does_not_depend_on_how_the_coins_fell(data, tmp_path):
    """q = B / (N / 2) for N images: with B over the number of members, q would say how many coins fell on either side."""
    found = []
    for seed in range(3):
        settings = config(data, tmp_path / str(seed), split_coin=True, seed=seed, steps=1, **PRIVATE)
        images = read_training_data(settings)
        found.append((len(images.members), plan_privacy(settings, images.public_size, 1).sample_rate))
    assert len({members for members, _ in found}) > 1 and {rate for _, rate in found} == {4 / 15}
    fixed = read_training_data(config(data, tmp_path / "fixed", train_size=20))
    assert fixed.public_size == 20 == len(fixed.members)
    assert replace(fixed, drawn=None).public_size == 20


def test_a_private_run_by_coin_draws_its_batches_at_the_rate_that_it_accounts_for(data, tmp_path):
    folder = diffleak.train(config(data, tmp_path / "model", split_coin=True, steps=2, **PRIVATE))
    record = json.loads((folder / "train.json").read_text())
    assert record["privacy"]["sample_rate"] == 4 / 15 and record["spent"]["steps"] == 2
    sizes = [len(poisson(20, 15)(step, 4, 0)) for step in range(3000)]
    assert np.mean(sizes) == pytest.approx(20 * 4 / 15, abs=4 * np.std(sizes) / np.sqrt(3000))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--train-size", "20"], "--split-coin throws a coin for each image, and --train-size says how many"),
        (["--split", "split.json"], "--split-coin throws a coin for each image, and --split names the images to train on"),
        (["--validation", "0.2"], "--validation takes images out of those that the coins chose"),
    ],
)
def test_what_would_decide_against_the_coins_is_refused(data, tmp_path, capsys, flags, said):
    assert said in refused(capsys, "train", "--data", data, "--split-coin", *flags, "-o", tmp_path / "out")
