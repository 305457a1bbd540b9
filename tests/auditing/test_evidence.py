"""An audit's record says who made it, for which release and what was not run; none of that belongs to its plan."""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fixtures.commands import call, refused
from fixtures.text import text_folder
from PIL import Image

from diffleak.auditing.run import audit
from diffleak.records.digests import FILE, verify
from diffleak.records.run_folder import read_audit
from diffleak.report.audited import Audited
from diffleak.report.sections.audit import file, glance

pytestmark = pytest.mark.usefixtures("few_divisions", "undrawn")
SMALL = ["--attacks", "sima", "--timesteps", "100", "--no-calibration", "--device", "cpu", "--batch-size", "8", "--threads", "1"]


@pytest.fixture(scope="module")
def sides(tmp_path_factory, digits) -> list[str]:
    """Twelve digits on each side."""
    root = tmp_path_factory.mktemp("sides")
    for side in range(2):
        (root / str(side)).mkdir()
        for number in range(12):
            Image.fromarray(digits[12 * side + number, ..., 0]).save(root / str(side) / f"{number:02d}.png")
    return ["--members", str(root / "0"), "--nonmembers", str(root / "1")]


def test_who_and_for_which_release_go_into_record_and_report_and_a_run_resumes_without_them(model_folder, sides, tmp_path, capsys):
    run = tmp_path / "run"
    told = ["--title", "Ref. 7 & more", "--auditor", "K. Example", "--note", "before release", "--release", "api"]
    before = datetime.now(UTC).replace(microsecond=0)
    code, out, _ = call(capsys, "audit", model_folder(), *sides, *SMALL, *told, "-o", run)
    record = read_audit(run)
    kept = record.evidence
    assert code == 0 or "Invalid" in out
    assert (kept.title, kept.auditor, kept.note, kept.release) == ("Ref. 7 & more", "K. Example", "before release", "api")
    assert before <= datetime.fromisoformat(kept.started) <= datetime.fromisoformat(record.created)
    assert {each.attack for each in kept.attacks if each.run} == {"sima"} and {e.attack: e.unfit for e in kept.attacks}["clid"]
    assert "--auditor 'K. Example'" in record.command and "auditor" not in json.loads((run / "plan.json").read_text())
    page = (run / "report.html").read_text()
    assert "Ref. 7 &amp; more" in page and "K. Example" in page and "before release" in page
    assert {each.status for each in verify(run)} == {"unchanged"}
    samples = (run / "samples.csv").read_bytes()
    scores = {path.name: path.read_bytes() for path in (run / "scores").iterdir()}
    code_again, _, _ = call(capsys, "audit", model_folder(), *sides, *SMALL, "-o", run)
    again = read_audit(run).evidence
    assert code_again == code and again.auditor is None and again.started == kept.started, "the last call says who made it"
    assert (run / "samples.csv").read_bytes() == samples
    assert {path.name: path.read_bytes() for path in (run / "scores").iterdir()} == scores
    assert {each.status for each in verify(run)} == {"unchanged"}


NOTE = "note: no attack given counts for --release"


@pytest.mark.parametrize(
    ("model", "release", "attacks", "said"),
    [
        ("text", "api", "sima", f"{NOTE} api, so this audit cannot answer for it: add black_box to --attacks"),
        ("text", "api", "sima,black_box(encoder=pixels)", None),
        (
            "text",
            "images",
            "sima,black_box(encoder=pixels)",
            f"{NOTE} images, so this audit cannot answer for it: none of diffleak audit works with drawn images alone; diffleak",
        ),
        (
            "pixels",
            "api",
            "all",
            f"{NOTE} api, so this audit cannot answer for it: none that counts works with this model; diffleak extract",
        ),
        ("pixels", "weights", "sima", None),
        ("pixels", None, "sima", None),
    ],
)
def test_that_no_attack_counts_for_the_release_is_said_before_anything_is_scored(
    model, release, attacks, said, model_folder, tmp_path, sides, capsys
):
    if model == "text":
        folder, more = text_folder(tmp_path / "model"), ["--captions", "empty", "--resize"]
    else:
        folder, more = model_folder(), []
    given = ["--attacks", attacks, "--timesteps", "100", "--no-calibration", "--device", "cpu", *more]
    given += ["--release", release] if release else []
    code, _, err = call(capsys, "audit", folder, *sides, *given, "--dry-run")
    notes = [line for line in err.splitlines() if line.startswith(NOTE)]
    assert code == 0 and len(notes) == (said is not None) and (said is None or notes[0].startswith(said)), err


