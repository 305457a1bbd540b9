"""Defences: disjoint halves, teachers, DualMD folders, DistillMD students, and what is refused."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from fixtures.commands import call
from fixtures.models import LEVELS as TINY
from fixtures.processes import DIFFLEAK, Forked, killed
from PIL import Image
from safetensors.torch import load_file

from diffleak import cli, hub
from diffleak.config import build
from diffleak.data.duplicates import within_radius
from diffleak.data.pixels import to_model
from diffleak.defenses import teachers as training_of_teachers
from diffleak.defenses.config import defend_config
from diffleak.defenses.defend import defend
from diffleak.defenses.halves import halves_of, split_halves
from diffleak.diffusion.analytic import Memoriser, linear_schedule
from diffleak.diffusion.dual import Dual
from diffleak.errors import UserError
from diffleak.splitting.config import SplitConfig
from diffleak.training.denoiser import DenoisingLoss
from diffleak.training.distillation import Lesson, alternating, half_of, other_teacher

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
IDS = tuple(map(str, range(24)))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.save(tmp_path / "images.npy", IMAGES)
    return tmp_path / "images.npy"


def settings(method: str, data: Path, output: Path, **changes):
    base = {"data": str(data), "output": output, "steps": 4, "batch_size": 4, "model": TINY, "device": "cpu", "threads": 1}
    return defend_config(method, None, None, **{**base, "side_by_side": False, "train_size": 16, **changes})


def split_of(folder: Path) -> dict:
    return json.loads((folder / "split.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


# ---- halves


@pytest.mark.parametrize("n", [4, 5, 24])
def test_halves_are_disjoint_cover_the_set_and_are_even(n):
    first, second, groups = split_halves(IDS[:n], IMAGES[:n, ..., None], 0.03, seed=1)
    assert sorted(first + second, key=int) == list(IDS[:n])
    assert abs(len(first) - len(second)) <= 1 and groups == 0
    assert (first, second) != split_halves(IDS[:n], IMAGES[:n, ..., None], 0.03, seed=2)[:2]


@pytest.mark.parametrize("change", ["same", "brighter", "mirrored", "mirrored and noisy"])
def test_a_near_duplicate_pair_never_straddles_the_halves(change):
    images = np.random.default_rng(3).integers(20, 230, (20, 32, 32, 3), dtype=np.uint8)
    copies = images[:5].astype(int)
    if change == "brighter":
        copies = copies + 5
    if "mirrored" in change:
        copies = copies[:, :, ::-1]
    if "noisy" in change:
        copies = copies + np.random.default_rng(4).integers(-4, 5, copies.shape)
    both = np.concatenate([images, copies.astype(np.uint8)])
    ids = tuple(map(str, range(25)))
    for seed in range(10):
        first, second, groups = split_halves(ids, both, 0.03, seed)
        assert groups == 5
        assert all({str(i), str(20 + i)} <= set(first) or {str(i), str(20 + i)} <= set(second) for i in range(5))


def test_a_group_never_straddles_the_halves_nor_what_near_duplicates_chain_to_it():
    images = np.random.default_rng(3).integers(20, 230, (40, 32, 32, 3), dtype=np.uint8)
    images[39] = images[0]
    groups, ids = np.arange(40) // 4, tuple(map(str, range(40)))
    for seed in range(10):
        first, second, together = split_halves(ids, images, 0.03, seed, groups)
        of = [{int(groups[int(i)]) for i in half} for half in (first, second)]
        assert together == 9 and not of[0] & of[1] and sorted(map(len, of)) == [5, 5]
        assert any({"0", "39"} <= set(half) for half in (first, second)), "the last person has a picture of the first one"


@pytest.mark.parametrize("column", ["person", "the person"])
def test_defend_draws_halves_by_group_from_the_data_and_refuses_a_column_that_is_not_there(tmp_path, column):
    folder = tmp_path / "people"
    folder.mkdir()
    for i in range(16):
        Image.fromarray(IMAGES[i]).save(folder / f"{i:02d}.png")
    rows = [json.dumps({"file_name": f"{i:02d}.png", column: i // 4}) for i in range(16)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    config = settings("dual", folder, tmp_path / "out", group=column, train_size=None)
    first, second = halves_of(config)
    assert sorted(first + second) == [f"{i:02d}.png" for i in range(16)]
    assert not {int(i[:2]) // 4 for i in first} & {int(i[:2]) // 4 for i in second}
    with pytest.raises(UserError, match=f"no column {column[:-1]}m: it has .*; is {column} meant"):
        halves_of(settings("dual", folder, tmp_path / "other", group=f"{column[:-1]}m", train_size=None))
    with pytest.raises(UserError, match=r"members and held-out images \(first: ") as refused:
        halves_of(settings("dual", folder, tmp_path / "other", group=column, train_size=13))
    (line,) = re.findall(r"`diffleak (split .*?)`", str(refused.value))
    given = typer.main.get_command(cli.app).commands["split"].make_context("split", shlex.split(line)[1:]).params
    kept = {key: value for key, value in given.items() if key in ("data", "held_out", "group", "output")}
    assert build(SplitConfig, kept).group == column, "a command that `split` takes"
    with pytest.raises(UserError, match="--group draws the halves, and --teachers were trained on theirs"):
        settings("dual", folder, tmp_path / "other", group=column, teachers="a,b")


def test_exact_duplicates_are_found_without_a_radius():
    images = np.random.default_rng(6).integers(240, 256, (600, 16, 16, 3), dtype=np.uint8)
    group = within_radius(np.concatenate([images, images[:, :, ::-1]]), 0.0)
    assert (group[:600] == group[600:]).all() and len(set(group)) == 600


def test_chains_of_near_duplicates_are_one_group():
    levels = np.array([0, 5, 10, 15, 120, 125], dtype=np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (6, 8, 8, 1))
    group = within_radius(images, 0.03)
    assert len(set(group[:4])) == 1 and len(set(group[4:])) == 1 and group[0] != group[5]


def test_grouping_is_that_of_all_pairs_one_by_one():
    images = np.random.default_rng(5).integers(0, 40, (30, 4, 4, 1), dtype=np.uint8)
    radius, x = 0.04, images[..., 0].astype(float) / 255
    group = np.arange(30)
    for i in range(30):
        for j in range(30):
            if min(np.sqrt(((x[i] - other) ** 2).mean()) for other in (x[j], x[j][:, ::-1])) <= radius:
                group[group == group[j]] = group[i]
    ours = within_radius(images, radius)
    assert 1 < len(set(group)) < 30
    assert ((ours[:, None] == ours) == (group[:, None] == group)).all()


@pytest.mark.parametrize("images", [IMAGES[:3], np.zeros((9, 8, 8), np.uint8)])
def test_a_set_too_small_to_split_is_refused(images):
    with pytest.raises(UserError, match="must split into two halves of at least 2 images") as caught:
        split_halves(IDS[: len(images)], images[..., None], 0.03, 0)
    assert ("a smaller --near-duplicates" in str(caught.value)) == (len(images) == 9), "three images that differ are as many at any radius"


# ---- distillation


class Planted:
    """A teacher that notes what it is asked about and answers with its own number."""

    def __init__(self, number: int) -> None:
        self.number, self.asked = number, []

    def __call__(self, x_t, t):
        self.asked.append(x_t)
        return SimpleNamespace(sample=torch.full_like(x_t, float(self.number)))


class NoNoise:
    """A scheduler under which images stay clean, so that teachers can recognise them."""

    def add_noise(self, x0, noise, t):
        return x0


def test_every_image_is_taught_by_the_teacher_of_the_other_half():
    half = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1, 0])
    x0 = torch.arange(10.0).reshape(-1, 1, 1, 1)
    teachers = (Planted(0), Planted(1))
    answers: list[torch.Tensor] = []
    network = lambda x_t, t: answers.append(x_t) or SimpleNamespace(sample=torch.zeros_like(x_t))
    loss = DenoisingLoss(torch.nn.Identity(), NoNoise(), teachers)
    loss.network = torch.nn.Module()
    loss.network.forward = network
    rows = alternating(half)
    for step in range(20):
        batch = rows(step, 3, 7)
        assert set(half[batch]) == {step % 2}, "batches come from the halves in turns"
        value = loss(x0[batch], None, torch.from_numpy(half[batch]), torch.zeros(3, dtype=torch.long), x0[batch])
        assert float(value) == (1 - step % 2) ** 2, "the target is the other teacher's"
    asked = [set(torch.cat(teacher.asked).flatten().int().tolist()) for teacher in teachers]
    assert asked[0] == set(np.flatnonzero(half == 1)) and asked[1] == set(np.flatnonzero(half == 0))


def test_a_batch_from_both_halves_is_a_bug():
    loss = DenoisingLoss(torch.nn.Identity(), NoNoise(), (Planted(0), Planted(1)))
    with pytest.raises(RuntimeError, match="one half"):
        loss(torch.zeros(2, 1, 1, 1), None, torch.tensor([0, 1]), torch.zeros(2, dtype=torch.long), torch.zeros(2, 1, 1, 1))


def test_each_image_is_drawn_once_an_epoch_of_its_half():
    half = np.array([0] * 6 + [1] * 9)
    rows = alternating(half)
    drawn = np.concatenate([rows(step, 3, 0) for step in range(6)])
    assert sorted(drawn[half[drawn] == 1]) == list(range(6, 15))
    assert sorted(np.concatenate([rows(step, 3, 0) for step in (0, 2)])) == list(range(6))


def test_with_memorising_teachers_the_target_says_nothing_of_the_image_itself():
    """Exact memorisers: the target of an image of half 1 stays the same when half 1 is replaced; its own teacher names the noise."""
    schedule, generator = linear_schedule(), torch.Generator().manual_seed(0)
    points = torch.randn((3, 4, 1, 4, 4), generator=generator)  # half 1, half 2, another half 1
    as_network = lambda own: lambda x_t, t: SimpleNamespace(sample=Memoriser(own, schedule)(x_t, int(t[0])))
    targets = []
    for own in (points[0], points[2]):
        loss = DenoisingLoss(torch.nn.Identity(), None, (as_network(own), as_network(points[1])))
        teacher = other_teacher(loss._teachers[0], torch.zeros(4, dtype=torch.long))
        noise = torch.randn(points[0].shape, generator=torch.Generator().manual_seed(1))
        x_t = schedule.add_noise(points[0], 100, noise)
        targets.append(teacher(x_t, torch.full((4,), 100)).sample)
    assert torch.equal(*targets)
    assert (targets[0] - Memoriser(points[0], schedule)(x_t, 100)).abs().max() > 0.5
    assert torch.allclose(Memoriser(points[0], schedule)(x_t, 100), noise, atol=1e-3), "its own teacher would have named the noise"


def test_an_image_in_neither_half_is_refused():
    with pytest.raises(UserError, match=r"must be in one of the halves; 1 is in neither \(first: c\)"):
        half_of(("a", "c"), Lesson((), (("a",), ("b",))))


@pytest.mark.parametrize(("copies", "said"), [(1, "1 group"), (2, "2 groups")])
def test_the_line_on_the_halves_counts_what_stays_together(tmp_path, capsys, copies, said):
    images = np.random.default_rng(3).integers(0, 256, (12, 16, 16, 1), dtype=np.uint8)
    images[:copies] = images[-copies:]
    np.save(tmp_path / "alike.npy", images)
    halves_of(settings("dual", tmp_path / "alike.npy", tmp_path / "out", train_size=None))
    assert f"halves: 6 and 6 images, {said} of near-duplicates kept together\n" in capsys.readouterr().err


# ---- the command


@pytest.fixture(scope="module")
def two_teachers(tmp_path_factory) -> Path:
    """The folder of a DualMD defence of one step."""
    folder = tmp_path_factory.mktemp("teachers")
    np.save(folder / "images.npy", IMAGES)
    defend(settings("dual", folder / "images.npy", folder / "out", steps=1))
    return folder / "out"


@pytest.fixture
def teachers(two_teachers: Path, tmp_path: Path) -> str:
    """Two teachers of a test's own, in tmp_path / "out", as --teachers takes them."""
    out = shutil.copytree(two_teachers, tmp_path / "out")
    return f"{out}/teacher-1,{out}/teacher-2"


