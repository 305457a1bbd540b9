"""The outside yardsticks of defences: early stopping on images set aside, and DP-SGD."""

import builtins
import json
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures import models
from fixtures.commands import call
from fixtures.models import IMAGES, LEVELS, few_steps, trained_weights

import diffleak
from diffleak import hub
from diffleak.data.draw import keyed_order
from diffleak.defenses.config import defend_config
from diffleak.errors import UserError
from diffleak.training import private
from diffleak.training.denoiser import DenoisingLoss, denoiser_task, network_config
from diffleak.training.early_stopping import EarlyStopping, split_task
from diffleak.training.images import read_training_data, set_aside
from diffleak.training.loop import Loop, accelerator_of
from diffleak.training.private import Privacy, PrivateTraining, per_sample, plan_privacy, poisson
from diffleak.training.run import train
from diffleak.training.task import batch, keyed

TINY = {**LEVELS, "attention_head_dim": 4}
ATTENTION = {**TINY, **models.ATTENTION}
NOISY = {"dp_noise_multiplier": 1.0, "dp_delta": 1e-3}


def config(data: Path, output: Path, **changes):
    return few_steps(data, output, **{"model": TINY, **changes})


def same(first: Path, second: Path) -> bool:
    one, two = trained_weights(first), trained_weights(second)
    return all(torch.equal(one[k], two[k]) for k in one)


def text(folder: Path, name: str):
    return json.loads((folder / name).read_text())


def task_of(settings):
    """The task of a run and its data, without the run."""
    torch.manual_seed(settings.seed)
    images = read_training_data(settings)
    network = network_config(settings, diffleak.data.pixels.ImageShape(1, 8, 8))
    return denoiser_task(settings, network, images, None, None, torch.device("cpu")), images


# --- early stopping -----------------------------------------------------------------------------------------------------


@pytest.fixture
def losses(monkeypatch):
    """Makes the checks find these losses, one after another, so that a test decides when a run stops."""

    def given(values: dict[int, float]) -> None:
        order = list(values)
        monkeypatch.setattr(EarlyStopping, "_loss", lambda self, _: values[order[len(self.curve)]])

    return given


