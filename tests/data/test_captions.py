"""Captions: where they come from, what a model is told by each choice, and that every image is scored with its own."""

import json
import threading
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import diffleak
from diffleak.attacks import ATTACKS
from diffleak.auditing.config import AuditConfig, GeometryConfig
from diffleak.auditing.plan import prepare
from diffleak.auditing.run import run
from diffleak.config import build
from diffleak.data.captions import choose_captions, own_if_all, own_if_any, read_captions
from diffleak.data.cohort import two_sources
from diffleak.data.pixels import to_model
from diffleak.data.sources import ImageSource, open_source
from diffleak.diffusion.analytic import Memoriser, linear_schedule
from diffleak.diffusion.conditions import Prompts, TextEncoder
from diffleak.diffusion.target import Target
from diffleak.errors import UserError

pytestmark = pytest.mark.usefixtures("undrawn")

NAMES = tuple(f"{i:02d}.png" for i in range(12))
LONGEST = 6  # words that the encoder of these tests reads
SCHEDULE = linear_schedule()


class Words:
    """A text encoder that embeds a text as its length, and would notice two threads in it."""

    def __init__(self) -> None:
        self.inside = threading.Lock()

    def __call__(self, texts: Sequence[str], together: bool = False) -> Prompts:
        assert self.inside.acquire(blocking=False), "two threads embed at once"
        try:
            return Prompts(tuple(texts), {"encoder_hidden_states": torch.tensor([[[float(len(t))]] for t in texts])}, self)
        finally:
            self.inside.release()

    def truncated(self, texts: Sequence[str]) -> list[int]:
        return [i for i, text in enumerate(texts) if len(text.split()) > LONGEST]


