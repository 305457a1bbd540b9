"""`diffleak gate`: which limits a finished folder meets, by how much it does not, and what it must hold for that."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from fixtures.commands import all_recorded, call, refused
from fixtures.extraction import extraction_record
from fixtures.reports import audit_of
from fixtures.runs import gaussian, make_run, write_quality

import diffleak
from diffleak.comparison.compare import compare, save
from diffleak.config import build
from diffleak.errors import GateFailed, InvalidAudit, UserError
from diffleak.gating.check import Found, refuse
from diffleak.gating.config import GateConfig
from diffleak.gating.limits import gates
from diffleak.records.audit import Blind, Gate
from diffleak.records.base import Estimate
from diffleak.records.digests import write_audit_digests
from diffleak.records.gate import Gated, GateRecord, read_gate
from diffleak.records.run_folder import read_audit
from diffleak.records.sweep import Point, SweepRecord
from diffleak.report.audited import Audited
from diffleak.report.sections.audit.gates import outcome, section
from diffleak.report.sections.audit.glance import limit

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A leaking run and a run that leaks nothing, 400 images a side."""
    root = tmp_path_factory.mktemp("runs")
    leaking = {"sima": gaussian(1.5), "loss": gaussian(0.8)}
    return make_run(root / "leaks", leaking), make_run(root / "guesses", {"sima": gaussian(0.0), "loss": gaussian(0.0)}, seed=3)


def ceiling(run, attack="sima"):
    auc = read_audit(run).result(attack).auc
    return max(auc.high, 1 - auc.low)


def test_every_limit_that_fails_has_a_line_with_how_much_and_those_that_are_met_are_on_stdout(runs, capsys):
    leaking = runs[0]
    code, out, err = call(capsys, "gate", leaking, "--max-auc", "0.6", "--max-tpr", "1")
    lines = err.splitlines()
    by = ceiling(leaking) - 0.6
    assert code == 3 and lines[0] == "diffleak: 1 of 2 limits not met" and len(lines) == 2
    assert lines[1].startswith(
        f"--max-auc 0.6 is not met (exceeded by {by:.3f}): AUC may reach {ceiling(leaking):.3f} (sima, the highest of 2 "
    )
    assert lines[1].endswith("results; 2 of 2 are above the limit)")
    assert out.startswith("--max-tpr 1 is met: ") and len(out.splitlines()) == 1
    record = GateRecord.model_validate_json((leaking / "gate.json").read_text())
    assert (record.met, record.limits, len(record.checks)) == (False, {"max_auc": 0.6, "max_tpr": 1.0}, 4)
    assert [file.file for file in record.files] == ["audit.json"]
    assert record.files[0].sha256 == hashlib.sha256((leaking / "audit.json").read_bytes()).hexdigest()
    assert record.command == f"diffleak gate {leaking} --max-auc 0.6 --max-tpr 1.0"


@pytest.fixture
def reported(runs, tmp_path, capsys):
    """A copy of the leaking run, with its digests and its report."""
    folder = tmp_path / "run"
    shutil.copytree(runs[0], folder, ignore=shutil.ignore_patterns("gate.json", "digests.json"))
    write_audit_digests(folder)
    assert call(capsys, "report", folder)[0] == 0
    return folder


def on_page(folder):
    return re.sub(r"<wbr>", "", (folder / "report.html").read_text()).replace("&nbsp;", " ")


def test_the_report_says_each_limit_met_or_not_and_by_how_much_in_every_form(reported, capsys):
    assert "none was set" in on_page(reported)
    assert call(capsys, "gate", reported, "--max-auc", "0.6", "--max-tpr", "1")[0] == 3
    said = (
        f"AUC at most 0.6 is NOT MET (exceeded by {ceiling(reported) - 0.6:.3f}): AUC may reach {ceiling(reported):.3f} (sima, the highest"
    )
    for shown in (on_page(reported), call(capsys, "report", reported, "--format", "markdown")[1], call(capsys, "report", reported)[1]):
        assert "none was set" not in shown and "Limits: 2 of 4 checks failed" in shown
    assert said in on_page(reported) and "TPR at 1 % FPR at most 1 is met" in on_page(reported)
    card = call(capsys, "report", reported, "--format", "card")[1]
    assert said in card and str(reported) not in card
    assert all_recorded(reported)


