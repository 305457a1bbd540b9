"""A name in a file finds the image that it means however it is spelled; whatever it does not find is said beside an id of the data."""

import json
import unicodedata

import numpy as np
import pytest
from fixtures.pictures import image

from diffleak.data.anonymity import Key
from diffleak.data.captions import choose_captions
from diffleak.data.cohort import one_source, two_sources
from diffleak.data.names import matched
from diffleak.data.scan import scan
from diffleak.data.sources import open_source
from diffleak.data.split import read_split
from diffleak.errors import UserError
from diffleak.training.config import train_config
from diffleak.training.images import read_training_data

COMPOSED = "caf\u00e9.png"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def meant(names, ids, root="/data"):
    return matched("f.json", names, ids, [(root, "")])


def refusal(call):
    with pytest.raises(UserError) as error:
        call()
    said = str(error.value)
    assert "\n" not in said
    return said


def folder(path, names, seed=0, **metadata):
    """Distinct grey images, with the lines of `metadata.jsonl` where there are any."""
    for i, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        image(np.random.default_rng((seed, i)).integers(0, 256, (4, 4, 1), dtype=np.uint8)).save(path / name)
    if metadata:
        rows = [{"file_name": name, **row} for name, row in metadata["rows"].items()]
        (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def sides(tmp_path, names=(), nonmember_names=()):
    """Twelve members m00.png ... and twelve held-out images n00.png ..., with a caption under every name that is given for them."""
    told = [{name: {"text": f"of {name}"} for name in side} for side in (names, nonmember_names)]
    of = [
        folder(tmp_path / side, [f"{side}{i:02d}.png" for i in range(12)], ord(side), rows=rows)
        for side, rows in zip("mn", told, strict=True)
    ]
    return two_sources(*map(open_source, of))


@pytest.mark.parametrize(
    ("name", "image_id"),
    [
        ("a/x.png", "a/x.png"),
        ("./a/x.png", "a/x.png"),
        ("a//./x.png", "a/x.png"),
        ("a\\x.png", "a/x.png"),
        ("/data/a/x.png", "a/x.png"),
        ("A/X.PNG", "a/x.png"),
        (DECOMPOSED, COMPOSED),
        (f".\\{DECOMPOSED.upper()}", COMPOSED),
        ("x.png", None),
        ("/elsewhere/a/x.png", None),
    ],
)
def test_a_name_finds_the_one_image_that_it_spells_in_another_way(name, image_id):
    assert meant([name], ["a/x.png", COMPOSED]) == ({} if image_id is None else {name: image_id})


def test_a_path_from_the_working_folder_finds_its_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert meant(["train/x.png"], ["x.png"], str(tmp_path / "train")) == {"train/x.png": "x.png"}


def test_an_exact_name_always_wins_and_a_nearer_spelling_before_a_farther_one():
    ids = ["x.png", "X.png", COMPOSED, DECOMPOSED]
    assert meant(ids, ids) == dict(zip(ids, ids, strict=True))
    assert meant(["./X.png", f"./{DECOMPOSED}"], ids) == {"./X.png": "X.png", f"./{DECOMPOSED}": DECOMPOSED}
    assert meant(["x.png", "X.png"], ["x.png"]) == {"x.png": "x.png"}, "the second name is of an image that is not there"


@pytest.mark.parametrize("name", ["X.PNG", f"./{COMPOSED.upper()}"])
def test_a_name_that_may_be_two_images_is_refused_with_both(name):
    pair = ("x.png", "X.png") if name == "X.PNG" else (DECOMPOSED, COMPOSED)
    said = refusal(lambda: meant([name], [*pair]))
    assert said == f"f.json must name each image as the data does; {name} may be {' and '.join(sorted(pair))}"


def test_two_spellings_of_one_image_are_refused_with_both():
    assert refusal(lambda: meant(["./x.png", "X.png"], ["x.png"])) == "f.json must name each image once; ./x.png and X.png are both x.png"


def test_a_split_file_may_spell_ids_in_another_way_and_gives_those_of_the_data(tmp_path):
    source = open_source(folder(tmp_path / "x", ["a/0.png", "a/1.png", COMPOSED]))
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"members": ["./a/0.png", DECOMPOSED], "nonmembers": [str(tmp_path / "x" / "a" / "1.png")]}))
    assert read_split(split, source) == (("a/0.png", COMPOSED), ("a/1.png",))
    cohort = one_source(source, split)
    assert dict(zip(cohort.ids, cohort.member.tolist(), strict=True)) == {"a/0.png": True, COMPOSED: True, "a/1.png": False}
    split.write_text(json.dumps({"members": ["a/0.png", "./A/0.png"], "nonmembers": []}))
    assert "names 1 id that" in refusal(lambda: read_split(split, source)), "the exact name has the image"
    split.write_text(json.dumps({"members": ["0.png"] * 2, "nonmembers": []}))
    assert f"names 2 ids that {tmp_path / 'x'} does not have (first: 0.png; its ids look like " in refusal(
        lambda: read_split(split, source)
    )