def folder(path, rows=None, names=NAMES):
    """Distinct grey images; `rows` become lines of metadata.jsonl, text as it is."""
    path.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        pixels = np.random.default_rng((*map(ord, str(path)), i)).integers(0, 256, (4, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(path / name)
    if rows is not None:
        lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
        (path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return path


def lines(side, names):
    return [{"file_name": name, "text": f"{side} {name}"} for name in names]


@pytest.fixture
def sides(tmp_path):
    """Members and held-out images in folders, each image with a caption of its own."""
    names = {side: [f"{side}-{name}" for name in NAMES] for side in ("in", "out")}
    return tuple(folder(tmp_path / side, lines(side, names[side]), names[side]) for side in names)


def cohort_of(members, nonmembers):
    return two_sources(open_source(members), open_source(nonmembers))


# sources


def test_a_folder_has_the_texts_of_its_metadata_the_own_one_first_and_each_once(tmp_path):
    rows = [
        {"file_name": "02.png", "text": "c", "captions": ["d", "c", "e", "d"]},
        {"file_name": "00.png", "text": "a"},
        {"file_name": "01.png", "captions": ["only", "these"]},
        "",
        {"file_name": "gone.png", "text": "z"},
    ]
    source = open_source(folder(tmp_path / "x", rows, NAMES[:3]))
    assert source.captions() == (("a",), ("only", "these"), ("c", "d", "e"))


def test_images_without_a_caption_have_no_texts_and_a_folder_without_any_has_none(tmp_path):
    rows = [
        {"file_name": "00.png", "text": "a"},
        {"file_name": "01.png", "text": None},
        {"file_name": "02.png", "text": " "},
        {"file_name": "03.png", "label": 1},
    ]
    assert open_source(folder(tmp_path / "x", rows, NAMES[:5])).captions() == (("a",), (), (), (), ())
    assert open_source(folder(tmp_path / "y", rows[1:], NAMES[:5])).captions() is None
    assert open_source(folder(tmp_path / "z", None, NAMES[:5])).captions() is None


@pytest.mark.parametrize("where", ["", "a/"])
@pytest.mark.parametrize("column", ["text", "caption"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_captions_come_from_a_metadata_file_in_any_folder_above_the_images(tmp_path, where, column, kind):
    (tmp_path / "x" / "a").mkdir(parents=True)
    path, names = folder(tmp_path / "x", None, ("a/0.png", "a/1.png")), ("a/0.png", "a/1.png")
    table = pa.Table.from_pylist(
        [{"file_name": name.removeprefix(where), column: f"of {name}, a" if "0" in name else ""} for name in names]
    )
    file = path / f"{where}metadata.{kind}"
    if kind == "parquet":
        pq.write_table(table, file)
    else:
        table.to_pandas().to_csv(file, index=False) if kind == "csv" else table.to_pandas().to_json(file, orient="records", lines=True)
    assert open_source(path).captions() == (("of a/0.png, a",), ())


def test_of_several_metadata_files_the_nearest_has_the_caption(tmp_path):
    (tmp_path / "x" / "a").mkdir(parents=True)
    names = ("0.png", "a/1.png")
    path = folder(tmp_path / "x", lines("far", names), names)
    (path / "a" / "metadata.csv").write_text("file_name,caption\n1.png,near\n")
    assert open_source(path).captions() == (("far 0.png",), ("near",))


def test_a_caption_may_hold_any_line_separator_of_unicode(tmp_path):
    text = "one\u2028two\x85three\nfour"
    assert open_source(folder(tmp_path / "x", [{"file_name": "00.png", "text": text}], NAMES[:1])).captions() == ((text,),)


MALFORMED = {
    "no JSON": ["{file_name"],
    "no object": ["5"],
    "no file name": [{"text": "a"}],
    "a number": [{"file_name": "00.png", "text": 5}],
    "a list as text": [{"file_name": "00.png", "text": ["a"]}],
    "a number among captions": [{"file_name": "00.png", "captions": ["a", 5]}],
    "an object as captions": [{"file_name": "00.png", "captions": {"a": 1}}],
}


@pytest.mark.parametrize("rows", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_metadata_is_one_line_and_stops_only_who_asks_for_captions(tmp_path, rows):
    source = open_source(folder(tmp_path / "x", rows))
    assert len(source) == len(NAMES)
    with pytest.raises(UserError, match=r"metadata.jsonl must hold a JSON object with file_name per line, text as a string") as refusal:
        source.captions()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("column", ["text", "caption"])
@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a", None, "c", "", "e"], (("a",), (), ("c",), (), ("e",))),
        ([["a", "b", "a"], [], None, ["d", None], ["e"]], (("a", "b"), (), (), ("d",), ("e",))),
        (pa.array(list("abcde"), pa.large_string()), tuple((t,) for t in "abcde")),
        (pa.array(list("aabba")).dictionary_encode(), tuple((t,) for t in "aabba")),
        ([1, 2, 3, 4, 5], None),
        ([[1], [2], [3], [4], [5]], None),
    ],
    ids=["texts", "lists", "large", "dictionary", "numbers", "lists of numbers"],
)
def test_a_table_has_the_texts_of_its_column_across_row_groups(tmp_path, column, texts, expected):
    pq.write_table(pa.table({"image": pa.array([b"x"] * 5, pa.binary()), column: texts}), tmp_path / "a.parquet", row_group_size=2)
    assert open_source(tmp_path / "a.parquet").captions() == expected


@pytest.mark.parametrize("column", ["text", "caption"])
@pytest.mark.parametrize(
    ("texts", "expected"), [(["a", "b"], (("a",), ("b",))), ([["a", "b"], ["c"]], (("a", "b"), ("c",))), ([1, 2], None)]
)
def test_a_hub_data_set_has_the_texts_of_its_column(tmp_path, monkeypatch, column, texts, expected):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    names = [folder(tmp_path / "images") / name for name in NAMES[:2]]
    table = datasets.Dataset.from_dict({"image": [{"bytes": n.read_bytes(), "path": None} for n in names], column: texts})
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "set" / "train-00000.parquet")
    assert open_source(f"hf:{tmp_path / 'set'}").captions() == expected


def test_arrays_and_digits_have_no_captions(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 4, 4), dtype=np.uint8), text=np.array(["a", "b", "c"]))
    for data in (np.zeros((3, 4, 4), dtype=np.uint8), tmp_path / "a.npz", "digits"):
        assert open_source(data).captions() is None


# cohorts and choices


def test_the_captions_of_a_cohort_follow_its_images_whatever_the_limit(sides):
    members, nonmembers = map(open_source, sides)
    cohort = two_sources(members, nonmembers, limit=7)
    assert cohort.captions() == tuple((f"{image_id[: image_id.index('-')]} {image_id}",) for image_id in cohort.ids)
    assert cohort.only(~cohort.member).captions() == tuple((f"out {i}",) for i in cohort.only(~cohort.member).ids)


def test_a_side_without_captions_is_a_side_of_images_without_one(sides, tmp_path):
    bare = folder(tmp_path / "bare")
    cohort = cohort_of(sides[0], bare)
    assert cohort.captions() == tuple((f"in {i}",) if m else () for i, m in zip(cohort.ids, cohort.member, strict=True))
    assert cohort_of(bare, folder(tmp_path / "bare2")).captions() is None


def test_own_empty_and_fixed_say_what_they_say(sides):
    cohort = cohort_of(*sides)
    own = choose_captions(cohort, "own", 0)
    assert (own.texts, own.found, own.choice) == (tuple(texts[0] for texts in cohort.captions()), 24, "own")
    assert set(choose_captions(cohort, "empty", 0).texts) == {""}
    fixed = choose_captions(cohort, "fixed:a photo: of x", 0)
    assert set(fixed.texts) == {"a photo: of x"} and fixed.found == 24


@pytest.mark.parametrize(
    ("texts", "if_any", "if_all"),
    [(None, "empty", "empty"), (((), ()), "empty", "empty"), ((("a",), ()), "own", "empty"), ((("a",), ("b",)), "own", "own")],
)
def test_where_nothing_is_chosen_captions_are_own_if_any_image_has_one_or_if_all_have(texts, if_any, if_all):
    assert (own_if_any(texts, "empty"), own_if_all(texts, "empty")) == (if_any, if_all)


def test_a_refusal_of_images_without_captions_names_the_flag_for_one_text_for_all(sides, tmp_path):
    for cohort in (cohort_of(sides[0], folder(tmp_path / "bare")), cohort_of(folder(tmp_path / "b2"), folder(tmp_path / "b3"))):
        with pytest.raises(UserError, match=r'or choose --captions "fixed:TEXT" \(one text for all images, as DreamBooth'):
            choose_captions(cohort, "own", 0)


def test_empty_and_fixed_count_the_captions_that_they_leave_aside(sides, tmp_path):
    bare, other = folder(tmp_path / "bare"), folder(tmp_path / "bare2")
    assert choose_captions(cohort_of(sides[0], bare), "empty", 0).found == 12
    assert choose_captions(cohort_of(bare, other), "fixed:x", 0).found == 0


def told(texts, seed=0, ids=None):
    """What `swapped` gives images with these texts."""
    ids = tuple(f"{i:03d}" for i in range(len(texts))) if ids is None else ids
    source = ImageSource("x", ids, lambda i: np.zeros((1, 1, 1), dtype=np.uint8), captions=lambda: tuple((t,) for t in texts))
    empty = ImageSource("y", (), lambda i: np.zeros((1, 1, 1), dtype=np.uint8))
    return choose_captions(two_sources(source, empty), "swapped", seed).texts


def test_swapped_is_a_derangement_by_id_and_seed():
    texts = [f"text {i}" for i in range(50)]
    swapped = told(texts)
    assert sorted(swapped) == sorted(texts) and all(a != b for a, b in zip(swapped, texts, strict=True))
    assert swapped == told(texts) and swapped != told(texts, seed=1)
    assert swapped != tuple(texts[1:] + texts[:1]), "neighbours in the data may be alike"


@pytest.mark.parametrize("seed", range(5))
def test_swapped_gives_another_text_wherever_there_is_one(seed):
    texts = ["same"] * 18 + ["other", "third"]
    assert all(a != b for a, b in zip(told(texts, seed), texts, strict=True))


def test_captions_that_are_all_alike_cannot_be_swapped():
    with pytest.raises(UserError, match=r"swapped needs images with different captions; every one has the same \('same'\): choose own"):
        told(["same"] * 5)


FILES = {
    "a.json": '{"x": "a", "y": ["b", "c", "b"]}',
    "b.jsonl": '{"file_name": "x", "text": "a"}\n\n{"id": "y", "text": ["b", "c"]}\n',
    "c.jsonl": '{"id": "x", "text": "a"}\n{"id": "y", "text": "b"}\n{"id": "y", "text": "c"}',
    "d.csv": 'text,id,more\na,x,1\nb,y,2\n"c",y,3\n',
    "e.csv": "\ufeffid,text\nx,a\ny,b\ny,c\n",
    "f.csv": "file_name,text\nx,a\ny,b\ny,c\n",
    "G.JSON": '{"x": "a", "y": ["b", "c"]}',
}


@pytest.mark.parametrize("name", FILES)
def test_a_captions_file_gives_the_texts_of_each_id_in_their_order(tmp_path, name):
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    assert read_captions(tmp_path / name) == {"x": ("a",), "y": ("b", "c")}


def test_a_row_number_names_an_image_in_a_captions_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 7, "text": "a"}')
    assert read_captions(tmp_path / "a.jsonl") == {"7": ("a",)}


