"""What a model's own split.json says of the sides of an audit: confirmed, taken on trust, or refused."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diffleak
from diffleak.auditing.config import AuditConfig, read_cohort
from diffleak.data.membership import check_membership, draw_of, promise_of
from diffleak.data.split import own_split
from diffleak.errors import UserError
from diffleak.records.audit import Promise

pytestmark = pytest.mark.usefixtures("undrawn")

N = 40
NAMES = tuple(f"{i:03}.png" for i in range(N))
MEMBERS, HELD_OUT = NAMES[:20:2] + NAMES[20:30], NAMES[1:20:2] + NAMES[30:]  # no side is a range of numbers
PICTURES = np.random.default_rng(0).integers(0, 256, (N, 8, 8), dtype=np.uint8)


def write(folder: Path, names: Sequence[str], pictures: np.ndarray = PICTURES) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures[int(Path(name).stem)]).save(folder / name)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data", NAMES)


@pytest.fixture
def trained(tmp_path: Path, data: Path) -> Callable[..., Path]:
    """The split.json of a model that was trained on MEMBERS of the data: `trained(validation=[...])`."""

    def make(name: str = "model", data: Path | str | None = data, **lists: Sequence[str]) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "split.json").write_text(json.dumps({"members": MEMBERS, "nonmembers": HELD_OUT, **lists}))
        if data is not None:
            (folder / "train.json").write_text(json.dumps({"data": str(data)}))
        return folder

    return make


def split(tmp_path: Path, members: Sequence[str], nonmembers: Sequence[str], **more: object) -> Path:
    file = tmp_path / "audited.json"
    file.write_text(json.dumps({"members": members, "nonmembers": nonmembers, **more}))
    return file


def checked(model: Path, ignore: bool = False, **settings: object):
    config = AuditConfig(**settings)
    return check_membership([read_cohort(config)], "the user", own_split(model), config.split, ignore)


def test_the_split_that_the_model_was_trained_with_is_confirmed_also_in_part(data, trained, tmp_path):
    model, own = trained(), split(tmp_path, MEMBERS, HELD_OUT)
    assert checked(model, data=str(data), split=own).status == "confirmed"
    assert checked(model, data=str(data), split=own, limit=12).status == "confirmed"
    assert checked(model, data=str(data), split=split(tmp_path, MEMBERS[:11], HELD_OUT[3:])).status == "confirmed"


def test_swapped_sides_are_refused_with_their_numbers(data, trained, tmp_path):
    model = trained()
    with pytest.raises(UserError) as caught:
        checked(model, data=str(data), split=split(tmp_path, HELD_OUT, MEMBERS))
    assert "20 of the members are held out (first: 001.png) and 20 of the held-out images are trained on (first: 000.png)" in str(
        caught.value
    )
    assert f"by {model / 'split.json'}" in str(caught.value) and "--ignore-model-split" in str(caught.value)


def test_another_draw_is_refused_for_the_images_that_changed_sides(data, trained, tmp_path):
    mixed = split(tmp_path, [*MEMBERS[3:], *HELD_OUT[:2]], [*HELD_OUT[2:], MEMBERS[0]])
    with pytest.raises(UserError, match=r"2 of the members are held out .* and 1 of the held-out images is trained on"):
        checked(trained(), data=str(data), split=mixed)


def test_a_contradiction_that_is_ignored_is_said(data, trained, tmp_path):
    found = checked(trained(), ignore=True, data=str(data), split=split(tmp_path, HELD_OUT, MEMBERS))
    assert found.status == "contradicted, ignored" and "20 of the members are held out" in found.sentence


def test_validation_images_are_neither_members_nor_held_out(data, trained, tmp_path):
    model = trained(members=MEMBERS[2:], validation=MEMBERS[:2])
    with pytest.raises(UserError, match=r"2 of the held-out images are set aside for validation \(first: 000.png\)"):
        checked(model, data=str(data), split=split(tmp_path, MEMBERS[2:], [*HELD_OUT, *MEMBERS[:2]]))
    with pytest.raises(UserError, match=r"2 of the members are set aside for validation \(first: 000.png\)"):
        checked(model, data=str(data), split=split(tmp_path, MEMBERS, HELD_OUT))


def test_members_that_the_model_was_never_trained_on_are_refused_and_unknown_held_out_images_are_not(data, trained, tmp_path):
    model = trained(members=MEMBERS[:15], nonmembers=[])
    assert checked(model, data=str(data), split=split(tmp_path, MEMBERS[:15], HELD_OUT)).status == "confirmed"
    with pytest.raises(UserError, match="5 of the members are not listed"):
        checked(model, data=str(data), split=split(tmp_path, MEMBERS, HELD_OUT))


@pytest.mark.parametrize("below", ["", "sub/"], ids=["copies", "copies in a folder"])
def test_folders_of_copies_are_compared_by_name_and_pixels(trained, tmp_path, below):
    one = write(tmp_path / "one", [below + name for name in MEMBERS])
    two = write(tmp_path / "two", [below + name for name in HELD_OUT])
    model = trained()
    assert checked(model, members=one, nonmembers=two).status == "confirmed"
    with pytest.raises(UserError, match=r"20 of the members are held out .* and 20 of the held-out images are trained on"):
        checked(model, members=two, nonmembers=one)


def test_other_images_of_the_same_names_are_never_refused(trained, tmp_path):
    others = 255 - PICTURES
    one, two = write(tmp_path / "one", HELD_OUT, others), write(tmp_path / "two", MEMBERS, others)
    found = checked(trained(), members=one, nonmembers=two)
    assert found.status == "taken on trust" and "has other images under these names" in found.reason


def test_rows_of_two_arrays_that_have_the_same_numbers_by_accident_are_never_refused(trained, tmp_path):
    for name, rows in (("train", slice(0, 20)), ("held", slice(20, 40))):
        np.save(tmp_path / f"{name}.npy", PICTURES[rows])
    model = trained(data=tmp_path / "train.npy", members=list(map(str, range(20))), nonmembers=[])
    found = checked(model, members=tmp_path / "train.npy", nonmembers=tmp_path / "held.npy")
    assert found.status == "taken on trust" and "has other images under these names" in found.reason
    with pytest.raises(UserError, match="20 of the held-out images are trained on"):
        checked(model, members=tmp_path / "held.npy", nonmembers=tmp_path / "train.npy")


def test_where_the_training_data_is_gone_only_a_whole_swap_is_refused(trained, tmp_path):
    one, two, model = write(tmp_path / "one", MEMBERS), write(tmp_path / "two", HELD_OUT), trained(data=tmp_path / "gone")
    found = checked(model, members=one, nonmembers=two)
    assert found.status == "taken on trust" and "is not there to compare with" in found.reason
    with pytest.raises(UserError, match="20 of the members are held out"):
        checked(model, members=two, nonmembers=one)
    write(one, HELD_OUT[:1])  # two names on another side may be an accident
    found = checked(model, members=two, nonmembers=one)
    assert found.status == "taken on trust" and not found.same_names and "names that it lists on another side" in found.reason


def test_a_split_of_the_data_beside_an_adapter_accuses_nobody(data, trained, tmp_path):
    """`diffleak split -o split.json` and the adapter in one folder, with no train.json: the recipe for a LoRA."""
    model = trained(data=None)
    one, two = write(tmp_path / "one", MEMBERS), write(tmp_path / "two", HELD_OUT)
    found = checked(model, members=one, nonmembers=two)
    assert found.status == "taken on trust" and found.same_names
    assert found.sentence == (
        f"The list of members is taken on trust from the user. {model / 'split.json'} lists the same names on the same sides; only names "
        "could be compared, because nothing says where the training images lie."
    )
    given = found.model_copy(update={"source": f"the split file {model / 'split.json'}"}).sentence
    assert given.startswith(f"The list of members is taken on trust, as given in {model / 'split.json'}: only names could be compared")
    write(one, ["000.jpg"])
    more = checked(model, members=one, nonmembers=two)
    assert not more.same_names and "does not confirm it: 1 of 41 images is not listed there by name" in more.sentence


def test_without_a_split_of_its_own_or_with_a_damaged_one_membership_is_taken_on_trust(data, trained, tmp_path):
    own = split(tmp_path, MEMBERS, HELD_OUT)
    (tmp_path / "bare").mkdir()
    found = checked(tmp_path / "bare", data=str(data), split=own)
    assert found.status == "taken on trust" and found.reason == "the model has no split.json to compare with"
    damaged = trained("damaged")
    (damaged / "split.json").write_text("{")
    assert checked(damaged, data=str(data), split=own).reason == f"{damaged / 'split.json'} cannot be read"
    (damaged / "split.json").write_text('{"members": [], "nonmembers": ["000.png"]}')
    assert checked(damaged, data=str(data), split=own).reason == f"{damaged / 'split.json'} lists no members"


@pytest.mark.parametrize("nonmembers", [HELD_OUT, MEMBERS[10:]], ids=["held out", "no image held out"])
def test_a_teacher_is_audited_with_the_split_of_its_defence(data, trained, tmp_path, nonmembers):
    """README: "Audit every model with --data DATA --split OUT/split.json, the teachers too"."""
    halves = [MEMBERS[:10], MEMBERS[10:]]
    trained("defence", None, halves=halves)
    teacher = trained("defence/teacher-1", members=halves[0], nonmembers=nonmembers)
    found = checked(teacher, data=str(data), split=tmp_path / "defence" / "split.json")
    assert found.status == "confirmed" and found.reason.startswith("10 of the members belong to the half of the other teacher")
    with pytest.raises(UserError, match="of the held-out images are trained on"):
        checked(teacher, data=str(data), split=split(tmp_path, [*halves[1], *HELD_OUT], halves[0]))
    elsewhere = trained("given", members=halves[1], nonmembers=HELD_OUT)  # as with --teachers A,B
    assert checked(elsewhere, data=str(data), split=tmp_path / "defence" / "split.json").status == "confirmed"


def test_the_models_of_a_defence_fall_back_on_the_split_above_them_and_others_do_not(data, trained, tmp_path):
    trained("defence", None, halves=[MEMBERS[:10], MEMBERS[10:]])
    trained("defence/teacher-1")
    for name in ("dual", "mine"):
        (tmp_path / "defence" / name).mkdir()
    swapped = {"data": str(data), "split": split(tmp_path, HELD_OUT, MEMBERS)}
    with pytest.raises(UserError, match="20 of the members are held out"):
        checked(tmp_path / "defence" / "dual", **swapped)
    assert checked(tmp_path / "defence" / "mine", **swapped).reason == "the model has no split.json to compare with"


def test_an_audit_refuses_the_wrong_list_before_it_reads_an_image_and_records_what_was_confirmed(model_folder, data, trained, tmp_path):
    model = model_folder()
    for file in trained("made").iterdir():
        file.rename(model / file.name)
    settings = {"attacks": "sima", "timesteps": "100", "data": str(data), "threads": 1, "device": "cpu", "allow_shift": True}
    wrong = split(tmp_path, HELD_OUT, MEMBERS)
    with pytest.raises(UserError, match="the two sides must be those that the model was trained with"):
        diffleak.audit(model, split=wrong, **settings)
    ignored = diffleak.audit(diffleak.load(model, device="cpu"), split=wrong, ignore_model_split=True, output=tmp_path / "run", **settings)
    assert ignored.record.membership.status == "contradicted, ignored"
    assert any("contradicts it (--ignore-model-split)" in warning for warning in ignored.record.warnings)
    right = diffleak.audit(model, split=model / "split.json", output=tmp_path / "right", **settings)
    assert right.record.membership.status == "confirmed"
    assert json.loads((tmp_path / "right" / "audit.json").read_text())["membership"]["model_split"] == str(model / "split.json")
    assert "own training wrote" in (tmp_path / "right" / "report.html").read_text()


def test_a_relative_path_of_the_training_data_may_be_any_folders_and_confirms_nothing(data, trained, tmp_path, monkeypatch):
    model = trained(data=None)
    (model / "train.json").write_text(json.dumps({"data": "data"}))
    monkeypatch.chdir(tmp_path)
    given = {"data": "data", "split": split(tmp_path, MEMBERS, HELD_OUT)}
    assert checked(model, **given).status == "taken on trust"
    (model / "train.json").write_text(json.dumps({"data": "data", "data_path": str(data)}))
    assert checked(model, **given).status == "confirmed"
    (model / "train.json").write_text(json.dumps({"data": "data", "data_path": str(tmp_path / "elsewhere" / "data")}))
    write(tmp_path / "elsewhere" / "data", NAMES, 255 - PICTURES)
    assert "the model's training data has other images under these names" in checked(model, **given).reason


def test_a_copy_that_cannot_be_read_is_not_taken_for_another_image(trained, tmp_path):
    one, two = write(tmp_path / "one", MEMBERS), write(tmp_path / "two", HELD_OUT)
    (one / MEMBERS[0]).write_bytes(b"damaged")
    assert checked(trained(), members=str(one), nonmembers=str(two)).status == "confirmed"


# How the sides were drawn, for `diffleak epsilon`

COIN = {"how": "coin", "seed": 3, "held_out": 0.5, "together": [list(MEMBERS[:2])]}


def draw(model: Path, unreadable: int = 0, ignore: bool = False, **settings: object):
    config = AuditConfig(**settings)
    cohort = read_cohort(config)
    found = check_membership([cohort], "the user", own_split(model), config.split, ignore)
    return draw_of(cohort, found, own_split(model), config.split, unreadable)


def test_the_draw_is_that_of_the_models_own_split_where_it_confirms_the_sides(data, trained, tmp_path):
    model, plain = trained(drawn=COIN), split(tmp_path, MEMBERS, HELD_OUT)
    found = draw(model, data=str(data), split=plain)
    assert (found.how, found.seed, found.images, found.together) == ("coin", 3, N, (MEMBERS[:2],))
    assert found.file == str(model / "split.json")
    copies = {side: str(write(tmp_path / side, names)) for side, names in (("members", MEMBERS), ("nonmembers", HELD_OUT))}
    assert draw(model, **copies).together == (MEMBERS[:2],), "by name, in folders of copies"


def test_the_draw_of_the_audits_own_split_counts_where_the_model_says_none(data, trained, tmp_path):
    own = split(tmp_path, MEMBERS, HELD_OUT, drawn=COIN)
    assert draw(trained(), data=str(data), split=own).file == str(own)
    assert draw(tmp_path / "nowhere", data=str(data), split=own).file == str(own)
    assert draw(trained("plain"), data=str(data), split=split(tmp_path, MEMBERS, HELD_OUT)) is None


def test_a_draw_of_other_sides_or_of_images_that_are_not_there_counts_for_nothing(data, trained, tmp_path):
    swapped = split(tmp_path, HELD_OUT, MEMBERS, drawn=COIN)
    assert draw(trained(drawn=COIN), ignore=True, data=str(data), split=swapped) is None
    aside = trained("aside", drawn=COIN, validation=["100.png"])
    assert draw(aside, data=str(data), split=split(tmp_path, MEMBERS, HELD_OUT)) is None
    lost = trained("lost", drawn=COIN | {"together": [["gone.png", MEMBERS[0]]]})
    plain = {"data": str(data), "split": split(tmp_path, MEMBERS, HELD_OUT)}
    assert draw(lost, **plain) is None and draw(lost, unreadable=1, **plain).together == ((MEMBERS[0],),)


def test_the_promise_is_what_a_finished_private_training_has_spent(tmp_path):
    file = tmp_path / "split.json"
    assert promise_of(None) is None and promise_of(file) is None
    for record, promised in (
        ({"spent": {"epsilon": 2.5, "delta": 1e-5, "steps": 9}, "autoencoder": None}, Promise(epsilon=2.5, delta=1e-5)),
        ({"spent": {"epsilon": 2.5, "delta": 1e-5}, "autoencoder": "vae"}, Promise(epsilon=2.5, delta=1e-5, autoencoder="vae")),
        ({"dp_epsilon": 2.5}, None),
        ({"spent": 3}, None),
        ([], None),
    ):
        (tmp_path / "train.json").write_text(json.dumps(record))
        assert promise_of(file) == promised
