"""The statistics from pure noise, their weighted sum, and the map: known answers, closed forms, other kinds of models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.prompts import PLAIN, QUICK, SECRET, Strengths, Words, planted, spoken

from diffleak import hub
from diffleak.data.pixels import ImageShape
from diffleak.diffusion.analytic import linear_schedule
from diffleak.diffusion.codec import Codec
from diffleak.diffusion.denoiser import Denoiser
from diffleak.diffusion.dual import Dual
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.schedule import Schedule
from diffleak.diffusion.target import Target
from diffleak.errors import UserError
from diffleak.prompts.config import PromptsConfig
from diffleak.prompts.score import find_memorised
from diffleak.prompts.statistics import alignment, asked_at
from diffleak.records.prompts import PromptsRecord
from diffleak.work.files import write_text

NOISE = {"draw": False, "steps": 4, "seed": 3}


def of_noise(found) -> dict[str, tuple[float, float]]:
    return {row.prompt: (row.noise_norm, row.alignment) for row in found.record.prompts}


def tilted(x: torch.Tensor) -> torch.Tensor:
    """A prediction along the first channel everywhere."""
    return torch.stack([torch.full_like(x[:, 0], 2.0), torch.zeros_like(x[:, 0])], dim=1)


def test_a_prompt_that_pushes_along_across_and_against_the_prediction_has_alignment_1_0_and_minus_1():
    found = of_noise(find_memorised(spoken(tilted), prompts=["3 0", "0 3", "-3 0", "4 3", "0 0"], **NOISE))
    size = 15**0.5  # of 3 x 5 pixels
    assert found["3 0"] == pytest.approx((3 * size, 1.0), abs=1e-12)
    assert found["0 3"] == pytest.approx((3 * size, 0.0), abs=1e-12)
    assert found["-3 0"] == pytest.approx((3 * size, -1.0), abs=1e-12)
    assert found["4 3"] == pytest.approx((5 * size, 0.8), abs=1e-12)
    assert found["0 0"] == (0.0, 0.0), "a prompt that changes nothing is aligned with nothing"


def test_vectors_of_zeros_are_aligned_with_nothing_and_tiny_ones_as_large_ones():
    assert of_noise(find_memorised(spoken(torch.zeros_like), prompts=["3 4"], **NOISE))["3 4"][1] == 0.0
    half = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]).transpose(0, 1)[None, :, 0]  # of two pixels, one is zero
    assert float(alignment(half, half)) == 0.5
    assert float(alignment(half * 1e-30, half)) == pytest.approx(0.5)


def test_noise_norm_and_alignment_of_a_gaussian_are_those_of_its_closed_form():
    """A model whose data are N(m, v) without a prompt and N(m + what it says, v) with it."""
    schedule, v = linear_schedule(), 0.3
    kept = schedule.alphas_cumprod

    def eps(x, t, mean):
        return (1 - kept[t]) ** 0.5 * (x - kept[t] ** 0.5 * mean) / (kept[t] * v + 1 - kept[t])

    def predict(x, t, cond):
        return eps(x, t, 0.2 + cond.tensors["numbers"].to(x)[:, :, None, None])

    target = Target(Denoiser.from_function(predict, kept), ImageShape(2, 3, 5), text=Words(), dtype="float64", fingerprint="f")
    found = of_noise(find_memorised(target, prompts=["1.5 -0.5", "0.1 2"], images=2, **NOISE))
    for text, (noise_norm, cosine) in found.items():
        said, norms, cosines = np.array([float(word) for word in text.split()]).reshape(2, 1, 1), [], []
        for number in range(2):
            z = Noise(3, (f"{number}\0{text}",), (2, 3, 5), torch.float64, stream="prompts")(0)[0].numpy()
            norms.append(np.linalg.norm(eps(z, 750, 0.2 + said) - eps(z, 750, 0.2)))
            without, added = eps(z, 500, 0.2), eps(z, 500, 0.2 + said) - eps(z, 500, 0.2)
            lengths = np.sqrt((without**2).sum(axis=0)) * np.sqrt((added**2).sum(axis=0))
            cosines.append(((without * added).sum(axis=0) / lengths).mean())
        assert (noise_norm, cosine) == pytest.approx((np.mean(norms), np.mean(cosines)), rel=1e-9)


@pytest.mark.parametrize(("steps", "timesteps"), [(50, (980, 40)), (4, (750, 500)), (3, (666, 666)), (2, (500, 500)), (1, (0, 0))])
def test_noise_is_asked_about_at_the_first_and_the_third_last_timestep_of_the_sampler(steps, timesteps):
    assert asked_at(hub.new_sampler("ddim", linear_schedule(), steps, clip=False)) == timesteps


def test_without_drawing_the_scores_from_noise_are_the_same_at_four_forwards_and_the_others_are_null(capsys):
    calls: list[int] = []
    whole = of_noise(find_memorised(planted(), SECRET, PLAIN, images=2, **QUICK))
    found = find_memorised(planted(lambda: calls.append(1)), SECRET, PLAIN, images=2, batch_size=1, threads=1, **NOISE)
    assert all(of_noise(found)[text] == pytest.approx(pair, rel=1e-9) for text, pair in whole.items())
    assert len(calls) == 26 * 2 * 2 and found.record.costs.forwards == 26 * 2 * 4
    assert "plan: 26 prompts, 2 noises each at timesteps 750 and 500, nothing drawn; 208 forwards" in capsys.readouterr().err
    assert {(row.t_error, row.magnitude) for row in found.record.prompts} == {(None, None)}
    norms = [row.noise_norm for row in found.record.prompts]
    assert norms == sorted(norms, reverse=True) and found.pictures() == ()
    assert [result.attack for result in found.record.results] == ["noise_norm", "alignment"]
    assert found.record.warnings[0] == "nothing was drawn (--no-draw): there is no magnitude, no t-error, and no image to look at"
    plan = found.record.plan
    assert (plan.draw, plan.guidance_scale, plan.timestep, plan.k) == (False, None, None, None)
    assert (plan.noise_norm_timestep, plan.alignment_timestep) == (750, 500)


def test_settings_of_drawn_images_are_refused_without_drawing():
    with pytest.raises(UserError, match="--guidance-scale and --timestep must be left out with --no-draw"):
        find_memorised(planted(), prompts=PLAIN, guidance_scale=7.5, timestep=90, **NOISE)
    short = Target(planted().denoiser.from_function(lambda x, t, cond: x, [0.9, 0.5, 0.1, 0.01]), ImageShape(1, 4, 4), text=Strengths())
    find_memorised(short, prompts=PLAIN, **NOISE)  # where the t-error would have no timestep
    assert PromptsConfig(model="m", draw=False, prompts=Path("a.txt")).command == "diffleak prompts m --prompts a.txt --no-draw"


# --- the weighted sum ---------------------------------------------------------------------------------------------------


def lists(memorised, ordinary) -> tuple[list[str], list[str]]:
    """50 prompts a list of the two numbers that each adds to the prediction, by its number."""
    return [memorised(i) for i in range(50)], [ordinary(i) for i in range(50)]


def test_the_weights_follow_the_term_that_tells_the_lists_apart_and_are_read_on_other_prompts():
    """Memorised prompts push along the prediction, ordinary ones across it, both as far."""
    along, across = lists(lambda i: f"{1 + i / 50} 0.001", lambda i: f"0.001 {1 + i / 50}")
    results = {result.attack: result for result in find_memorised(spoken(tilted), along, across, **NOISE).record.results}
    found = results["noise_sum"]
    assert 0.3 < results["noise_norm"].auc.value < 0.7 and results["alignment"].auc.value == 1.0
    assert found.auc.value == 1.0 and float(found.setting.removeprefix("w=")) > 0 and found.rule == "clid"
    assert (found.n_members, found.n_nonmembers, found.queries) == (40, 40, 4)


def test_a_sum_finds_what_neither_term_does_alone():
    """Half of the memorised prompts push far, half along the prediction."""
    both, neither = lists(lambda i: f"0.01 {6 + i / 50}" if i % 2 else f"{1 + i / 50} 0", lambda i: f"0.01 {1 + i / 50}")
    results = {result.attack: result for result in find_memorised(spoken(tilted), both, neither, **NOISE).record.results}
    assert max(results["noise_norm"].auc.value, results["alignment"].auc.value) < 0.95 < results["noise_sum"].auc.value


def test_with_too_few_labelled_prompts_the_terms_stand_alone_and_the_record_says_why():
    record = find_memorised(planted(), SECRET, PLAIN, **NOISE).record
    assert [result.attack for result in record.results] == ["noise_norm", "alignment"]
    needed = "their weights are chosen on a fifth of the prompts, for which each list must hold 50; got 14 memorised and 12 ordinary"
    assert record.warnings[-1] == f"noise norm and alignment were not summed: {needed}"


# --- other kinds of models ----------------------------------------------------------------------------------------------


def test_of_two_models_that_take_turns_the_larger_norm_and_the_larger_alignment_count():
    add = lambda scale, channel: (
        lambda x, t, cond: tilted(x) + torch.roll(scale * cond.tensors["numbers"].to(x)[:, :, None, None], channel, 1)
    )
    models = [Denoiser.from_function(add(*keys), linear_schedule().alphas_cumprod) for keys in ((1.0, 0), (3.0, 1))]
    keys = {"shape": ImageShape(2, 3, 5), "text": Words(), "dtype": "float64", "fingerprint": "f"}
    one, other, both = (of_noise(find_memorised(Target(each, **keys), prompts=["1 0"], **NOISE)) for each in (*models, Dual(tuple(models))))
    assert both["1 0"] == (other["1 0"][0], one["1 0"][1]) and other["1 0"][0] > one["1 0"][0]


def test_a_model_of_flow_matching_is_asked_about_its_predicted_noise():
    schedule = Schedule.flow(np.linspace(0.001, 1, 1000))
    model = Denoiser.from_function(lambda x, t, cond: tilted(x) + cond.tensors["numbers"].to(x)[:, :, None, None], [0.9, 0.1])
    object.__setattr__(model, "schedule", schedule)
    target = Target(model, ImageShape(2, 3, 5), text=Words(), dtype="float64", fingerprint="f")
    found = find_memorised(target, prompts=["4 3"], **NOISE)
    assert of_noise(found)["4 3"] == pytest.approx((5 * 15**0.5, 0.8))
    assert (found.record.plan.noise_norm_timestep, found.record.plan.alignment_timestep) == (998, 665)


# --- the map ------------------------------------------------------------------------------------------------------------


def test_the_map_is_nothing_where_the_prompt_changes_nothing_and_sums_up_to_the_squared_magnitude():
    where = torch.zeros(3, 5)
    where[0, 3], where[2, 1] = 1.0, 2.0
    (picture,) = find_memorised(spoken(lambda x: x, where), prompts=["3 4"], **QUICK).pictures()
    np.testing.assert_allclose(picture.map, 25 * where.numpy() ** 2)
    assert picture.map.sum() == pytest.approx(picture.score.magnitude**2)


def test_the_highest_prompts_have_pictures_and_those_of_an_interrupted_run_come_from_its_folder(tmp_path):
    def never():
        raise AssertionError("what was drawn is not drawn again")

    found = find_memorised(planted(), SECRET, PLAIN, output=tmp_path, **QUICK)
    again = find_memorised(planted(never), SECRET, PLAIN, output=tmp_path, **QUICK)
    first, second = found.pictures(), again.pictures()
    assert [picture.score for picture in first] == list(found.record.prompts[:12])
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.image, other.image) and np.array_equal(one.map, other.map)


def test_what_the_autoencoder_cannot_decode_has_a_map_and_no_image():
    """Half-precision decoders overflow; two channels are no image."""

    class Overflows(Codec):
        def encode(self, x):
            return x

        def decode(self, z):
            return torch.where(z[:, :1, :1, :1] == z[:1, :1, :1, :1], z / 0, 9 * z)

    keys = {"shape": ImageShape(1, 4, 4), "text": Strengths(), "fingerprint": "f"}
    found = find_memorised(Target(planted().denoiser, codec=Overflows(), **keys), prompts=SECRET[:3], **QUICK).pictures()
    assert [picture.image is None for picture in found] == [True, False, False] and all(picture.map.min() > 0 for picture in found)
    assert find_memorised(spoken(tilted), prompts=["1 2"], **QUICK).pictures()[0].image is None


# --- earlier versions ---------------------------------------------------------------------------------------------------


def earlier(record: dict) -> dict:
    """A record as version 2 wrote it."""
    plan = {key: value for key, value in record["plan"].items() if key not in ("draw", "noise_norm_timestep", "alignment_timestep")}
    prompts = [{key: row[key] for key in ("prompt", "memorised", "t_error", "magnitude")} for row in record["prompts"]]
    results = [result for result in record["results"] if result["attack"] in ("magnitude", "t_error")]
    return {**record, "schema_version": 2, "plan": {**plan, "schema_version": 2}, "prompts": prompts, "results": results}


def test_a_record_of_the_earlier_version_opens_with_its_own_numbers(tmp_path):
    from diffleak.records.base import read_json

    record = find_memorised(planted(), SECRET, PLAIN, **QUICK).record
    write_text(tmp_path / "prompts.json", json.dumps(earlier(record.model_dump(mode="json"))))
    read = read_json(tmp_path / "prompts.json", PromptsRecord)
    assert [row.magnitude for row in read.prompts] == [row.magnitude for row in record.prompts]
    assert {row.noise_norm for row in read.prompts} == {None} and len(read.results) == 2


def test_the_folder_of_the_earlier_version_is_one_line(tmp_path):
    record = find_memorised(planted(), SECRET, PLAIN, output=tmp_path, **QUICK).record
    (tmp_path / "prompts" / "plan.json").write_text(json.dumps(earlier(record.model_dump(mode="json"))["plan"]))
    with pytest.raises(UserError, match="holds scores of another version of the plan \(2, now 3\); choose another folder"):
        find_memorised(planted(), SECRET, PLAIN, output=tmp_path, **QUICK)