DAMAGED = {
    "a.json": "[1]",
    "b.json": '{"x": 5}',
    "c.json": "{",
    "d.jsonl": '{"text": "a"}',
    "e.jsonl": '{"id": "x"}',
    "f.jsonl": "5",
    "g.csv": "id,words\nx,a\n",
    "h.csv": "\ud800",
    "i.csv": "id,text\nx,a moon, over the sea\n",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_captions_file_is_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(DAMAGED[name].encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=rf"{name} must hold (an object|the columns)") as refusal:
        read_captions(tmp_path / name)
    assert "\n" not in str(refusal.value)


def test_a_captions_file_of_another_kind_or_none_at_all_is_refused(tmp_path, sides):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UserError, match=r"captions must be in a .json, .jsonl or .csv file; got .*a.txt: convert it"):
        read_captions(tmp_path / "a.txt")
    for choice in ("swaped", "", str(tmp_path)):
        with pytest.raises(
            UserError, match=r"captions must be own, empty, fixed:TEXT, swapped or a file; got '.*', and found (nothing|a folder) there"
        ):
            choose_captions(cohort_of(*sides), choice, 0)


def test_a_file_gives_every_image_its_first_text_and_must_name_all(sides, tmp_path):
    cohort = cohort_of(*sides)
    listed = {image_id: [f"of {image_id}", "another"] for image_id in cohort.ids}
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(listed))
    chosen = choose_captions(cohort, str(path), 0)
    assert chosen.texts == tuple(f"of {i}" for i in cohort.ids) and (chosen.found, chosen.choice) == (24, str(path))
    del listed["in-03.png"]
    path.write_text(json.dumps({**listed, "out-07.png": []}))
    with pytest.raises(
        UserError,
        match=r"captions.json must give every image a caption; 2 of 24 have none \(first: in-03.png; it has names such as in-00.png\)",
    ):
        choose_captions(cohort, str(path), 0)