@pytest.mark.parametrize("spelled", ["./{}", "{}", str.upper, "absolute"], ids=["dot", "exact", "case", "absolute"])
def test_metadata_and_captions_files_may_spell_names_in_another_way(tmp_path, spelled, capsys):
    spell = {"absolute": lambda name: str(tmp_path / name[0] / name)}.get(spelled, spelled.format if isinstance(spelled, str) else spelled)
    names = [[spell(f"{side}{i:02d}.png") for i in range(12)] for side in "mn"]
    cohort = sides(tmp_path, *names)
    own = choose_captions(cohort, "own", 0)
    assert own.texts == tuple(f"of {spell(image_id)}" for image_id in cohort.ids)
    (tmp_path / "c.json").write_text(json.dumps({name: f"of {name}" for name in names[0] + names[1]}))
    assert choose_captions(cohort, str(tmp_path / "c.json"), 0).texts == own.texts
    assert capsys.readouterr().err == ""


def test_a_path_finds_its_image_on_the_side_of_its_folder_where_both_sides_use_its_name(tmp_path):
    for seed, side in enumerate(("train", "held")):
        folder(tmp_path / side, ["0.png", "1.png"], seed)
    cohort = two_sources(open_source(tmp_path / "train"), open_source(tmp_path / "held"))
    texts = {str(tmp_path / side / name): f"{side} {name}" for side in ("train", "held") for name in ("0.png", "1.png")}
    (tmp_path / "c.json").write_text(json.dumps(texts))
    assert cohort.ids == ("members/0.png", "members/1.png", "nonmembers/0.png", "nonmembers/1.png")
    assert choose_captions(cohort, str(tmp_path / "c.json"), 0).texts == ("train 0.png", "train 1.png", "held 0.png", "held 1.png")


def test_captions_that_miss_an_image_show_it_beside_a_name_of_the_file_and_count(tmp_path):
    wrong = [f"IMG_{i}.png" for i in range(12)]
    cohort = sides(tmp_path, wrong, wrong[:3])
    said = refusal(lambda: choose_captions(cohort, "own", 0))
    file = tmp_path / "m" / "metadata.jsonl"
    assert (
        f"captions found: 0/24; every image needs one (first without: m00.png; {file} has 12 names of no image, first: IMG_0.png): " in said
    )
    (tmp_path / "c.json").write_text(json.dumps({"m00.png": "a", "M_1.png": "b"}))
    said = refusal(lambda: choose_captions(cohort, str(tmp_path / "c.json"), 0))
    assert "23 of 24 have none (first: m01.png; it has 1 name of no image, first: M_1.png): name the images as the data does" in said
    keyed = cohort.renamed(Key(b"k" * 32))
    said = refusal(lambda: choose_captions(keyed, str(tmp_path / "c.json"), 0))
    assert "M_1" not in said and "m0" not in said and "has 1 name of no image)" in said


def test_a_file_of_more_images_than_are_audited_is_used_and_said_once(tmp_path, capsys):
    cohort = sides(tmp_path)
    (tmp_path / "c.json").write_text(json.dumps({**{i: f"of {i}" for i in cohort.ids}, "more.png": "x", "else.png": "y"}))
    (tmp_path / "m" / "m03.png").write_bytes(b"damaged")
    found = scan(cohort, None, False, True, captions=str(tmp_path / "c.json"))
    assert found.captions.texts == tuple(f"of {i}" for i in found.cohort.ids)
    note = f"note: {tmp_path / 'c.json'} has 2 names of no image (first: more.png; the data has images such as m00.png)"
    assert capsys.readouterr().err.splitlines() == [note]


def test_an_unclear_name_is_not_shown_of_an_anonymous_image(tmp_path):
    names = [f"m{i:02d}.png" for i in range(12)]
    cohort = sides(tmp_path, [*names[1:], "M00.png", "M00.PNG"], [n.replace("m", "n") for n in names])
    assert "M00.png and M00.PNG are both m00.png" in refusal(lambda: choose_captions(cohort, "own", 0))
    keyed = cohort.renamed(Key(b"k" * 32))
    for call in (keyed.captions, lambda: keyed.labels(3)):
        assert "00.png" not in refusal(call).lower()


