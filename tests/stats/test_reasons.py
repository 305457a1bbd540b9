"""Reasons count the images that the user gave, not those of the test part."""

import numpy as np
import pytest
from fixtures.reports import audit_of

from diffleak.data.draw import calibrate_part, images_for, side_with
from diffleak.records.base import Estimate
from diffleak.report.table import table
from diffleak.stats import metrics
from diffleak.stats.reasons import in_given_images, reworded


def parts(size, fraction):
    ids = tuple(map(str, range(2 * size)))
    calibrate = calibrate_part(ids, np.arange(2 * size) < size, fraction, 0)[:size]
    return int(calibrate.sum()), int((~calibrate).sum())


@pytest.mark.parametrize(("fraction", "tested", "given"), [(0.2, 100, 125), (0.2, 1000, 1250), (0.5, 100, 200), (0.0, 100, 100)])
def test_so_many_images_must_be_given_for_so_many_to_be_tested(fraction, tested, given):
    assert images_for(tested, fraction) == pytest.approx(given, abs=1)
    assert parts(images_for(tested, fraction), fraction)[1] >= tested > parts(images_for(tested, fraction) - 1, fraction)[1]


def test_so_many_images_must_be_given_for_so_many_to_be_calibrated_on():
    assert parts(side_with(10, 0.2), 0.2)[0] == 10 > parts(side_with(10, 0.2) - 1, 0.2)[0]


def test_the_rate_at_one_per_cent_asks_for_125_images_in_every_footnote():
    record, _ = audit_of({"sima": 1.0}, 100, warnings=())
    notes = " ".join(table(in_given_images(record)).notes)
    why = "since a fifth of them is set apart for calibration; this audit counts 100"
    assert f"TPR at 1 % FPR: not estimable (needs 125 held-out images, {why})" in notes
    assert f"TNR at 1 % FNR: not estimable (needs 125 members, {why})" in notes
    assert f"TPR at 0.1 % FPR: not estimable (needs 1,250 held-out images, {why})" in notes
    assert "has 80" not in notes


def test_the_achieved_rate_asks_for_the_images_that_hold_ten_to_calibrate_on():
    record, _ = audit_of({"sima": 1.0}, 30, warnings=())
    notes = " ".join(table(in_given_images(record)).notes)
    assert f"needs {side_with(10, 0.2)} held-out images, since settings are chosen on only a fifth of them; this audit counts 30" in notes


def test_the_fraction_that_was_set_is_said_and_without_calibration_none_is():
    rate = metrics.tpr_at_fpr(np.arange(50.0), np.arange(50.0), 0.01)
    assert "has 50" in rate.reason
    assert "needs 200 held-out images, since 50 % of them" in reworded(rate, 100, 100, 0.5).reason
    assert reworded(rate, 50, 50, 0.0).reason == "not estimable (needs 100 held-out images; this audit counts 50)"


def test_too_few_tested_images_are_said_to_be_of_the_test_part():
    few = metrics.auc_estimate(np.arange(1.0), np.arange(5.0))
    assert reworded(few, 10, 10, 0.9).reason == "needs at least 2 of each side in the test part"
    assert reworded(few, 1, 5, 0.0) == few, "without a calibrate part all images are tested"


def test_a_reason_is_translated_once_and_other_reasons_stay():
    record, _ = audit_of({"sima": 1.0}, 100, warnings=())
    once = in_given_images(record)
    assert once != record and in_given_images(once) == once
    other = Estimate(reason="no interval: the estimated variance is 0")
    assert reworded(other, 10, 10, 0.2) == other