# audits


PATTERNS = np.random.default_rng(9).integers(0, 256, (46, 16, 16, 1), dtype=np.uint8)  # which one it is shows under noise


def patterned(ids, texts=None):
    """The images of these numbers, with captions that say which they are unless `texts` are given."""
    told = texts or [f"image {i}" for i in ids]
    return ImageSource("patterns", tuple(ids), lambda i: PATTERNS[int(ids[i])], captions=lambda: tuple((text,) for text in told))


MEMBERS, NONMEMBERS = (patterned([str(i) for i in range(start, 46, 2)]) for start in (0, 1))


class Witness:
    """Predicts the noise from the caption alone, and notes every image that was given another one's."""

    def __init__(self):
        self.wrong, self.seen = [], 0

    def __call__(self, x_t, t, cond):
        images = torch.from_numpy(to_model(PATTERNS)).to(x_t)
        told = [int(text.removeprefix("image ")) for text in cond.texts]
        shown = (x_t.flatten(1) @ images.flatten(1).T).argmax(dim=1).tolist()
        self.seen += len(x_t)
        self.wrong += [(t, *pair) for pair in zip(told, shown, strict=True) if pair[0] != pair[1]]
        assert cond.tensors["encoder_hidden_states"].flatten().tolist() == [float(len(text)) for text in cond.texts]
        return (x_t - SCHEDULE.a(t) * images[told]) / SCHEDULE.s(t)

    def target(self):
        denoiser = diffleak.Denoiser.from_function(self, SCHEDULE.alphas_cumprod)
        return Target(denoiser, name="witness", fingerprint="w", text=Words())