def test_a_caption_file_that_cannot_be_read_is_no_unclear_name_to_an_anonymous_run(tmp_path):
    names = [f"m{i:02d}.png" for i in range(12)]
    cohort = sides(tmp_path, names, [n.replace("m", "n") for n in names])
    (tmp_path / "m" / "metadata.jsonl").unlink(missing_ok=True)
    (tmp_path / "m" / "m03.txt").write_bytes(b"\xff\xfe\xff")
    assert "m03.txt cannot be read" in refusal(cohort.captions)
    said = refusal(cohort.renamed(Key(b"k" * 32)).captions)
    assert "what a file says of the images cannot be read" in said and "without --anonymous says which file" in said and "m03" not in said


def test_labels_that_miss_an_image_show_it_beside_a_name_of_the_file(tmp_path):
    rows = {name: {"label": 1} for name in ("a.png", "IMG_7.png", "IMG_8.png")}
    source = open_source(folder(tmp_path / "x", ["a.png", "b.png"], rows=rows))
    other = open_source(folder(tmp_path / "y", ["c.png"], seed=1, rows={"c.png": {"label": 0}}))
    said = refusal(lambda: two_sources(source, other).labels(3))
    assert f"(first: b.png; {tmp_path / 'x' / 'metadata.jsonl'} has 2 names of no image, first: IMG_7.png)" in said


def test_training_takes_and_refuses_names_as_an_audit_does(tmp_path, capsys):
    data = folder(tmp_path / "x", ["a.png", "b.png"])
    config = train_config("lora", None, data=str(data), base="m", captions=str(tmp_path / "c.csv"), output=tmp_path / "out")
    (tmp_path / "c.csv").write_text(f"file_name,text\n./a.png,one\n{data}/b.png,two\nmore.png,three\n")
    assert read_training_data(config).captions == (("one",), ("two",))
    assert "c.csv has 1 name of no image (first: more.png; the data has images such as a.png)" in capsys.readouterr().err
    (tmp_path / "c.csv").write_text("file_name,text\na.png,one\nmore.png,three\n")
    said = refusal(lambda: read_training_data(config))
    assert "1 of 2 has none (first: b.png; it has 1 name of no image, first: more.png): add them" in said


COLUMNS = {
    "c.csv": ("image,text\na.png,x\n", "it has image, text, and no file_name or id"),
    "d.csv": ("filename,text\na.png,x\n", "it has filename, text, and no file_name or id; is 'filename' meant for file_name?"),
    "e.csv": ("id,words\na.png,x\n", "it has id, words, and no text or caption"),
    "f.jsonl": (
        '{"id": "a.png", "text": "x"}\n{"id": "b.png", "txt": "y"}',
        "row 2 has id, txt, and no text or caption; is 'txt' meant for text?",
    ),
    "g.jsonl": ("[1, 2]", "row 1 is [1, 2]"),
    "h.json": ('[{"id": "a.png"}]', "it holds a list"),
    "short.csv": ("text,id\na\n", "row 1 names no image"),
    "null.jsonl": ('{"id": "a", "text": "x"}\n{"id": null, "text": "x"}', "row 2 names no image"),
    "twice.json": ('{"a.png": "x", "a.png": "y"}', "the key 'a.png' is there twice"),
    "i.csv": ("x" * 100_000 + ",text\na.png,x\n", f"it has {'x' * 59}…, text, and no file_name or id"),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_captions_file_with_other_columns_says_which_it_has_and_which_it_needs(tmp_path, name):
    content, said = COLUMNS[name]
    (tmp_path / name).write_text(content)
    message = refusal(lambda: choose_captions(sides(tmp_path), str(tmp_path / name), 0))
    assert message.startswith(f"{tmp_path / name} must hold ") and message.endswith(f"({said})")


def test_metadata_without_the_column_says_which_columns_it_has(tmp_path):
    (tmp_path / "x").mkdir()
    source = open_source(folder(tmp_path / "x", ["a.png"]))
    (tmp_path / "x" / "metadata.csv").write_text("filename,text\na.png,x\n")
    assert refusal(source.captions).endswith("(row 1 has filename, text, and no file_name; is 'filename' meant for file_name?)")
    (tmp_path / "x" / "metadata.csv").write_text("file_name,prompt\na.png,x\n")
    said = refusal(lambda: choose_captions(two_sources(source, open_source(np.zeros((1, 4, 4), np.uint8))), "own", 0))
    assert f"the data has none ({tmp_path / 'x' / 'metadata.csv'} has file_name, prompt): add a `text`" in said
    images = two_sources(source, open_source(np.zeros((1, 4, 4), np.uint8)))
    said = refusal(lambda: scan(images, None, False, False, classes=3))
    assert f"the data has none ({tmp_path / 'x' / 'metadata.csv'} has file_name, prompt): use a folder per class" in said
