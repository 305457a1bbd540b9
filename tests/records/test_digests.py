"""digests.json: an edited, missing or unknown file of a run is found, and a report is made of no record that was edited."""

import hashlib
import importlib
import json
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.commands import call, refused
from fixtures.runs import gaussian, make_run, write_quality
from fixtures.sweeps import swept

import diffleak
import diffleak.records
from diffleak.errors import DiffleakError, UserError
from diffleak.records import digests
from diffleak.records.digests import RecordEdited, add_digests, refuse_edited, verify, write_audit_digests, write_recorded
from diffleak.records.run_folder import read_audit
from diffleak.work.reading import Unreadable

pytestmark = pytest.mark.usefixtures("undrawn")


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
    assert set(found.values()) == {"unchanged"} and diffleak.verify is verify
    recorded = json.loads((run / digests.FILE).read_text())["files"]
    assert recorded == {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in found}


def test_a_file_that_may_not_be_read_is_not_called_edited(run, monkeypatch, capsys):
    def hash_file(path):
        raise Unreadable("Permission denied")

    monkeypatch.setattr(digests, "hash_file", hash_file)
    assert set(statuses(run).values()) == {"edited"}, "what is no file any more, such as a folder, is"
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, *given, **how: Path(path).is_dir() and access(path, *given, **how))
    for command in ("verify", "report"):
        said = refused(capsys, command, run)
        assert "cannot be read (Permission denied): allow it" in said and "audit.json" in said and "edited" not in said


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
        assert code == 2 and "not as it was recorded" in err and not (run / "report.html").exists()


def test_verify_ends_with_a_sentence_and_the_hashes_that_the_report_prints(run, capsys):
    write_audit_digests(run)
    assert call(capsys, "report", run)[0] == 0
    audit, whole, files = digests.sealed(run)
    assert audit in (run / "report.html").read_text() and whole in (run / "report.html").read_text()
    code, out, _ = call(capsys, "verify", run)
    assert code == 0 and out.splitlines()[0] == "unchanged audit.json"
    assert out.splitlines()[-3].startswith(f"All {files + 1} recorded files are unchanged. Compare these two hashes")
    whole_line = f"whole record  SHA-256 {whole} over {files} files (not report.html, which prints it)"
    assert out.splitlines()[-2:] == [f"audit.json    SHA-256 {audit}", whole_line]
    found = json.loads(call(capsys, "verify", run, "--json")[1])
    assert (found["audit_sha256"], found["whole_sha256"]) == (audit, whole)
    (run / "more.txt").write_text("mine")
    assert "Nothing was recorded of 1 more (unknown)." in call(capsys, "verify", run)[1]
    (run / "samples.csv").write_text("edited")
    assert "unchanged." not in call(capsys, "verify", run)[1]


def test_a_file_that_cannot_be_read_is_listed_as_edited_and_hides_no_other(run, capsys):
    score = next((run / "scores").iterdir())
    score.unlink()
    score.mkdir()
    (run / "samples.csv").write_text("edited")
    code, out, err = call(capsys, "verify", run)
    assert code == 1 and f"edited    scores/{score.name}" in out.splitlines() and "edited    samples.csv" in out.splitlines(), err
    assert json.loads(call(capsys, "verify", run, "--json")[1])["whole_sha256"] is None


def test_digests_that_name_no_file_confirm_nothing(run, capsys):
    made = json.loads((run / digests.FILE).read_text())
    (run / digests.FILE).write_text(json.dumps({**made, "files": {}}))
    _, out, err = call(capsys, "verify", run)
    assert "names no file, so nothing was compared. Nothing was recorded of 5 more" in out and "unchanged" not in out
    assert "audit.json" in err, "which has no digest"


def test_verify_of_a_folder_without_an_audit_prints_no_hash(tmp_path, capsys):
    write_recorded(tmp_path, {"inquiry.json": "{}"})
    code, out, _ = call(capsys, "verify", tmp_path)
    assert code == 0 and out.splitlines()[-1] == "The one recorded file is unchanged." and "SHA-256" not in out
    assert json.loads(call(capsys, "verify", tmp_path, "--json")[1])["audit_sha256"] is None


