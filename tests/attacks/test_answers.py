"""Forwards that attacks share: which are shared, that scores stay the same to the bit, and that memory is bounded."""

from dataclasses import dataclass, replace
from threading import Barrier, Thread

import numpy as np
import pytest
import torch

import diffleak
from diffleak.attacks import answers, subject
from diffleak.attacks.answers import Answers, Memory
from diffleak.attacks.subject import Subject
from diffleak.diffusion import noise as noise_module
from diffleak.diffusion.analytic import Gaussian, linear_schedule
from diffleak.diffusion.denoiser import Around, Counted, Denoiser, guided
from diffleak.diffusion.noise import Noise
from diffleak.records.scores import chunk_files

pytestmark = pytest.mark.usefixtures("few_divisions", "undrawn")

SCHEDULE = linear_schedule()
NORMALS = noise_module._normals
MODEL = Gaussian(0.1, 0.5, SCHEDULE)
NOISE = Noise(0, ("a", "b", "c"), (1, 4, 4))
X0 = torch.linspace(-1, 1, 48).reshape(3, 1, 4, 4)
TIMESTEPS = (50, 100, 150)
GIVEN = {"timesteps": "50:150:50", "threads": 1, "chunk_size": 16, "batch_size": 8}


class Asked:
    """A subject whose forwards, and those that were saved, are written down."""

    def __init__(self, memory: Memory, batch: int = 0, model: Denoiser = MODEL) -> None:
        self.made, self.saved = [], []
        counted = Counted(model, lambda n, t: self.made.append((n, t)))
        kept = Answers(memory, 0, batch, counted, X0, NOISE, None, lambda n, t: self.saved.append((n, t)))
        self.subject = Subject(counted, X0.clone(), NOISE, answers=kept)


def test_the_clean_image_and_its_first_draw_are_asked_about_once() -> None:
    memory, first_draw, second_draw = Memory(), SCHEDULE.add_noise(X0, 50, NOISE(0)), SCHEDULE.add_noise(X0, 50, NOISE(1))
    one, two = Asked(memory), Asked(memory)
    for x_t, t in ((X0, 0), (X0, 50), (first_draw, 50), (second_draw, 50), (first_draw, 51)):
        expected = MODEL(x_t, t)
        for each in (one, two):
            assert torch.equal(each.subject.eps(x_t, t), expected)
    assert one.made == [(3, 0), (3, 50), (3, 50), (3, 50), (3, 51)] and not one.saved
    assert two.made == [(3, 50), (3, 51)] and two.saved == [(3, 0), (3, 50), (3, 50)]