def captionable():
    """A model that takes captions, whatever the size of the images."""
    denoiser = diffleak.Denoiser.from_function(lambda x_t, t, cond: 0 * x_t, SCHEDULE.alphas_cumprod)
    return Target(denoiser, name="witness", fingerprint="w", text=Words())


SMALL = {"timesteps": "40:60:20", "batch_size": 3, "chunk_size": 8, "threads": 2}


@pytest.mark.parametrize("attack", [name for name, kind in ATTACKS.items() if kind.rule is None])  # others show or tell variants
def test_every_attack_gives_each_image_its_own_caption_in_every_batch_and_chunk(attack):
    witness = Witness()
    diffleak.audit(witness.target(), members=MEMBERS, nonmembers=NONMEMBERS, attacks=attack, **SMALL)
    assert witness.seen >= 46 and not witness.wrong


def test_a_swapped_caption_does_not_pass_for_the_own_one():
    witness = Witness()
    diffleak.audit(witness.target(), members=MEMBERS, nonmembers=NONMEMBERS, attacks="loss", captions="swapped", **SMALL)
    assert len(witness.wrong) >= 46


def test_a_resumed_run_gives_the_same_captions_and_the_same_scores(tmp_path):
    first = diffleak.audit(
        Witness().target(), members=MEMBERS, nonmembers=NONMEMBERS, attacks="loss,secmi", output=tmp_path / "run", **SMALL
    )
    for file in sorted((tmp_path / "run" / "scores").glob("chunk-0000[25]*")):
        file.unlink()
    witness = Witness()
    again = diffleak.audit(witness.target(), members=MEMBERS, nonmembers=NONMEMBERS, attacks="loss,secmi", output=tmp_path / "run", **SMALL)
    assert witness.seen and not witness.wrong
    assert again.to_frame().equals(first.to_frame())


def test_a_run_folder_belongs_to_one_choice_and_one_set_of_captions(tmp_path):
    audit = lambda members=MEMBERS, **changes: diffleak.audit(
        Witness().target(), members=members, nonmembers=NONMEMBERS, attacks="loss", output=tmp_path / "run", **SMALL, **changes
    )
    audit()
    audit(captions="own")
    with pytest.raises(UserError, match=r"belongs to another plan \(another set of images; --captions was own, now fixed:image 5"):
        audit(captions="fixed:image 5")
    with pytest.raises(UserError, match=r"belongs to another plan \(another set of images"):
        audit(patterned(MEMBERS.ids, [f"image 0{i}" for i in MEMBERS.ids]))


def test_the_record_says_what_the_model_was_told_and_what_it_did_not_read(tmp_path, capsys):
    long = {i: f"image {i} and much more than the encoder reads" for i in ("0", "7")}
    sources = [patterned(s.ids, [long.get(i, f"image {i}") for i in s.ids]) for s in (MEMBERS, NONMEMBERS)]
    target = Target(Memoriser(torch.zeros(1, 1, 16, 16), SCHEDULE), name="m", fingerprint="m", text=Words())
    finished = diffleak.audit(target, members=sources[0], nonmembers=sources[1], attacks="loss", output=tmp_path / "run", **SMALL)
    stderr = capsys.readouterr().err
    plan, *rest = [line for line in stderr.splitlines() if line.startswith(("plan", "captions"))]
    assert ", captions own (46 found, 2 truncated), " in plan and rest == ["captions found: 46/46 (own)"]
    record = json.loads((tmp_path / "run" / "audit.json").read_text())
    assert record["truncated"] == ["0", "7"]
    assert (record["plan"]["captions"], record["plan"]["captions_found"], record["plan"]["captions_truncated"]) == ("own", 46, 2)
    assert any("2 captions are longer than the model's text encoder reads" in w for w in finished.record.warnings)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<dt>Captions</dt><dd>own; found for 46 of 46 images, 2 truncated by the text encoder</dd>" in page


def test_a_plan_with_one_caption_for_all_does_not_count_those_that_are_not_used(capsys):
    settings = {"members": MEMBERS, "nonmembers": NONMEMBERS, "attacks": "loss", **SMALL}
    diffleak.audit(Witness().target(), captions="fixed:image 5", **settings)
    assert ", captions fixed:image 5 (for every image), " in capsys.readouterr().err