def test_distill_leaves_teachers_a_student_and_who_was_in_which_half(data, tmp_path):
    student = defend(settings("distill", data, tmp_path / "out"))
    split = split_of(tmp_path / "out")
    assert sorted(split["halves"][0] + split["halves"][1]) == sorted(split["members"]) and not set(split["halves"][0]) & set(
        split["halves"][1]
    )
    assert len(split["members"]) == 16 and len(split["nonmembers"]) == 8
    for number in (0, 1):
        teacher = tmp_path / "out" / f"teacher-{number + 1}"
        assert split_of(teacher) == {"members": split["halves"][number], "nonmembers": split["nonmembers"]}
        assert hub.load(teacher).fingerprint == split["teachers"][number]
    assert json.loads((student / "train.json").read_text())["teachers"] == split["teachers"]
    assert len({hub.load(folder).fingerprint for folder in (student, *(tmp_path / "out" / f"teacher-{i}" for i in (1, 2)))}) == 3
    assert split_of(student)["members"] == split["members"]


def test_the_same_folder_serves_dual_and_distill_and_the_same_command_changes_nothing(data, tmp_path):
    dual = defend(settings("dual", data, tmp_path / "out"))
    before = weights(tmp_path / "out" / "teacher-1")
    assert isinstance(hub.load(dual).denoiser, Dual)
    defend(settings("distill", data, tmp_path / "out"))
    assert defend(settings("dual", data, tmp_path / "out")) == dual
    assert all(torch.equal(before[k], v) for k, v in weights(tmp_path / "out" / "teacher-1").items())


