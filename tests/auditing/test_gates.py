"""Limits: can they be met with so many images, and does each attack keep them?"""

import numpy as np
import pytest
from fixtures.reports import audit_of, html, markdown

import diffleak
from diffleak.auditing.config import AuditConfig
from diffleak.auditing.run import gate
from diffleak.auditing.warnings import about_direction
from diffleak.config import build
from diffleak.diffusion.analytic import linear_schedule
from diffleak.errors import GateFailed, InvalidAudit, UserError
from diffleak.gating.limits import gates, guessing_reaches, images_needed, refuse_unreachable
from diffleak.records.audit import Blind
from diffleak.records.base import Estimate
from diffleak.records.plan import Split
from diffleak.stats import metrics

pytestmark = pytest.mark.usefixtures("undrawn")


def config(**limits):
    return build(AuditConfig, {"members": "a", "nonmembers": "b", **limits})


def split(members, nonmembers, fraction=0.2):
    counts = (round(fraction * members), round(fraction * nonmembers))
    return Split(
        calibrate_fraction=fraction,
        seed=0,
        repeats=1,
        members=members,
        nonmembers=nonmembers,
        calibrate_members=counts[0],
        calibrate_nonmembers=counts[1],
    )


def test_at_thirty_a_side_an_auc_of_six_tenths_is_refused_with_the_number_needed():
    with pytest.raises(UserError) as refused:
        refuse_unreachable(config(max_auc=0.6), split(30, 30))
    said = str(refused.value)
    assert "--max-auc 0.6 cannot be met with 30 members and 30 held-out images even if nothing leaks" in said
    assert "give at least 80 images on each side" in said


@pytest.mark.parametrize(("limit", "at_most"), [("max_auc", 0.6), ("max_auc", 0.55), ("max_tpr", 0.05), ("max_excess_auc", 0.6)])
def test_the_number_that_is_named_is_enough_and_one_fewer_is_not(limit, at_most):
    limits = config(**{limit: at_most, "reference": "r"})
    needed = images_needed(limit, at_most, 30, 30, 0.2)
    refuse_unreachable(limits, split(needed, needed))
    with pytest.raises(UserError, match=f"give at least {needed} images"):
        refuse_unreachable(limits, split(needed - 1, needed - 1))


@pytest.mark.parametrize(("members", "nonmembers", "fraction"), [(30, 30, 0.2), (30, 3000, 0.2), (100, 60, 0.5), (30, 30, 0.0)])
def test_guessing_reaches_as_far_as_the_variance_of_mann_and_whitney_says(members, nonmembers, fraction):
    m, n = (size - round(fraction * size) for size in (members, nonmembers))
    deviation = np.sqrt((m + n + 1) / (12 * m * n))
    high = 1 / (1 + np.exp(-1.96 * deviation / 0.25))
    assert guessing_reaches("max_auc", members, nonmembers, fraction) == pytest.approx(high, abs=0.004)


def test_a_large_other_side_makes_fewer_images_enough_and_all_are_tested_without_calibration():
    assert images_needed("max_auc", 0.6, 30, 5000, 0.2) < 0.6 * images_needed("max_auc", 0.6, 30, 30, 0.2)
    assert images_needed("max_auc", 0.6, 30, 30, 0.0) == round(0.8 * images_needed("max_auc", 0.6, 30, 30, 0.2))


def test_the_rate_at_one_per_cent_needs_a_hundred_tested_held_out_images():
    with pytest.raises(UserError, match="cannot be estimated on so few; give at least 125 images on each side"):
        refuse_unreachable(config(max_tpr=0.9), split(124, 124))
    refuse_unreachable(config(max_tpr=0.9), split(125, 125))


@pytest.mark.parametrize("limits", [{"max_auc": 0.5}, {"max_auc": 0.3}, {"max_tpr": 0.01}])
def test_a_limit_at_or_below_guessing_is_refused_whatever_the_number(limits):
    with pytest.raises(UserError, match="cannot be met: guessing has"):
        refuse_unreachable(config(**limits), split(100_000, 100_000))


def test_the_larger_number_lets_an_attack_that_guesses_pass_four_times_in_five():
    needed = int(_advised("max_auc", 0.6))
    tested, rng, runs = needed - round(0.2 * needed), np.random.default_rng(0), 400
    passed = 0
    for _ in range(runs):
        auc = metrics.auc_estimate(rng.normal(size=tested), rng.normal(size=tested))
        passed += max(auc.high, 1 - auc.low) <= 0.6
    assert passed / runs == pytest.approx(0.8, abs=3 * np.sqrt(0.16 / runs) + 0.02)