def test_a_missing_file_fails_and_an_unknown_one_is_only_named(run, capsys):
    (run / "more.txt").write_text("mine")
    assert call(capsys, "verify", run)[0] == 0
    assert statuses(run)["more.txt"] == "unknown"
    (run / "samples.csv").unlink()
    code, out, _ = call(capsys, "verify", run, "--json")
    found = json.loads(out)
    assert code == 1 and found["as_recorded"] is False
    assert [each for each in found["files"] if each["status"] != "unchanged"] == [
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
    assert statuses(run)["report.html"] == "unchanged"
    page = (run / "report.html").read_text()
    assert hashlib.sha256((run / "audit.json").read_bytes()).hexdigest() in page, "the report names the record that it is of"
    (run / "report.html").write_text(page + " ")
    assert statuses(run)["report.html"] == "edited"
    assert call(capsys, "report", run)[0] == 0
    assert statuses(run)["report.html"] == "unchanged"


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
    assert set(statuses(run).values()) == {"unchanged"}


def test_a_sweep_compares_its_own_files_and_those_of_every_run(tmp_path, capsys):
    folder = swept(tmp_path / "sweep")
    found = statuses(folder)
    assert found["sweep.json"] == found["a/samples.csv"] == found["b/audit.json"] == "unchanged"
    assert set(found.values()) == {"unchanged"}
    assert call(capsys, "report", folder / "a")[0] == 0
    assert set(statuses(folder).values()) == {"unchanged"}, "a report of a checkpoint is made again"
    (folder / "b" / "audit.json").write_text((folder / "b" / "audit.json").read_text().replace("0.5", "0.4", 1))
    assert [path for path, status in statuses(folder).items() if status == "edited"] == ["b/audit.json"]
    with pytest.raises(RecordEdited, match=r"b/audit\.json edited"):
        refuse_edited(folder)
    code, _, err = call(capsys, "report", folder)
    assert code == 2 and "b/audit.json edited" in err


def test_what_is_no_run_and_damaged_digests_are_one_line(run, tmp_path, capsys):
    assert "must be the folder of a finished command" in refused(capsys, "verify", tmp_path)
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


def rooms_with_a_record() -> list[str]:
    """The names of the JSON records that the modules of `records` name as theirs; not digests, what is beside a record, or training's."""
    modules = [importlib.import_module(f"diffleak.records.{each.name}") for each in pkgutil.iter_modules(diffleak.records.__path__)]
    named = {module.FILE for module in modules if str(getattr(module, "FILE", "")).endswith(".json")}
    return sorted(named - {digests.FILE, "convert.json", *digests.MADE_WITH_IT})


def test_every_record_of_a_command_is_known_by_name():
    assert rooms_with_a_record() == sorted({*digests.RECORDS} - {digests.AUDIT})


def test_what_a_command_leaves_is_its_owners_and_recorded_and_an_edit_is_found(tmp_path, capsys):
    folder = tmp_path / "new"
    write_recorded(folder, {"inquiry.json": "{}", "pairs/1.png": b"png"})
    assert statuses(folder) == {"inquiry.json": "unchanged", "pairs/1.png": "unchanged"}
    assert {path.stat().st_mode & 0o777 for path in (folder, folder / "pairs")} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in (folder / "inquiry.json", folder / "pairs/1.png")} == {0o600}
    (folder / "pairs/1.png").write_bytes(b"another")
    code, out, err = call(capsys, "verify", folder)
    assert code == 1 and "edited    pairs/1.png" in out and "1 of 2 recorded files" in err
    (folder / "pairs/1.png").unlink()
    write_recorded(folder, {"pairs/2.png": b"png"}, replaces="pairs/")
    assert statuses(folder) == {"inquiry.json": "unchanged", "pairs/2.png": "unchanged"}, "what an earlier call left is expected no longer"


def test_a_command_that_was_stopped_between_two_files_leaves_none_that_looks_edited(tmp_path, monkeypatch):
    write_recorded(tmp_path, {"a.html": "1", "a.json": "1"})

    def stop(path, *_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(digests, "write_bytes", stop)
    with pytest.raises(KeyboardInterrupt):
        write_recorded(tmp_path, {"a.html": "2", "a.json": b"2"})
    assert set(statuses(tmp_path).values()) == {"unknown"}


def edit(path: Path) -> None:
    path.write_text(path.read_text() + " ")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("compare", "RUN", "OTHER"), "audit.json"),
        (("compare", "RUN", "OTHER"), "samples.csv"),
        (("compare", "RUN", "OTHER"), "quality.json"),
        (("compare", "OTHER", "RUN"), "quality.json"),
        (("compare", "OTHER", "FURTHER", "--quality", "OTHER=RUN/quality.json", "--quality", "FURTHER=RUN/quality.json"), "quality.json"),
        (("gate", "RUN", "--max-auc", "0.9"), "audit.json"),
        (("gate", "RUN", "--max-copies", "0.9"), "quality.json"),
        (("epsilon", "RUN"), "quality.json"),
        (("epsilon", "RUN"), "audit.json"),
        (("report", "RUN"), "gate.json"),
        (("reveal", "RUN"), "audit.json"),
        (("metrics", "RUN/samples.csv", "--score", "sima"), "samples.csv"),
        (("metrics", "RUN/samples.csv", "--score", "sima"), "audit.json"),
    ],
)
def test_every_command_that_reads_an_edited_record_refuses_it_in_one_line(run, tmp_path, capsys, command, name):
    write_recorded(run, {"quality.json": write_quality(run).read_text()})
    diffleak.gate(run, max_auc=0.9)
    for other in ("OTHER", "FURTHER"):
        shutil.copytree(run, tmp_path / other)
    place = {"RUN": str(run), "OTHER": str(tmp_path / "OTHER"), "FURTHER": str(tmp_path / "FURTHER")}
    arguments = [place.get(each) or each.replace("RUN/", f"{run}/") for each in command]
    edit(run / name)
    said = refused(capsys, *arguments)
    assert f"is not as it was recorded ({name} edited)" in said and "repeat the command that writes it" in said