def test_a_student_learns_what_its_teachers_say(data, tmp_path):
    """After enough steps the student is closer to its teachers than an untrained network of its kind."""
    student = defend(settings("distill", data, tmp_path / "out", student_steps=150, teacher_steps=30, learning_rate=2e-3))
    x, t = torch.from_numpy(to_model(IMAGES[..., None])), 500
    with torch.no_grad():
        taught, one, two = (
            hub.load(folder).denoiser(x, t) for folder in (student, tmp_path / "out" / "teacher-1", tmp_path / "out" / "teacher-2")
        )
    assert (taught - (one + two) / 2).square().mean() < 0.5 * one.square().mean()


def test_teachers_that_are_trained_already_can_be_given(data, tmp_path, teachers):
    student = defend(defend_config("distill", data=str(data), output=tmp_path / "two", teachers=teachers, steps=2, device="cpu", threads=1))
    assert hub.settings_of(student)[0]["block_out_channels"] == [8, 8], "the student is like its teachers"
    assert split_of(tmp_path / "two")["halves"] == split_of(tmp_path / "out")["halves"]
    one = defend(
        defend_config("one-teacher", data=str(data), output=tmp_path / "one", teachers=f"{tmp_path}/out/teacher-1", steps=2, threads=1)
    )
    assert split_of(one)["members"] == split_of(tmp_path / "out")["halves"][0]


