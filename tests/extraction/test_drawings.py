"""Drawings that `extract` and `black_box` share, and shares of the drawing: in either order, the numbers are those of each command."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.commands import call, refused
from fixtures.text import text_folder
from PIL import Image

import diffleak
from diffleak import hub
from diffleak.data.pixels import ImageShape, to_model
from diffleak.diffusion.analytic import Gaussian, Memoriser, linear_schedule
from diffleak.diffusion.conditions import Prompts
from diffleak.diffusion.denoiser import Counted, Denoiser, guided
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.sampling import AtOnce, sample_alike
from diffleak.diffusion.target import Target
from diffleak.errors import UserError
from diffleak.extraction.extract import extract, search
from diffleak.work import shares
from diffleak.work.shares import Share

pytestmark = pytest.mark.usefixtures("undrawn")

SCHEDULE = linear_schedule()
MEMBERS, OTHERS = 12, 20
SPEC = "black_box(n=2,steps=4,guidance_scale=1.5,encoder=pixels)"
EACH = 4 * 2  # forwards of a drawing: steps, under guidance


class Text:
    """Captions as they are, without an embedding."""

    def __call__(self, texts: Sequence[str], together: bool = False) -> Prompts:
        return Prompts(tuple(texts), {"prompt_embeds": torch.zeros(len(texts), 1, 2)}, self)

    def truncated(self, texts: Sequence[str]) -> list[int]:
        return []


@pytest.fixture(scope="module")
def sides(tmp_path_factory, digits) -> dict[str, str]:
    """Folders of captioned digits."""
    root, found = tmp_path_factory.mktemp("sides"), []
    for name, rows in (("members", range(MEMBERS)), ("held-out", range(MEMBERS, MEMBERS + OTHERS))):
        (root / name).mkdir()
        for row in rows:
            Image.fromarray(digits[row, :, :, 0]).save(root / name / f"{row:02d}.png")
            (root / name / f"{row:02d}.txt").write_text(f"picture {row}")
        found.append(str(root / name))
    return dict(zip(("members", "nonmembers"), found, strict=True))


class Watched:
    """A model that remembers its members by their captions, and counts the images that it is asked about."""

    def __init__(self, digits: np.ndarray, stop_at: float = float("inf"), fingerprint: str = "memoriser") -> None:
        self.asked, self.stop_at = 0, stop_at
        texts = tuple(f"picture {i}" for i in range(MEMBERS))
        denoiser = Memoriser(torch.from_numpy(to_model(digits[:MEMBERS])), SCHEDULE, texts)
        counted = Counted(denoiser, self._count)
        self.target = Target(counted, ImageShape(1, 8, 8), name="model", fingerprint=fingerprint, text=Text())

    def _count(self, n: int, t: int) -> None:
        self.asked += n
        if self.asked > self.stop_at:
            raise KeyboardInterrupt

    def audit(self, sides: dict[str, str], attacks: str = SPEC, **more: Any) -> Any:
        return diffleak.audit(self.target, **sides, attacks=attacks, complexity=False, threads=1, **more)

    def extract(self, sides: dict[str, str], **more: Any) -> Any:
        settings = {"steps": 4, "guidance_scale": 1.5, "draws": 2, "false_copies": 0.1, "threads": 1, **more}
        return extract(self.target, **sides, **settings)


def test_what_extract_drew_an_audit_does_not_draw_again_and_scores_are_those_of_the_audit_alone(digits, sides, tmp_path):
    alone = Watched(digits).audit(sides)
    model = Watched(digits)
    drawn = model.extract(sides, drawings=tmp_path / "kept", draws=3)
    n = MEMBERS + OTHERS
    assert (drawn.record.costs.forwards, drawn.record.costs.drawings_read, model.asked) == (3 * n * EACH, 0, 3 * n * EACH)
    again = Watched(digits)
    audited = again.audit(sides, drawings=tmp_path / "kept")
    np.testing.assert_array_equal(audited.scores[0].statistic, alone.scores[0].statistic)
    assert audited.results[0].auc == alone.results[0].auc and audited.results[0].queries == alone.results[0].queries == 2 * EACH
    costs, before = audited.record.costs, alone.record.costs
    assert (costs.queries, costs.queries_read) == (0, 2 * n * EACH) and (before.queries, before.queries_read) == (2 * n * EACH, 0)


def test_what_an_audit_drew_extract_does_not_draw_again_and_the_drawings_are_those_of_extract_alone(digits, sides, tmp_path):
    alone = Watched(digits).extract(sides, draws=3)
    Watched(digits).audit(sides, drawings=tmp_path / "kept")
    model = Watched(digits)
    found = model.extract(sides, drawings=tmp_path / "kept", draws=3)
    n = MEMBERS + OTHERS
    assert model.asked == n * EACH, "the third drawing of each caption"
    assert (found.record.costs.forwards, found.record.costs.drawings_read) == (n * EACH, 2 * n)
    np.testing.assert_array_equal(found.drawings, alone.drawings)
    assert (found.record.copy_rate, found.record.pairs) == (alone.record.copy_rate, alone.record.pairs)
    twice = Watched(digits).audit(sides, drawings=tmp_path / "kept", output=tmp_path / "run").record.costs
    raw = json.loads((tmp_path / "run" / "audit.json").read_text())["costs"]
    assert (raw["queries"], raw["queries_read"]) == (twice.queries, twice.queries_read) == (0, 2 * n * EACH)
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "kept").rglob("*.npy")} == {0}


def test_a_drawing_is_the_same_to_the_last_bit_whatever_else_is_in_its_forward(tmp_path):
    """A network, whose last digits follow from the size of a forward; wanted images alone are counted."""
    target = hub.load(text_folder(tmp_path / "model"), device="cpu")
    counted: list[int] = []
    denoiser = guided(Counted(target.denoiser, lambda n, t: counted.append(n)), 3.0)
    texts = [f"a house {i}" for i in range(7)]
    new = lambda: hub.new_sampler("ddim", target.denoiser.schedule, 2, clip=False)

    def drawn(rows: list[int]) -> np.ndarray:
        noise = Noise(0, tuple(map(str, rows)), (4, 8, 8))
        with torch.inference_mode():
            return sample_alike(denoiser, new, noise, target.text([texts[row] for row in rows]), AtOnce(4), lambda z, _: z).numpy()

    whole = drawn([*range(7)])
    assert sum(counted) == 7 * 2 * 2
    for rows in ([6, 2, 0, 5, 1], [3], [4, 3]):
        np.testing.assert_array_equal(drawn(rows), whole[rows])
    assert sum(counted) == (7 + 5 + 1 + 2) * 2 * 2


class Small(Gaussian):
    """A model whose device has room for `most` images; more are begun and given up."""

    most = 2

    def __call__(self, x_t, t, cond=None):
        if len(x_t) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(x_t, t, cond)


@pytest.mark.parametrize("late", [False, True], ids=["at the first step", "at a later step"])
def test_where_memory_runs_out_forwards_are_smaller_for_all_that_draw_and_nothing_is_counted_twice(late):
    """Five images in forwards of 8 that have room for 2: as if 2 had been asked for; what a given up forward counted is taken back."""
    steps, counted, stepped, asked = 3, list[int](), list[int](), list[int]()

    class Late(Gaussian):
        def __call__(self, x_t, t, cond=None):
            asked.append(len(x_t))
            if len(x_t) > 2 and (not late or asked.count(len(x_t)) > 1):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().__call__(x_t, t, cond)

    denoiser, new = (
        Counted(Late(0.2, 0.3, SCHEDULE), lambda n, t: counted.append(n)),
        lambda: hub.new_sampler("ddim", SCHEDULE, steps, clip=True),
    )
    noise, at_once = Noise(0, tuple("abcde"), (1, 4, 4)), AtOnce(8)
    drawn = sample_alike(denoiser, new, noise, None, at_once, lambda z, _: z, stepped.append)
    assert at_once.room.most == 2
    assert sum(counted) == sum(stepped) == 5 * steps
    assert asked == ([8, 8, 4, 4] if late else [8, 4]) + [2] * 3 * steps
    np.testing.assert_array_equal(drawn, sample_alike(denoiser, new, noise, None, AtOnce(2), lambda z, _: z))


def test_a_search_and_an_audit_that_share_drawings_go_on_with_smaller_forwards_where_memory_runs_out(digits, sides, tmp_path, capsys):
    def small(n: int = 2) -> Watched:
        model = Watched(digits)
        of = Small(0.2, 0.3, SCHEDULE)
        of.__dict__["most"] = 2 * n  # under guidance
        model.target = replace(model.target, denoiser=Counted(of, model._count))
        return model

    n = MEMBERS + OTHERS
    found = small().extract(sides, drawings=tmp_path / "kept", output=tmp_path / "found")
    assert "the device has too little memory for 8 images that are drawn: 4 at once" in (said := capsys.readouterr().err)
    assert "for 4 images that are drawn: 2 at once" in said and "for 2 images" not in said
    assert found.record.costs.forwards == 2 * n * EACH
    alone = small()
    audited = alone.audit(sides, output=tmp_path / "run")
    assert (audited.record.costs.queries, audited.results[0].queries) == (2 * n * EACH, 2 * EACH)
    assert audited.record.costs.halved_to == 2
    assert any("some images were scored or drawn 2 at once" in line for line in audited.record.warnings)
    read = small().audit(sides, drawings=tmp_path / "kept")
    assert (read.record.costs.queries, read.record.costs.queries_read) == (0, 2 * n * EACH)
    assert read.record.costs.halved_to is None, "it drew nothing"
    np.testing.assert_array_equal(read.scores[0].statistic, audited.scores[0].statistic)
    with pytest.raises(UserError, match="too little memory for a batch of one; take --dtype float16 if it is float32 now, --offload if"):
        small(0).extract(sides)


def test_scores_are_the_same_whatever_the_chunks_and_batches(digits, sides, tmp_path):
    one = Watched(digits).audit(sides).scores[0].statistic
    np.testing.assert_array_equal(Watched(digits).audit(sides, batch_size=9, chunk_size=9).scores[0].statistic, one)


def test_an_interrupted_search_keeps_its_drawings_and_an_audit_draws_the_rest(digits, sides, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Watched(digits, stop_at=20 * EACH).extract(sides, drawings=tmp_path / "kept", output=tmp_path / "out")
    kept = len([*(tmp_path / "kept").rglob("*.npy")])
    assert 8 <= kept <= 20, "whole forwards of 8"
    model = Watched(digits)
    costs = model.audit(sides, drawings=tmp_path / "kept").record.costs
    assert costs.queries_read == kept * EACH and costs.queries == (2 * (MEMBERS + OTHERS) - kept) * EACH
    found = Watched(digits).extract(sides, drawings=tmp_path / "kept", output=tmp_path / "out")
    assert found.record.costs.drawings_read == found.record.images and found.record.costs.forwards == 0
    np.testing.assert_array_equal(found.drawings, Watched(digits).extract(sides).drawings)
    resumed = Watched(digits).extract(sides, drawings=tmp_path / "kept", output=tmp_path / "out")
    assert resumed.record.costs.drawings_read == found.record.images, "counted in the folder, not in the call"


def test_a_damaged_drawing_is_put_aside_and_drawn_again(digits, sides, tmp_path):
    whole = Watched(digits).extract(sides, drawings=tmp_path / "kept").drawings
    damaged = sorted((tmp_path / "kept").rglob("*.npy"))[3]
    damaged.write_bytes(damaged.read_bytes()[:-70] + b"x" * 70)
    found = Watched(digits).extract(sides, drawings=tmp_path / "kept")
    np.testing.assert_array_equal(found.drawings, whole)
    assert found.record.costs.forwards == EACH and damaged.with_name(f"{damaged.name}.damaged").exists()


def test_another_caption_is_another_drawing(digits, sides, tmp_path):
    Watched(digits).extract(sides, drawings=tmp_path / "kept")
    fixed = Watched(digits).extract(sides, drawings=tmp_path / "kept", captions="fixed:a cat")
    assert fixed.record.costs.drawings_read == 0


OTHER = [
    ({"seed": 1}, "holds drawings made with another seed (0, now 1); choose another --drawings"),
    ({"steps": 5}, "holds drawings made with another number of steps (4, now 5)"),
    ({"guidance_scale": 2}, "holds drawings made with another guidance scale (1.5, now 2.0)"),
    ({"sampler": "ddpm"}, "holds drawings made with another sampler (ddim, now ddpm)"),
    ({"batch_size": 3}, "holds drawings made with another number of images in a forward (--batch-size) (8, now 3)"),
    ({"anonymous": True}, "holds drawings of a run that is not anonymous; choose another --drawings, or give both commands --anonymous"),
]


@pytest.mark.parametrize(("more", "said"), OTHER, ids=lambda each: str(each)[:20])
def test_a_folder_of_other_drawings_is_refused_in_one_line(digits, sides, tmp_path, more, said):
    Watched(digits).audit(sides, drawings=tmp_path / "kept")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*")}
    with pytest.raises(UserError, match=re.escape(said)) as refusal:
        Watched(digits).extract(sides, drawings=tmp_path / "kept", output=tmp_path / "out", **more)
    assert "\n" not in str(refusal.value)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*")} == before


def test_drawings_of_another_model_and_folders_of_something_else_are_refused(digits, sides, tmp_path):
    Watched(digits).extract(sides, drawings=tmp_path / "kept", output=tmp_path / "out")
    with pytest.raises(UserError, match="holds drawings made with another model \(memoriser, now another\); choose another"):
        Watched(digits, fingerprint="another").audit(sides, drawings=tmp_path / "kept")
    Watched(digits).audit(sides, output=tmp_path / "run")
    with pytest.raises(UserError, match=r"run must be a folder of drawings, and its plan\.json is another command's"):
        Watched(digits).extract(sides, drawings=tmp_path / "run")


def test_an_anonymous_search_and_an_anonymous_audit_share_drawings_whose_names_tell_nothing(digits, sides, tmp_path):
    key = {"anonymous": True, "anonymous_key": tmp_path / "key", "drawings": tmp_path / "kept"}
    Watched(digits).extract(sides, output=tmp_path / "out", **key)
    audited = Watched(digits).audit(sides, output=tmp_path / "run", **key)
    assert audited.record.costs.queries == 0
    alone = Watched(digits).audit(sides)
    assert sorted(audited.scores[0].statistic[:, 0]) == sorted(alone.scores[0].statistic[:, 0])
    Watched(digits).extract(sides, drawings=tmp_path / "named")
    named, keyed = ({path.name for path in (tmp_path / folder).rglob("*.npy")} for folder in ("named", "kept"))
    assert len(named) == len(keyed) == 2 * (MEMBERS + OTHERS) and not named & keyed
    with pytest.raises(UserError, match="holds drawings of an anonymous run with the key"):
        Watched(digits).audit(sides, drawings=tmp_path / "kept")
    with pytest.raises(UserError, match="holds drawings of an anonymous run with the key"):
        Watched(digits).audit(sides, output=tmp_path / "other", anonymous=True, drawings=tmp_path / "kept")


def test_the_drawings_of_a_reference_lie_in_a_folder_inside(digits, sides, tmp_path):
    reference = Watched(digits, fingerprint="reference").target
    reference = replace(reference, denoiser=Gaussian(0.1, 0.3, SCHEDULE))
    first, again = (Watched(digits).audit(sides, reference=reference, drawings=tmp_path / "kept") for _ in range(2))
    alone = Watched(digits).audit(sides, reference=reference)
    for found in (first, again):
        for one, other in zip(found.scores, alone.scores, strict=True):
            np.testing.assert_array_equal(one.statistic, other.statistic)
    each = 2 * 2 * (MEMBERS + OTHERS) * EACH
    assert [(run.record.costs.queries, run.record.costs.queries_read) for run in (first, again)] == [(each, 0), (0, each)]
    assert (tmp_path / "kept" / "reference" / "plan.json").exists()


def test_a_model_that_draws_nan_is_named_and_nothing_broken_is_kept(digits, sides, tmp_path):
    broken = Denoiser.from_function(lambda x, t, cond=None: x * torch.nan if t else x, SCHEDULE.alphas_cumprod)
    target = replace(Watched(digits).target, denoiser=broken)
    with pytest.raises(UserError, match=r"must return finite numbers; black_box\(.*\) got nan for image"):
        diffleak.audit(target, **sides, attacks=SPEC, drawings=tmp_path / "kept", threads=1)
    assert not [*(tmp_path / "kept").rglob("*.npy")]


def test_drawings_without_an_attack_that_draws_with_two_kinds_or_of_a_model_without_captions_are_refused(
    capsys, digits, sides, tmp_path, model_folder
):
    kept = {"drawings": tmp_path / "kept"}
    with pytest.raises(UserError, match="--drawings keeps what black_box draws, and black_box is not among the attacks"):
        Watched(digits).audit(sides, "loss(timesteps=100)", **kept)
    with pytest.raises(UserError, match="draw with other steps or guidance: give one of them"):
        Watched(digits).audit(sides, f"{SPEC},black_box(n=1,steps=3,encoder=pixels)", **kept)
    own = ["--members", sides["members"], "--nonmembers", sides["nonmembers"], "--drawings", tmp_path / "kept", "--device", "cpu"]
    said = refused(capsys, "extract", model_folder(), *own, "-o", tmp_path / "out")
    assert "takes no captions; leave out --drawings" in said
    several = ["--sweep-models", f"{model_folder()},{model_folder('other')}"]
    said = refused(capsys, "audit", model_folder(), *own, *several, "--attacks", "black_box", "-o", tmp_path / "run")
    assert "--drawings keeps the drawings of one model, and this audits several" in said
    assert not (tmp_path / "kept").exists()


# shares of the drawing


@pytest.mark.parametrize("count", [2, 3])
def test_shards_draw_what_one_worker_draws_and_the_last_writes(digits, sides, tmp_path, count, monkeypatch):
    monkeypatch.setattr("diffleak.generation.CHUNK", {"cpu": 16, "accelerator": 16})
    one = Watched(digits).extract(sides, output=tmp_path / "one")
    for shard in range(1, count):
        with pytest.raises(UserError, match="other shards have not finished"):
            Watched(digits).extract(sides, output=tmp_path / "shards", shard=f"{shard}/{count}")
        assert not (tmp_path / "shards" / "extract.json").exists()
    last = Watched(digits)
    found = last.extract(sides, output=tmp_path / "shards", shard=f"{count}/{count}")
    chunks = sorted((tmp_path / "one" / "generated").glob("*.npy"))
    assert len(chunks) == 4 and last.asked == len(range(count - 1, 4, count)) * 16 * EACH
    for chunk in chunks:
        assert (tmp_path / "shards" / "generated" / chunk.name).read_bytes() == chunk.read_bytes()
    assert found.record.pairs == one.record.pairs and (tmp_path / "shards" / "extract.json").exists()


def test_another_worker_of_a_launcher_is_told_who_has_the_result(digits, sides, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^worker 2 of 2 has drawn its share; worker 1 returns what was found$"):
        Watched(digits).extract(sides, output=tmp_path / "out")


def test_the_first_worker_of_a_launcher_waits_says_for_whom_and_writes(digits, sides, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("diffleak.generation.CHUNK", {"cpu": 16, "accelerator": 16})
    monkeypatch.setattr(shares, "POLL", 0.01)
    from diffleak.config import build
    from diffleak.extraction.config import ExtractConfig

    settings = {**sides, "steps": 4, "guidance_scale": 1.5, "draws": 2, "threads": 1, "output": tmp_path / "out"}
    found: dict[int, Any] = {}

    def work(rank: int) -> None:
        found[rank] = search(build(ExtractConfig, settings), Watched(digits).target, share=Share(rank, 2))

    first = Thread(target=work, args=(0,))
    first.start()
    first.join(0.5)
    work(1)
    first.join(60)
    assert found[1] is None and found[0] is not None
    np.testing.assert_array_equal(found[0].drawings, Watched(digits).extract(sides).drawings)
    said = capsys.readouterr().err
    assert "worker 2 of 2 is done; worker 1 compares the drawings when all are there" in said


def test_shares_of_the_command_line(capsys, model_folder, digits, tmp_path):
    np.save(tmp_path / "members.npy", digits[:6])
    own = ["extract", model_folder(), "--members", tmp_path / "members.npy", "--images", "70", "--steps", "2", "--device", "cpu"]
    assert "needs 1 <= i <= n; got 3/2" in refused(capsys, *own, "-o", tmp_path / "out", "--shard", "3/2")
    assert "--shard draws a share into a folder that all shares have: give -o DIR" in refused(capsys, *own, "--shard", "1/2")
    code, out, err = call(capsys, *own, "-o", tmp_path / "out", "--shard", "1/2")
    assert (code, out.strip()) == (0, "this shard is done"), err
    assert "shard 1/2 is done; of shard 2, 1 chunk of drawings is not: run what is left, or this same command again when it is done" in err
    code, out, err = call(capsys, *own, "-o", tmp_path / "out", "--shard", "2/2", "--json")
    assert code == 0 and json.loads(out)["images"] == 70, err
