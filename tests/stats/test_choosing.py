"""What one half chooses: the best of what is offered, only where it is clearly better, from enough images."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from diffleak.records.scores import Scores
from diffleak.stats import choosing
from diffleak.stats.calibration import FEWEST, features
from diffleak.stats.choosing import Offered, blind_chooser, chooser, column_aucs, discriminant
from diffleak.stats.metrics import auc_difference


def test_the_auc_of_each_column_is_that_of_scikit_learn_with_ties_too():
    rng = np.random.default_rng(0)
    asked, controls = rng.integers(0, 5, (7, 3)) + np.arange(3.0), rng.integers(0, 5, (11, 3)).astype(float)
    side, both = np.repeat([1, 0], [7, 11]), np.concatenate([asked, controls])
    assert column_aucs(asked, controls) == pytest.approx([roc_auc_score(side, both[:, k]) for k in range(3)], abs=1e-12)


def offered(*columns: np.ndarray, question: np.ndarray, fit: np.ndarray) -> list[Offered]:
    return [Offered(x, str(k), roc_auc_score(question[fit], x[fit])) for k, x in enumerate(columns)]


def test_the_first_is_kept_unless_another_is_clearly_better_on_the_half_that_chooses():
    rng = np.random.default_rng(1)
    question, fit = np.arange(200) % 2 == 0, np.arange(200) < 100
    weak = rng.normal(size=200) + 0.5 * question
    better, strong = rng.normal(size=200) + question, weak + 2 * question * fit
    low = lambda x: auc_difference(*(np.stack([x, weak], axis=1)[fit & side] for side in (question, ~question))).low
    slight, clear = (offered(weak, x, question=question, fit=fit) for x in (better, strong))
    assert slight[1].auc > slight[0].auc and low(better) < 0 < low(strong) < 1
    assert choosing._clearly_best(slight, question, fit) is slight[0]
    assert choosing._clearly_best(clear, question, fit) is clear[1]
    assert choosing._clearly_best(clear[::-1], question, fit) is clear[1], "the best stands first"
    on_the_other = weak - 3 * question * ~fit  # the pair differs on the half that is tested, the other way round
    sides = offered(weak, strong + on_the_other - weak, question=question, fit=fit)
    assert choosing._clearly_best(sides, question, fit) is sides[1]


def test_the_discriminant_is_fishers_of_standardised_numbers_whatever_their_units(monkeypatch):
    rng = np.random.default_rng(2)
    question, fit = np.arange(240) % 3 == 0, np.arange(240) < 180
    numbers = rng.normal(size=(240, 4)) @ rng.normal(size=(4, 4)) + 0.8 * question[:, None]
    found = discriminant(numbers, question, fit, "all")
    in_other_units = np.column_stack([numbers * [1e-3, 1.0, 1e3, 20.0] + np.array([5.0, 0.0, -70.0, 1.0]), np.full(240, 3.0)])
    units = discriminant(in_other_units, question, fit, "all")
    assert units.auc == found.auc and units.scores == pytest.approx(found.scores)
    assert found.auc == pytest.approx(roc_auc_score(question[fit], found.scores[fit]))
    monkeypatch.setattr(choosing, "STRENGTHS", (1e-9,))
    fisher = LinearDiscriminantAnalysis(solver="lsqr").fit(numbers[fit], question[fit])
    tested = discriminant(numbers, question, fit, "all").scores[~fit]
    assert np.corrcoef(tested, fisher.decision_function(numbers[~fit]))[0, 1] == pytest.approx(1.0)


def test_the_weights_of_a_strength_are_those_of_the_formula():
    rng = np.random.default_rng(7)
    x, asked = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 3)), np.arange(50) < 20
    means = x[asked].mean(axis=0), x[~asked].mean(axis=0)
    pooled = sum((side - mean).T @ (side - mean) for side, mean in zip((x[asked], x[~asked]), means, strict=True)) / 50
    expected = [np.linalg.solve(pooled + strength * np.eye(3), means[0] - means[1]) for strength in choosing.STRENGTHS]
    assert pytest.approx(np.array(expected)) == choosing._weights(x, asked).T


def test_the_attack_of_the_best_auc_is_chosen_with_its_best_timestep():
    rng = np.random.default_rng(8)
    question, fit, ids = np.arange(40) % 2 == 0, np.arange(40) < 20, tuple(map(str, range(40)))
    leaks = {"weak": (0.0, 1.0), "strong": (1.0, 4.0), "none": (0.0, 0.2)}
    parts = [Scores(name, "small", (50, 100), ids, rng.normal(size=(40, 2)) - np.outer(question, leak)) for name, leak in leaks.items()]
    assert chooser(parts)(question, fit).name == "strong at t = 100"


def test_scores_that_mislead_on_the_half_that_is_tested_change_no_choice():
    rng = np.random.default_rng(9)
    question, fit = np.arange(200) % 2 == 0, np.arange(200) < 100
    right = np.where(fit, rng.normal(size=200) + 1.5 * question, 9 - 18 * question)
    wrong = np.where(fit, rng.normal(size=200), 18 * question - 9)
    scores = Scores("sima", "large", (50, 100), tuple(map(str, range(200))), np.column_stack([wrong, right]))
    assert chooser([scores])(question, fit).name == "sima at t = 100"
    noise = {f"number {i}": rng.normal(size=200) for i in range(60)}
    assert blind_chooser({"wrong": wrong, "right": right} | noise)(question, fit).name == "right"


def two_attacks(question: np.ndarray, rng: np.random.Generator) -> list[Scores]:
    """Their difference shows the side; neither does alone."""
    n, ids = len(question), tuple(map(str, range(len(question))))
    shared = 5 * rng.normal(size=n)
    columns = (shared + 0.1 * rng.normal(size=n), question - shared + 0.1 * rng.normal(size=n))
    return [Scores(name, "large", (50,), ids, x[:, None]) for name, x in zip(("sima", "loss"), columns, strict=True)]


@pytest.mark.parametrize(
    ("asked", "controls", "together"), [(FEWEST, FEWEST, True), (FEWEST - 1, 2 * FEWEST, False), (2 * FEWEST, FEWEST - 1, False)]
)
def test_attacks_are_put_together_from_the_fewest_images_of_each_side_that_a_fit_takes(asked, controls, together):
    rng, n = np.random.default_rng(3), 200
    question = np.arange(2 * n) < n
    fit = (np.arange(2 * n) < asked) | ((np.arange(2 * n) >= n) & (np.arange(2 * n) < n + controls))
    chosen = chooser(two_attacks(question, rng))(question, fit)
    assert (chosen.name == "combined") == together
    assert (roc_auc_score(question[~fit], chosen.scores[~fit]) > 0.7) == together


@pytest.mark.parametrize(("controls", "taken"), [(FEWEST, True), (FEWEST - 1, False)])
def test_complexity_is_taken_out_from_the_fewest_controls_that_a_fit_takes(controls, taken):
    rng, n = np.random.default_rng(4), 200
    question, difficulty = np.arange(2 * n) < n, rng.normal(size=2 * n)
    fit = (np.arange(2 * n) < 100) | ((np.arange(2 * n) >= n) & (np.arange(2 * n) < n + controls))
    scores = Scores("sima", "large", (50,), tuple(map(str, range(2 * n))), (5 * difficulty + question)[:, None], logarithmic=True)
    complexity = np.stack([difficulty, *rng.normal(size=(6, 2 * n))], axis=1)
    assert chooser([scores], features(complexity))(question, fit).name.startswith("sima[calibrated]" if taken else "sima at")


def test_of_one_attack_one_column_is_chosen_and_never_a_combination():
    rng = np.random.default_rng(5)
    question, fit = np.arange(200) % 2 == 0, np.arange(200) < 120
    columns = np.column_stack([each.statistic for each in two_attacks(question, rng)])
    scores = Scores("sima", "large", (50, 100), tuple(map(str, range(200))), columns)
    assert chooser([scores])(question, fit).name in {"sima at t = 50", "sima at t = 100"}


@pytest.mark.parametrize("sign", [1, -1])
def test_a_blind_scorer_takes_the_number_that_tells_most_in_the_direction_that_it_tells(sign):
    rng = np.random.default_rng(6)
    question, fit = np.arange(200) % 2 == 0, np.arange(200) < 100
    numbers = {f"number {i}": rng.normal(size=200) for i in range(60)}
    numbers["number 7"] += 1.5 * sign * question
    chosen = blind_chooser(numbers)(question, fit)
    assert chosen.name == "number 7" and chosen.scores == pytest.approx(sign * numbers["number 7"])