def test_the_first_draw_of_a_batch_is_made_once() -> None:
    memory, drawn, equal = Memory(), [], lambda: Noise(0, ("a", "b"), (1, 4, 4))
    for batch, noise in ((0, one := equal()), (0, two := equal()), (1, other := Noise(0, ("c", "d"), (1, 4, 4)))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(noise_module, "_normals", lambda *given: drawn.append(given[1]) or NORMALS(*given))
            memory.draw_once("chunk", batch, noise)
            noise(0).zero_()
    assert drawn == [["a", "b"], ["c", "d"]]
    assert (
        torch.equal(one(0), equal()(0)) and torch.equal(two(0), equal()(0)) and torch.equal(other(0)[0], Noise(0, ("c",), (1, 4, 4))(0)[0])
    )
    memory.forget("chunk")
    assert memory._size == 0
    draw = one(0).numel() * 4
    for most, kept in ((8 * draw, draw), (8 * draw - 1, 0)):
        small = Memory(most)
        small.draw_once("chunk", 0, equal())
        small.draw_once("chunk", 1, equal())
        assert small._size == kept, "at most an eighth of the memory"


def test_another_batch_model_condition_size_or_precision_is_asked_itself() -> None:
    memory = Memory()
    one = Asked(memory)
    one.subject.eps(X0, 0)
    other = Asked(memory, batch=1)
    other.subject.eps(X0, 0)
    own = Asked(memory)
    replace(own.subject, denoiser=Gaussian(0.3, 0.5, SCHEDULE)).eps(X0, 0)
    replace(own.subject, denoiser=guided(own.subject.denoiser, 1.0)).eps(X0, 0)
    own.subject.eps(X0, 0, torch.tensor([1, 2, 3]))
    own.subject.eps(torch.cat([X0, X0]), 0)
    own.subject.eps(X0, [0])
    own.subject.eps(X0.double(), 0)
    assert not other.saved and not own.saved and not one.saved


def test_an_answer_and_an_image_that_an_attack_writes_into_change_nothing_for_the_next() -> None:
    memory = Memory()
    first, second = Asked(memory), Asked(memory)
    expected = MODEL(X0, 0)
    first.subject.x0.mul_(2)
    doubled = first.subject.eps(first.subject.x0, 0)
    assert torch.equal(doubled, MODEL(2 * X0, 0)), "its own images are not the clean ones any more"
    for each in (first, second):
        found = each.subject.eps(X0, 0)
        assert torch.equal(found, expected)
        found.zero_()
    assert torch.equal(second.subject.eps(X0, 0), expected)


def test_what_has_no_room_is_asked_again_and_a_finished_chunk_makes_room() -> None:
    memory = Memory(most=2 * X0.numel() * X0.element_size())
    one, two = Asked(memory), Asked(memory)
    for each in (one, two):
        for t in (0, 10, 20):
            each.subject.eps(X0, t)
    assert two.saved == [(3, 0), (3, 10)] and two.made == [(3, 20)]
    memory.forget(0)
    one.subject.eps(X0, 20)
    assert torch.equal(two.subject.eps(X0, 20), MODEL(X0, 20)) and two.saved[-1] == (3, 20)


def test_forgetting_a_chunk_leaves_the_answers_of_others_and_nothing_of_its_own() -> None:
    memory, asked = Memory(), list[tuple[int, int]]()
    ask = lambda chunk, t: memory.answer(chunk, t, lambda: asked.append((chunk, t)) or X0)
    for chunk in (0, 1):
        ask(chunk, 5)
    memory.forget(0)
    assert ask(1, 5)[1] and asked == [(0, 5), (1, 5)]
    memory.forget(1)
    assert not memory._kept and not memory._asking and memory._size == 0, "an audit of many chunks does not grow"
    assert not ask(1, 5)[1] and asked[2:] == [(1, 5)]


def test_threads_that_want_the_same_answer_ask_once() -> None:
    memory, start = Memory(), Barrier(4)
    asked = [Asked(memory) for _ in range(4)]

    def ask(each: Asked) -> None:
        start.wait()
        for t in range(20):
            each.subject.eps(X0, t)

    threads = [Thread(target=ask, args=(each,)) for each in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(len(each.made) for each in asked) == 20 and sum(len(each.saved) for each in asked) == 60


class Doubled(Around, wrapper=True):
    def __call__(self, x_t, t, cond=None):
        return 2 * self.denoiser(x_t, t, cond)


@dataclass(frozen=True, kw_only=True)
class Guides(diffleak.ResidualAttack):
    """Asks about the first draw, as the loss does, through a subject of its own model."""

    def residuals(self, subject):
        other = replace(subject, denoiser=Doubled(subject.denoiser))
        for t in self.timesteps:
            yield other.eps(subject.schedule.add_noise(subject.x0, t, subject.noise(0)), t)


@pytest.mark.parametrize("threads", [1, 2])
def test_scores_are_the_same_to_the_bit_with_and_without(tmp_path, monkeypatch, threads) -> None:
    members, held_out = np.random.default_rng(0).integers(0, 256, (2, 20, 4, 4, 1), dtype=np.uint8)
    attacks = ["loss", "secmi", "pia", "pian", "sima", "sima(p=2)", "sima_mc(m=2)", "loss_frequency", "pia_frequency", Guides()]
    model = diffleak.Target(MODEL, fingerprint="x")
    run = lambda folder: diffleak.audit(
        model, members=members, nonmembers=held_out, attacks=attacks, output=tmp_path / folder, **{**GIVEN, "threads": threads}
    )
    shared = run("shared")
    monkeypatch.setattr(subject.Subject, "eps", unshared(subject.Subject.eps))
    alone = run("alone")
    for one, two in zip(chunk_files(tmp_path / "shared"), chunk_files(tmp_path / "alone"), strict=True):
        assert one.read_bytes() == two.read_bytes()
    # pia, pian and pia_frequency take eps(x0, 0) from secmi; at three timesteps loss_frequency and sima_mc take the loss's draw,
    # and the second sima takes the predictions of the first
    assert shared.record.costs.queries_saved == 40 * (3 + 3 + 3 + 3) and alone.record.costs.queries_saved == 0
    asked_for = [each.record.costs.queries + each.record.costs.queries_saved for each in (shared, alone)]
    assert asked_for[0] == asked_for[1] == 40 * sum(r.queries for r in shared.results if r.plain)


def unshared(real):
    return lambda self, *asked, **named: real(replace(self, answers=None), *asked, **named)


def test_an_audit_that_finds_no_room_has_the_same_scores(monkeypatch) -> None:
    members, held_out = np.random.default_rng(0).integers(0, 256, (2, 20, 4, 4, 1), dtype=np.uint8)
    run = lambda: diffleak.audit(MODEL, members=members, nonmembers=held_out, attacks="pia,secmi,loss,loss_frequency", **GIVEN)
    whole = run()
    monkeypatch.setattr(answers.Memory, "__init__", lambda self, real=answers.Memory.__init__: real(self, most=100))
    small = run()
    assert small.record.costs.queries_saved == 0 < whole.record.costs.queries_saved
    for one, two in zip(whole.scores, small.scores, strict=True):
        assert np.array_equal(one.statistic, two.statistic)