def test_images_set_aside_are_neither_members_nor_held_out_and_are_not_trained_on(data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(DenoisingLoss, "forward", _recording(seen, DenoisingLoss.forward))
    folder = diffleak.train(config(data, tmp_path / "model", train_size=20, validation=0.25, steps=20))
    split = text(folder, "split.json")
    assert [len(split[k]) for k in ("members", "validation", "nonmembers")] == [15, 5, 10]
    assert sorted((i for side in split.values() for i in side), key=int) == [str(i) for i in range(30)]
    expected = {side: {IMAGES[int(i)].tobytes() for i in split[side]} for side in ("members", "validation")}
    assert {pixels for training, pixels in seen if training} == expected["members"]
    assert {pixels for training, pixels in seen if not training} == expected["validation"]


def _recording(seen, forward):
    def record(self, x0, *rest):
        back = ((x0 + 1) * 127.5).round().to(torch.uint8)
        seen.extend((self.training, image[0].numpy().tobytes()) for image in back)
        return forward(self, x0, *rest)

    return record


def test_who_is_set_aside_depends_on_the_seed_and_each_id():
    ids = tuple(map(str, range(40)))
    (members, aside), (_, other) = set_aside(ids, 0.2, 0), set_aside(ids, 0.2, 1)
    assert len(aside) == 8 and set(members) | set(aside) == set(ids) and set(aside) != set(other)
    assert set(aside) == set(keyed_order(ids, "validation", 0)[:8])


def test_the_validation_loss_is_that_of_the_saved_weights_on_fixed_draws(data, tmp_path):
    folder = diffleak.train(config(data, tmp_path / "model", validation=0.2, ema_decay=0.9))
    curve = pd.read_csv(folder / "validation.csv")
    assert list(curve.step) == [2, 4, 6]
    task, images = task_of(config(data, folder, validation=0.2))
    _, aside = split_task(task, len(images.members))
    task.module.network.load_state_dict(trained_weights(folder))
    task.module.eval()
    total = 0.0
    for draw in range(8):
        for start in (0, 4):
            rows = np.arange(start, min(start + 4, 6))
            arguments = batch(aside, rows, keyed(0, 0x76616C, draw, start))
            total += float(task.module(*arguments).detach()) * len(rows) / 48
    assert text(folder, "train.json")["early_stopping"]["validation_loss"] == pytest.approx(total, rel=1e-6)
    assert curve.loss.min() == pytest.approx(total, abs=1e-6)


def test_training_stops_after_patience_and_saves_the_best_weights(data, tmp_path, losses):
    losses({2: 3.0, 4: 1.0, 6: 2.0, 8: 1.5, 10: 0.5})
    folder = diffleak.train(config(data, tmp_path / "model", validation=0.2, patience=2, steps=20))
    assert text(folder, "train.json")["early_stopping"] == {
        "saved_step": 4,
        "validation_loss": 1.0,
        "last_step": 8,
        "stopped": "no lower for 2 checks",
    }
    losses({2: 3.0, 4: 1.0})
    best = diffleak.train(config(data, tmp_path / "best", validation=0.2, patience=2, steps=4))
    assert same(folder, best)
    losses({2: 3.0, 4: 1.0, 6: 2.0, 8: 0.9})
    last = diffleak.train(config(data, tmp_path / "last", validation=0.2, patience=2, steps=8))
    assert not same(folder, last)
    assert text(last, "train.json")["early_stopping"]["stopped"] == "all steps done"


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_an_interrupted_run_stops_where_an_uninterrupted_one_does(data, tmp_path, losses, monkeypatch, ema_decay):
    curve = {2: 3.0, 4: 1.0, 6: 2.0, 8: 1.5, 10: 1.7}
    settings = {"validation": 0.2, "patience": 3, "steps": 20, "ema_decay": ema_decay}
    losses(curve)
    whole = diffleak.train(config(data, tmp_path / "whole", **settings))
    step = Loop._one_step
    monkeypatch.setattr(Loop, "_one_step", lambda self: step(self) if self.step != 7 else _die())
    with pytest.raises(KeyboardInterrupt):
        diffleak.train(config(data, tmp_path / "cut", **settings))
    monkeypatch.setattr(Loop, "_one_step", step)
    cut = diffleak.train(config(data, tmp_path / "cut", **settings))
    again = diffleak.train(config(data, tmp_path / "cut", **{**settings, "steps": 40}))
    for name in ("validation.csv", "split.json"):
        assert (whole / name).read_text() == (cut / name).read_text()
    assert same(whole, cut) and same(whole, again)
    assert text(whole, "train.json")["early_stopping"] == text(again, "train.json")["early_stopping"]


def _die():
    raise KeyboardInterrupt


def test_validation_changes_nothing_in_what_is_trained(data, tmp_path):
    """A run with images set aside goes through the same steps as one on the other images alone."""
    folder = diffleak.train(config(data, tmp_path / "aside", validation=0.2, ema_decay=0.9, steps=2))
    members = text(folder, "split.json")["members"]
    (tmp_path / "split.json").write_text(json.dumps({"members": members, "nonmembers": text(folder, "split.json")["validation"]}))
    assert same(folder, diffleak.train(config(data, tmp_path / "alone", split=tmp_path / "split.json", ema_decay=0.9, steps=2)))


def test_a_conditional_model_is_validated_with_the_labels_of_the_images_set_aside(data, tmp_path):
    settings = config(data, tmp_path / "model", validation=0.2, model={**TINY, "num_class_embeds": 30})
    images = read_training_data(settings.model_copy(update={"model": TINY}))
    images = replace(images, labels=np.array([int(i) for i in (*images.members, *images.validation)]))
    network = network_config(settings, diffleak.data.pixels.ImageShape(1, 8, 8))
    task = denoiser_task(settings, network, images, None, None, torch.device("cpu"))
    first, second = split_task(task, len(images.members))
    assert [str(label) for label in first.given[0]] == list(images.members)
    assert [str(label) for label in second.given[0]] == list(images.validation)
    assert len(second.inputs) == len(images.validation)


def test_settings_of_early_stopping_that_cannot_be_had_are_one_line(data, tmp_path):
    out = tmp_path / "model"
    cases = [
        ({"validation": 1.5}, "validation must be less than 1; got 1.5"),
        ({"validation": 0.01}, "validation must set aside some images and leave some; got 0.01 of 30, which is 0"),
        ({"validation": 0.99}, "validation must set aside some images and leave some; got 0.99 of 30, which is 30"),
        ({"patience": 3}, "--patience counts checks of the validation loss; give --validation FRACTION too"),
        ({"validation": 0.2, "kind": "vae"}, "--validation is for denoisers, and this trains a β-VAE; leave it out"),
    ]
    for change, message in cases:
        with pytest.raises(UserError, match=message):
            diffleak.train(config(data, out, **change))
    diffleak.train(config(data, out, validation=0.2, steps=2))
    with pytest.raises(UserError, match="--checkpoint-every was 2, now 3"):
        diffleak.train(config(data, out, validation=0.2, steps=2, checkpoint_every=3))


# --- DP-SGD: the step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [None, 10])
def test_every_image_gets_the_gradient_it_has_alone(classes):
    """Also behind attention, whose outputs are not laid out as Opacus 1.6 reads them."""
    torch.manual_seed(0)
    shape = {"sample_size": 8, "in_channels": 1, "out_channels": 1}
    module = DenoisingLoss(hub.new_network({**ATTENTION, **shape, "num_class_embeds": classes}), hub.new_scheduler({}))
    x, noise = torch.randn(2, 5, 1, 8, 8)
    arguments = [x, None if classes is None else torch.tensor([0, 3, 3, 7, 9]), None, torch.tensor([0, 5, 300, 700, 999]), noise]
    alone = []
    for i in range(5):
        loss = module(*(None if a is None else a[i : i + 1] for a in arguments))
        alone.append(torch.autograd.grad(loss, list(module.parameters())))
    with private._quiet():
        per_sample(module)(*arguments).backward()
    for k, (name, parameter) in enumerate(module.named_parameters()):
        expected = torch.stack([one[k] for one in alone])
        torch.testing.assert_close(parameter.grad_sample, expected, rtol=1e-3, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def one_step(data: Path, output: Path, rows: list[int], sigma: float | None, clip: float, **changes) -> Loop:
    """A loop after a step of plain SGD with rate one on these images; sigma None is ordinary training."""
    settings = config(data, output, **{"model": ATTENTION, "max_grad_norm": 1e9, **changes})
    task, _ = task_of(settings)
    task = replace(task, rows=lambda step, size, seed: np.array(rows, dtype=np.int64))
    how = None if sigma is None else PrivateTraining(Privacy(sigma, clip, 0.1, 1e-3), settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", lambda p, lr, weight_decay, fused: torch.optim.SGD(p, lr=lr))
        loop = Loop(settings, accelerator_of(settings), task, private=how)
    loop._one_step()
    return loop


def moved(loop: Loop, before: Loop) -> torch.Tensor:
    """How far the weights went, in units of the learning rate, so that it is the gradient that the optimiser saw."""
    flat = [torch.cat([p.detach().flatten() for p in one.task.module.parameters()]).double() for one in (before, loop)]
    return (flat[0] - flat[1]) / loop.optimizer.param_groups[0]["lr"]


RATE = {"learning_rate": 1.0, "warmup_steps": 0}


@pytest.fixture
def start(data, tmp_path):
    """The weights before any step: those after a step of almost no size."""
    return one_step(data, tmp_path / "start", [0], None, 1.0, learning_rate=1e-30)


def test_without_noise_and_clipping_a_private_step_is_an_ordinary_one(data, tmp_path, start, monkeypatch):
    ordinary = moved(one_step(data, tmp_path / "a", [1, 5, 7, 9], None, 1e9, **RATE), start)
    private_one = moved(one_step(data, tmp_path / "b", [1, 5, 7, 9], 0.0, 1e9, **RATE), start)
    torch.testing.assert_close(private_one, ordinary, rtol=1e-3, atol=1e-6)
    assert float(ordinary.norm()) > 0.1
    monkeypatch.setattr(private, "GRADIENT_BYTES", 1)  # one image at a time
    parts = moved(one_step(data, tmp_path / "c", [1, 5, 7, 9], 0.0, 1e9, **RATE), start)
    torch.testing.assert_close(parts, ordinary, rtol=1e-3, atol=1e-6)


def test_the_clipped_gradient_of_one_image_has_norm_c_over_the_batch_size(data, tmp_path, start):
    step = moved(one_step(data, tmp_path / "a", [3], 0.0, 1e-2, **RATE), start)
    assert float(step.norm()) * 4 == pytest.approx(1e-2, rel=1e-3), "divided by the size that batches have on average"


def test_no_image_moves_the_step_by_more_than_c_over_the_batch_size(data, tmp_path, start, monkeypatch):
    """With the same random numbers for the other images, and clipped in parts as well as at once."""
    for at_once in (2**31, 1):
        monkeypatch.setattr(private, "GRADIENT_BYTES", at_once)
        without = moved(one_step(data, tmp_path / "a", [3, 8], 0.0, 1e-2, **RATE), start)
        monkeypatch.setattr(torch, "randn", _prefix(torch.randn))
        monkeypatch.setattr(torch, "randint", _prefix(torch.randint))
        with_it = moved(one_step(data, tmp_path / "b", [3, 8, 20], 0.0, 1e-2, **RATE), start)
        monkeypatch.undo()
        assert 0 < float((with_it - without).norm()) <= 1e-2 / 4 * (1 + 1e-3)


def _prefix(draw):
    """`draw` whose first two rows do not depend on how many follow."""

    def drawn(*arguments, generator=None, **keys):
        *low_high, shape = arguments
        n, *rest = shape
        return draw(*low_high, (2, *rest), generator=generator, **keys) if n < 3 else _and_more(draw, low_high, n, rest, generator, keys)

    return drawn


def _and_more(draw, low_high, n, rest, generator, keys):
    first = draw(*low_high, (2, *rest), generator=generator, **keys)
    return torch.cat([first, draw(*low_high, (n - 2, *rest), generator=keyed(99), **keys)])


def test_an_empty_batch_is_a_step_of_noise_of_the_stated_size(data, tmp_path, start):
    loop = one_step(data, tmp_path / "a", [], 2.0, 0.5, **RATE)
    step = moved(loop, start) * 4
    assert float(step.std()) == pytest.approx(2.0 * 0.5, rel=0.05)
    again, other = (moved(one_step(data, tmp_path / "b", [], 2.0, 0.5, seed=seed, **RATE), start) * 4 for seed in (0, 1))
    assert torch.equal(step, again) and not torch.allclose(step, other)


def test_batches_hold_every_image_with_probability_q_independently():
    rows = poisson(50)
    drawn = np.array([np.isin(np.arange(50), rows(step, 10, 0)) for step in range(4000)])
    assert abs(drawn.mean() - 0.2) < 0.005
    assert np.abs(drawn.mean(axis=0) - 0.2).max() < 0.03
    assert drawn.sum(axis=1).var() == pytest.approx(50 * 0.2 * 0.8, rel=0.1)
    assert np.array_equal(rows(7, 10, 0), rows(7, 10, 0)) and not np.array_equal(rows(7, 10, 0), rows(7, 10, 1))
    assert list(rows(0, 50, 0)) == list(range(50))


# --- DP-SGD: the run ----------------------------------------------------------------------------------------------------


def test_epsilon_is_that_of_the_gaussian_mechanism_when_every_image_is_in_every_batch():
    """RDP of a step is alpha / 2 sigma^2; epsilon is the least of that + log((alpha-1)/alpha) - log(delta alpha)/(alpha-1)."""
    alpha = np.array(private.ORDERS)
    for sigma, steps in ((5.0, 1), (20.0, 10)):
        expected = (steps * alpha / (2 * sigma**2) + np.log1p(-1 / alpha) - np.log(1e-5 * alpha) / (alpha - 1)).min()
        assert Privacy(sigma, 1.0, 1.0, 1e-5).epsilon(steps) == pytest.approx(expected, rel=1e-6)
    assert Privacy(0.0, 1.0, 0.1, 1e-5).epsilon(1) == inf


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "delta"),
    [(1.0, 0.05, 60, 1e-4), (0.8, 0.0625, 60, 1e-4), (1.1, 0.01, 1000, 1e-5), (4.0, 0.2, 500, 1e-5), (0.6, 0.02, 200, 1e-5)],
)
def test_the_promise_is_that_of_dp_accounting_and_above_its_tight_bound(sigma, rate, steps, delta):
    """By Rényi divergences of the same orders, and by privacy loss distributions; dp-accounting is in no extra of diffleak."""
    of = pytest.importorskip("dp_accounting", reason="dp-accounting is not installed (a package of the registry, for this test alone)")
    from dp_accounting import pld, rdp

    event = of.SelfComposedDpEvent(of.PoissonSampledDpEvent(rate, of.GaussianDpEvent(sigma)), steps)
    spent = [accountant.compose(event).get_epsilon(delta) for accountant in (rdp.RdpAccountant([*private.ORDERS]), pld.PLDAccountant())]
    promised = Privacy(sigma, 1.0, rate, delta).epsilon(steps)
    assert promised == pytest.approx(spent[0], rel=2e-3) and promised > spent[1]


def test_epsilon_grows_with_steps_and_rate_and_falls_with_noise():
    at = lambda sigma=1.0, rate=0.01, steps=1000: Privacy(sigma, 1.0, rate, 1e-5).epsilon(steps)
    assert at(sigma=2.0) < at() < at(steps=2000)
    assert at(rate=0.005) < at() < at(rate=0.02)


@pytest.mark.parametrize("epsilon", [0.5, 3.0, 50.0])
def test_the_noise_is_the_least_that_keeps_epsilon(data, tmp_path, epsilon):
    plan = plan_privacy(config(data, tmp_path, dp_epsilon=epsilon, dp_delta=1e-3, steps=200), 30, 1)
    assert 0.99 * epsilon < plan.epsilon(200) <= epsilon
    assert (plan.sample_rate, plan.max_grad_norm, plan.delta) == (4 / 30, 1.0, 1e-3)


def test_a_private_run_says_what_it_spent_and_loads(data, tmp_path, capsys):
    folder = diffleak.train(config(data, tmp_path / "model", model=ATTENTION, dp_epsilon=4.0, dp_delta=1e-3, ema_decay=0.9))
    record = text(folder, "train.json")
    assert record["privacy"]["sample_rate"] == 4 / 30
    assert 3.9 < record["spent"]["epsilon"] <= 4 and record["spent"] | {"epsilon": 0} == {"epsilon": 0, "delta": 1e-3, "steps": 6}
    assert diffleak.load(folder, device="cpu").shape.height == 8
    assert set(trained_weights(folder)) == set(trained_weights(diffleak.train(config(data, tmp_path / "plain", model=ATTENTION, steps=1))))


def test_a_longer_private_run_continues_a_shorter_one_exactly_and_goes_on_accounting(data, tmp_path):
    once = diffleak.train(config(data, tmp_path / "once", **NOISY))
    twice = diffleak.train(config(data, tmp_path / "twice", **NOISY, steps=3))
    first = text(twice, "train.json")["spent"]
    diffleak.train(config(data, twice, **NOISY))
    assert same(once, twice)
    assert text(once, "train.json")["spent"] == text(twice, "train.json")["spent"]
    assert first["steps"] == 3 and first["epsilon"] < text(twice, "train.json")["spent"]["epsilon"]


def test_clipping_and_noise_change_the_model(data, tmp_path):
    names = {"plain": {}, "noisy": NOISY, "less": {**NOISY, "dp_noise_multiplier": 0.5}, "tight": {**NOISY, "dp_max_grad_norm": 0.01}}
    folders = [diffleak.train(config(data, tmp_path / name, **changes)) for name, changes in names.items()]
    assert not any(same(a, b) for i, a in enumerate(folders) for b in folders[:i])


def test_a_private_run_learns_where_the_noise_is_small(data, tmp_path):
    settings = {"steps": 70, "batch_size": 8, "learning_rate": 5e-3, "warmup_steps": 10, "dp_noise_multiplier": 0.01, "dp_delta": 1e-3}
    losses = pd.read_csv(diffleak.train(config(data, tmp_path / "model", **settings, checkpoint_every=70)) / "losses.csv").loss
    assert losses.iloc[-1] < 0.8 * losses.iloc[0]


def test_settings_of_dp_that_cannot_be_had_are_one_line(data, tmp_path):
    both = {"dp_epsilon": 1.0, "dp_delta": 1e-3}
    cases = [
        ({"dp_delta": 1e-3}, "--dp-delta belongs to DP-SGD; give --dp-epsilon or --dp-noise-multiplier too"),
        ({"dp_max_grad_norm": 1.0}, "--dp-max-grad-norm belongs to DP-SGD; give --dp-epsilon or --dp-noise-multiplier too"),
        ({**both, "dp_noise_multiplier": 1.0}, "--dp-epsilon chooses the noise, and --dp-noise-multiplier states it; give one of them"),
        ({"dp_epsilon": 1.0}, r"DP-SGD promises \(epsilon, delta\); give --dp-delta, well below one over the number of images"),
        ({**both, "dp_delta": 0.2}, "--dp-delta must be below one over 30, the number of images, to mean anything; got 0.2"),
        ({**both, "kind": "vae"}, "DP-SGD is for denoisers, .* this trains a β-VAE: leave out --dp-"),
        ({**both, "kind": "vq"}, "DP-SGD is for denoisers, .* this trains a VQ autoencoder: leave out --dp-"),
        ({**both, "mixed_precision": "bf16"}, "DP-SGD clips gradients in full precision; leave out --mixed-precision bf16"),
        ({**both, "validation": 0.2}, "DP-SGD does not protect the images that --validation sets aside; leave one of them out"),
        ({**both, "batch_size": 31}, "--batch-size of DP-SGD must be at most 30, the number of images; got 31"),
        (
            {"dp_epsilon": 1e-9, "dp_delta": 1e-12},
            "no noise is enough for --dp-epsilon 1e-09 at 6 steps: raise --dp-epsilon, or lower --steps or --batch-size",
        ),
    ]
    for change, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            diffleak.train(config(data, tmp_path / "model", **change))
        assert "\n" not in str(caught.value)


def test_where_coins_chose_the_images_the_limits_of_dp_are_half_of_all(data, tmp_path):
    for change, must in (
        ({"batch_size": 13}, "--batch-size of DP-SGD must be at most"),
        ({"dp_delta": 0.2}, "--dp-delta must be below one over"),
    ):
        with pytest.raises(UserError, match=f"{must} 12.5, half of the images that coins were thrown for"):
            plan_privacy(config(data, tmp_path, **{**NOISY, **change}), 12.5, 1)


def test_several_processes_are_refused(data, tmp_path):
    with pytest.raises(UserError, match=r"DP-SGD runs in one process, .*got 2"):
        plan_privacy(config(data, tmp_path, **NOISY), 30, 2)


@pytest.mark.parametrize(("change", "which"), [({"validation": 0.2}, "--validation"), (NOISY, "DP-SGD")])
def test_other_defences_take_neither(data, tmp_path, change, which):
    (tmp_path / "c.yaml").write_text(json.dumps(change))
    with pytest.raises(UserError, match=f"{which} is another defence to compare with, not a part of this one"):
        defend_config("distill", None, tmp_path / "c.yaml", data=str(data), output=tmp_path / "out")


def test_more_steps_than_epsilon_was_planned_for_are_refused(data, tmp_path):
    folder = diffleak.train(config(data, tmp_path / "model", dp_epsilon=4.0, dp_delta=1e-3, steps=2))
    with pytest.raises(UserError, match="--steps was 2, now 3"):
        diffleak.train(config(data, folder, dp_epsilon=4.0, dp_delta=1e-3, steps=3))


def test_another_number_of_images_is_another_run(data, tmp_path):
    folder = diffleak.train(config(data, tmp_path / "model", **NOISY, steps=1))
    np.save(data, IMAGES[:20])
    with pytest.raises(UserError, match=r"holds another training run \(.*(DP-SGD|another set of members)"):
        diffleak.train(config(data, folder, **NOISY, steps=2))


def test_a_missing_opacus_is_one_line(data, tmp_path, monkeypatch):
    real = builtins.__import__

    def absent(name, *rest, **keys):
        if name.split(".")[0] == "opacus":
            raise ImportError(name)
        return real(name, *rest, **keys)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"DP-SGD needs Opacus, which is not installed: pip install 'diffleak\[dp\]'"):
        diffleak.train(config(data, tmp_path / "model", **NOISY))