def test_the_page_says_of_each_kind_of_limit_when_it_is_met(reported, capsys):
    call(capsys, "gate", reported, "--max-tpr", "1")
    assert "A limit on the TPR is met if" in on_page(reported) and "A limit on the AUC" not in on_page(reported)
    call(capsys, "gate", reported, "--max-auc", "0.6")
    assert "lies between 1 minus the limit and the limit: an attack that works with its answers reversed counts too" in on_page(reported)
    assert "A limit on the TPR is met if" not in on_page(reported), "the last check"


def test_limits_of_an_earlier_record_are_said_to_be_outdated_and_an_edited_check_is_refused(reported, capsys):
    diffleak.gate(reported, max_auc=0.6)
    (reported / "audit.json").write_text((reported / "audit.json").read_text() + "\n")
    write_audit_digests(reported)
    assert call(capsys, "report", reported)[0] == 0
    assert "gate checked an earlier record of this folder: repeat it" in on_page(reported) and "NOT MET" not in on_page(reported)
    diffleak.gate(reported, max_auc=0.6)
    assert "NOT MET" in on_page(reported)
    (reported / "gate.json").write_text((reported / "gate.json").read_text().replace('"passed": false', '"passed": true'))
    assert "(gate.json edited)" in refused(capsys, "report", reported)


def test_a_report_with_pictures_is_left_and_the_command_for_it_is_said(reported, capsys):
    (reported / "report.html").write_text('<img src="data:image/png;base64,AAAA">')
    _, _, err = call(capsys, "gate", reported, "--max-auc", "1")
    assert f"diffleak report {reported} --thumbnails" in err and "AAAA" in (reported / "report.html").read_text()


def test_limits_of_the_audit_and_of_the_gate_stand_side_by_side():
    record = GateRecord(diffleak="1", created="2025-01-31T12:00:00+00:00", command="", met=True, limits={}, checks=(), files=())
    of = lambda at, passed: Gate(limit="max_auc", attack="sima", quantity="AUC", at_most=at, reach=0.7, passed=passed)
    audited = audit_of({"sima": 1.0}, 20)[0].model_copy(update={"gates": (of(0.6, False),)})
    said = limit(Audited(audited, gated=Gated(record.model_copy(update={"checks": (of(0.8, True),)}), True)))
    assert "AUC at most 0.6 is NOT MET (exceeded by 0.100)" in said and "AUC at most 0.8 is met" in said


def test_limits_that_are_met_exit_with_0_and_a_line_each(runs, capsys):
    code, out, err = call(capsys, "gate", runs[1], "--max-auc", "0.6", "--max-tpr", "0.2")
    assert code == 0 and err == "" and [line.split(":")[0] for line in out.splitlines()] == ["--max-auc 0.6 is met", "--max-tpr 0.2 is met"]
    code, out, _ = call(capsys, "gate", runs[1], "--max-auc", "0.6", "--json")
    assert code == 0 and json.loads(out)["met"] and json.loads(out) == json.loads((runs[1] / "gate.json").read_text())


def test_a_limit_is_met_to_the_digit_and_not_beyond(runs):
    reach = max(ceiling(runs[1], attack) for attack in ("sima", "loss"))
    assert diffleak.gate(runs[1], max_auc=reach).met
    assert not diffleak.gate(runs[1], max_auc=reach - 1e-12).met