def test_the_note_on_the_release_stands_behind_the_plan_and_before_the_first_score(model_folder, sides, tmp_path, capsys):
    _, _, err = call(capsys, "audit", model_folder(), *sides, *SMALL, "--release", "api", "-o", tmp_path / "run")
    lines = err.splitlines()
    first = lambda start: next(i for i, line in enumerate(lines) if line.startswith(start))
    assert 0 == first("plan: ") < first(NOTE) < first("membership: ")


def test_the_size_of_the_training_set_and_the_hash_of_the_split_are_recorded(model_folder, digits, tmp_path):
    folder = Path(model_folder())
    held = {"members": [f"{i}" for i in range(60)], "nonmembers": [f"{i}" for i in range(60, 100)]}
    (folder / "split.json").write_text(json.dumps(held))
    few = tmp_path / "few.json"
    few.write_text(json.dumps({"members": held["members"][:12], "nonmembers": held["nonmembers"][:12]}))
    settings = {"timesteps": "100", "calibration": False, "device": "cpu", "batch_size": 8, "threads": 1, "ignore_model_split": True}
    made = audit(folder, data="digits", split=few, attacks="sima", **settings).record.evidence
    digest = subprocess.run(["sha256sum", str(few)], capture_output=True, text=True, check=True).stdout.split()[0]
    assert (made.training_images, made.training_from, made.split_digest) == (60, str(folder / "split.json"), digest)


@pytest.mark.parametrize(
    ("members", "names", "trained", "known"),
    [
        (60, "0123456789", False, 60),  # the same names on the same sides
        (60, "abcdefghij", False, None),  # of other images: nothing shows that the model was trained on 60
        (60, "abcdefghij", True, 60),  # training wrote it
        (6, "0123456789", True, None),  # 12 are not of 6
    ],
)
def test_a_split_that_nothing_ties_to_the_training_gives_no_number_of_training_images(
    model_folder, digits, tmp_path, members, names, trained, known
):
    folder, few = Path(model_folder()), tmp_path / "few.json"
    renamed = lambda rows: [str(i).translate(str.maketrans("0123456789", names)) for i in rows]
    (folder / "split.json").write_text(json.dumps({"members": renamed(range(members)), "nonmembers": renamed(range(60, 100))}))
    if trained:
        (folder / "train.json").write_text(json.dumps({"data": "elsewhere/images"}))
    few.write_text(json.dumps({"members": [f"{i}" for i in range(12)], "nonmembers": [f"{i}" for i in range(60, 72)]}))
    settings = {"timesteps": "100", "calibration": False, "device": "cpu", "batch_size": 8, "threads": 1, "allow_shift": True}
    record = audit(folder, data="digits", split=few, attacks="sima", **settings).record
    assert record.evidence.training_images == known
    assert ("that the model was trained on" in glance.tested(record)) == (known is not None)
    said = dict(file.section(Audited(record)).blocks[0].rows)["Training images"]
    assert said == (f"{known}" if known else "number not known: the split.json beside the model does not fit these images")


def test_an_anonymous_run_is_compared_with_its_digests_and_its_key_is_no_part_of_them(model_folder, sides, tmp_path, capsys):
    run = tmp_path / "run"
    call(capsys, "audit", model_folder(), *sides, *SMALL, "--anonymous", "-o", run)
    assert (run / "anonymous.key").exists() and {each.status for each in verify(run)} == {"unchanged"}
    assert "anonymous.key" not in (run / FILE).read_text()
    call(capsys, "reveal", run)
    assert {each.status for each in verify(run)} == {"unchanged"}
    code, card, _ = call(capsys, "report", run, "--format", "card")
    assert code == 0 and card.startswith("---\n") and not any(f"{number:02d}.png" in card for number in range(12))


def test_what_a_report_cannot_be_is_refused_by_name(tmp_path, sides, capsys):
    assert "unknown format 'crad'; did you mean 'card'?" in refused(capsys, "report", tmp_path, "--format", "crad")
    assert "--format card prints no JSON" in refused(capsys, "report", tmp_path, "--format", "card", "--json")
    line = refused(capsys, "report", tmp_path, "--format", "markdown", "--json")
    assert line.endswith("--format markdown prints no JSON: leave out --json")
    line = refused(capsys, "report", tmp_path, "--format", "pdf", "--thumbnails")
    assert line.endswith("--thumbnails adds pictures to the html and markdown pages alone: leave it out with --format pdf")
    assert "diffleak: --release must be 'weights'" in refused(capsys, "audit", "m", *sides, "--release", "demo")
    assert "diffleak: --note must have at most 2000 characters" in refused(capsys, "audit", "m", *sides, "--note", "x" * 2001)