def test_one_teacher_distillation_trains_its_teacher_on_everything(data, tmp_path):
    student = defend(settings("one-teacher", data, tmp_path / "out"))
    assert split_of(tmp_path / "out" / "teacher") == split_of(student)
    assert len(split_of(student)["members"]) == 16


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Teachers side by side are forks of this process; the commands that they were to be started with."""
    commands: list[list[str]] = []
    start = lambda command, **how: commands.append(command) or Forked(command, **how)
    forking = SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL, PIPE=subprocess.PIPE)
    monkeypatch.setattr(training_of_teachers, "subprocess", forking)
    return commands


def test_teachers_side_by_side_are_those_trained_one_by_one(data, tmp_path, forked):
    for name, together in (("alone", False), ("together", True)):
        defend(settings("dual", data, tmp_path / name, side_by_side=together))
    for teacher in ("teacher-1", "teacher-2"):
        one, two = weights(tmp_path / "together" / teacher), weights(tmp_path / "alone" / teacher)
        assert all(torch.equal(one[k], two[k]) for k in one)
    files = [tmp_path / "together" / teacher / "train.yaml" for teacher in ("teacher-1", "teacher-2")]
    assert forked == [[*DIFFLEAK, "train", "-C", str(file)] for file in files]


def test_a_failure_of_a_teacher_beside_another_is_one_line(data, tmp_path, forked):
    with pytest.raises(UserError, match=r"^teacher-[12]: the loss is nan at step .*lower --learning-rate"):
        defend(settings("dual", data, tmp_path / "out", side_by_side=True, learning_rate=1e30, max_grad_norm=1e30, steps=20))


def test_a_student_of_latents_learns_on_its_teachers_latents(tmp_path, latent_folder):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    folder = latent_folder("vae")
    more = {"train_size": 8, "autoencoder": folder, "model": {**TINY, "in_channels": 4, "out_channels": 4}, "steps": 2}
    student, dual = (defend(settings(method, tmp_path / "images.npy", tmp_path / "out", **more)) for method in ("distill", "dual"))
    assert hub.codec_fingerprint(student) == hub.codec_fingerprint(tmp_path / "out" / "teacher-1")
    assert hub.load(dual).latent


def test_a_student_killed_and_resumed_has_the_same_loss_curve(data, tmp_path, teachers, capsys):
    command = ["defend", "distill", "--data", data, "--steps", 80, "--batch-size", 4, "--checkpoint-every", 10, "--device", "cpu"]
    command += ["--threads", 1, "--teachers", teachers, "-o"]
    resumed = tmp_path / "killed"
    killed((resumed / "student" / "checkpoint").exists, *command, resumed)
    for folder in (resumed, tmp_path / "whole"):
        assert call(capsys, *command, folder)[0] == 0
    curves = [(folder / "student" / "losses.csv").read_text() for folder in (resumed, tmp_path / "whole")]
    assert curves[0].splitlines()[-1] == curves[1].splitlines()[-1]
    one, two = weights(resumed / "student"), weights(tmp_path / "whole" / "student")
    assert all(torch.equal(one[k], two[k]) for k in one)


# ---- refusals


def refused(data: Path, tmp_path: Path, teachers: str, **more) -> None:
    defend(defend_config("distill", data=str(data), output=tmp_path / "two", teachers=teachers, steps=1, threads=1, **more))


def test_teachers_whose_splits_overlap_are_refused(data, tmp_path, teachers):
    path = tmp_path / "out" / "teacher-2" / "split.json"
    path.write_text(json.dumps(split_of(tmp_path / "out" / "teacher-1")))
    with pytest.raises(UserError, match="must be trained on disjoint images; 8 images are in both halves"):
        refused(data, tmp_path, teachers)


def test_teachers_whose_splits_are_unknown_are_refused_unless_the_halves_are_given(data, tmp_path, teachers):
    halves = tmp_path / "halves.json"
    halves.write_text(json.dumps({"halves": split_of(tmp_path / "out")["halves"]}))
    (tmp_path / "out" / "teacher-2" / "split.json").unlink()
    with pytest.raises(UserError, match=r"nothing says what .*teacher-2 was trained on.*give --halves FILE"):
        refused(data, tmp_path, teachers)
    refused(data, tmp_path, teachers, halves=halves)
    halves.write_text("[]")
    with pytest.raises(UserError, match=r'must be JSON of the form \{"halves"'):
        refused(data, tmp_path, teachers, halves=halves)
    listed = split_of(tmp_path / "out")["halves"]
    halves.write_text(json.dumps({"halves": [listed[1], listed[0]]}))
    with pytest.raises(UserError, match="must give the halves in the order of --teachers"):
        refused(data, tmp_path, teachers, halves=halves)
    halves.write_text(json.dumps({"halves": "ab"}))
    with pytest.raises(UserError, match=r'must be JSON of the form \{"halves"'):
        refused(data, tmp_path, teachers, halves=halves)
    (tmp_path / "out" / "teacher-1" / "split.json").unlink()
    halves.write_text(json.dumps({"halves": [listed[1], listed[0]]}))
    with pytest.raises(UserError, match="holds a defence with other halves; choose another -o"):
        refused(data, tmp_path, teachers, halves=halves)
    halves.write_text(json.dumps({"halves": [["0"], ["999"]]}))
    with pytest.raises(UserError, match=r"must hold the images the teachers were trained on; 1 is not there \(first: 999\)"):
        refused(data, tmp_path, teachers, halves=halves)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("beta_end", 0.03, "must have the same noise schedule"), ("prediction_type", "sample", "must have the same prediction type")],
)
def test_teachers_that_differ_are_refused(data, tmp_path, teachers, key, value, message):
    path = tmp_path / "out" / "teacher-2" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=message):
        refused(data, tmp_path, teachers)


def test_a_student_that_differs_from_its_teachers_is_refused(data, tmp_path, teachers):
    with pytest.raises(UserError, match="student and teachers must have the same prediction type; got sample and epsilon"):
        refused(data, tmp_path, teachers, scheduler={"prediction_type": "sample"})
    with pytest.raises(UserError, match="student and teachers must have the same noise schedule"):
        defend(
            defend_config(
                "distill", data=str(data), output=tmp_path / "three", teachers=teachers, steps=1, threads=1, scheduler={"beta_end": 0.03}
            )
        )


def test_a_student_deeper_than_memory_allows_is_refused(data, tmp_path, teachers):
    with pytest.raises(UserError, match=r"too little memory for batches of .*make the model smaller"):
        refused(data, tmp_path, teachers, model={**TINY, "block_out_channels": [400_000, 400_000]})


def test_a_finished_defence_is_never_mixed_with_another(data, tmp_path, teachers):
    """Whatever is refused, OUT/split.json stays what it was."""
    other = tmp_path / "other"
    defend(settings("dual", data, other, steps=1, seed=7))
    before = (other / "split.json").read_text()
    with pytest.raises(UserError, match="holds a defence with other teachers"):
        defend(defend_config("dual", data=str(data), output=other, teachers=teachers))
    with pytest.raises(UserError, match="holds a defence with two teachers"):
        defend(settings("one-teacher", data, other, steps=1))
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "split.json").write_text(json.dumps({"members": ["0"], "nonmembers": ["1"]}))
    with pytest.raises(UserError, match=r"drawn holds a split.json that no defence wrote; choose another -o"):
        defend(settings("dual", data, tmp_path / "drawn", steps=1))
    with pytest.raises(UserError, match="is finished after 1 step, and"):
        defend(settings("dual", data, other, steps=1, seed=7, teacher_steps=2))
    one = tmp_path / "one"
    one.mkdir()
    (one / "split.json").write_text(json.dumps({"members": ["0"], "nonmembers": ["1"]}))
    with pytest.raises(UserError, match="holds a defence with another teacher; choose another -o"):
        defend(defend_config("one-teacher", data=str(data), output=one, teachers=f"{tmp_path}/out/teacher-1", steps=1, threads=1))
    with pytest.raises(UserError, match="takes turns in another way"):
        defend(settings("dual", data, other, steps=1, seed=7, choice="random"))
    assert (other / "split.json").read_text() == before


def test_a_student_whose_halves_were_exchanged_is_not_resumed(data, tmp_path, teachers):
    refused(data, tmp_path, teachers)
    record = json.loads((tmp_path / "two" / "student" / "train.json").read_text())
    assert len(set(record["halves"])) == 2
    record["halves"].reverse()
    (tmp_path / "two" / "student" / "train.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"holds another training run \(.*another division into halves"):
        refused(data, tmp_path, teachers)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"train_size": 4}, "leave out --train-size"),
        ({"autoencoder": "vae"}, "was trained on pixels; leave out --autoencoder"),
        ({"resize": 16}, "must take inputs of the same shape; .*takes \\(1, 8, 8\\), the student's are \\(1, 16, 16\\)"),
    ],
)
def test_settings_that_given_teachers_decide_are_refused(data, tmp_path, teachers, more, message):
    with pytest.raises(UserError, match=message):
        refused(data, tmp_path, teachers, **more)


def test_unfinished_and_missing_teachers_are_refused(data, tmp_path, teachers):
    with pytest.raises(UserError, match="must be folders of trained models; there is none at nowhere"):
        refused(data, tmp_path, f"{tmp_path}/out/teacher-1,nowhere")
    (tmp_path / "out" / "teacher-2" / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(UserError, match=r"scheduler_config\.json is missing"):
        refused(data, tmp_path, teachers)
    with pytest.raises(UserError, match="give --teachers A,B too"):
        defend(settings("distill", data, tmp_path / "x", halves=tmp_path / "out" / "split.json"))


def test_a_folder_that_another_process_trains_in_is_refused(data, tmp_path):
    from diffleak.work.files import locked

    (tmp_path / "out" / "teacher-1").mkdir(parents=True)
    with locked(tmp_path / "out" / "teacher-1"), pytest.raises(UserError, match=r"another process is training in .*teacher-1"):
        defend(settings("dual", data, tmp_path / "out", steps=1))
    defend(settings("dual", data, tmp_path / "out", steps=1))


def test_one_teacher_is_not_two(data, tmp_path):
    with pytest.raises(UserError, match="two teachers must be given, as --teachers A,B; got 1"):
        refused(data, tmp_path, "a")
    with pytest.raises(UserError, match="takes one teacher, as --teachers MODEL; got 2"):
        defend(defend_config("one-teacher", data=str(data), output=tmp_path / "x", teachers="a,b"))


def test_a_folder_with_other_halves_and_an_unknown_method_are_refused(data, tmp_path):
    defend(settings("dual", data, tmp_path / "out", steps=1))
    with pytest.raises(UserError, match="holds a defence with other halves"):
        defend(settings("dual", data, tmp_path / "out", steps=1, seed=5))
    with pytest.raises(UserError, match="method must be 'dual', 'distill' or 'one-teacher'; got 'destill'"):
        settings("destill", data, tmp_path / "out")
    with pytest.raises(UserError, match="a defence trains denoisers; got kind vae"):
        defend(settings("dual", data, tmp_path / "v", kind="vae"))