def test_it_decides_as_an_audit_that_was_given_the_limits(runs):
    from diffleak.auditing.config import AuditConfig
    from diffleak.auditing.run import gate
    from diffleak.config import build

    for run in runs:
        for at_most in (0.55, 0.62, 0.9):
            record = diffleak.gate(run, max_auc=at_most, max_tpr=0.3)
            config = build(AuditConfig, {"members": "a", "nonmembers": "b", "max_auc": at_most, "max_tpr": 0.3})
            failed = sum(not check.passed for check in record.checks)
            if record.met:
                gate(read_audit(run), config)
            else:
                with pytest.raises(GateFailed, match=f"{failed} of 4 checks failed"):
                    gate(read_audit(run), config)


def test_copies_are_those_of_quality_and_of_extraction_by_the_end_that_is_not_excluded(tmp_path, capsys, runs):
    (tmp_path / "extract.json").write_text(json.dumps({"copy_rate": {"value": 0.0, "low": 0.0, "high": 0.05, "more": 1}, "pairs": []}))
    assert diffleak.gate(tmp_path, max_copies=0.05).met and not diffleak.gate(tmp_path, max_copies=0.04).met
    write_quality(tmp_path)
    code, _, err = call(capsys, "gate", tmp_path, "--max-copies", "0.04")
    assert (
        code == 3
        and "--max-copies 0.04 is not met (exceeded by 0.010): copy rate may reach 0.050 "
        "(extract.json, the highest of 2 results; 1 of 2 is above"
        in err
    )
    checks = json.loads((tmp_path / "gate.json").read_text())["checks"]
    assert [(check["attack"], check["reach"], check["passed"]) for check in checks] == [
        ("quality.json", 0.03, True),
        ("extract.json", 0.05, False),
    ]
    (tmp_path / "extract.json").write_text(json.dumps({"copy_rate": {"value": None, "reason": "needs 100 held-out images"}}))
    unknown = r"extract.json: copy rate is not estimable \(needs 100 held-out images\), so the limit of 0.04 cannot be confirmed"
    with pytest.raises(GateFailed, match=unknown):
        refuse(diffleak.gate(tmp_path, max_copies=0.04))


@pytest.mark.parametrize("name", ["quality.json", "extract.json"])
def test_a_copy_rate_that_counts_every_near_duplicate_is_checked_and_said_to(tmp_path, capsys, name):
    write_quality(tmp_path)
    (tmp_path / "extract.json").write_text(extraction_record().model_dump_json())
    gate = ("gate", tmp_path, "--max-copies", "0.9")
    assert call(capsys, *gate)[2] == "" and json.loads((tmp_path / "gate.json").read_text())["warnings"] == []
    earlier = json.loads((tmp_path / name).read_text())
    del earlier["unit" if name == "quality.json" else "distinct_members"]
    (tmp_path / name).write_text(json.dumps(earlier))
    code, _, err = call(capsys, *gate)
    (warning,) = json.loads((tmp_path / "gate.json").read_text())["warnings"]
    assert code == 0 and err == f"note: {warning}\n"
    assert warning.startswith(f"{name}: cop") and "counted near-duplicates one by one" in warning and "repeat the" in warning
    page = section(Audited(audit_of({"sima": 1.0}, 60)[0], gated=read_gate(tmp_path)))
    assert page is not None and warning in str(page)


@pytest.mark.parametrize("changes", [{"metrics": ()}, {"training": None}])
def test_copies_that_were_not_looked_for_are_not_measured_and_leave_the_limit_to_extract(tmp_path, capsys, changes):
    write_quality(tmp_path, **changes)
    said = refused(capsys, "gate", tmp_path, "--max-copies", "0.5")
    assert "--max-copies needs a copy rate" in said and "measured without training images: diffleak extract MODEL" in said
    assert "--nonmembers DATA" in said, "without held-out images extract has no rate either"
    assert not (tmp_path / "gate.json").exists()
    (tmp_path / "extract.json").write_text(json.dumps({"copy_rate": {"value": 0.0, "low": 0.0, "high": 0.05}}))
    record = diffleak.gate(tmp_path, max_copies=0.5)
    assert record.met and [check.attack for check in record.checks] == ["extract.json"]


