"""What a model of one's own may answer: everything else is refused in one line, before it becomes a score."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import diffleak
from diffleak.attacks.loss import Loss
from diffleak.attacks.secmi import SecMI
from diffleak.attacks.sima import SimA
from diffleak.attacks.subject import Subject
from diffleak.data.pixels import ImageShape, to_model
from diffleak.diffusion.analytic import Memoriser, linear_schedule
from diffleak.diffusion.codec import Codec
from diffleak.diffusion.conditions import Prompts, one_at_a_time
from diffleak.diffusion.denoiser import Denoiser, Guided, NetworkDenoiser
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.schedule import Schedule
from diffleak.errors import UserError
from diffleak.generation import generate
from diffleak.hub.encoders import extract, open_extractor

pytestmark = pytest.mark.usefixtures("undrawn")

SCHEDULE = linear_schedule()
TABLE = SCHEDULE.alphas_cumprod
PICTURES = np.random.default_rng(3).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
MEMBERS, HELD_OUT = PICTURES[:30], PICTURES[30:]
X = torch.from_numpy(to_model(PICTURES[:4]))


def blurred(x: torch.Tensor, t: int) -> torch.Tensor:
    """A model that remembers its members a little, far from perfectly."""
    exact = Memoriser(torch.from_numpy(to_model(MEMBERS)), SCHEDULE)(x, t)
    return 0.5 * exact + torch.sin(3 * x.roll(1, dims=3)) * (1 + t / 1000)


def audited(predict_noise: Any, attacks: str = "sima", **how: Any) -> diffleak.Audit:
    denoiser = Denoiser.from_function(predict_noise, TABLE, **how)
    return diffleak.audit(
        denoiser, members=MEMBERS, nonmembers=HELD_OUT, attacks=attacks, timesteps="50:150:50", threads=1, allow_shift=True
    )


def with_variance(x: torch.Tensor, t: int) -> torch.Tensor:
    return torch.cat([blurred(x, t), 5 * torch.cos(7 * x)], dim=1)


def test_a_declared_learned_variance_changes_no_auc_and_no_score():
    plain, learned = audited(blurred, "sima,secmi,loss"), audited(with_variance, "sima,secmi,loss", learned_variance=True)
    for one, other in zip(plain.scores, learned.scores, strict=True):
        np.testing.assert_array_equal(one.statistic, other.statistic)
    assert [r.auc for r in plain.results] == [r.auc for r in learned.results]
    member, sima = plain.samples.member, plain.scores[0].statistic
    by_hand = [-(blurred(torch.from_numpy(to_model(p[None])), 50).double() ** 4).sum().item() for p in (*MEMBERS, *HELD_OUT)]
    assert roc_auc_score(member, -sima[:, 0]) == roc_auc_score(np.repeat([1, 0], 30), by_hand), "an oracle without Denoiser or attack"


def test_an_undeclared_learned_variance_is_refused_before_scoring(tmp_path):
    with pytest.raises(UserError) as caught:
        diffleak.audit(
            Denoiser.from_function(with_variance, TABLE),
            members=MEMBERS,
            nonmembers=HELD_OUT,
            attacks="sima",
            output=tmp_path / "run",
            threads=1,
        )
    said = str(caught.value)
    assert "(2, 3, 8, 8) float32 on cpu; got (2, 6, 8, 8) float32 on cpu: if the second half is a learned variance, pass " in said
    assert "\n" not in said and caught.value.exit_code == 2 and not (tmp_path / "run").exists()


WRONG = {
    "one channel": (lambda x, t: x[:, :1], "got (4, 1, 8, 8)"),
    "one row": (lambda x, t: x[:1], "got (1, 3, 8, 8)"),
    "no batch": (lambda x, t: x[0], "got (3, 8, 8)"),
    "no channels": (lambda x, t: x[:, 0], "got (4, 8, 8)"),
    "a number": (lambda x, t: x.mean(), "got ()"),
    "four times the channels": (lambda x, t: x.repeat(1, 4, 1, 1), "got (4, 12, 8, 8)"),
    "another side": (lambda x, t: x[..., :1], "got (4, 3, 8, 1)"),
    "float64": (lambda x, t: x.double(), "got (4, 3, 8, 8) float64 on cpu: convert it with .to(x_t)"),
    "float16": (lambda x, t: x.half(), "float16"),
    "integers": (lambda x, t: (100 * x).long(), "int64"),
    "another device": (lambda x, t: x.to("meta"), "float32 on meta"),
    "numpy": (lambda x, t: x.numpy(), "got a ndarray: return the noise alone, as a tensor"),
    "a tuple": (lambda x, t: (x,), "got a tuple"),
    "a dict": (lambda x, t: {"sample": x}, "got a dict"),
    "nothing": (lambda x, t: None, "got None"),
    "an output of diffusers": (lambda x, t: type("UNet2DOutput", (), {"sample": x})(), "got a UNet2DOutput: return its .sample"),
    "without t": (lambda x: x, "predict_noise fails for x_t of (4, 3, 8, 8) float32 on cpu and t = 50 (an int)"),
    "t as a tensor": (lambda x, t: x * t.view(-1, 1, 1, 1), "AttributeError: 'int' object has no attribute 'view'"),
    "with a condition": (lambda x, t, cond: x, "missing 1 required positional argument: 'cond'"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("own_class", [False, True], ids=["function", "subclass"])
def test_an_answer_that_is_not_like_the_images_is_refused_when_an_attack_is_called_directly(name, own_class):
    predict, said = WRONG[name]

    class Mine(Denoiser):
        schedule = SCHEDULE

        def __call__(self, x_t, t, cond=None):
            return predict(x_t, t)

    fails = name in ("without t", "t as a tensor", "with a condition")
    if own_class and fails:
        with pytest.raises((TypeError, AttributeError)):  # a bug in a class of one's own keeps its traceback
            Mine()(X, 5)
        return
    denoiser = Mine() if own_class else Denoiser.from_function(predict, TABLE)
    with pytest.raises(UserError) as caught:
        SimA(timesteps=(50,)).statistics(Subject(denoiser, X, Noise(0, ("a", "b", "c", "d"), (3, 8, 8), torch.float32, "cpu")))
    assert said in str(caught.value)
    assert str(caught.value).startswith("the denoiser Mine must" if own_class else "predict_noise ")


def test_a_function_that_declares_a_variance_must_return_one():
    with pytest.raises(UserError, match=r"the noise and a variance.*\(4, 6, 8, 8\).*got \(4, 3, 8, 8\)"):
        Denoiser.from_function(lambda x, t: x, TABLE, learned_variance=True)(X, 5)
    with pytest.raises(UserError, match=r"got \(4, 12, 8, 8\)"):
        Denoiser.from_function(lambda x, t: x.repeat(1, 4, 1, 1), TABLE, learned_variance=True)(X, 5)


def test_numbers_that_are_not_finite_are_refused_before_scoring_at_both_ends_of_the_sweep(tmp_path):
    for at, value in ((50, torch.nan), (150, torch.inf)):
        broken = Denoiser.from_function(lambda x, t, at=at, value=value: x * value if t == at else x, TABLE)
        with pytest.raises(UserError, match=rf"NaN or infinity at timestep {at} for image members/0"):
            diffleak.audit(
                broken, members=MEMBERS, nonmembers=HELD_OUT, attacks="sima", timesteps="50:150:50", output=tmp_path / "run", threads=1
            )
        assert not (tmp_path / "run").exists()


def test_a_function_that_writes_into_its_input_changes_nothing_but_its_own_answer():
    def writes(x, t):
        answer = blurred(x, t)
        x.zero_()
        return answer

    plain, written = audited(blurred, "secmi,pia,loss"), audited(writes, "secmi,pia,loss")
    for one, other in zip(plain.scores, written.scores, strict=True):
        np.testing.assert_array_equal(one.statistic, other.statistic)


def test_a_function_that_answers_in_one_buffer_is_scored_as_one_that_does_not():
    """SecMI and PIA keep an answer while they ask again: in one buffer their residuals would all be zero."""
    buffers: dict[tuple[int, ...], torch.Tensor] = {}

    def reuses(x, t):
        return buffers.setdefault(tuple(x.shape), torch.empty_like(x)).copy_(blurred(x, t))

    noise = Noise(0, ("a", "b", "c", "d"), (3, 8, 8), torch.float32, "cpu")
    expected, found = (SecMI(timesteps=(50,)).statistics(Subject(Denoiser.from_function(f, TABLE), X, noise)) for f in (blurred, reuses))
    assert torch.equal(found, expected) and found.min() > 0


def test_a_function_with_trainable_weights_leaves_no_graph_behind():
    weight = torch.nn.Parameter(torch.tensor(0.5))
    denoiser = Denoiser.from_function(lambda x, t: weight * x, TABLE)
    found = Loss(timesteps=(50,)).statistics(Subject(denoiser, X, Noise(0, ("a", "b", "c", "d"), (3, 8, 8), torch.float32, "cpu")))
    assert not found.requires_grad


def test_a_wrapper_checks_the_model_inside_it():
    class Captioned(Denoiser):
        schedule = SCHEDULE

        def __call__(self, x_t, t, cond=None):
            return x_t[:1]

    encode = lambda texts, together=False: Prompts(tuple(texts), {"e": torch.zeros(len(texts), 1)}, encode)
    with pytest.raises(UserError, match=r"the denoiser Captioned must return .*got \(1, 3, 8, 8\)"):
        Guided(Captioned(), 2.0)(X, 5, encode(["a"] * 4))


def test_a_drawn_image_and_a_reference_are_checked_too():
    narrow = Denoiser.from_function(lambda x, t: x[:, :1], TABLE)
    with pytest.raises(UserError, match="predict_noise must return"):
        generate(diffleak.Target(narrow, ImageShape(3, 8, 8)), 2, steps=2)
    with pytest.raises(UserError, match="predict_noise must return"):
        diffleak.audit(
            Denoiser.from_function(blurred, TABLE),
            members=MEMBERS,
            nonmembers=HELD_OUT,
            attacks="sima",
            timesteps="50",
            reference=narrow,
            allow_shift=True,
            threads=1,
        )


def test_the_prediction_of_a_network_is_checked_before_it_is_converted():
    """v-prediction adds x_t, and one channel would be broadcast on the way."""

    class OneChannel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, t):
            return type("Output", (), {"sample": x[:, :1] * self.weight})

    with pytest.raises(UserError, match=r"the network must return .*got \(4, 1, 8, 8\)"):
        NetworkDenoiser(OneChannel(), SCHEDULE, "v_prediction")(X, 5)


BETAS = np.linspace(1e-4, 0.02, 1000)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (BETAS, r"got 0.0001 at t = 0, which leaves hardly any signal: if these are betas, give np.cumprod\(1 - betas\)"),
        (np.full(1000, 1e-4), "got 0.0001 at t = 0, which leaves hardly any signal"),
        (1 - BETAS, r"got 0.98 at its end, which is hardly any noise: if these are alphas, give np.cumprod\(alphas\)"),
        (TABLE[::-1], "got a table that rises at t = 1: reverse it if it runs backwards"),
        (np.append(TABLE[:50], TABLE[:10]), "got a table that rises at t = 50$"),
        (np.append(TABLE, -0.1), "got -0.1 at t = 1000"),
        (np.append(1.5, TABLE), "got 1.5 at t = 0"),
        (np.append(TABLE[:9], np.nan), "got nan at t = 9"),
        (TABLE[None], r"got shape \(1, 1000\)"),
        (["a", "b"], "must be a table of numbers; got a list of other values"),
        (None, "got"),
    ],
    ids=["betas", "constant betas", "alphas", "backwards", "rising", "negative", "above 1", "nan", "2-D", "texts", "none"],
)
def test_a_table_that_is_not_alpha_bar_is_refused_with_what_it_looks_like(table, said):
    with pytest.raises(UserError, match=said):
        Denoiser.from_function(blurred, table)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_table_may_be_a_tensor_of_any_kind(dtype):
    given = torch.nn.Parameter(torch.from_numpy(TABLE[:500].copy()).to(dtype))
    assert np.allclose(Schedule(given).alphas_cumprod, TABLE[:500], atol=0.01)


# --- what is not a denoiser ---------------------------------------------------------------------------------------------


class Halving(Codec):
    """Latents of half the side; `wrong` says what is wrong with them."""

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong

    def encode(self, x):
        z = x[..., ::2, ::2]
        return {"rows": z[:1], "double": z.double(), "nan": z * torch.nan, "numpy": z.numpy()}.get(self.wrong, z)

    def decode(self, z):
        side = 3 if self.wrong == "shape" else 2
        x = z.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
        return x[:1] if self.wrong == "images" else x


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("rows", "the codec's encode must return latents"),
        ("double", "the codec's encode must return latents .* as torch.float32; got .*float64"),
        ("nan", "the autoencoder must return finite latents; got nan"),
        ("numpy", "the codec's encode must return latents .*got a ndarray"),
        ("shape", r"the codec's decode must return images of shape \(3, 8, 8\); got \(3, 12, 12\)"),
        ("images", "the codec's decode must return images, one for each of the 2 given"),
    ],
)
def test_a_codec_of_ones_own_is_checked_before_scoring(wrong, said):
    target = diffleak.Target(Denoiser.from_function(lambda x, t: 0.1 * x, TABLE), ImageShape(3, 8, 8), codec=Halving(wrong))
    with pytest.raises(UserError, match=said):
        diffleak.audit(target, members=PICTURES[:31], nonmembers=PICTURES[31:], attacks="sima", timesteps="50", threads=1)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda texts: torch.zeros(len(texts), 4), "must return the Prompts of the 3 texts .*got a Tensor"),
        (lambda texts: Prompts(tuple(texts), {"e": torch.zeros(1, 4)}, None), r"a row of e for each of the 3 texts; got shape \(1, 4\)"),
        (lambda texts: Prompts(tuple(texts), {"e": torch.full((3, 4), torch.nan)}, None), "finite numbers; e has NaN"),
        (lambda texts: Prompts(tuple(texts)[::-1], {"e": torch.zeros(3, 4)}, None), "in their order"),
    ],
    ids=["tensor", "one row", "nan", "another order"],
)
def test_a_text_encoder_of_ones_own_is_checked(made, said):
    with pytest.raises(UserError, match=said):
        one_at_a_time(made)(["a", "b", "c"])


def test_an_extractor_of_ones_own_may_not_change_its_length_nor_the_images_it_is_given():
    images, given = PICTURES[:4].copy(), iter((2, 3))
    with pytest.raises(UserError, match="must return features of one length; got 2, then 3"):
        extract(open_extractor(lambda x: torch.zeros(len(x), next(given))), [images, images])
    with pytest.raises(UserError, match=r"must return features of shape \(4, d\); got \(4, 0\)"):
        extract(open_extractor(lambda x: torch.zeros(len(x), 0)), [images])

    def paints(array):
        array[:] = 0
        return np.ones((len(array), 2), dtype=np.float32)

    extract(diffleak.hub.encoders.Extractor("paints", "x", paints), [images])
    np.testing.assert_array_equal(images, PICTURES[:4])


def test_a_call_that_another_base_class_brings_is_checked_too():
    class Module(torch.nn.Module, Denoiser):
        schedule = Schedule(TABLE)

        def forward(self, x_t, t, cond=None):
            return x_t.mean(1, keepdim=True)

    with pytest.raises(UserError, match=r"the denoiser Module must return the noise as a tensor like x_t"):
        Module()(X, 5)


def test_a_failing_function_is_told_its_arguments_only_where_they_may_be_the_reason():
    def fails(x_t, t):
        raise RuntimeError("out of luck")

    with pytest.raises(UserError, match=r"^predict_noise fails for x_t of .* with RuntimeError: out of luck"):
        Denoiser.from_function(fails, TABLE)(X, 5)
    with pytest.raises(UserError, match=r"^predict_noise must take \(x_t, t\); predict_noise fails"):
        Denoiser.from_function(lambda x_t: x_t, TABLE)(X, 5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda x, t: torch.randn_like(x), "when it is called again"),
        (lambda x, t: x - x.mean(0, keepdim=True), "when it is given an image alone"),
        (torch.nn.Dropout(0.5), "when it is called again"),
    ],
    ids=["random", "of the whole batch", "in training mode"],
)
def test_a_model_that_answers_otherwise_each_time_is_refused_before_scoring(wrong, said):
    predict = (lambda x, t: wrong(x)) if isinstance(wrong, torch.nn.Module) else wrong
    with pytest.raises(UserError, match=f"must give an image the same answer each time; .*{said}: put its network into eval mode"):
        audited(predict, "sima")


def test_a_model_whose_answer_is_the_same_for_every_image_is_warned_of():
    denoiser = Denoiser.from_function(lambda x, t: torch.ones_like(x), TABLE)
    audit = diffleak.audit(
        denoiser, members=MEMBERS, nonmembers=HELD_OUT, attacks=["sima", "loss"], timesteps="50:100:50", allow_shift=True
    )
    said = [w for w in audit.record.warnings if "the same score" in w]
    assert said == ["sima gives every image the same score, so it measured nothing: does the model's answer depend on the image?"]


def test_an_excess_over_the_model_itself_asks_of_the_reference_and_not_of_the_model():
    given = {"members": MEMBERS, "nonmembers": HELD_OUT, "attacks": ["sima"], "timesteps": "50:100:50", "allow_shift": True}
    itself = lambda name: diffleak.Target(Denoiser.from_function(lambda x, t: x * 0.5, TABLE), **name)
    said = lambda name: diffleak.audit(itself(name), reference=itself(name), **given).record.warnings
    unknown = [line for line in said({}) if "the same score" in line]
    assert unknown == ["sima[excess] gives every image the same score, so it measured nothing: is the reference the model itself?"]
    known = said({"fingerprint": "one"})
    assert "the reference is the model itself: there is no excess over it" in known and "the same score" not in " ".join(known)