@pytest.mark.parametrize(("choice", "warned"), [("empty", True), ("fixed:", True), ("fixed:a moon", False), ("own", False)])
def test_an_audit_that_tells_clid_no_captions_is_warned_of(choice, warned):
    target = Target(Memoriser(torch.zeros(1, 1, 16, 16), SCHEDULE), name="m", fingerprint="m", text=Words())
    record = diffleak.audit(
        target, members=MEMBERS, nonmembers=NONMEMBERS, attacks="clid(timesteps=50),loss", captions=choice, **SMALL
    ).record
    expected = "the model was given no captions, and clid(timesteps=50) measures what captions add: only the loss is left of it"
    assert (expected in record.warnings) == warned


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        ("empty", "captions: the empty caption for every image (empty; 46/46 have one of their own)"),
        ("fixed:a moon", "captions: 'a moon' for every image (fixed:a moon; 46/46 have one of their own)"),
        ("swapped", "captions found: 46/46 (swapped)"),
    ],
)
def test_what_is_told_is_printed_before_scoring(choice, line, capsys):
    target = Target(Memoriser(torch.zeros(1, 1, 16, 16), SCHEDULE), name="m", fingerprint="m", text=Words())
    diffleak.audit(target, members=MEMBERS, nonmembers=NONMEMBERS, attacks="loss", captions=choice, **SMALL)
    assert line in capsys.readouterr().err.splitlines()


def test_a_record_without_captions_says_nothing_of_them(tmp_path, capsys):
    target = Target(Memoriser(torch.zeros(1, 1, 16, 16), SCHEDULE), fingerprint="m")
    record = diffleak.audit(target, members=MEMBERS, nonmembers=NONMEMBERS, attacks="loss", output=tmp_path / "run", **SMALL).record
    assert record.plan.captions is None and record.plan.captions_found is None and record.truncated == ()
    assert "captions found" not in capsys.readouterr().err and "<dt>Captions" not in (tmp_path / "run" / "report.html").read_text()


def audited(members, nonmembers, target=None, **changes):
    given = {"members": str(members), "nonmembers": str(nonmembers), "attacks": "loss", "timesteps": "50", "calibration": False, **changes}
    return prepare(build(AuditConfig, given), target or captionable())


def test_a_text_model_is_not_audited_without_captions_unless_that_is_chosen(tmp_path):
    bare = [folder(tmp_path / side) for side in ("bare", "bare2")]
    for choice in ({}, {"captions": "own"}, {"captions": "swapped"}):
        with pytest.raises(UserError, match=r"takes a caption with every image, and the data has none: .*--captions empty") as refusal:
            audited(*bare, **choice)
        assert "\n" not in str(refusal.value)
    plan = audited(*bare, captions="empty").plan
    assert (plan.captions, plan.captions_found, plan.captions_truncated) == ("empty", 0, 0)
    assert audited(*bare, captions="fixed:image 7").inputs.captions == ("image 7",) * 24


def test_a_few_missing_captions_are_counted_before_any_image_is_read(sides, tmp_path):
    names = [f"out-{n}" for n in NAMES]
    (sides[1] / "out-02.png").write_bytes(b"damaged")
    (sides[1] / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines("out", names[:1] + names[7:]))))
    with pytest.raises(
        UserError, match=r"captions found: 18/24; every image needs one \(first without: out-01.png; .*out-00.png\): .*--captions FILE"
    ):
        audited(*sides)


def test_captions_are_those_of_the_images_that_can_be_read(sides):
    (sides[0] / "in-03.png").write_bytes(b"damaged")
    prepared = audited(*sides, skip_unreadable=True, captions="swapped")
    assert prepared.plan.captions_found == 23 and "in in-03.png" not in prepared.inputs.captions
    assert len(set(prepared.inputs.captions)) == 23


def test_a_model_that_takes_no_text_refuses_a_choice_of_captions(sides):
    blind = Target(Memoriser(torch.zeros(1, 1, 4, 4), SCHEDULE), name="ddpm")
    assert audited(*sides, blind).inputs.captions is None
    with pytest.raises(UserError, match=r"--captions chooses the captions of a text-to-image model; ddpm takes no text: leave it out"):
        audited(*sides, blind, captions="own")