def test_the_bound_on_epsilon_can_only_break_a_limit(tmp_path, capsys):
    (tmp_path / "epsilon.json").write_text(json.dumps(BOUND))
    code, _, err = call(capsys, "gate", tmp_path, "--max-epsilon", "1")
    assert code == 3
    assert "--max-epsilon 1 is not met (exceeded by 0.250): epsilon (delta 1e-05) is at least 1.25 (epsilon.json)" in err
    code, out, _ = call(capsys, "gate", tmp_path, "--max-epsilon", "2")
    assert code == 0 and "the true epsilon may still be above it" in out
    (tmp_path / "epsilon.json").write_text(json.dumps({**BOUND, "epsilon": None, "reason": "the split was not drawn by coin"}))
    assert call(capsys, "gate", tmp_path, "--max-epsilon", "2")[0] == 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--max-auc", "0.6"], "--max-auc needs an audit.json, sweep.json or compare.json; .* has none of them: diffleak audit"),
        (["--max-tpr", "0.6"], "--max-tpr needs an audit.json"),
        (["--max-copies", "0.6"], "needs a quality.json or an extract.json; .* has neither: diffleak extract MODEL"),
        (["--max-epsilon", "3"], "needs an epsilon.json; .* has none: diffleak epsilon .* makes it"),
        ([], "a gate needs a limit: give --max-auc, --max-tpr, --max-excess-auc, --max-copies, --max-epsilon"),
        (["--max-epsilon", "-1"], "max.epsilon"),
        (["--max-auc", "1.5"], "max.auc"),
    ],
)
def test_what_a_limit_lacks_is_said_with_the_command_that_makes_it(tmp_path, capsys, flags, said):
    import re

    assert re.search(said, refused(capsys, "gate", tmp_path, *flags)) and not (tmp_path / "gate.json").exists()


def test_bad_input_is_one_line(tmp_path, capsys, runs):
    assert "there is no folder" in refused(capsys, "gate", tmp_path / "nothing", "--max-auc", "0.6")
    assert "audited without one: audit it with --reference" in refused(capsys, "gate", runs[0], "--max-excess-auc", "0.6")
    (tmp_path / "epsilon.json").write_text("{")
    assert "epsilon.json cannot be read" in refused(capsys, "gate", tmp_path, "--max-epsilon", "1")
    (tmp_path / "extract.json").write_text("{}")
    assert "must be as `diffleak extract` writes it (copy_rate: Field required)" in refused(capsys, "gate", tmp_path, "--max-copies", "1")
    (tmp_path / "extract.json").write_text(json.dumps({"copy_rate": {"value": 0.1, "low": 0.0, "high": 0.2}, "model_fingerprint": "other"}))
    (tmp_path / "audit.json").write_text((runs[0] / "audit.json").read_text())
    assert "was made of another model than the audit" in refused(capsys, "gate", tmp_path, "--max-copies", "1")


def swept(folder, order, change=lambda record: record):
    """The folder of an audit of several checkpoints, a run for each; change: made in the record of each."""
    points = []
    for step, run in enumerate(order):
        target = folder / f"step-{step}"
        target.mkdir(parents=True)
        record = change(read_audit(run))
        (target / "audit.json").write_text(record.model_dump_json())
        result = record.results[0]
        points.append(
            Point(
                name=target.name,
                run=target.name,
                checkpoint=f"{step}.safetensors",
                step=step,
                attack="sima",
                timestep=result.timestep,
                auc=result.auc,
                tpr_at_1pct=result.tpr(0.01),
                difference=None,
                gates=(),
                passed=None,
            )
        )
    fields = {"diffleak": "0", "created": "", "command": "", "settings": {}, "swept": "lora", "step_source": "names", "warnings": ()}
    sides = {"members": 400, "nonmembers": 400, "chosen_on": "calibrate", "last_passing": None}
    (folder / "sweep.json").write_text(SweepRecord(**fields, **sides, points=tuple(points)).model_dump_json(by_alias=True))
    return folder