def _advised(limit, at_most):
    with pytest.raises(UserError) as refused:
        refuse_unreachable(config(**{limit: at_most}), split(30, 30))
    return str(refused.value).partition(", about ")[2].partition(" for ")[0].replace(",", "")


def test_the_limit_is_refused_before_the_model_is_run(tmp_path):
    network = diffleak.Denoiser.from_function(lambda x, t: pytest.fail("the model was run"), linear_schedule().alphas_cumprod)
    images = np.random.default_rng(1).integers(0, 256, (2, 30, 8, 8), dtype=np.uint8)
    with pytest.raises(UserError, match=r"--max-auc 0\.6 cannot be met"):
        diffleak.audit(network, members=images[0], nonmembers=images[1], attacks="sima", output=tmp_path, max_auc=0.6)
    assert not list(tmp_path.iterdir())


# --- after the audit -----------------------------------------------------------------------------------------------------


def audited(**aucs):
    """A record with these AUC intervals: attack=(low, high)."""
    record, samples = audit_of(dict.fromkeys(aucs, 0.5), 300, warnings=(), omitted=())
    changed = {a: Estimate(value=(low + high) / 2, low=low, high=high) for a, (low, high) in aucs.items()}
    results = tuple(r.model_copy(update={"auc": changed[r.attack]}) for r in record.results)
    return record.model_copy(update={"results": results}), samples


def test_there_is_a_line_for_each_limit_and_attack_and_every_failure_is_raised():
    record, _ = audited(sima=(0.55, 0.72), pia=(0.48, 0.56), loss=(0.2, 0.35))
    limits = config(max_auc=0.6, max_tpr=1.0)
    found = [(g.limit, g.attack, g.passed, None if g.reach is None else round(g.reach, 3)) for g in gates(record.results, limits)]
    assert found[:3] == [("max_auc", "sima", False, 0.72), ("max_auc", "pia", True, 0.56), ("max_auc", "loss", False, 0.8)]
    assert [f[:3] for f in found[3:]] == [("max_tpr", attack, True) for attack in ("sima", "pia", "loss")]
    with pytest.raises(GateFailed) as failed:
        gate(record, limits)
    lines = str(failed.value).splitlines()
    assert lines[0] == "2 of 6 checks failed"
    assert lines[1] == "sima: AUC may reach 0.720, above the limit of 0.6"
    assert lines[2] == "loss: AUC with the attack's answers reversed (are the sides swapped?) may reach 0.800, above the limit of 0.6"


def test_an_attack_that_ranks_held_out_images_higher_is_warned_of_and_its_number_stays():
    record, _ = audited(sima=(0.55, 0.72), pia=(0.3, 0.6), loss=(0.2, 0.35))
    (said,) = about_direction(record.results)
    assert said.startswith("loss: at an AUC of 0.275 held-out images look more like members than the members do (are the two sides")
    assert said.endswith("the number is shown as it is")


def test_what_cannot_be_estimated_has_not_passed():
    record, _ = audit_of({"sima": 0.0}, 60, warnings=())
    (found,) = gates(record.results, config(max_tpr=0.9))
    assert (found.passed, found.reach) == (False, None) and "not estimable" in found.reason
    with pytest.raises(GateFailed, match=r"TPR at 1 % FPR is not estimable .* so the limit of 0.9 cannot be confirmed"):
        gate(record, config(max_tpr=0.9))


def test_each_gate_is_in_the_report_and_its_title_counts_the_failures():
    record, samples = audited(sima=(0.55, 0.72), pia=(0.48, 0.56))
    shown = record.model_copy(update={"gates": gates(record.results, config(max_auc=0.6))})
    for text in (html(shown, samples), markdown(shown)):
        assert "Limits: 1 of 2 checks failed" in text
        assert "sima: AUC may reach 0.720, above the limit of 0.6" in text
        assert "pia: AUC may reach 0.560, within the limit of 0.6" in text
    assert 'id="gates"' not in html(record, samples)


def test_of_an_invalid_audit_no_limit_is_checked():
    record, _ = audited(sima=(0.55, 0.72))
    invalid = record.model_copy(update={"blind": Blind(value=0.9, low=0.8, high=0.95)})
    with pytest.raises(InvalidAudit, match=r"come from different sources.* No limit was checked\."):
        gate(invalid, config(max_auc=0.6))
    with pytest.raises(GateFailed):
        gate(invalid, config(max_auc=0.6, allow_shift=True))
