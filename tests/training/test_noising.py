"""Training of flow matching: its loss, the timesteps that are drawn, and the folder that it leaves."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures.commands import call, refused
from fixtures.models import WIDER, few_steps, trained_weights
from scipy.stats import chisquare

import diffleak
from diffleak import hub
from diffleak.errors import UserError
from diffleak.training.denoiser import DenoisingLoss
from diffleak.training.distillation import Lesson, teacher_networks
from diffleak.training.noising import Noising, drawing_of
from diffleak.training.task import keyed

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


def config(data: Path, output: Path, **changes):
    return few_steps(data, output, **{"model": WIDER, "scheduler": FLOW, "steps": 4, **changes})


# the loss


class Linear(torch.nn.Module):
    """A network whose prediction the test knows."""

    def forward(self, x, time, class_labels=None):
        return SimpleNamespace(sample=0.7 * x + time.reshape(-1, 1, 1, 1) / 500)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_loss_of_flow_matching_is_that_of_the_straight_line_formula(shift):
    scheduler = hub.new_scheduler({**FLOW, "shift": shift})
    x0, e = torch.randn(2, 4, 1, 3, 3, generator=keyed(0), dtype=torch.float64)
    t = torch.tensor([0, 250, 600, 999])
    expected = 0.0
    for i, step in enumerate(t.tolist()):
        share = (step + 1) / 1000
        sigma = shift * share / (1 + (shift - 1) * share)
        x_t = (1 - sigma) * x0[i].numpy() + sigma * e[i].numpy()
        expected += ((0.7 * x_t + 1000 * sigma / 500 - (e[i] - x0[i]).numpy()) ** 2).mean() / 4
    assert float(DenoisingLoss(Linear(), scheduler)(x0, None, None, t, e)) == pytest.approx(expected, rel=1e-6)


def test_images_are_noised_as_the_scheduler_of_diffusers_noises_them():
    scheduler = hub.new_scheduler({**FLOW, "shift": 2.0})
    x0, e = torch.randn(2, 3, 1, 4, 4, generator=keyed(1))
    t = torch.tensor([0, 499, 998])
    x_t, time = Noising(scheduler).noised(x0, e, t)
    torch.testing.assert_close(time, scheduler.timesteps.flip(0)[t])
    torch.testing.assert_close(x_t, scheduler.scale_noise(x0, time, e))


def test_a_student_of_flow_matching_is_taught_on_its_path():
    seen = []

    def teacher(x, time, **conditions):
        seen.append((x, time))
        return Linear()(x, time)

    scheduler = hub.new_scheduler(FLOW)
    x0, e = torch.randn(2, 2, 1, 4, 4, generator=keyed(2))
    t, half = torch.tensor([99, 499]), torch.zeros(2, dtype=torch.int64)
    assert float(DenoisingLoss(Linear(), scheduler, (teacher,))(x0, None, half, t, e)) == 0.0
    ((x_t, time),) = seen
    torch.testing.assert_close(time, torch.tensor([100.0, 500.0]))
    torch.testing.assert_close(x_t, torch.stack([0.9 * x0[0] + 0.1 * e[0], 0.5 * x0[1] + 0.5 * e[1]]))


# which timesteps are drawn


def shares(a: float, edges: np.ndarray) -> np.ndarray:
    """Of each bin under p(u) proportional to e^(a u) + e^(a (1 - u)), by its antiderivative."""
    below = lambda u: np.exp(a * u) - np.exp(a * (1 - u))
    return np.diff(below(edges)) / (below(1.0) - below(0.0))


@pytest.mark.parametrize("total", [1000, 100])
def test_u_shaped_timesteps_have_the_symmetric_exponential_density_and_uniform_ones_have_not(total):
    edges, n = np.linspace(0, 1, 26), 50_000
    for timesteps, flow in (("u-shaped", True), ("uniform", True)):
        drawn = drawing_of(timesteps, total, flow)(n, keyed(7)).numpy()
        assert drawn.min() >= 0 and drawn.max() < total
        counts = np.histogram(drawn, bins=np.rint(edges * total))[0]
        assert (chisquare(counts, n * shares(4.0, edges)).pvalue > 0.01) == (timesteps == "u-shaped")
        assert (chisquare(counts).pvalue > 0.01) == (timesteps == "uniform")
    middle = shares(4.0, np.array([0.495, 0.505]))[0] * 100
    assert middle == pytest.approx(0.55, abs=0.01) and shares(4.0, np.array([0, 1e-6]))[0] * 1e6 == pytest.approx(2.07, abs=0.01)


def test_uniform_timesteps_are_the_draws_of_earlier_versions():
    expected = torch.randint(0, 1000, (64,), generator=keyed(3, 5))
    assert torch.equal(drawing_of("uniform", 1000, False)(64, keyed(3, 5)), expected)


# the model that it leaves


def test_a_flow_model_is_trained_is_known_as_one_and_is_audited_on_the_sweep_of_flow_matching(data, tmp_path, capsys):
    from diffusers import DDPMPipeline

    folder = diffleak.train(config(data, tmp_path / "model", train_size=20))
    target = hub.load(folder, device="cpu")
    assert target.denoiser.prediction_type == "flow" and target.denoiser.schedule.is_flow
    assert DDPMPipeline.from_pretrained(folder)(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)
    common = ["audit", folder, "--data", data, "--split", folder / "split.json", "--attacks", "sima", "--device", "cpu"]
    code, out, err = call(capsys, *common, "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["attacks"][0]["timesteps"] == list(range(50, 951, 50))
    code, out, err = call(capsys, *common, "--dry-run")
    assert code == 0 and "19 timesteps from 50 to 950 of 1,000 (flow matching)" in " ".join((out + err).split())


@pytest.mark.parametrize("timesteps", ["uniform", "u-shaped"])
def test_a_longer_run_continues_a_shorter_one_exactly_on_the_path_of_flow_matching(data, tmp_path, timesteps):
    once = diffleak.train(config(data, tmp_path / "once", timesteps=timesteps))
    diffleak.train(config(data, tmp_path / "twice", timesteps=timesteps, steps=2))
    twice = diffleak.train(config(data, tmp_path / "twice", timesteps=timesteps))
    one, two = trained_weights(once), trained_weights(twice)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_timesteps_decide_the_model_and_another_choice_does_not_resume_it(data, tmp_path):
    folders = [diffleak.train(config(data, tmp_path / name, timesteps=name)) for name in ("uniform", "u-shaped")]
    one, two = map(trained_weights, folders)
    assert any(not torch.equal(one[name], two[name]) for name in one)
    record = json.loads((folders[0] / "train.json").read_text())
    del record["timesteps"]  # as earlier versions wrote it
    (folders[0] / "train.json").write_text(json.dumps(record))
    diffleak.train(config(data, folders[0]))
    with pytest.raises(UserError, match=r"holds another training run \(--timesteps was uniform, now u-shaped\)"):
        diffleak.train(config(data, folders[0], timesteps="u-shaped"))


@pytest.mark.parametrize("kind", ["vae", "vqvae"])
def test_a_flow_model_of_latents_loads_whatever_its_autoencoder(kind, autoencoder, tmp_path):
    codec = hub.codec_of(autoencoder(kind), 1.0)
    network = hub.new_network({**WIDER, "sample_size": 4, "in_channels": 4, "out_channels": 4})
    hub.save(tmp_path / "model", network, hub.new_scheduler(FLOW), codec)
    target = hub.load(tmp_path / "model", device="cpu")
    assert target.latent and target.denoiser.prediction_type == "flow"


def test_teachers_of_flow_matching_teach_a_student_like_them_and_no_other(data, tmp_path):
    folder = diffleak.train(config(data, tmp_path / "teacher", scheduler={**FLOW, "shift": 3.0}, steps=1))
    network, scheduler = hub.settings_of(folder)
    assert scheduler["_class_name"] == FLOW["_class_name"] and scheduler["shift"] == 3.0
    hub.new_network(network)
    given = (Lesson((folder,)), torch.device("cpu"))
    assert len(teacher_networks(*given, hub.new_scheduler(scheduler), (1, 8, 8))) == 1
    with pytest.raises(UserError, match="must have the same prediction type; got epsilon and flow"):
        teacher_networks(*given, hub.new_scheduler({}), (1, 8, 8))
    with pytest.raises(UserError, match="must have the same noise schedule"):
        teacher_networks(*given, hub.new_scheduler(FLOW), (1, 8, 8))


# what is refused


def test_u_shaped_timesteps_are_refused_without_flow_matching(data, tmp_path, capsys):
    said = refused(capsys, "train", "--data", data, "--timesteps", "u-shaped", "-o", tmp_path / "out", "--steps", "1", "--device", "cpu")
    assert "--timesteps u-shaped is for models of flow matching" in said and "leave it out" in said
    assert not (tmp_path / "out" / "train.json").exists()
    for kind, name in (("vae", "β-VAE"), ("vq", "VQ autoencoder")):
        with pytest.raises(UserError, match=f"--timesteps is for denoisers of flow matching, and this trains a {name}"):
            few_steps(data, tmp_path / "out", kind=kind, timesteps="u-shaped")
    with pytest.raises(UserError, match=r"timesteps must be 'uniform' or 'u-shaped'; got 'ushaped'"):
        few_steps(data, tmp_path / "out", timesteps="ushaped")


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (
            {"_class_name": "FlowMatchEulerDiscreteSchedule"},
            "unknown _class_name of scheduler '.*'; did you mean 'FlowMatchEulerDiscreteSch",
        ),
        ({"_class_name": "PNDMScheduler"}, "unknown _class_name of scheduler 'PNDMScheduler'; did you mean 'DDPMScheduler'"),
        ({**FLOW, "beta_start": 1e-4}, "unknown scheduler key 'beta_start'"),
        ({**FLOW, "num_train_timesteps": 0}, "diffusers refuses this FlowMatchEulerDiscreteScheduler"),
        ({**FLOW, "shift": -1.0}, "the sigmas of flow matching must be an increasing table"),
    ],
)
def test_settings_that_make_no_scheduler_are_one_line(scheduler, said):
    with pytest.raises(UserError, match=said):
        hub.new_scheduler(scheduler)
