"""The classes of a model by name: what its folder states, what training records, and that audits then give the same scores."""

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures.models import LEVELS as TINY
from PIL import Image

import diffleak
from diffleak import hub
from diffleak.auditing.config import AuditConfig
from diffleak.auditing.plan import prepare
from diffleak.auditing.run import run as audit_run
from diffleak.config import build
from diffleak.data.labels import ClassNames
from diffleak.errors import UserError
from diffleak.hub import class_names
from diffleak.report.wording import labels_from
from diffleak.training import run
from diffleak.training.distillation import Lesson
from diffleak.training.images import read_training_data

NUMBERS = ["0", "1", "10", "11", "2"]  # as text, 10 and 11 come before 2
ANIMALS = ["ape", "bee", "cow"]


def folders(path: Path, classes, each=10, keep=lambda name: True, labels=None):
    """Images in class folders; `keep` leaves out folders, `labels` writes the number of each into metadata.jsonl."""
    rows = []
    for i in range(each * len(classes)):
        name, file = classes[i % len(classes)], f"{classes[i % len(classes)]}/{path.name}{i:03d}.png"
        if keep(name):
            (path / name).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng((i, *map(ord, path.name))).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(path / file)
            rows.append({"file_name": file, "label": labels and labels[name]})
    if labels:
        (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def train(data, output, classes=12, lesson=None, **changes):
    given = {"data": str(data), "output": output, "steps": 2, "batch_size": 4, "device": "cpu", "threads": 1, "learning_rate": 0.1}
    config = diffleak.train_config(None, None, **{**given, "model": {**TINY, "num_class_embeds": classes}, **changes})
    return run.train(config, lesson)


def prepared(model, members, nonmembers, **keys):
    given = {"model": str(model), "members": str(members), "nonmembers": str(nonmembers), "attacks": "loss", "timesteps": "50:100:50"}
    return prepare(build(AuditConfig, {**given, "device": "cpu", "threads": 1, **keys}))


def scores(prepared, folder):
    return audit_run(prepared, folder, log=lambda line: None).scores[0].statistic


# training and audits


def test_an_audit_of_some_folders_gives_the_scores_of_the_same_images_with_labels_in_metadata(tmp_path):
    numbers = {name: int(name) for name in NUMBERS}
    model = train(folders(tmp_path / "members", NUMBERS), tmp_path / "model")
    some = lambda name: name in ("10", "2")
    found = []
    for kind in ("bare", "labelled"):
        both = [folders(tmp_path / kind / s, NUMBERS, 12, some, numbers if kind == "labelled" else None) for s in ("members", "outsider")]
        found.append(scores(prepared(model, *both), tmp_path / f"run-{kind}"))
    assert np.array_equal(*found)
    wrong = [folders(tmp_path / "wrong" / s, NUMBERS, 12, some, {"10": 0, "2": 1}) for s in ("members", "outsider")]
    assert not np.array_equal(found[0], scores(prepared(model, *wrong), tmp_path / "run-wrong")), "the class must matter"


def test_training_takes_whole_numbers_as_numbers_and_records_every_name(tmp_path):
    numbers = train(folders(tmp_path / "n", NUMBERS), tmp_path / "numbers")
    assert json.loads((numbers / "train.json").read_text())["classes"] == {name: int(name) for name in NUMBERS}
    config = diffleak.train_config(None, None, data=str(tmp_path / "n"), output=tmp_path / "x", model={**TINY, "num_class_embeds": 12})
    data = read_training_data(config)
    assert data.labels.tolist() == [int(image_id.split("/")[0]) for image_id in data.members] and len(data.labels) == 50
    names = train(folders(tmp_path / "a", ANIMALS), tmp_path / "names")
    assert class_names(names, 12) == ClassNames({"ape": 0, "bee": 1, "cow": 2}, "train.json", closed=True)


def test_a_model_of_named_folders_is_audited_by_those_names_only(tmp_path):
    model = train(folders(tmp_path / "a", ANIMALS), tmp_path / "model", classes=3)
    some = [folders(tmp_path / side, ANIMALS, 12, lambda name: name != "ape") for side in ("members", "outside")]
    plan = prepared(model, *some).plan
    assert plan.label_names == {"bee": 1, "cow": 2}
    assert plan.labels == "the names of the folders, by the model's class names in train.json"
    others = [folders(tmp_path / f"other-{side}", ["ant", "bee", "cow"], 12) for side in ("members", "outside")]
    with pytest.raises(UserError, match=r"members have 3 folders \(ant, bee, cow\), .* own class names \(ape, bee, cow\)"):
        prepared(model, *others)


def test_class_names_of_a_column_are_recorded_and_labels_by_number_record_none(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "names.npz", images=images, labels=np.array(ANIMALS * 10))
    np.savez(tmp_path / "numbers.npz", images=images, labels=np.arange(30) % 3)
    named = train(f"{tmp_path / 'names.npz'}:images", tmp_path / "named")
    assert class_names(named, 12).numbers == {"ape": 0, "bee": 1, "cow": 2}
    numbered = train(f"{tmp_path / 'numbers.npz'}:images", tmp_path / "numbered")
    assert json.loads((numbered / "train.json").read_text())["classes"] is None and class_names(numbered, 12) == ClassNames()


def test_a_run_is_not_resumed_on_data_that_numbers_its_classes_otherwise(tmp_path):
    train(folders(tmp_path / "data" / "a", ANIMALS), tmp_path / "model")
    (tmp_path / "data" / "a" / "cow").rename(tmp_path / "data" / "a" / "aardvark")
    with pytest.raises(UserError, match="holds another training run"):
        train(tmp_path / "data" / "a", tmp_path / "model")


# what is said


def test_the_plan_line_the_record_and_the_report_say_where_labels_came_from_and_which_name_is_which(tmp_path):
    model = train(folders(tmp_path / "a", ANIMALS), tmp_path / "model", classes=3)
    both = [folders(tmp_path / side, ANIMALS, 12, lambda name: name != "ape") for side in ("members", "outside")]
    planned = prepared(model, *both)
    said = "labels from the names of the folders, by the model's class names in train.json (bee = 1, cow = 2), "
    assert said in planned.describe()
    found = audit_run(planned, tmp_path / "run", log=lambda line: None)
    found.save(tmp_path / "run")
    plan = json.loads((tmp_path / "run" / "audit.json").read_text())["plan"]
    assert plan["labels"] == planned.plan.labels and plan["label_names"] == {"bee": 1, "cow": 2}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<dt>Labels</dt><dd>from the names of the folders, by the model&#39;s class names in train.json (bee = 1, cow = 2); all" in page


def test_names_of_many_classes_are_cut_and_names_that_are_the_numbers_are_left_out():
    many = {f"n{i:04d}": i for i in range(1000)}
    assert labels_from("folders", many).endswith("(n0000 = 0, n0001 = 1, n0002 = 2, n0003 = 3, n0004 = 4, n0005 = 5, and 994 more)")
    assert labels_from("folders", {"3": 3, "10": 10}) == "folders"
    assert labels_from("folders", {"1": 0, "a\nb": 1}) == r"folders (1 = 0, a\nb = 1)"


# what a folder states


def index(folder, stated):
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline", "id2label": stated}))
    return folder


def test_id2label_gives_every_name_between_commas_as_diffusers_has_them_and_none_of_several_classes(tmp_path):
    found = class_names(index(tmp_path / "dit", {"0": "tench, Tinca tinca", "1": "crane", "2": "crane, machine"}), 3)
    assert found.numbers == {"tench, Tinca tinca": 0, "tench": 0, "Tinca tinca": 0, "crane": 1, "crane, machine": 2, "machine": 2}
    alike = class_names(index(tmp_path / "alike", {"0": "crane", "1": "crane", "2": "a, b", "3": "b, c"}), 4)
    assert alike.numbers == {"a, b": 2, "a": 2, "b, c": 3, "c": 3}
    assert (found.origin, found.closed) == ("model_index.json", False)


@pytest.mark.parametrize("stated", [["a"], {"a": "b"}, {"3": "x"}, {"0": 5}])
def test_id2label_that_numbers_no_classes_of_the_model_is_one_line(tmp_path, stated):
    with pytest.raises(UserError, match=r"model_index.json must give id2label as names by numbers from 0 to 2"):
        class_names(index(tmp_path / "dit", stated), 3)


@pytest.mark.parametrize("classes", [["a"], {"a": "0"}, {"a": 3}, {"a": -1}])
def test_recorded_classes_that_are_none_of_the_model_are_one_line(tmp_path, classes):
    (tmp_path / "train.json").write_text(json.dumps({"schema_version": 1, "classes": classes}))
    with pytest.raises(UserError, match=r"train.json must give classes as names with numbers below 3"):
        class_names(tmp_path, 3)


def old(path, ids, **record):
    """The files of a model that version 0.1 trained."""
    path.mkdir()
    (path / "data").mkdir()
    (path / "train.json").write_text(json.dumps({"schema_version": 1, "data": str(path / "data"), "split": None, **record}))
    (path / "split.json").write_text(json.dumps({"members": ids[::2], "nonmembers": ids[1::2]}))
    return class_names(path, 12)


def images_in(*names):
    return [f"{name}/{i}.png" for name in names for i in range(2)]


def test_names_of_a_model_of_version_0_1_are_the_order_of_its_folders_where_nothing_else_can_have_numbered_them(tmp_path):
    assert old(tmp_path / "names", images_in("cow", "ape", "bee")).numbers == {"ape": 0, "bee": 1, "cow": 2}
    assert old(tmp_path / "numbers", images_in("0", "1", "2")).numbers == {"0": 0, "1": 1, "2": 2}
    assert old(tmp_path / "rows", ["0", "1", "2"]) == ClassNames()  # an array or a table, which gave numbers


@pytest.mark.parametrize(
    ("names", "record"),
    [
        (("3", "5", "9"), {}),
        (("0", "1", "10", "2"), {}),
        (("ape", "bee"), {"split": "split.json"}),
        (("ape/x", "bee/x"), {}),
    ],
    ids=["some numbers", "10 before 2", "a split that may leave out folders", "one name twice"],
)
def test_names_are_refused_where_it_is_not_sure_how_version_0_1_numbered_them(tmp_path, names, record):
    assert "trained by version 0.1" in old(tmp_path / "old", images_in(*names), **record).doubt


def test_a_model_of_version_0_1_in_doubt_is_audited_by_labels_and_not_by_folders(tmp_path):
    model = train(folders(tmp_path / "a", ["3", "5"]), tmp_path / "model")
    record = json.loads((model / "train.json").read_text())
    del record["classes"]
    (model / "train.json").write_text(json.dumps(record))
    both = [folders(tmp_path / side, ["3", "5"], 12) for side in ("members", "outside")]
    with pytest.raises(UserError, match=r"trained by version 0.1, which did not record .*: give labels as numbers"):
        prepared(model, *both)
    both = [folders(tmp_path / side, ["3", "5"], 12, labels={"3": 0, "5": 1}) for side in ("members", "outside")]
    assert prepared(model, *both).plan.labels == "metadata.jsonl"


# two models


def test_two_models_together_number_their_classes_alike_or_are_refused(tmp_path):
    one = train(folders(tmp_path / "a", ANIMALS), tmp_path / "one")
    two = train(tmp_path / "a", tmp_path / "two", seed=1)
    other = train(folders(tmp_path / "b", ["ant", *ANIMALS]), tmp_path / "other")
    hub.save_dual(tmp_path / "dual", (one, two))
    assert diffleak.load(tmp_path / "dual", device="cpu").class_names.numbers == {"ape": 0, "bee": 1, "cow": 2}
    with pytest.raises(UserError, match="two teachers must number their classes alike"):
        hub.save_dual(tmp_path / "no", (one, other))
    both = [folders(tmp_path / side, ANIMALS, 12) for side in ("members", "outside")]
    with pytest.raises(UserError, match="the reference must number its classes as the model does; ape is 1 and 0"):
        prepared(one, *both, reference=str(other))
    assert prepared(one, *both, reference=str(two)).plan.labels
    with pytest.raises(UserError, match="a student's data must number the classes as its teachers do"):
        train(tmp_path / "a", tmp_path / "student", lesson=Lesson((other,)))


def test_a_model_of_version_0_1_whose_data_is_gone_is_in_doubt(tmp_path):
    assert "trained by version 0.1" in old(tmp_path / "old", images_in("cow", "ape"), data=str(tmp_path / "moved")).doubt


def test_a_whole_name_of_id2label_is_no_other_class_s_because_it_is_a_part_of_its_name(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"id2label": {"0": "maillot", "1": "maillot, tank suit"}}))
    assert class_names(tmp_path, 2).numbers == {"maillot": 0, "maillot, tank suit": 1, "tank suit": 1}
