"""Training of text-to-image models: what changes and what stays, the loss, captions, adapters, resumption, defences, refusals."""

import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from fixtures import single_file
from fixtures.text import CAPTIONS, KINDS, SIDE, autoencoder, pipeline, text_folder
from PIL import Image
from safetensors.torch import load_file, save_file

import diffleak
from diffleak import hub
from diffleak.data.pixels import ImageShape, fit, to_model
from diffleak.defenses.config import defend_config
from diffleak.defenses.defend import defend
from diffleak.errors import UserError
from diffleak.hub.making import LORA_TARGETS
from diffleak.training import text_to_image
from diffleak.training.distillation import Lesson
from diffleak.training.images import crop_place, read_training_data
from diffleak.training.text_to_image import CHOICES, TextToImageLoss, embed_all, load_base, text_to_image_task
from diffleak.training.text_to_image import views as views_of

N = len(CAPTIONS)
TEXTS = {f"{i}.png": [CAPTIONS[i], f"other {i}", f"third {i}"] for i in range(N)}
NETWORK = {
    "layers_per_block": 1,
    "block_out_channels": [8, 8],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
ENCODER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The tiny pipeline of a kind, saved once."""
    root = tmp_path_factory.mktemp("bases")
    return lambda kind="sd": root / kind if (root / kind).exists() else text_folder(root / kind, kind)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("data"))


def image_folder(folder: Path, width: int = SIDE, height: int = SIDE, told=lambda i: {"text": CAPTIONS[i % N]}, n: int = N) -> Path:
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": f"{i}.png", **told(i)}) for i in range(n)))
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """As many images as an audit needs."""
    return image_folder(tmp_path_factory.mktemp("many"), n=20)


def settings(data, output, base=None, preset=None, **changes):
    given = {"data": str(data), "output": output, "base": base and str(base), "steps": 4, "batch_size": 4, "warmup_steps": 0}
    return diffleak.train_config(preset, None, **{**given, "learning_rate": 1e-3, "device": "cpu", "threads": 1, **changes})


def part(folder: Path) -> str:
    return "transformer" if (folder / "transformer").is_dir() else "unet"


def weights(folder: Path, name: str | None = None) -> dict[str, torch.Tensor]:
    return {k: v for file in sorted((folder / (name or part(folder))).glob("*.safetensors")) for k, v in load_file(file).items()}


def adapters(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "pytorch_lora_weights.safetensors")


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def record(folder: Path) -> dict:
    return json.loads((folder / "train.json").read_text())


def captions_file(path: Path, texts=TEXTS) -> Path:
    path.write_text(json.dumps(texts))
    return path


def task_of(config, lesson=None):
    base = load_base(config, "cpu")
    found = read_training_data(config, text_to_image.base_shape(config, base[1]))
    torch.manual_seed(0)
    return text_to_image_task(config, base, found, lesson), found, base[1]


# ---- what training leaves


@pytest.mark.parametrize("kind", KINDS)
def test_fine_tuning_leaves_the_same_pipeline_with_nothing_but_its_denoiser_changed(kind, bases, data, tmp_path):
    base = bases(kind)
    folder = diffleak.train(settings(data, tmp_path / "model", base, steps=2, resize=SIDE))
    loaded = diffusers.DiffusionPipeline.from_pretrained(folder)
    assert type(loaded) is type(pipeline(kind))
    target, before = hub.load(folder, device="cpu"), hub.load(base, device="cpu")
    assert target.text and target.shape == before.shape and target.denoiser.prediction_type == before.denoiser.prediction_type
    assert target.fingerprint != before.fingerprint
    trained, own = weights(folder), weights(base)
    assert trained.keys() == own.keys() and sum(not torch.equal(trained[k], own[k]) for k in own) > len(own) // 2
    for kept in sorted(path.name for path in base.iterdir() if path.is_dir() and path.name != part(base)):
        for file in (base / kept).iterdir():
            assert (folder / kept / file.name).read_bytes() == file.read_bytes(), file
    assert record(folder)["base_fingerprint"] == before.fingerprint
    assert str(tmp_path) not in (folder / part(folder) / "config.json").read_text()


def test_a_base_with_a_safety_checker_leaves_a_folder_that_diffusers_still_loads(bases, data, tmp_path):
    shutil.copytree(bases(), tmp_path / "base")
    index = json.loads((tmp_path / "base" / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    (tmp_path / "base" / "model_index.json").write_text(json.dumps(index))
    teachers = [diffleak.train(settings(data, tmp_path / name, tmp_path / "base", steps=1)) for name in "ab"]
    hub.save_dual(tmp_path / "dual", tuple(teachers))
    for folder in (*teachers, tmp_path / "dual"):
        assert diffusers.DiffusionPipeline.from_pretrained(folder).safety_checker is None


def test_a_model_that_takes_any_size_is_trained_on_images_of_the_size_asked_for(bases, data, tmp_path):
    config = settings(data, tmp_path / "model", bases("flux"), resize=8)
    task, _, _ = task_of(config)
    assert task.inputs.shape == (N, 1, 4, 4, 4)


# ---- the loss


def oracle(kind: str, scheduler, x0, noise, t):
    """x_t and the target, as the scheduler of diffusers itself makes them."""
    if kind == "flow":
        x_t = scheduler.scale_noise(x0, scheduler.timesteps.flip(0)[t], noise)
        return x_t, noise - x0
    known = {"epsilon": lambda: noise, "v_prediction": lambda: scheduler.get_velocity(x0, noise, t), "sample": lambda: x0}
    return scheduler.add_noise(x0, noise, t), known[kind]()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
def test_the_loss_is_the_plain_formula_of_every_prediction_type(kind, bases, data, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(bases("sd3" if kind == "flow" else "sd"), base)
    if kind != "flow":
        path = base / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": kind}))
    task, found, target = task_of(settings(data, tmp_path / "model", base))
    network, table = target.denoiser.network.double().eval(), target.denoiser.schedule
    if kind == "flow":
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(base / "scheduler")
    else:
        scheduler = diffusers.DDPMScheduler.from_config(json.loads((base / "scheduler" / "scheduler_config.json").read_text()))
    generator = torch.Generator().manual_seed(3)
    t = torch.tensor([0, 17, 500, 998])
    views = torch.from_numpy(task.inputs[:4]).double()
    noise = torch.randn(views[:, 0].shape, generator=generator, dtype=torch.float64)
    index, counts, _ = (torch.from_numpy(given[:4]) for given in task.given)
    task.module._fixed = (target.denoiser, {k: v.double() for k, v in task.module._fixed[1].items()}, ())
    loss = task.module(views, index, counts, torch.zeros(4, dtype=torch.long), t, noise, torch.full((4, CHOICES), 0.5, dtype=torch.float64))
    pixels = torch.from_numpy(to_model(found.images[:4]))
    config = target.codec.network.config
    with torch.no_grad():
        shift = getattr(config, "shift_factor", None) or 0.0
        x0 = ((target.codec.network.encode(pixels).latent_dist.mode() - shift) * config.scaling_factor).double()
        x_t, goal = oracle(kind, scheduler, x0, noise, t)
        losses = []
        for i in range(4):
            told = {k: v.double() for k, v in target.text([CAPTIONS[int(found.members[i].split(".")[0])]]).tensors.items()}
            if kind == "flow":
                time = scheduler.timesteps.flip(0)[t[i]].double().reshape(1)
                predicted = network(x_t[i : i + 1].double(), timestep=time, **told).sample
            else:
                predicted = network(x_t[i : i + 1].double(), t[i : i + 1], **told).sample
            losses.append((predicted - goal[i : i + 1]).square().mean())
    np.testing.assert_allclose(float(loss), float(torch.stack(losses).mean()), rtol=1e-4)
    assert len(table) == 1000


def test_the_loss_is_the_same_whether_embeddings_are_kept_or_made_anew(bases, data, tmp_path):
    task, _, target = task_of(settings(data, tmp_path / "model", bases()))
    fresh = hub.load(bases(), device="cpu")
    distinct = [*sorted(CAPTIONS), ""]
    assert torch.equal(
        task.module._fixed[1]["encoder_hidden_states"], torch.cat([fresh.text([c]).tensors["encoder_hidden_states"] for c in distinct])
    )
    kept = task.module._fixed[1]
    draws = task.draw(3, torch.Generator().manual_seed(0))
    arguments = (torch.from_numpy(task.inputs[:3]), *(torch.from_numpy(given[:3]) for given in task.given), *draws)
    task.module.eval()
    once = task.module(*arguments)
    task.module._fixed = (target.denoiser, {k: torch.cat([fresh.text([c]).tensors[k] for c in distinct]) for k in kept}, ())
    assert torch.equal(once, task.module(*arguments))


def test_every_distinct_caption_is_embedded_once(bases):
    target, asked = hub.load(bases(), device="cpu"), []
    embed, target.text._embed = target.text._embed, None
    target.text._embed = lambda pipe, text: asked.extend(text) or embed(pipe, text)
    index, embeddings = embed_all(target, (("moon", "a house"), ("moon",), ("a house", "", "moon")))
    assert sorted(asked) == ["", "a house", "moon"]
    assert index.tolist() == [[1, 0, 0], [1, 1, 1], [0, 2, 1]]
    assert {len(value) for value in embeddings.values()} == {3}


# ---- captions


class Spy(torch.nn.Module):
    """A network that answers zero and notes the embeddings and inputs that it is given."""

    def __init__(self):
        super().__init__()
        self.told, self.seen = [], []

    def forward(self, x_t, time, conditions):
        self.told += conditions["c"].flatten().tolist()
        self.seen += list(x_t)
        return torch.zeros_like(x_t)


def spied(count, texts=3, dropout=0.0, views=1, rows=3000, seed=0):
    """Which texts (3 means none) and which views `rows` draws of one image take."""
    spy, schedule = Spy(), diffleak.Schedule(np.linspace(0.9999, 0.9, 10))
    denoiser = hub.loading.NetworkDenoiser(spy, schedule, ask=lambda network, x, t, c: network(x, t, c))
    loss = TextToImageLoss(denoiser, {"c": torch.arange(texts + 1.0)[:, None]}, dropout)
    x = torch.arange(views * 1.0).reshape(1, views, 1, 1, 1).expand(rows, views, 1, 1, 1)
    choices = torch.rand((rows, CHOICES), generator=torch.Generator().manual_seed(seed))
    long = lambda value: torch.full((rows,), value, dtype=torch.long)
    index = torch.arange(texts).expand(rows, texts)
    loss(x, index, long(count), long(0), long(0), torch.zeros(rows, 1, 1, 1), choices)
    return np.bincount(np.array(spy.told, dtype=int), minlength=texts + 1), torch.stack(spy.seen).flatten() / schedule.signal[0]


def test_diversification_draws_each_text_in_about_equal_shares():
    told, _ = spied(count=3)
    assert told[3] == 0 and all(abs(n - 1000) < 4 * np.sqrt(3000 * 2 / 9) for n in told[:3])
    assert spied(count=1)[0].tolist() == [3000, 0, 0, 0]
    assert spied(count=2)[0][2] == 0, "texts that only pad a row are never drawn"


def test_caption_dropout_is_the_share_without_a_caption():
    told, _ = spied(count=1, dropout=0.25)
    assert abs(told[3] - 750) < 4 * np.sqrt(3000 * 3 / 16) and told[0] + told[3] == 3000


def test_every_view_is_drawn_in_about_equal_shares_whatever_the_text():
    _, seen = spied(count=3, views=4)
    assert all(abs(int((seen.round() == view).sum()) - 750) < 4 * np.sqrt(3000 * 3 / 16) for view in range(4))


def test_captions_are_the_first_text_or_with_diversify_all_of_the_data_or_a_file(bases, data, tmp_path):
    shape = ImageShape(3, SIDE, SIDE)
    told = lambda folder=data, **changes: dict(
        zip(
            *(lambda found: (found.members, found.captions))(
                read_training_data(settings(folder, tmp_path / "m", bases(), **changes), shape)
            ),
            strict=True,
        )
    )
    file = captions_file(tmp_path / "texts.json")
    assert told() == told(captions="own") == {f"{i}.png": (CAPTIONS[i],) for i in range(N)}
    assert told(captions=str(file)) == told()
    assert told(captions=str(file), diversify=True) == {name: tuple(texts) for name, texts in TEXTS.items()}
    (tmp_path / "more").mkdir()
    own = image_folder(tmp_path / "more", told=lambda i: {"text": CAPTIONS[i], "captions": [f"other {i}"]})
    assert told(own, diversify=True)["3.png"] == (CAPTIONS[3], "other 3") and told(own)["3.png"] == (CAPTIONS[3],)


def test_diversification_needs_images_with_several_texts(bases, data, tmp_path):
    with pytest.raises(UserError, match="--diversify draws one of the texts that an image has, and no image has more than one"):
        diffleak.train(settings(data, tmp_path / "m", bases(), diversify=True))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("unet", "the loss is nan before the first step: conv_in.weight of the UNet2DConditionModel holds NaN; start from a model"),
        (
            "vae",
            "the autoencoder must return finite latents; got nan for image 1 of 8: encoder.conv_in.weight of the AutoencoderKL holds NaN",
        ),
        ("text_encoder", "the text encoder must return finite numbers; encoder_hidden_states has NaN or infinity: .* of the CLIPTextModel"),
    ],
)
def test_a_base_whose_weights_hold_nan_is_refused_before_the_first_step_with_the_weight(bases, data, tmp_path, part, said):
    base = Path(shutil.copytree(bases(), tmp_path / "base"))
    (file,) = (base / part).glob("*.safetensors")
    state = load_file(file)
    name = next(key for key in sorted(state) if key.endswith(("conv_in.weight", "final_layer_norm.weight")) and "decoder" not in key)
    state[name].view(-1)[0] = torch.nan
    save_file(state, file, {"format": "pt"})
    with pytest.raises(UserError, match=said):
        diffleak.train(settings(data, tmp_path / "m", base, steps=1))


def test_captions_that_are_cut_are_counted_before_training(bases, tmp_path, capsys):
    long = image_folder(tmp_path, told=lambda i: {"text": CAPTIONS[i] + (" moon" * 200 if i in (2, 5) else "")})
    diffleak.train(settings(long, tmp_path / "m", bases(), steps=1))
    said = f"2 of {N} captions are longer than the text encoder reads: only the beginning is read (first: "
    assert said in capsys.readouterr().err


def test_a_damaged_checkpoint_or_record_is_one_line(bases, data, tmp_path, monkeypatch):
    folder = diffleak.train(settings(data, tmp_path / "m", bases(), steps=1))
    again = lambda: diffleak.train(settings(data, folder, bases(), steps=2))
    (folder / "checkpoint" / "sha256.json").unlink()  # of an earlier version
    files = [file for file in (folder / "checkpoint").iterdir() if not file.name.startswith("random_states")]  # no step depends on those
    assert len(files) >= 3
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=r"checkpoint cannot be read \(.+\); if its files are damaged, delete it") as caught:
            again()
        assert "\n" not in str(caught.value)
        file.write_bytes(whole)
    from accelerate import Accelerator

    for error in (RuntimeError("CUDA error: device-side assert"), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with monkeypatch.context() as patch:
            patch.setattr(Accelerator, "load_state", lambda *_, error=error: (_ for _ in ()).throw(error))
            with pytest.raises((RuntimeError, UserError)) as caught:
                again()
        assert "delete" not in str(caught.value)
    record = (folder / "train.json").read_text()
    for content in ("{", "[]", '[["ab", 1]]', "\ud800"):
        (folder / "train.json").write_bytes(content.encode("utf-8", "surrogatepass"))
        with pytest.raises(UserError, match=r"train.json cannot be read \(.+\); choose another -o, or delete .* to begin again"):
            again()
    (folder / "train.json").write_text(record)
    again()


def test_training_with_other_captions_is_another_run(bases, data, tmp_path):
    file = captions_file(tmp_path / "texts.json")
    folder = diffleak.train(settings(data, tmp_path / "model", bases(), captions=str(file), steps=1))
    ids = list(TEXTS)
    captions_file(file, {name: TEXTS[ids[(k + 1) % N]] for k, name in enumerate(ids)})
    with pytest.raises(UserError, match=r"holds another training run \(another set of captions"):
        diffleak.train(settings(data, folder, bases(), captions=str(file), steps=2))


def test_an_image_without_a_caption_is_refused(bases, data, tmp_path):
    (tmp_path / "none").mkdir()
    gap = image_folder(tmp_path / "none", told=lambda i: {"text": CAPTIONS[i]} if i != 5 else {})
    with pytest.raises(UserError, match=r"must have a caption for every image; 1 of 8 has none \(first: 5.png; .* 0.png\): add a `text`"):
        diffleak.train(settings(gap, tmp_path / "model", bases()))
    file = captions_file(tmp_path / "texts.json", {name: TEXTS[name] for name in list(TEXTS)[:6]})
    with pytest.raises(
        UserError,
        match=r"texts.json must have a caption for every image; 2 of 8 have none \(first: 6.png; it has names such as .*\): add them",
    ):
        diffleak.train(settings(data, tmp_path / "model", bases(), captions=str(file)))


# ---- flips and crops


def test_views_are_the_latents_of_crops_keyed_by_id_and_seed_and_of_their_mirror_images(bases, tmp_path):
    (tmp_path / "wide").mkdir()
    wide = image_folder(tmp_path / "wide", width=40, height=20)
    config = settings(wide, tmp_path / "model", bases(), resize=SIDE, random_crops=3, flip=True, seed=5)
    task, found, target = task_of(config)
    assert task.inputs.shape[:2] == (N, 6)
    shape = ImageShape(3, SIDE, SIDE)
    for row, name in enumerate(found.members[:3]):
        pixels = np.asarray(Image.open(wide / name))
        crops = [fit(pixels, shape, True, name, crop_place(5, name, k)) for k in range(3)]
        both = np.stack([*crops, *(crop[:, ::-1] for crop in crops)])
        expected = target.codec.encode(torch.from_numpy(to_model(both))).numpy()
        np.testing.assert_allclose(task.inputs[row], expected, rtol=1e-4, atol=1e-5)
        assert len(np.unique(task.inputs[row].reshape(6, -1), axis=0)) >= 4, "two of three crops may fall on the same place"
    assert crop_place(5, "0.png", 0) != crop_place(6, "0.png", 0) and crop_place(5, "0.png", 0) != crop_place(5, "1.png", 0)
    assert crop_place(5, "0.png", 0) == crop_place(5, "0.png", 0)
    plain = config.model_copy(update={"flip": False, "random_crops": None})
    central = read_training_data(plain, shape)
    np.testing.assert_array_equal(central.images[0], fit(np.asarray(Image.open(wide / found.members[0])), shape, True, ""))
    assert views_of(target, central.images, plain).shape[:2] == (N, 1)


def test_flips_and_crops_are_recorded(bases, data, tmp_path):
    folder = diffleak.train(settings(data, tmp_path / "m", bases(), flip=True, random_crops=2, resize=SIDE, steps=1, caption_dropout=0.1))
    assert {key: record(folder)[key] for key in ("flip", "random_crops", "caption_dropout")} == {
        "flip": True,
        "random_crops": 2,
        "caption_dropout": 0.1,
    }


# ---- resumption


@pytest.mark.parametrize("kind", ["sd", "sd3"])
@pytest.mark.parametrize("rank", [None, 2])
def test_a_run_stopped_at_a_checkpoint_continues_as_if_it_had_not_been(kind, rank, bases, data, tmp_path, monkeypatch):
    file = captions_file(tmp_path / "texts.json")
    changes = {"flip": True, "random_crops": 2, "resize": SIDE, "diversify": True, "captions": str(file), "caption_dropout": 0.3}
    config = lambda name: settings(data, tmp_path / name, bases(kind), lora_rank=rank, checkpoint_every=2, steps=5, **changes)
    whole = diffleak.train(config("whole"))
    forward, calls = TextToImageLoss.forward, []

    def killed(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TextToImageLoss, "forward", killed)
        with pytest.raises(KeyboardInterrupt):
            diffleak.train(config("cut"))
    assert (tmp_path / "cut" / "checkpoint").is_dir() and not (tmp_path / "cut" / "model_index.json").exists()
    cut = diffleak.train(config("cut"))
    read = adapters if rank else weights
    assert equal(read(whole), read(cut))
    other = diffleak.train(config("other").model_copy(update={"seed": 1}))
    assert not equal(read(whole), read(other))


# ---- adapters


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux"])
def test_adapters_alone_are_trained_and_diffusers_loads_them_on_the_base(kind, bases, data, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(hub, "save_lora", lambda folder, base, network: kept.append(network) or hub.making.save_lora(folder, base, network))
    monkeypatch.setattr("diffleak.training.text_to_image.hub.save_lora", hub.save_lora)
    folder = diffleak.train(settings(data, tmp_path / "model", bases(kind), lora_rank=3, resize=SIDE, learning_rate=1e-2))
    assert not (folder / "model_index.json").exists() and record(folder)["lora_rank"] == 3
    (network,) = kept
    own = weights(bases(kind))
    state = network.state_dict()
    assert {name for name, p in network.named_parameters() if p.requires_grad} == {name for name in state if "lora" in name}
    assert all(
        torch.equal(
            state[name if name in state else name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")], value
        )
        for name, value in own.items()
    )
    shapes = {value.shape for name, value in state.items() if "lora_A" in name}
    assert {shape[0] for shape in shapes} == {3} and LORA_TARGETS
    plain = diffusers.DiffusionPipeline.from_pretrained(bases(kind))
    plain.load_lora_weights(folder)
    fused = getattr(plain, part(bases(kind))).eval()
    target = hub.load(bases(kind), device="cpu")
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t, conditions = torch.tensor([500, 20]), target.text(list(CAPTIONS[:2])).tensors
    with torch.no_grad():
        ask = lambda model: target.denoiser.ask(model, x, t, conditions)
        trained, loaded, untrained = ask(network.eval()), ask(fused), ask(target.denoiser.network)
    torch.testing.assert_close(loaded, trained, rtol=1e-4, atol=1e-5)
    assert (trained - untrained).abs().max() > 1e-5


def test_adapters_of_a_pipeline_that_has_none_are_refused(bases, data, tmp_path):
    with pytest.raises(
        UserError, match=r"diffusers has no low-rank adapters for a PixArtAlphaPipeline, which .*leave out --lora-rank and the preset lora"
    ):
        diffleak.train(settings(data, tmp_path / "model", bases("pixart"), lora_rank=2))


# ---- new models


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec")
    torch.manual_seed(0)
    autoencoder().save_pretrained(folder / "vae")
    return folder


def new(data, output, codec, **changes):
    shape = {"model": NETWORK, "text_encoder": ENCODER, "kind": "text-to-image", "autoencoder": codec}
    return settings(data, output, **{**shape, **changes})


def test_a_new_model_is_made_for_an_autoencoder_and_trained_and_loads(data, codec, tmp_path):
    folder = diffleak.train(new(data, tmp_path / "model", codec, train_size=6))
    assert type(diffusers.DiffusionPipeline.from_pretrained(folder)) is diffusers.StableDiffusionPipeline
    assert hub.load(folder / "base", device="cpu").shape == hub.load(folder, device="cpu").shape == ImageShape(3, SIDE, SIDE)
    assert equal(weights(folder, "vae"), weights(codec, "vae")) and equal(
        weights(folder, "text_encoder"), weights(folder / "base", "text_encoder")
    )
    assert not equal(weights(folder), weights(folder / "base"))
    again = diffleak.train(new(data, tmp_path / "again", codec, train_size=6))
    assert equal(weights(folder), weights(again)) and record(folder)["base_fingerprint"] == record(again)["base_fingerprint"]
    assert not equal(weights(folder), weights(diffleak.train(new(data, tmp_path / "other", codec, train_size=6, seed=1))))


def test_a_new_model_killed_while_it_is_made_is_made_again_with_the_settings_of_its_run(data, codec, tmp_path, monkeypatch):
    whole = diffleak.train(new(data, tmp_path / "whole", codec))

    def killed(*_):
        raise KeyboardInterrupt

    for where in ("diffleak.training.text_to_image.hub.new_scheduler", "diffleak.training.run.load_base"):
        with monkeypatch.context() as patch:
            patch.setattr(where, killed)
            with pytest.raises(KeyboardInterrupt):
                diffleak.train(new(data, tmp_path / "cut", codec, seed=9))
    assert (tmp_path / "cut" / "base").is_dir() and not (tmp_path / "cut" / "train.json").exists()
    assert equal(weights(diffleak.train(new(data, tmp_path / "cut", codec))), weights(whole)), "of seed 0, not of seed 9"


def test_a_model_of_flow_matching_may_draw_its_middle_less_and_others_may_not(bases, data, codec, tmp_path):
    drawn = {}
    for timesteps in ("uniform", "u-shaped"):
        task, _, _ = task_of(settings(data, tmp_path / timesteps, bases("sd3"), timesteps=timesteps))
        t = task.draw(4000, torch.Generator().manual_seed(0))[0]
        drawn[timesteps] = float(((t - 500).abs() < 50).double().mean())
    assert drawn["uniform"] == pytest.approx(0.1, abs=0.02) and drawn["u-shaped"] == pytest.approx(0.055, abs=0.02)
    with pytest.raises(UserError, match="--timesteps u-shaped is for models of flow matching"):
        task_of(settings(data, tmp_path / "sd", bases(), timesteps="u-shaped"))
    with pytest.raises(UserError, match="a new text-to-image model is a Stable Diffusion, which has no flow matching; fine-tune a --base"):
        diffleak.train(new(data, tmp_path / "new", codec, scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler"}))


def test_a_new_models_words_may_come_from_a_captions_file(codec, tmp_path):
    (tmp_path / "silent").mkdir()
    silent = image_folder(tmp_path / "silent", told=lambda i: {})
    built = "must have captions, from which a new model's tokenizer is built: "
    with pytest.raises(UserError, match=f"silent {built}add a `text` to metadata.jsonl, or give --captions FILE"):
        diffleak.train(new(silent, tmp_path / "model", codec))
    (tmp_path / "blank.json").write_text(json.dumps({"0.png": " "}))
    with pytest.raises(UserError, match=f"blank.json {built}add them"):
        diffleak.train(new(silent, tmp_path / "model", codec, captions=str(tmp_path / "blank.json")))
    folder = diffleak.train(new(silent, tmp_path / "model", codec, captions=str(captions_file(tmp_path / "texts.json")), steps=1))
    assert hub.load(folder, device="cpu").text.truncated(["umbrella with rain drops"]) == []


def test_the_text_preset_is_a_new_model_and_the_others_start_from_a_base(data, codec, bases, tmp_path):
    made = settings(data, tmp_path / "m", preset="text", autoencoder=codec)
    assert made.kind == "text-to-image" and made.caption_dropout == 0.1
    assert settings(data, tmp_path / "m", bases(), preset="lora").lora_rank == 4
    assert diffleak.train_config("fine-tune", data="x", output=tmp_path, base="b").steps == 20000
    with pytest.raises(UserError, match="the preset text trains on the latents of an autoencoder: give --autoencoder FOLDER"):
        settings(data, tmp_path / "m", preset="text")
    with pytest.raises(UserError, match="is a --base MODEL that exists, or new for an --autoencoder FOLDER; this has neither"):
        settings(data, tmp_path / "m", preset="fine-tune")


def test_the_tokenizer_of_a_new_model_is_the_same_every_time_and_reads_what_it_was_built_from():
    texts = [*CAPTIONS, "a häuschen with 12 trees!"]
    made = [hub.making._new_tokenizer(order, 32) for order in (texts, texts[::-1], texts)]
    assert made[0].get_vocab() == made[1].get_vocab() == made[2].get_vocab()
    assert len(made[0]) <= hub.making.VOCABULARY and sorted(made[0].get_vocab().values()) == list(range(len(made[0])))
    for text in texts:
        tokens = made[0](text).input_ids
        assert made[0].decode(tokens, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")
        assert (tokens[0], tokens[-1]) == (made[0].bos_token_id, made[0].eos_token_id) and made[1](text).input_ids == tokens
    assert len(made[0]("umbrella with rain drops").input_ids) == 6, "a token for every word that it knows"


# ---- defences


def defence(method, data, output, base, **changes):
    given = {"data": str(data), "output": output, "base": base and str(base), "steps": 2, "batch_size": 2, "train_size": 10}
    return defend_config(
        method, None, None, **{**given, "device": "cpu", "threads": 1, "side_by_side": False, "near_duplicates": 0.0, **changes}
    )


@pytest.fixture(scope="module")
def defended(bases, many, tmp_path_factory):
    """OUT of a distillation, in which dual was made too."""
    output = tmp_path_factory.mktemp("defence") / "out"
    for method in ("distill", "dual"):
        defend(defence(method, many, output, bases()))
    return output


def test_a_text_defence_leaves_related_models_and_who_was_in_which_half(defended, bases):
    split = json.loads((defended / "split.json").read_text())
    assert not set(split["halves"][0]) & set(split["halves"][1]) and len(split["members"]) == 10
    for number, name in enumerate(("teacher-1", "teacher-2")):
        assert json.loads((defended / name / "split.json").read_text())["members"] == split["halves"][number]
        assert hub.text_fingerprint(defended / name) == hub.text_fingerprint(bases())
        assert hub.load(defended / name, device="cpu").fingerprint == split["teachers"][number]
    assert record(defended / "student")["teachers"] == split["teachers"]
    assert len({hub.fingerprint(defended / name) for name in ("teacher-1", "teacher-2", "student", "dual")}) == 4


@pytest.mark.parametrize("name", ["student", "dual"])
def test_an_audit_takes_the_models_of_a_text_defence(name, defended, many):
    run = {
        "data": str(many),
        "split": str(defended / "split.json"),
        "timesteps": "100",
        "calibration": False,
        "device": "cpu",
        "threads": 1,
    }
    done = diffleak.audit(str(defended / name), attacks="loss", **run)
    assert done.results[0].attack == "loss" and done.record.plan.captions_found == 20


def test_plain_distillation_has_a_teacher_of_everything(bases, data, tmp_path):
    student = defend(defence("one-teacher", data, tmp_path / "out", bases(), train_size=6))
    assert (tmp_path / "out" / "teacher" / "split.json").read_text() == (student / "split.json").read_text()
    assert len(record(student)["teachers"]) == 1


def test_every_caption_and_image_is_taught_by_the_teacher_of_the_other_half(defended, bases, many, tmp_path):
    split = json.loads((defended / "split.json").read_text())
    lesson = Lesson((defended / "teacher-1", defended / "teacher-2"), tuple(map(tuple, split["halves"])))
    task, found, target = task_of(settings(many, tmp_path / "m", bases(), split=defended / "split.json"), lesson)
    teachers, asked = task.module._fixed[2], []
    ask, numbers = target.denoiser.ask, {id(network): k for k, network in enumerate(teachers)}
    assert len(numbers) == 2 and not any(p.requires_grad for teacher in teachers for p in teacher.parameters())
    planted = lambda network, x, t, c: (
        asked.append(numbers[id(network)]) or torch.full_like(x, 1.0 + asked[-1]) if id(network) in numbers else 0 * ask(network, x, t, c)
    )
    object.__setattr__(target.denoiser, "ask", planted)
    for step in range(6):
        rows = task.rows(step, 2, 0)
        half = task.given[2][rows]
        assert {found.members[row] in split["halves"][step % 2] for row in rows} == {True} and set(half) == {step % 2}
        given = [torch.from_numpy(array[rows]) for array in task.given]
        loss = task.module(torch.from_numpy(task.inputs[rows]), *given, *task.draw(2, torch.Generator().manual_seed(step)))
        assert asked[-1] == 1 - step % 2 and float(loss.detach()) == (2 - step % 2) ** 2


def test_the_student_learns_the_prediction_of_its_teacher(bases, data, tmp_path):
    """With one teacher: the loss is the squared distance of the two predictions at the same x_t, caption and time."""
    teacher = diffleak.train(settings(data, tmp_path / "teacher", bases(), learning_rate=1e-2))
    task, _, target = task_of(settings(data, tmp_path / "m", bases()), Lesson((teacher,)))
    t, noise, choices = task.draw(3, torch.Generator().manual_seed(1))
    given = [torch.from_numpy(array[:3]) for array in task.given]
    task.module.eval()
    loss = task.module(torch.from_numpy(task.inputs[:3]), *given, t, noise, choices)
    taught, total = hub.load(teacher, device="cpu"), 0.0
    names = [json.loads((teacher / "split.json").read_text())["members"][i] for i in range(3)]
    for i in range(3):
        cond = target.text([CAPTIONS[int(names[i].split(".")[0])]])
        x0 = torch.from_numpy(task.inputs[i, 0])[None]
        x_t = target.denoiser.schedule.add_noise(x0, int(t[i]), noise[i][None])
        with torch.no_grad():
            total += float((target.denoiser(x_t, int(t[i]), cond) - taught.denoiser(x_t, int(t[i]), cond)).square().mean()) / 3
    assert float(loss.detach()) == pytest.approx(total, rel=1e-4) and total > 1e-6


def test_given_teachers_of_another_base_are_refused(defended, bases, many, tmp_path):
    other = pipeline("sd")
    torch.nn.init.normal_(other.text_encoder.get_input_embeddings().weight)
    other.save_pretrained(tmp_path / "other")
    split = json.loads((defended / "split.json").read_text())
    stranger = diffleak.train(
        settings(many, tmp_path / "stranger", tmp_path / "other", steps=1, split=defended / "teacher-2" / "split.json")
    )
    assert json.loads((stranger / "split.json").read_text())["members"] == split["halves"][1]
    pair = lambda *folders: ",".join(map(str, folders))
    for method in ("dual", "distill"):
        with pytest.raises(UserError, match="the two teachers must share their text encoders; theirs differ: fine-tune both from the same"):
            defend(defence(method, many, tmp_path / method, bases(), teachers=pair(defended / "teacher-1", stranger), train_size=None))
    scheduler = tmp_path / "scheduled" / "scheduler" / "scheduler_config.json"
    shutil.copytree(defended / "teacher-1", tmp_path / "scheduled")
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"beta_end": 0.03}))
    with pytest.raises(UserError, match="student and teacher must have the same noise schedule; theirs differ: train both with"):
        defend(defence("one-teacher", many, tmp_path / "scheduler", bases(), teachers=str(scheduler.parents[1]), train_size=None))
    with pytest.raises(UserError, match=r"student and teachers must share text encoders and autoencoder; .*stranger has others"):
        defend(defence("one-teacher", many, tmp_path / "one", bases(), teachers=str(stranger), train_size=None))


def test_a_student_and_its_teachers_take_captions_or_none(defended, bases, many, tmp_path, model_folder):
    for method, number in (("distill", 2), ("dual", 2), ("one-teacher", 1)):
        given = lambda *folders, number=number: {"teachers": ",".join(map(str, folders[:number])), "train_size": None}
        text = given(defended / "teacher-1", defended / "teacher-2")
        with pytest.raises(UserError, match="teacher-1 takes captions; give --base, the model it was trained from"):
            defend(defence(method, many, tmp_path / method, None, **text))
        pixels = given(model_folder("one"), model_folder("two"))
        with pytest.raises(UserError, match="one takes no captions; leave out --base"):
            defend(defence(method, many, tmp_path / method, bases(), **pixels))


# ---- refusals


def test_settings_that_do_not_fit_a_text_model_are_one_line(bases, data, codec, tmp_path, model_folder):
    base = bases()
    cases = [
        (
            {"base": str(model_folder("pixels"))},
            "--base must be a text-to-image model with one denoiser and an autoencoder; .*pixels is none",
        ),
        ({"base": str(tmp_path / "nowhere")}, "(MODEL|--base) must be a diffusers folder, a hub id .*; found nothing at .*nowhere"),
        ({"base": None, "lora_rank": 2}, "--lora-rank belongs to text-to-image models; give --base MODEL too"),
        ({"base": None, "autoencoder": codec, "kind": "text-to-image", "lora_rank": 2}, "--lora-rank adapts a model that exists"),
        ({"base": None, "captions": "own"}, "--captions belongs to text-to-image models; give --base MODEL too, or leave it out"),
        ({"base": None, "kind": "vae", "diversify": True}, "--diversify belongs to text-to-image models"),
        ({"base": None, "kind": "text-to-image"}, "this has neither"),
        ({"autoencoder": codec}, "this has both"),
        (
            {"model": NETWORK},
            "model, a key of a preset .*, is for a new model, and .* has its own: leave it out, or give --preset fine-tune$",
        ),
        (
            {"scheduler": {"num_train_timesteps": 9}},
            "scheduler, .*, is for a new model, and .* has its own: leave it out, or give --preset fine-tune$",
        ),
        ({"model": NETWORK, "lora_rank": 2}, "model, .* has its own: leave it out, or give --preset lora$"),
        ({"kind": "vae"}, "--base is a text-to-image model to fine-tune, and this trains a β-VAE: leave it out, or give another --preset"),
        ({"kind": "vq", "captions": "own"}, "--base is a .*, and this trains a VQ autoencoder: leave it out"),
        ({"base": None, "text_encoder": {"hidden_size": 8}}, "text_encoder is for a new text-to-image model: give --preset text, or"),
        ({"resize": 32}, "takes images of 16 x 16 RGB; give --resize 16, got 32"),
        ({"random_crops": 2}, "--random-crops cuts images that are resized; give --resize SIDE too"),
        ({"caption_dropout": 1.0}, "caption_dropout must be less than 1; got 1.0"),
        ({"lora_rank": 1000}, "--lora-rank must be at most 8, the width of the layers it adapts; got 1000"),
        ({"train_size": 4, "split": str(tmp_path / "split.json")}, "--split names the images to train on, and --train-size draws them"),
        ({"kl_weight": 1.0}, "--kl-weight belongs to autoencoders, and this trains a text-to-image model; leave it out"),
        ({"lora_rank": 0}, "lora_rank must be at least 1; got 0"),
        ({"dp_epsilon": 8.0, "dp_delta": 1e-3}, "DP-SGD is for denoisers.*this trains a text-to-image model: leave out --dp-"),
        ({"captions": str(tmp_path / "none.json")}, "none.json must hold an object"),
        ({"captions": "swapped"}, "captions must be in a .json, .jsonl or .csv file; got swapped"),
    ]
    for change, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            diffleak.train(settings(data, tmp_path / "model", **{"base": base, **change}))
        assert "\n" not in str(caught.value)


def test_images_of_another_size_are_refused_unless_they_are_converted(bases, tmp_path):
    (tmp_path / "wide").mkdir()
    wide = image_folder(tmp_path / "wide", width=24)
    with pytest.raises(UserError, match="is 16 x 24 RGB, the model takes 16 x 16 RGB; --resize converts it"):
        diffleak.train(settings(wide, tmp_path / "model", bases(), steps=1))
    diffleak.train(settings(wide, tmp_path / "model", bases(), steps=1, resize=SIDE))


def test_settings_that_do_not_fit_a_text_defence_are_one_line(bases, data, codec, tmp_path):
    with pytest.raises(UserError, match="teachers and students are whole models: leave out lora_rank, and the preset lora"):
        defence("dual", data, tmp_path, bases(), lora_rank=2)
    with pytest.raises(UserError, match="must start from one model, as --base MODEL; train that first"):
        defence("dual", data, tmp_path, None, kind="text-to-image", autoencoder=codec)


# ---- learning


@pytest.mark.parametrize("rank", [None, 2], ids=["whole", "lora"])
def test_early_stopping_works_on_text_models_and_loras(bases, data, tmp_path, rank):
    folder = diffleak.train(settings(data, tmp_path / "m", bases(), validation=0.25, checkpoint_every=2, flip=True, lora_rank=rank))
    assert record(folder)["early_stopping"]["validation_loss"] > 0
    assert len(json.loads((folder / "split.json").read_text())["validation"]) == 2


@pytest.mark.slow
def test_a_tiny_model_learns_its_images_so_well_that_the_loss_attack_tells_them_from_others(many, tmp_path):
    torch.manual_seed(0)
    own = autoencoder(scaling_factor=1.0)
    own.save_pretrained(tmp_path / "codec" / "vae")
    images = np.stack([np.asarray(Image.open(path)) for path in sorted(many.glob("*.png"))])
    latents = hub.load_codec(tmp_path / "codec").encode(torch.from_numpy(to_model(images)))
    own.register_to_config(scaling_factor=float(1 / latents.std()))
    own.save_pretrained(tmp_path / "codec" / "vae")
    network = {**NETWORK, "block_out_channels": [32, 32], "norm_num_groups": 8}
    config = new(
        many,
        tmp_path / "m",
        tmp_path / "codec",
        train_size=10,
        steps=180,
        model=network,
        learning_rate=5e-3,
        batch_size=16,
        warmup_steps=20,
    )
    folder = diffleak.train(config)
    losses = [float(line.split(",")[1]) for line in (folder / "losses.csv").read_text().splitlines()[1:]]
    assert losses[-1] < 0.5 * losses[0]
    run = {"data": str(many), "split": str(folder / "split.json"), "timesteps": "300", "calibration": False, "device": "cpu", "threads": 1}
    assert diffleak.audit(str(folder), attacks="loss(draws=16)", **run).results[0].auc.value == 1.0


def test_fine_tuning_has_the_settings_of_the_papers_unless_told_otherwise(tmp_path):
    whole, adapters = (diffleak.train_config(data="d", output=tmp_path, base="m", **given) for given in ({}, {"lora_rank": 8}))
    assert (whole.learning_rate, whole.batch_size, whole.steps, whole.mixed_precision) == (1e-5, 16, 20000, "auto")
    assert (adapters.learning_rate, adapters.lora_rank) == (1e-4, 8)


def test_training_from_a_base_in_one_file_is_training_from_its_folder(bases, data, tmp_path):
    whole = diffusers.DiffusionPipeline.from_pretrained(bases("sd"))
    file = single_file.write(tmp_path / "sd.safetensors", single_file.one_file(whole))
    config = single_file.settings(whole, tmp_path / "settings")
    one = diffleak.train(settings(data, tmp_path / "one", file, model_config=str(config), steps=2))
    two = diffleak.train(settings(data, tmp_path / "two", bases("sd"), steps=2))
    for name in ("unet", "vae", "text_encoder"):
        first, second = (  # transformers writes the names of a text encoder with or without its beginning
            {key.removeprefix("text_model."): value for key, value in weights(folder, name).items()} for folder in (one, two)
        )
        assert equal(first, second)
    assert (record(one)["base"], record(one)["model_config"]) == (str(file), str(config))
    assert record(one)["base_file_fingerprint"] == hub.load(file, device="cpu", model_config=config).fingerprint
    diffleak.train(settings(data, tmp_path / "one", file, model_config=str(config), steps=2))  # the same command finds its folder done
    with pytest.raises(UserError, match="--model-config has the settings of a --base in one file; give --base FILE too"):
        settings(data, tmp_path / "none", None, autoencoder=bases("sd"), kind="text-to-image", model_config=str(config))