def test_a_command_writes_its_own_record_again_though_it_was_edited(run):
    diffleak.gate(run, max_auc=0.9)
    edit(run / "gate.json")
    diffleak.gate(run, max_auc=0.9)
    assert statuses(run)["gate.json"] == "unchanged"


def test_a_gate_of_a_sweep_refuses_an_edited_record_of_the_sweep_or_of_a_run(tmp_path, capsys):
    for name in ("sweep.json", "a/samples.csv"):
        folder = swept(tmp_path / name[0])
        edit(folder / name)
        assert f"({name} edited)" in refused(capsys, "gate", folder, "--max-auc", "0.9")


def test_records_of_earlier_versions_beside_recorded_ones_open_and_are_named(run, capsys):
    write_quality(run)
    assert diffleak.gate(run, max_copies=0.9).met
    code, out, err = call(capsys, "verify", run)
    assert code == 0 and "unknown   quality.json" in out.splitlines() and "has no digest of quality.json, written by" in err
    (run / digests.FILE).unlink()
    diffleak.gate(run, max_copies=0.9)
    code, _, err = call(capsys, "report", run)
    assert code == 0 and "has no digest of audit.json, quality.json, so" in err, "a digest of gate.json says nothing of the audit"


def test_a_folder_of_one_record_without_digests_is_said_to_be_of_an_earlier_version(tmp_path, capsys):
    (tmp_path / "inquiry.json").write_text("{}")
    assert "nothing says what its inquiry.json was" in refused(capsys, "verify", tmp_path)


def test_only_folders_that_hold_a_part_of_the_record_belong_to_it(tmp_path):
    for folder in ("audits/a", "audits", "other"):
        write_recorded(tmp_path / folder, {"audit.json": "{}"}, ["a/audit.json"] if folder == "audits" else ())
    write_recorded(tmp_path, {"lora.json": "{}"}, ["audits/audit.json", "audits/a/audit.json"])
    assert list(statuses(tmp_path)) == ["audits/a/audit.json", "audits/audit.json", "lora.json"]
    edit(tmp_path / "other" / "audit.json")
    assert refuse_edited(tmp_path)
    edit(tmp_path / "audits" / "a" / "audit.json")
    assert {path for path, status in statuses(tmp_path).items() if status == "edited"} == {"audits/a/audit.json"}
    with pytest.raises(RecordEdited, match=r"audits/a/audit\.json edited"):
        refuse_edited(tmp_path)


def test_an_edit_is_the_users_to_mend_and_a_difference_a_finding():
    assert (RecordEdited.exit_code, digests.Differs.exit_code) == (UserError.exit_code, DiffleakError.exit_code) == (2, 1)


WRITER = """
import sys
from pathlib import Path
from diffleak.records.digests import write_recorded
folder, name = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for number in range(60):
    write_recorded(folder, {f"{name}-{number}.json": name})
"""


def test_two_processes_that_end_in_one_folder_at_once_lose_no_digest(tmp_path):
    """Each reads the digests that are there and adds its own, 60 times; without a lock one overwrites what the other has just added."""
    command, this = [sys.executable, "-c", WRITER, str(tmp_path)], {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    start = lambda name: subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=this)
    both = [start("one"), start("two")]
    assert [each.stdout.readline() for each in both] == ["ready\n"] * 2
    for each in both:
        each.stdin.write("go\n")
        each.stdin.flush()
    assert [each.wait(60) for each in both] == [0, 0]
    found = verify(tmp_path)
    assert len(found) == 120 and {each.status for each in found} == {"unchanged"}


@pytest.mark.parametrize("edited", [1, 2])
def test_one_edited_file_is_not_as_it_was_and_several_are_not(run, capsys, edited):
    for name in [*json.loads((run / digests.FILE).read_text())["files"]][:edited]:
        (run / name).write_text("edited")
    _, _, err = call(capsys, "verify", run)
    expected = f"{run} is not as it was written" if edited == 1 else f"{run} are not as they were written"
    assert f"{edited} of " in err and f"recorded files of {expected} (" in err