LIMITED = {"max_auc": 0.99, "max_tpr": 1.0, "max_copies": 0.99, "max_epsilon": 9.0}
BOUND = {"epsilon": 1.25, "delta": 1e-5, "level": 0.95, "guesses": 60, "right": 55, "promised": 8.0, "reason": None}


@pytest.fixture
def measured(runs, tmp_path):
    """The folder of an audit that leaks nothing, with what every limit reads beside it."""
    folder = shutil.copytree(runs[1], tmp_path / "run", ignore=shutil.ignore_patterns("gate.json", "digests.json"))
    write_quality(folder)
    (folder / "epsilon.json").write_text(json.dumps(BOUND))
    return folder


def differs_without_the_model(record):
    return record.model_copy(update={"blind": Blind(value=0.9, low=0.8, high=0.95)})


@pytest.mark.parametrize("limit", LIMITED)
def test_of_an_invalid_audit_no_limit_is_checked_not_even_one_on_another_file(measured, limit):
    assert diffleak.gate(measured, **{limit: LIMITED[limit]}).met
    (measured / "gate.json").unlink()
    (measured / "audit.json").write_text(differs_without_the_model(read_audit(measured)).model_dump_json())
    with pytest.raises(InvalidAudit, match=r"No limit was checked\."):
        diffleak.gate(measured, **{limit: LIMITED[limit]})
    assert not (measured / "gate.json").exists()


@pytest.mark.parametrize("limit", LIMITED)
def test_of_an_invalid_comparison_or_checkpoint_no_limit_is_checked_either(measured, tmp_path, limit):
    beside = lambda folder: [shutil.copy(measured / name, folder) for name in ("quality.json", "epsilon.json")]
    compared, checkpoints = tmp_path / "compared", swept(tmp_path / "swept", [measured])
    save(compare([f"plain={measured}", f"defended={measured}"]), compared)
    for folder in (compared, checkpoints):
        beside(folder)
        assert diffleak.gate(folder, **{limit: LIMITED[limit]}).met
    assert diffleak.gate(checkpoints, max_copies=0.99).last_passing is None, "no limit was one on its checkpoints"
    record = json.loads((compared / "compare.json").read_text())
    (compared / "compare.json").write_text(json.dumps({**record, "valid": False, "invalid_reason": "The sides differ."}))
    (compared / "digests.json").unlink()
    invalid = beside(swept(tmp_path / "invalid", [measured], differs_without_the_model))
    for folder in (compared, Path(invalid[0]).parent):
        with pytest.raises(InvalidAudit, match=r"No limit was checked\."):
            diffleak.gate(folder, **{limit: LIMITED[limit]})


@pytest.mark.parametrize("limit", LIMITED)
def test_of_an_audit_that_is_edited_or_not_finished_no_limit_is_checked(measured, limit):
    write_audit_digests(measured)
    kept = (measured / "audit.json").read_text()
    (measured / "audit.json").write_text(kept + "\n")
    with pytest.raises(UserError, match=r"\(audit\.json edited"):
        diffleak.gate(measured, **{limit: LIMITED[limit]})
    for name in ("audit.json", "digests.json"):
        (measured / name).unlink()
    with pytest.raises(UserError, match="is not finished: repeat its command, it resumes"):
        diffleak.gate(measured, **{limit: LIMITED[limit]})
    assert not (measured / "gate.json").exists()
    (measured / "geometry.parquet").write_bytes(b"")  # which an audit with masks has before its results
    with pytest.raises(UserError, match="is not finished: repeat its command, it resumes"):
        diffleak.gate(measured, **{limit: LIMITED[limit]})
    plan = json.loads((measured / "plan.json").read_text())
    (measured / "plan.json").write_text(json.dumps(plan | {"attacks": []}))  # of images alone, which is no audit
    if limit in ("max_copies", "max_epsilon"):
        assert diffleak.gate(measured, **{limit: LIMITED[limit]}).met


