"""digests.json: an edited, missing or unknown file of a run is found, and a report is made of no record that was edited."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from fixtures.commands import call, refused
from fixtures.runs import gaussian, make_run
from fixtures.sweeps import swept

import diffleak
from diffleak.records import digests
from diffleak.records.digests import RecordEdited, add_digests, refuse_edited, verify, write_audit_digests
from diffleak.records.run_folder import read_audit


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "run", {"sima": gaussian(1.0), "loss": gaussian(0.5)})
    write_audit_digests(folder)
    return folder


@pytest.fixture
def run(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def statuses(folder: Path) -> dict[str, str]:
    return {each.path: each.status for each in verify(folder)}


def test_every_file_of_a_run_is_as_recorded_and_its_digest_is_the_sha_256_of_its_bytes(run):
    found = statuses(run)
    assert set(found) == {"plan.json", "audit.json", "samples.csv", *(f"scores/{path.name}" for path in (run / "scores").iterdir())}
    assert set(found.values()) == {"recorded"} and diffleak.verify is verify
    recorded = json.loads((run / digests.FILE).read_text())["files"]
    assert recorded == {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in found}


def test_the_digest_of_the_whole_is_that_of_the_sorted_lines_of_sha256sum(run):
    names = sorted(["plan.json", "audit.json", "samples.csv", *(f"scores/{path.name}" for path in (run / "scores").iterdir())])
    lines = b"".join(hashlib.sha256((run / name).read_bytes()).hexdigest().encode() + b"  " + name.encode() + b"\n" for name in names)
    assert json.loads((run / digests.FILE).read_text())["whole"] == hashlib.sha256(lines).hexdigest()
    assert digests.sealed(run) == (
        hashlib.sha256((run / "audit.json").read_bytes()).hexdigest(),
        hashlib.sha256(lines).hexdigest(),
        len(names),
    )


@pytest.mark.parametrize("name", ["plan.json", "audit.json", "samples.csv", "scores"])
def test_one_changed_byte_is_an_edited_file_that_no_report_is_made_of(run, capsys, name):
    path = next((run / "scores").iterdir()) if name == "scores" else run / name
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1", b"2", 1) if name != "scores" else content[:-1] + bytes([content[-1] ^ 1]))
    shown = path.relative_to(run).as_posix()
    assert statuses(run)[shown] == "edited"
    code, out, err = call(capsys, "verify", run)
    assert code == 1 and f"edited    {shown}" in out.splitlines() and "1 of 5 recorded files" in err and f"{shown} edited" in err
    if name != "plan.json" and name != "scores":
        code, out, err = call(capsys, "report", run)
        assert code == 1 and "not as it was recorded" in err and not (run / "report.html").exists()


def test_a_missing_file_fails_and_an_unknown_one_is_only_named(run, capsys):
    (run / "more.txt").write_text("mine")
    assert call(capsys, "verify", run)[0] == 0
    assert statuses(run)["more.txt"] == "unknown"
    (run / "samples.csv").unlink()
    code, out, _ = call(capsys, "verify", run, "--json")
    found = json.loads(out)
    assert code == 1 and found["as_recorded"] is False
    assert [each for each in found["files"] if each["status"] != "recorded"] == [
        {"path": "samples.csv", "status": "missing"},
        {"path": "more.txt", "status": "unknown"},
    ]


def test_keys_hidden_files_and_the_inputs_of_work_are_no_part_of_the_record(run):
    for name in ("anonymous.key", "ids.csv", ".part", "seconds/0.txt", "latents/0.npy"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("x")
    assert "unknown" not in statuses(run).values()


def test_an_old_run_without_digests_still_reads_and_this_is_said(run, capsys):
    (run / digests.FILE).unlink()
    assert "has no digests.json" in refused(capsys, "verify", run)
    code, _, err = call(capsys, "report", run)
    assert code == 0 and "has no digests.json, so its files cannot be compared" in err
    assert not (run / digests.FILE).exists(), "a report vouches for no record"


def test_a_report_that_is_made_again_is_recorded_and_an_edited_one_does_not_matter(run, capsys):
    assert call(capsys, "report", run)[0] == 0
    assert statuses(run)["report.html"] == "recorded"
    page = (run / "report.html").read_text()
    assert hashlib.sha256((run / "audit.json").read_bytes()).hexdigest() in page, "the report names the record that it is of"
    (run / "report.html").write_text(page + " ")
    assert statuses(run)["report.html"] == "edited"
    assert call(capsys, "report", run)[0] == 0
    assert statuses(run)["report.html"] == "recorded"


def test_what_another_command_writes_beside_is_added_and_the_whole_of_the_audit_stays(run):
    before = json.loads((run / digests.FILE).read_text())
    (run / "quality.json").write_text("{}")
    add_digests(run, ("quality.json",))
    after = json.loads((run / digests.FILE).read_text())
    assert after["whole"] == before["whole"] and after["files"].items() > before["files"].items()
    write_audit_digests(run)
    assert json.loads((run / digests.FILE).read_text())["files"] == after["files"]


def test_scores_of_an_earlier_call_that_are_gone_are_recorded_no_longer(run):
    next((run / "scores").iterdir()).unlink()
    write_audit_digests(run)
    assert set(statuses(run).values()) == {"recorded"}


def test_a_sweep_compares_its_own_files_and_those_of_every_run(tmp_path, capsys):
    folder = swept(tmp_path / "sweep")
    found = statuses(folder)
    assert found["sweep.json"] == found["a/samples.csv"] == found["b/audit.json"] == "recorded"
    assert set(found.values()) == {"recorded"}
    assert call(capsys, "report", folder / "a")[0] == 0
    assert set(statuses(folder).values()) == {"recorded"}, "a report of a checkpoint is made again"
    (folder / "b" / "audit.json").write_text((folder / "b" / "audit.json").read_text().replace("0.5", "0.4", 1))
    assert [path for path, status in statuses(folder).items() if status == "edited"] == ["b/audit.json"]
    with pytest.raises(RecordEdited, match=r"b/audit\.json edited"):
        refuse_edited(folder)
    code, _, err = call(capsys, "report", folder)
    assert code == 1 and "b/audit.json edited" in err


def test_what_is_no_run_and_damaged_digests_are_one_line(run, tmp_path, capsys):
    assert "must be the folder of a finished audit" in refused(capsys, "verify", tmp_path)
    recorded = (run / digests.FILE).read_text()
    (run / digests.FILE).write_text(recorded.replace("plan.json", "../plan.json"))
    assert "must name files of its own folder; it names ../plan.json" in refused(capsys, "verify", run)
    (run / digests.FILE).write_text('{"files": 3}')
    assert "digests.json cannot be read" in refused(capsys, "verify", run)
    assert "digests.json cannot be read" in refused(capsys, "report", run)


def test_an_edited_record_reads_in_python_and_says_so_only_when_verified(run):
    text = (run / "audit.json").read_text().replace('"headline":"sima"', '"headline":"loss"')
    (run / "audit.json").write_text(text)
    assert read_audit(run).headline == "loss" and statuses(run)["audit.json"] == "edited"
