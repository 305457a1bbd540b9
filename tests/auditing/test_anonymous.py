"""`--anonymous`: keyed ids in everything that is written and printed, equal numbers, and the way back for the owner alone."""

import csv
import hashlib
import hmac
import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fixtures.commands import call, refused
from fixtures.runs import gaussian, ids_of, make_run
from PIL import Image

from diffleak.auditing.config import AuditConfig, GeometryConfig, read_cohort
from diffleak.auditing.plan import prepare
from diffleak.auditing.run import audit, run
from diffleak.comparison.compare import compare
from diffleak.comparison.runs import pair, read_entries
from diffleak.comparison.swap import with_halves
from diffleak.config import build
from diffleak.data.anonymity import FILE, Key, choose_key, read_key
from diffleak.data.captions import choose_captions
from diffleak.data.cohort import two_sources
from diffleak.data.sources import ImageSource, UnreadableImage, open_source
from diffleak.data.split import read_defence
from diffleak.errors import UserError
from diffleak.quality.config import QualityConfig
from diffleak.quality.prompts import choose_prompts
from diffleak.records.audit import Blind
from diffleak.records.quality import QualityRecord, read_quality
from diffleak.work.files import checked_folder, write_new

pytestmark = pytest.mark.usefixtures("few_divisions", "undrawn")
BLIND = Blind(value=0.5, low=0.4, high=0.6)
SMALL = {"timesteps": "50:100:50", "device": "cpu", "batch_size": 8, "chunk_size": 8, "threads": 1}
FLAGS = ["--timesteps", "50:100:50", "--device", "cpu", "--batch-size", "8", "--chunk-size", "8", "--threads", "1"]


@pytest.fixture
def pictures(tmp_path, digits) -> list[Path]:
    """Two folders of digits with names of people, some in folders; files 0 to 13 are members."""
    folders = [tmp_path / "one-side", tmp_path / "other-side"]
    for number in range(28):
        side, within = divmod(number, 14)
        where = folders[side] / f"ward_{within % 3}" if within % 2 else folders[side]
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits[number, ..., 0]).save(where / f"patient_{(number * 7919) % 1000:05d}.png")
    return folders


def names_of(folders: list[Path]) -> set[str]:
    """What must not be found: every file name, its stem, and the folders below DATA."""
    files = [file for folder in folders for file in folder.rglob("*.png")]
    inner = {part.name for folder in folders for part in folder.iterdir() if part.is_dir()}
    return {file.stem for file in files} | inner


def found_in(folder: Path, names: set[str], *texts: str) -> list[tuple[str, str]]:
    """Where any of the names stands in the files of a folder, compressed columns read, or in other texts."""
    contents = {str(path): path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file()}
    for path in folder.rglob("*.parquet"):
        table = pd.read_parquet(path)
        contents[f"{path} read"] = table.to_csv()
    contents |= {f"text {i}": text for i, text in enumerate(texts)}
    return [(where, name) for where, content in contents.items() for name in names if name in content]


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def given(pictures: list[Path], **changes: Any) -> dict[str, Any]:
    return {"members": str(pictures[0]), "nonmembers": str(pictures[1]), **SMALL, **changes}


def test_a_keyed_id_is_the_hmac_of_the_name_and_collisions_are_refused():
    key = Key(bytes(range(32)))
    expected = hmac.new(bytes(range(32)), b"image\0ward/patient_7.png", hashlib.sha256).hexdigest()
    assert key.ids(["ward/patient_7.png"]) == ("i" + expected[:16],)
    assert Key(bytes(32)).ids(["a"]) != key.ids(["a"]) and Key(bytes(32)).name != key.name
    assert "secret" not in repr(key) and key.secret.hex() not in repr(key)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("diffleak.data.anonymity.DIGITS", 1)
        with pytest.raises(UserError, match="two images have the same keyed id"):
            key.ids([str(i) for i in range(17)])