def test_of_a_comparison_every_entry_but_the_baseline_is_checked(tmp_path, runs, capsys):
    leaking, guessing = runs
    save(compare([f"plain={leaking}", f"defended={guessing}"]), tmp_path / "good")
    save(compare([f"plain={guessing}", f"broken={leaking}"]), tmp_path / "bad")
    save(compare([f"plain={guessing}", f"both={guessing},{leaking}"]), tmp_path / "both")
    _, _, err = call(capsys, "gate", tmp_path / "both", "--max-auc", "0.7")
    assert f"(both ({leaking}): sima, the highest of 4 results" in err, "of several runs the one that fails is named"
    record = diffleak.gate(tmp_path / "good", max_auc=0.6)
    assert record.met and [check.attack for check in record.checks] == ["defended: sima", "defended: loss"]
    code, _, err = call(capsys, "gate", tmp_path / "bad", "--max-auc", "0.6")
    assert code == 3 and "(broken: sima, the highest of 2 results" in err
    with pytest.raises(UserError, match="compares none: audit the runs with --reference"):
        diffleak.gate(tmp_path / "good", max_excess_auc=0.6)


def test_of_a_sweep_the_last_checkpoint_decides_and_the_last_that_passes_is_named(tmp_path, runs, capsys):
    leaking, guessing = runs
    late = swept(tmp_path / "late", [guessing, guessing, leaking])
    code, out, err = call(capsys, "gate", late, "--max-auc", "0.6")
    assert code == 3 and "(step-2: sima, the highest of 2 results" in err and out.strip() == "the last checkpoint that passes: step-1"
    files = GateRecord.model_validate_json((late / "gate.json").read_text()).files
    assert [file.file for file in files] == ["sweep.json", *(f"step-{i}/audit.json" for i in range(3))]
    record = diffleak.gate(swept(tmp_path / "early", [leaking, guessing]), max_auc=0.6)
    assert record.met and record.last_passing == "step-1"
    assert diffleak.gate(swept(tmp_path / "never", [leaking]), max_auc=0.6).last_passing is None


def test_a_calibrated_attack_of_which_nothing_was_taken_out_is_checked_once():
    record, _ = audit_of({"sima": 1.0}, 300)
    plain = record.result("sima")
    again = plain.model_copy(update={"attack": "sima[calibrated]", "complexity": "plain"})
    taken = again.model_copy(update={"complexity": "png"})
    config = build(GateConfig, {"run": "r", "max_auc": 0.6})
    assert [each.attack for each in gates((plain, again), config)] == ["sima"]
    assert [each.attack for each in gates((plain, taken), config)] == ["sima", "sima[calibrated]"]


@pytest.mark.parametrize(
    ("limit", "at_most", "reach", "said"),
    [
        ("max_auc", 0.6, 0.60004, "is not met (exceeded by 0.00004): AUC may reach 0.60004 (sima)"),
        ("max_auc", 0.6, 0.6, "is met: AUC may reach 0.600 (sima)"),
        ("max_auc", 0.5999, 0.59985, "is met: AUC may reach 0.5998 (sima)"),
        ("max_auc", 0.6, 0.712, "is not met (exceeded by 0.112): AUC may reach 0.712 (sima)"),
        ("max_epsilon", 8.0, 8.001, "is not met (exceeded by 0.001): epsilon is at least 8.001 (sima)"),
        ("max_epsilon", 8.0, 1.25, "is met: epsilon is at least 1.25 (sima)"),
    ],
)
def test_no_number_is_printed_on_the_other_side_of_its_limit(limit, at_most, reach, said):
    quantity = "epsilon" if limit == "max_epsilon" else "AUC"
    check = Gate(limit=limit, attack="sima", quantity=quantity, at_most=at_most, reach=reach, passed=reach <= at_most)
    assert outcome([check]).startswith(said)