def test_geometry_of_images_alone_refuses_captions():
    with pytest.raises(UserError, match=r"leave out --captions"):
        build(GeometryConfig, {"data": "x", "captions": "empty"})


def test_captions_are_a_key_of_the_config_and_a_flag(sides, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from diffleak import cli
    from diffleak.auditing import run as auditing

    monkeypatch.setattr(auditing.hub, "target_of", lambda *_: captionable())
    (tmp_path / "c.yaml").write_text("captions: empty\nattacks: loss\ntimesteps: '50'\ncalibration: false\n")
    given = [
        "audit",
        str(tmp_path),
        "--members",
        str(sides[0]),
        "--nonmembers",
        str(sides[1]),
        "-C",
        str(tmp_path / "c.yaml"),
        "--dry-run",
        "--json",
    ]
    monkeypatch.setattr("diffleak.auditing.run.scoring.estimate", lambda *_: "")
    plan_of = lambda *more: json.loads(CliRunner().invoke(cli.app, [*given, *more], catch_exceptions=False).stdout)
    assert plan_of()["captions"] == "empty"
    assert plan_of("--captions", "swapped")["captions"] == "swapped"


def test_the_command_that_repeats_an_audit_has_the_choice(sides, tmp_path):
    given = {"model": "m", "members": str(sides[0]), "nonmembers": str(sides[1]), "attacks": "loss", "captions": "fixed:a cat"}
    prepared = prepare(
        build(AuditConfig, {**given, "timesteps": "50:100:50"}),
        Target(Memoriser(torch.zeros(1, 1, 4, 4), SCHEDULE), fingerprint="m", text=Words()),
    )
    finished = run(prepared, tmp_path / "run", log=lambda _: None)
    assert "--captions 'fixed:a cat'" in finished.record.command


def test_the_fake_encoder_is_one():
    assert isinstance(Words(), TextEncoder)


# models with known answers

SIDE = 64
PIXELS = np.random.default_rng(5).integers(0, 256, (2, SIDE, 8, 8, 1), dtype=np.uint8)


def memorised(pairs, captions):
    """The AUCs of all attacks on a model that memorised its members, with their captions or without."""
    ids = [[f"{side}{i:02d}" for i in range(SIDE)] for side in "mn"]
    sources = [
        ImageSource(str(k), tuple(ids[k]), lambda i, k=k: PIXELS[k][i], captions=lambda k=k: tuple((f"caption of {i}",) for i in ids[k]))
        for k in range(2)
    ]
    points = torch.from_numpy(to_model(PIXELS[0])).double()
    texts = tuple(f"caption of {i}" for i in ids[0]) if pairs else None
    target = Target(Memoriser(points, SCHEDULE, texts), name="m", text=Words())
    attacks = tuple(name for name, kind in ATTACKS.items() if kind.in_all and not kind.needs_text)
    results = diffleak.audit(
        target, members=sources[0], nonmembers=sources[1], attacks=attacks, timesteps="150", calibration=False, captions=captions
    ).results
    return {result.attack: result.auc.value for result in results}


@pytest.mark.parametrize("captions", ["own", "swapped"])
def test_who_memorised_images_alone_is_caught_with_any_captions(captions):
    assert set(memorised(False, captions).values()) == {1.0}


def test_who_memorised_pairs_is_caught_with_their_captions():
    assert set(memorised(True, "own").values()) == {1.0}


def test_who_memorised_pairs_says_nothing_of_an_image_with_another_ones_caption():
    band = 3.3 * float(np.sqrt((2 * SIDE + 1) / (12 * SIDE * SIDE)))
    assert {attack: auc for attack, auc in memorised(True, "swapped").items() if abs(auc - 0.5) > band} == {}


def test_a_blank_text_in_a_captions_file_is_no_caption(tmp_path):
    file = tmp_path / "texts.csv"
    file.write_text("id,text\na.png,\nb.png,  \nc.png,a cat\n")
    assert read_captions(file) == {"a.png": (), "b.png": (), "c.png": ("a cat",)}