def test_a_key_is_made_once_is_its_owners_and_is_read_again(tmp_path):
    first = choose_key(True, None, tmp_path, {})
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert choose_key(True, None, tmp_path, {tmp_path: first.name}) == first
    assert choose_key(True, tmp_path / "shared.key", tmp_path / "other", {}) == read_key(tmp_path / "shared.key") != first
    assert choose_key(False, None, tmp_path / "nothing", {}) is None
    throwaway = choose_key(True, None, tmp_path / "nothing", {}, create=False)
    assert throwaway.path is None and not (tmp_path / "nothing").exists()


def test_of_workers_that_start_together_all_have_the_key_of_one(tmp_path):
    program = "import sys, pathlib; from diffleak.data.anonymity import choose_key; "
    program += "print(choose_key(True, None, pathlib.Path(sys.argv[1]), {}).name)"
    workers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    names = {worker.communicate()[0] for worker in workers}
    assert names == {f"{read_key(tmp_path / FILE).name}\n"}
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("content", "recorded", "said"),
    [
        (None, "0123456789abcdef", "its key .*anonymous.key is missing; put it back"),
        ("ab" * 32, "0123456789abcdef", "another key than .*anonymous.key; put its own back"),
        ("patient", None, "must be 64 hexadecimal digits"),
        ("ab" * 31, None, "must be 64 hexadecimal digits"),
    ],
)
def test_a_key_that_is_missing_damaged_or_another_one_is_one_line(tmp_path, content, recorded, said):
    if content:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match=said):
        choose_key(True, None, tmp_path, {tmp_path: recorded} if recorded else {})
    assert (tmp_path / FILE).exists() == bool(content)


def test_a_key_is_read_from_a_file_and_from_nothing_else(tmp_path):
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(UserError, match=r"anonymous.key cannot be read \(it is a pipe\); give the file with --anonymous-key FILE"):
        choose_key(True, None, tmp_path, {})


def test_a_folder_holds_file_names_or_keyed_ids_and_never_both(tmp_path):
    with pytest.raises(UserError, match="names images by file name; --anonymous needs a folder of its own"):
        choose_key(True, None, tmp_path, {tmp_path: None})
    with pytest.raises(UserError, match="is of an anonymous run; add --anonymous"):
        choose_key(False, None, tmp_path, {tmp_path: "0123456789abcdef"})


def test_an_anonymous_audit_has_the_numbers_of_the_same_audit_with_names(model_folder, pictures, tmp_path):
    settings = given(pictures, attacks="sima,sima_mc(m=2),noise_aggregation(metric=density,k=2)", limit=13, seed=5)
    named, hidden = (
        audit(model_folder(), output=tmp_path / f"run-{anonymous}", anonymous=anonymous, **settings) for anonymous in (False, True)
    )
    key = read_key(tmp_path / "run-True" / FILE)
    keyed = dict(zip(named.samples.ids, key.ids(named.samples.ids), strict=True))
    assert hidden.samples.ids == tuple(sorted(keyed.values())) != tuple(keyed.values())
    rows = [hidden.samples.ids.index(keyed[image_id]) for image_id in named.samples.ids]
    for column in ("member", "test"):
        np.testing.assert_array_equal(getattr(hidden.samples, column)[rows], getattr(named.samples, column))
    for one, other in zip(named.scores, hidden.scores, strict=True):
        np.testing.assert_allclose(other.statistic[rows], one.statistic, rtol=1e-4)
    for one, other in zip(named.results, hidden.results, strict=True):
        one, other = (r.model_dump() for r in (one, other))
        exact, close = (
            [{k: v for k, v in flat(r).items() if isinstance(v, float) == is_float} for r in (other, one)] for is_float in (False, True)
        )
        assert exact[0] == exact[1] and close[0] == pytest.approx(close[1], rel=1e-4), one["attack"]
    assert named.record.blind == hidden.record.blind and named.record.split == hidden.record.split
    assert (named.record.plan.anonymous, hidden.record.plan.anonymous) == (None, key.name)
    assert named.record.plan.data_fingerprint != hidden.record.plan.data_fingerprint