def test_of_the_excess_the_limit_on_the_auc_is_said_to_ask_for_the_upper_end_alone():
    of = lambda name: Gate(limit="max_auc", attack=name, quantity="AUC", at_most=0.6, reach=0.55, passed=True)
    record = audit_of({"sima": 0.0}, 60)[0]
    texts = [
        str(section(Audited(record.model_copy(update={"gates": gates}))).blocks)
        for gates in ((of("sima"),), (of("sima"), of("sima[excess]")), (of("sima[excess][calibrated]"),))
    ]
    assert ["Of the excess over a reference only the upper end counts" in each for each in texts] == [False, True, True]


def test_a_limit_that_is_missed_without_a_leak_is_said_to_be_no_finding():
    guesses, leaks = (audit_of({"sima": shift}, 300)[0] for shift in (0.0, 1.5))
    missed = (Gate(limit="max_auc", attack="sima", quantity="AUC", at_most=0.5, reach=0.55, passed=False),)
    said = [limit(Audited(record.model_copy(update={"gates": missed}))) for record in (guesses, leaks)]
    assert ["That does not mean that a leak was found" in each for each in said] == [True, False]
    rates = tuple(each.model_copy(update={"value": 0.08, "low": 0.04, "high": 0.12}) for each in guesses.results[0].tpr_at_fpr)
    exposed = guesses.model_copy(update={"results": (guesses.results[0].model_copy(update={"tpr_at_fpr": rates}),)})
    few = Gate(limit="max_tpr", attack="sima", quantity="TPR at 1 % FPR", at_most=0.1, reach=0.12, passed=False)
    of = lambda record: "That does not mean that a leak was found" in limit(Audited(record.model_copy(update={"gates": (few,)})))
    assert of(guesses) and not of(exposed), "more than guessing: a few images may be exposed"


def test_the_question_if_the_sides_are_swapped_is_for_an_interval_below_one_half_alone():
    result = audit_of({"sima": 0.0}, 60)[0].results[0]
    of = lambda low, high: result.model_copy(update={"auc": Estimate(value=(low + high) / 2, low=low, high=high)})
    (wide,), (below,) = (gates((of(*ends),), GateConfig(run="", max_auc=0.6)) for ends in ((0.2, 0.7), (0.2, 0.4)))
    assert wide.reach == below.reach == 0.8
    assert "answers reversed" in wide.quantity and "swapped" not in wide.quantity and "are the sides swapped?" in below.quantity


@pytest.mark.parametrize(
    ("there", "flag", "said"),
    [
        ("sweep.json", "copies", "neither lies beside a sweep.json: check the folder of one audited model"),
        ("compare.json", "copies", "neither lies beside a compare.json"),
        ("lora.json", "copies", "neither lies beside a lora.json"),
        ("lora.json", "epsilon", "none lies beside a lora.json"),
        ("inquiry.json", "epsilon", "none lies beside an inquiry.json"),
        ("lora.json", "auc", "-o RUN makes the first, in a folder of its own"),
        ("inquiry.json", "auc", "-o RUN makes the first, in a folder of its own"),
        ("audits/sweep.json", "auc", "audits, which has a sweep.json"),
    ],
)
def test_no_command_is_named_that_refuses_the_folder(tmp_path, capsys, monkeypatch, there, flag, said):
    monkeypatch.setattr("diffleak.gating.check._attacks", lambda *given: Found((), ())) if flag != "auc" else None
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text("{}")
    assert said in refused(capsys, "gate", tmp_path, f"--max-{flag}", "0.6")


def test_a_command_that_is_named_takes_a_folder_with_a_blank(tmp_path, capsys):
    (tmp_path / "my run").mkdir()
    for flag in ("auc", "copies", "epsilon"):
        assert f"'{tmp_path / 'my run'}' makes" in refused(capsys, "gate", tmp_path / "my run", f"--max-{flag}", "0.6")