class _Normalised(torch.nn.Module):
    """A network that mixes the images of a batch."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 1, 1))

    def forward(self, x, t):
        return type("Output", (), {"sample": self.layers(x)})


class _Mixing(torch.nn.Module):
    """One that does so where Opacus does not look."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return type("Output", (), {"sample": self.layer(x) - self.layer(x).mean(0)})


class _Functional(torch.nn.Module):
    """One that uses a weight outside of the layer that has it."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return type("Output", (), {"sample": torch.nn.functional.conv2d(x, self.layer.weight, self.layer.bias, padding=1)})


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (_Normalised, "DP-SGD needs a network that treats each image alone; Opacus refuses this one: BatchNorm"),
        (_Mixing, "Opacus computes wrong gradients of this network .network.layer.weight."),
        (_Functional, "Opacus gives no per-sample gradient of 2 weights of this network .first: network.layer.weight."),
    ],
)
def test_networks_without_per_sample_gradients_are_refused(data, tmp_path, monkeypatch, network, message):
    monkeypatch.setattr(hub, "new_network", lambda _: network())
    with pytest.raises(UserError, match=message) as caught:
        train(config(data, tmp_path / "model", **NOISY))
    assert "\n" not in str(caught.value)


def test_blocks_that_change_what_opacus_watches_are_refused(data, tmp_path):
    skip = {**TINY, "down_block_types": ["DownBlock2D", "SkipDownBlock2D"], "up_block_types": ["SkipUpBlock2D", "UpBlock2D"]}
    with pytest.raises(UserError, match=r"Opacus cannot follow this network, .*choose other block types") as caught:
        diffleak.train(config(data, tmp_path / "model", model=skip, **NOISY))
    assert "\n" not in str(caught.value)


def test_dropout_does_not_look_like_a_wrong_gradient(data, tmp_path):
    assert (diffleak.train(config(data, tmp_path / "model", model={**TINY, "dropout": 0.5}, **NOISY, steps=1)) / "unet").is_dir()


# --- the command line ---------------------------------------------------------------------------------------------------


def test_the_last_line_says_what_was_spent(data, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(json.dumps({"model": TINY, "device": "cpu", "threads": 1, "batch_size": 4, "steps": 2}))
    flags = ["--dp-epsilon", "4", "--dp-delta", "1e-3", "--dp-max-grad-norm", "0.5"]
    code, out, err = call(capsys, "train", "--data", data, "-C", tmp_path / "c.yaml", "-o", tmp_path / "m", *flags)
    assert code == 0, err
    assert "Warning" not in err
    last = out.splitlines()[-1]
    assert last.startswith("privacy: epsilon 3.9") and "at delta 0.001 for each single image after 2 steps" in last


def test_the_last_line_says_where_training_stopped_and_why(data, tmp_path, losses, capsys):
    from diffleak.cli import train as command

    (tmp_path / "c.yaml").write_text(json.dumps({"model": TINY, "device": "cpu", "threads": 1, "batch_size": 4, "checkpoint_every": 2}))
    for as_json in (False, True):
        losses({2: 1.0, 4: 2.0})
        command(
            given={"data": str(data), "output": tmp_path / "m", "validation": 0.2, "patience": 1},
            config=tmp_path / "c.yaml",
            as_json=as_json,
        )
        said = capsys.readouterr().out
        if as_json:
            assert json.loads(said)["early_stopping"]["last_step"] == 4
        else:
            assert said.splitlines()[-1] == (
                "early stopping: saved step 2, validation loss 1.0000; stopped at step 4: no lower for 1 check"
            )