def flat(value: Any, where: str = "") -> dict[str, Any]:
    """The numbers and texts of a record by their place, floats to compare with a tolerance."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{where}.{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, inner in enumerate(value) for k, v in flat(inner, f"{where}.{i}").items()}
    return {where: value}


def test_folds_and_bootstraps_draw_the_rows_of_the_file_names(monkeypatch, model_folder, pictures, tmp_path):
    """What draws rows by their number must be given them in one order, anonymous or not."""
    seen = []
    monkeypatch.setattr("diffleak.stats.units.blind_auc", lambda features, member, *_: seen.append((features, member)) or BLIND)
    for anonymous in (False, True):
        audit(model_folder(), output=tmp_path / str(anonymous), anonymous=anonymous, **given(pictures, attacks="sima"))
    for one, other in zip(*seen, strict=True):
        np.testing.assert_array_equal(one, other)


def test_swapped_captions_and_those_of_a_file_are_told_by_name(tmp_path):
    ids = [f"patient_{i}.png" for i in range(9)]
    source = ImageSource("data", tuple(ids), lambda i: np.zeros((8, 8, 1), np.uint8), captions=lambda: tuple((f"text {i}",) for i in ids))
    cohort = two_sources(source, replace(source, ids=tuple(f"held-{i}" for i in ids)))
    hidden = cohort.renamed(Key(bytes(32)))
    hidden = hidden.taken(hidden.by_id)
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({key: f"of {key}" for key in cohort.keys}))
    for choice in ("own", "swapped", str(file)):
        told = [dict(zip(c.keys, choose_captions(c, choice, 3).texts, strict=True)) for c in (cohort, hidden)]
        assert told[0] == told[1]
    config = build(QualityConfig, {"reference": "data", "images": 12})
    assert choose_prompts(config, True, cohort) == choose_prompts(config, True, cohort.renamed(Key(bytes(32))))
    file.write_text(json.dumps(dict.fromkeys(cohort.keys[1:], "text")))
    with pytest.raises(UserError) as refusal:
        choose_captions(hidden, str(file), 3)
    assert hidden.ids[hidden.keys.index(cohort.keys[0])] in str(refusal.value) and "patient" not in str(refusal.value)


def test_nothing_of_an_anonymous_audit_holds_a_name(capsys, model_folder, pictures, tmp_path):
    (pictures[0] / "patient_damaged.png").write_bytes(b"no image")
    folder, names = tmp_path / "run", names_of(pictures)
    flags = ["--members", pictures[0], "--nonmembers", pictures[1], *FLAGS, "--attacks", "sima", "--reference", model_folder("base")]
    code, out, err = call(capsys, "audit", model_folder(), *flags, "--skip-unreadable", "--anonymous", "-o", folder)
    assert code == 0, err
    assert found_in(folder, names, out, err) == []
    assert found_in(folder, {"i"}) and len(names) > 28, "the search finds what is there"
    record = json.loads((folder / "audit.json").read_text())
    ids = pd.read_csv(folder / "samples.csv").id.tolist()
    assert ids == sorted(ids) and len(record["omitted"]) == 1
    assert record["omitted"][0].startswith("i") and "cannot be decoded" in record["omitted"][0]
    assert "--anonymous" in record["command"]
    assert f"keep their key {folder / FILE}" in err and "never pass it on" in err
    assert f"diffleak reveal {folder} gives their names" in " ".join(out.split())
    page = (folder / "report.html").read_text()
    assert "This page names images by keyed ids" in page and "--thumbnails" not in page
    order = [row[1] for file in sorted((folder / "scores").glob("*.parquet")) for row in pd.read_parquet(file).itertuples()]
    assert list(dict.fromkeys(order)) == ids, "chunks are in the order of keyed ids"

    named = tmp_path / "named"
    code, out, err = call(capsys, "audit", model_folder(), *flags, "--skip-unreadable", "-o", named)
    assert {Path(where.removesuffix(" read")).name for where, _ in found_in(named, names, out, err)} >= {
        "audit.json",
        "report.html",
        "samples.csv",
    }


def test_nothing_of_an_anonymous_geometry_holds_a_name(capsys, latent_folder, pictures, tmp_path):
    names, flags = names_of(pictures), ["--top", "2", "--probes", "2", *FLAGS, "--anonymous"]
    sides = ["--members", pictures[0], "--nonmembers", pictures[1], "--attacks", "sima", "--mask", "influence:0.4"]
    for name, data in (("both", sides), ("alone", ["--data", pictures[0]])):
        code, out, err = call(capsys, "geometry", latent_folder(), *data, *flags, "-o", tmp_path / name)
        assert code == 0, err
        assert found_in(tmp_path / name, names, out, err) == []
    record = json.loads((tmp_path / "both" / "audit.json").read_text())["geometry"]
    measured = pd.read_parquet(tmp_path / "both" / "geometry.parquet").set_index("id").distortion
    assert list(record["lowest"]) == measured.sort_values().index[: len(record["lowest"])].tolist()
    assert measured.index.tolist() == sorted(measured.index)
    code, out, _ = call(capsys, "reveal", tmp_path / "alone", "--json")
    rows = table(Path(json.loads(out)["ids"]))
    assert {row["name"] for row in rows} == {file.relative_to(pictures[0]).as_posix() for file in pictures[0].rglob("*.png")}
    assert call(capsys, "geometry", latent_folder(), "--data", pictures[0], *flags[:-1], "-o", tmp_path / "named")[0] == 0
    hidden, named = (pd.read_parquet(tmp_path / name / "geometry.parquet").set_index("id").distortion for name in ("alone", "named"))
    assert len(rows) == len(named) == 14
    np.testing.assert_allclose([hidden[row["id"]] for row in rows], [named[row["name"]] for row in rows], rtol=1e-4)
    places = [(hidden.index.get_loc(row["id"]), named.index.get_loc(row["name"])) for row in rows]
    first, second = (np.load(tmp_path / name / "influence.npy") for name in ("alone", "named"))
    np.testing.assert_allclose(first[[i for i, _ in places]], second[[j for _, j in places]], rtol=1e-3)


def test_nothing_of_an_anonymous_quality_holds_a_name_and_its_numbers_are_the_same(capsys, model_folder, pictures, tmp_path):
    data, split = pictures[0].parent / "all", tmp_path / "split.json"
    data.mkdir()
    for folder in pictures:
        folder.rename(data / folder.name)
    ids = [file.relative_to(data).as_posix() for file in sorted(data.rglob("*.png"))]
    split.write_text(json.dumps({"members": ids[:14], "nonmembers": ids[14:]}))
    flags = ["--data", data, "--split", split, "--extractor", "pixels", "--images", "12", "--steps", "2", "--device", "cpu", "--scores"]
    for name, more in (("named", []), ("hidden", ["--anonymous"])):
        code, out, err = call(capsys, "quality", model_folder(), *flags, *more, "-o", tmp_path / name)
        assert code == 0, err
    folder = tmp_path / "hidden"
    assert found_in(folder, {Path(i).stem for i in ids}, out, err) == []
    named, hidden = (read_quality(tmp_path / name / "quality.json", QualityRecord) for name in ("named", "hidden"))
    key = read_key(folder / FILE)
    assert named.metrics == hidden.metrics and hidden.anonymous == key.name
    assert [key.ids([pair.training_id])[0] for pair in named.copies.pairs] == [pair.training_id for pair in hidden.copies.pairs]
    scores = [pd.read_csv(tmp_path / name / "nearest.csv") for name in ("named", "hidden")]
    assert dict(zip(key.ids(scores[0].id.tolist()), scores[0].score, strict=True)) == dict(zip(scores[1].id, scores[1].score, strict=True))
    assert all(side.id.is_monotonic_increasing for _, side in scores[1].groupby("member"))
    assert "This page names images by keyed ids" in (folder / "quality.html").read_text()
    said = refused(capsys, "quality", model_folder(), *flags, "-o", folder)
    assert "is of an anonymous run; add --anonymous" in said
    (data / ids[3]).write_bytes(b"no image")
    said = refused(capsys, "quality", model_folder(), *flags, "--anonymous", "-o", tmp_path / "again")
    assert "the same without --anonymous, --scores and -o gives file names" in said and Path(ids[3]).stem not in said
    assert call(capsys, "reveal", folder)[0] == 0
    assert {row["name"] for row in table(folder / "ids.csv")} == set(ids)


def test_a_run_resumes_with_its_key_only(capsys, model_folder, pictures, tmp_path):
    flags = [
        "audit",
        model_folder(),
        "--members",
        pictures[0],
        "--nonmembers",
        pictures[1],
        *FLAGS,
        "--attacks",
        "sima",
        "-o",
        tmp_path / "run",
    ]
    assert call(capsys, *flags, "--anonymous", "--shard", "1/2")[0] == 0
    secret = (tmp_path / "run" / FILE).read_text()
    (tmp_path / "run" / FILE).rename(tmp_path / "kept")
    assert "its key" in refused(capsys, *flags, "--anonymous") and not (tmp_path / "run" / FILE).exists()
    assert "with another key" in refused(capsys, *flags, "--anonymous", "--anonymous-key", made(tmp_path / "second.key"))
    assert "add --anonymous" in refused(capsys, *flags)
    (tmp_path / "run" / FILE).write_text(secret)
    (tmp_path / "run" / FILE).chmod(0o644)
    code, _, err = call(capsys, *flags, "--anonymous")
    assert code == 0 and f"chmod 600 {tmp_path / 'run' / FILE}" in err
    assert "shows no images" in refused(capsys, "report", tmp_path / "run", "--thumbnails")


def made(path: Path) -> Path:
    write_new(path, "cd" * 32, private=True)
    return path


def test_reveal_gives_every_name_to_the_owner_of_key_and_data_alone(capsys, model_folder, pictures, tmp_path):
    key, folder = made(tmp_path / "shared.key"), tmp_path / "run"
    audit(model_folder(), output=folder, anonymous=True, anonymous_key=key, **given(pictures, attacks="sima", limit=11))
    assert not (folder / FILE).exists()
    code, out, _ = call(capsys, "reveal", folder)
    assert code == 0 and "never pass it on" in out
    rows = {row["id"]: row["name"] for row in table(folder / "ids.csv")}
    assert set(rows) == set(pd.read_csv(folder / "samples.csv").id)
    assert all(read_key(key).ids([name]) == (image_id,) for image_id, name in rows.items())
    assert stat.S_IMODE((folder / "ids.csv").stat().st_mode) == 0o600
    assert "is not the key" in refused(capsys, "reveal", folder, "--anonymous-key", other(tmp_path / "other.key"))
    pictures[0].rename(tmp_path / "elsewhere")
    assert "are not where the run read them" in refused(capsys, "reveal", folder)
    assert "must be the folder of an anonymous run" in refused(capsys, "reveal", make_run(tmp_path / "named", {"sima": gaussian(1.0)}))


def other(path: Path) -> Path:
    write_new(path, "ef" * 32, private=True)
    return path


def test_a_score_that_is_no_number_is_said_of_a_keyed_id(model_folder, pictures, tmp_path):
    config = build(
        AuditConfig, {"model": str(model_folder()), "output": tmp_path / "run", "anonymous": True, "attacks": "sima", **given(pictures)}
    )
    prepared = prepare(config)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("diffleak.auditing.score.most_exposed", lambda each, direction: each[0] * float("nan"))
        with pytest.raises(UserError, match=r"finite numbers; sima got nan for image i[0-9a-f]{16} at") as refusal:
            run(prepared, tmp_path / "run", log=lambda line: None)
    assert not any(name in str(refusal.value) for name in names_of(pictures))


@pytest.mark.parametrize("fault", ["damaged", "shared", "misfit"])
def test_what_is_wrong_with_an_image_is_said_of_its_keyed_id_and_how_to_get_its_name(model_folder, pictures, tmp_path, fault):
    first, second = (next(folder.glob("*.png")) for folder in pictures)
    if fault == "damaged":
        first.write_bytes(b"no image")
    elif fault == "shared":
        second.write_bytes(first.read_bytes())
    else:
        Image.new("L", (9, 9)).save(first)
    config = {"model": str(model_folder()), "output": tmp_path / "run", "attacks": "sima", **given(pictures)}
    with pytest.raises(UserError) as refusal:
        prepare(build(AuditConfig, {**config, "anonymous": True}))
    assert "--dry-run without --anonymous gives file names" in str(refusal.value)
    assert not any(name in str(refusal.value) for name in names_of(pictures))
    with pytest.raises(UserError, match=first.stem):
        prepare(build(AuditConfig, {**config, "output": tmp_path / "other", "dry_run": True}))


def test_an_image_that_is_gone_while_it_is_scored_is_not_named(pictures):
    cohort = read_cohort(build(AuditConfig, given(pictures)))
    hidden = cohort.renamed(Key(bytes(32)))
    row = next(row for row in range(len(cohort)) if cohort.member[row])
    (pictures[0] / cohort.keys[row]).unlink()
    with pytest.raises(UnreadableImage, match=hidden.ids[row]) as hidden_error:
        hidden.read(row)
    assert Path(cohort.keys[row]).stem not in str(hidden_error.value)
    with pytest.raises(UnreadableImage, match=Path(cohort.keys[row]).stem):
        cohort.read(row)


@pytest.mark.parametrize("kind", [AuditConfig, GeometryConfig, QualityConfig])
def test_settings_that_contradict_each_other_are_refused(kind):
    data = {"reference": "a"} if kind is QualityConfig else {"members": "a", "nonmembers": "b"}
    for changes, said in (
        ({"anonymous": True, "thumbnails": True, "output": "run"}, "--thumbnails shows the very images that --anonymous does not name"),
        ({"anonymous": True}, "--anonymous needs a place for its key"),
        ({"anonymous_key": "key"}, "--anonymous-key is the key of an anonymous run; add --anonymous"),
    ):
        with pytest.raises(UserError, match=said):
            build(kind, data, changes)


def test_a_plan_alone_writes_no_key(model_folder, pictures, tmp_path):
    prepare(
        build(
            AuditConfig, {"model": str(model_folder()), "output": tmp_path / "run", "anonymous": True, "dry_run": True, **given(pictures)}
        )
    )
    assert not (tmp_path / "run").exists()


def anonymous_run(folder: Path, key: str) -> Path:
    make_run(folder, {"sima": gaussian(1.0)}, *ids_of(30, 30))
    record = json.loads((folder / "audit.json").read_text())
    record["plan"]["anonymous"] = key
    (folder / "audit.json").write_text(json.dumps(record))
    return folder


def test_runs_of_two_keys_are_not_compared_and_runs_of_one_are(tmp_path):
    paths = [anonymous_run(tmp_path / name, key) for name, key in (("a", "k1"), ("b", "k1"), ("c", "k2"))]
    a, b, c = (entry.runs[0] for entry in read_entries([str(path) for path in paths]))
    assert len(pair(a, b).member) == 60
    assert any("drawn again by keyed ids" in warning for warning in compare([str(path) for path in paths[:2]]).warnings)
    with pytest.raises(UserError, match=r"has ids of the key k1 and .*c has ids of the key k2: audit both with the same --anonymous-key"):
        pair(a, c)


def test_halves_listed_by_file_name_do_not_fit_anonymous_runs(tmp_path):
    path = anonymous_run(tmp_path / "a", "k1")
    other = make_run(tmp_path / "b", {"sima": gaussian(1.0)}, fingerprint="sha256:" + "cd" * 32)
    halves = tmp_path / "split.json"
    teachers = ["sha256:" + "ab" * 32, "sha256:" + "ef" * 32]
    halves.write_text(json.dumps({"members": ["x", "y"], "halves": [["x"], ["y"]], "teachers": teachers}))
    assert read_defence(halves).teachers == tuple(teachers)
    with pytest.raises(UserError, match=r"lists the halves by file name, and .*a is anonymous"):
        with_halves(read_entries([str(path), str(other)]), halves)


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_folders_that_are_made_are_their_owners_and_others_keep_their_mode(tmp_path):
    before = os.umask(0o022)
    try:
        made = checked_folder(tmp_path / "made")
        (tmp_path / "there").mkdir(mode=0o755)
        there = checked_folder(tmp_path / "there")
    finally:
        os.umask(before)
    assert (stat.S_IMODE(made.stat().st_mode), stat.S_IMODE(there.stat().st_mode)) == (0o700, 0o755)


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_folder_that_others_may_read_is_said_once_and_pages_say_how_to_handle_them(capsys, model_folder, pictures, tmp_path):
    sides = ["--members", pictures[0], "--nonmembers", pictures[1], *FLAGS, "--attacks", "sima"]
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o755)
    for name, said in (("made", 0), ("there", 1)):
        code, out, err = call(capsys, "audit", model_folder(), *sides, "-o", tmp_path / name)
        assert (code, err.count("others on this machine may read")) == (0, said)
        assert f"handling: {tmp_path / name} names images" in " ".join(out.split())
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700
    page = (tmp_path / "made" / "report.html").read_text()
    assert "This page names training images" in page and "shows training images" not in page
    assert call(capsys, "report", tmp_path / "made", "--thumbnails")[0] == 0
    assert "This page shows training images and names them" in (tmp_path / "made" / "report.html").read_text()


def test_the_end_of_a_training_says_that_its_split_is_not_released(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("diffleak.training.run.train", lambda config: config.output)
    monkeypatch.setattr("diffleak.training.run.outcome", lambda folder: {})
    monkeypatch.setattr("diffleak.defenses.defend.defend", lambda config: config.output / "student")
    for command in (["train"], ["defend", "distill"]):
        code, out, _ = call(capsys, *command, "--data", "digits", "-o", tmp_path)
        assert code == 0
        assert f"split: {tmp_path / 'split.json'} (names the training images: do not release it with the model)" in out


def test_messages_about_a_value_or_a_label_of_an_anonymous_image_name_no_file(tmp_path):
    from diffleak.records.images import Decoding

    sides = [tmp_path / "a", tmp_path / "b"]
    for side in sides:
        side.mkdir()
        for i in range(2):
            Image.fromarray(np.full((4, 4), 5000 + i, dtype=np.uint16)).save(side / f"patient_{side.name}{i}.png")
        rows = [{"file_name": f"patient_{side.name}0.png", "label": 1}]
        (side / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    named = two_sources(*(open_source(side, Decoding(white=4095)) for side in sides))
    for cohort, shown in ((named, True), (named.renamed(Key(b"k" * 32)), False)):
        for message in (lambda c=cohort: c.decoded(0), lambda c=cohort: c.labels(3)):
            with pytest.raises(UserError) as said:
                message()
            assert ("patient_" in str(said.value)) == shown, said.value
            assert shown or any(image_id in str(said.value) for image_id in cohort.ids)


@pytest.mark.parametrize("key", ["shared", "own"])
def test_a_run_that_is_not_finished_is_not_said_to_miss_its_images(capsys, model_folder, pictures, tmp_path, key):
    own, folder = made(tmp_path / "shared.key"), tmp_path / "run"
    audit(model_folder(), output=folder, anonymous=True, anonymous_key=own, **given(pictures, attacks="sima", limit=11))
    for name in ("audit.json", "digests.json"):
        (folder / name).unlink()
    flags = ("--anonymous-key", own)
    if key == "own":
        own.rename(folder / FILE)
        flags = ()
    line = refused(capsys, "reveal", folder, *flags)
    assert "is not finished: repeat its command, it resumes" in line and "are not where" not in line
