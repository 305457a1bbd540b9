"""An audit, geometry, quality and training of Stable Diffusion 1.5 with random weights, once each, on the accelerator of this machine.

    python benchmarks/accelerator.py FOLDER [--device cuda] [--tiny] [--images 32]

FOLDER keeps the model (4 GB) for the next call. --tiny takes a model of a few thousand weights, which a CPU runs in seconds: it shows that
the script works, and its numbers say nothing. Each line is JSON. For float32 in full, float32 with TF32, and bfloat16:

audit      queries/s of scoring ÷ rows/s of the bare network in a loop (same batch, captions given); images wait in files
geometry   images/s of influence by 8 probes and of distortion
quality    forwards/s of drawing ÷ rows/s of the bare network, and features of the real images
training   steps/s of fine-tuning with mixed precision where the device has it
scores     the largest difference of a statistic from that of the CPU in float32, relative to it, and the tolerance that is meant to hold
peak       most memory of the device in use meanwhile, in MiB (on a CPU that of the process so far)

A statistic that is a small difference of two predictions magnifies their rounding, on any device. So the predictions themselves are held to
what rounding explains, and a statistic to its tolerance where that much rounding does not exceed it:

predictions     |e' - e| / |e| of a prediction: at most u sqrt(n) for n roundings one after the other, those of the network's layers, at
                random; u is 2^-8 of bfloat16, 2^-11 of TF32, and 2^-24 sqrt(m) of float32, whose sums have up to m terms
follows         c d, by how much a statistic s may be off where its predictions are off by d: c = sum of |ds/de| |e| / s over its
                predictions e, to first order, and with what the attack puts into the model left as it is
beyond          the attacks for which that is more than the tolerance: this precision promises nothing for them

Exit code 1 where a prediction is off by more than rounding, or a statistic that is not beyond by more than its tolerance.
"""

import argparse
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from full_size import CAPTIONS, LARGE, LINEAR, VAE
from PIL import Image

from diffleak.diffusion.denoiser import Around

TOLERANCE = {("float32", False): 1e-3, ("float32", True): 2e-2, ("bfloat16", True): 1e-1}  # of a statistic, by dtype and speed
ATTACKS = ("loss", "sima", "pia", "secmi")
TIMESTEPS = (100, 300)
UNIT = {("float32", False): 2.0**-24, ("float32", True): 2.0**-11, ("bfloat16", True): 2.0**-8}  # half the gap of numbers just above 1
LOOP = 20  # forwards of the bare network
COMPARED = 2  # images whose scores are compared with the CPU's
TINY_LEVELS = {"block_out_channels": (8, 8), "norm_num_groups": 4}


class Expected(NamedTuple):
    """What the CPU gives in float32."""

    statistics: dict[str, np.ndarray]
    conditions: dict[str, np.ndarray]
    predictions: np.ndarray
    roundings: tuple[int, int]


def make(folder: Path, tiny: bool) -> int:
    """Saves an untrained pipeline unless it is there; returns the side of its images in pixels."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    side = 16 if tiny else 512
    if folder.exists():
        return side
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer(model_max_length=77).train_new_from_iterator(CAPTIONS, 400)
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2} if tiny else LARGE
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    unet = {**TINY_LEVELS, **blocks, "layers_per_block": 1, "attention_head_dim": 4} if tiny else {"attention_head_dim": 8}
    vae_blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = {**TINY_LEVELS, **vae_blocks, "layers_per_block": 1, "latent_channels": 4} if tiny else VAE
    parts: dict[str, Any] = {
        "vae": diffusers.AutoencoderKL(**{**vae, "sample_size": side}),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**text, **marks)),
        "tokenizer": tokenizer,
        "unet": diffusers.UNet2DConditionModel(sample_size=side // (2 if tiny else 8), cross_attention_dim=text["hidden_size"], **unet),
        "scheduler": diffusers.DDIMScheduler(**LINEAR),
    }
    whole = diffusers.StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    part = folder.with_name(f"{folder.name}.part")
    whole.save_pretrained(part)
    part.rename(folder)
    return side


def images(root: Path, side: int, count: int) -> dict[str, str]:
    """Two folders of captioned images, larger than the model takes them, so that each is decoded and resized."""
    rng = np.random.default_rng(0)
    for name in ("members", "nonmembers"):
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()
        rows = [{"file_name": f"{i:04d}.jpg", "text": CAPTIONS[i % len(CAPTIONS)]} for i in range(count)]
        for row in rows:
            small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            small.resize((side * 3 // 2, side * 3 // 2), Image.Resampling.BICUBIC).save(root / name / row["file_name"], quality=95)
        (root / name / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {name: str(root / name) for name in ("members", "nonmembers")}


def finish(device: str) -> None:
    """Waits until the device has done all that it was given."""
    if device != "cpu":
        getattr(torch, torch.device(device).type).synchronize()


@contextmanager
def measured(device: str, found: dict[str, Any]) -> Iterator[None]:
    """Puts the seconds of what is done, and the most memory in use meanwhile, into `found`."""
    on_cuda = device.startswith("cuda")
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    finish(device)
    started = time.monotonic()
    yield
    finish(device)
    found["seconds"] = round(time.monotonic() - started, 3)
    peak = torch.cuda.max_memory_allocated(device) if on_cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found["peak_mib"] = round(peak / 2**20)


def bare(target: Any, prepared: Any) -> float:
    """Rows/s of the network alone, called as the pipeline calls it, in batches of the audit's size."""
    rows = list(prepared.inputs.alike)[: prepared.plan.batch_size]
    cond, network = prepared.inputs.conditions(rows), target.denoiser.network
    kind = next(network.parameters()).dtype
    x = torch.randn(len(rows), *prepared.inputs.encode(prepared.inputs.pixels(rows[:1]), rows[:1]).shape[1:]).to(target.device, kind)
    times = torch.full((len(rows),), 100, device=target.device)
    given = {name: value.to(kind) if value.is_floating_point() else value for name, value in cond.tensors.items()}

    def forward() -> None:
        with torch.inference_mode():
            target.denoiser.ask(network, x, times, given)

    forward()
    found: dict[str, Any] = {}
    with measured(target.device, found):
        for _ in range(LOOP):
            forward()
    return LOOP * len(rows) / max(found["seconds"], 1e-9)


def subject_of(target: Any, latents: np.ndarray, captions: tuple[str, ...]) -> Any:
    """A few images, with the noise that every device gets."""
    from diffleak.attacks.subject import Subject
    from diffleak.diffusion.noise import Noise

    x0 = torch.from_numpy(latents).to(target.device, target.x_dtype)
    noise = Noise(0, tuple(map(str, range(len(x0)))), tuple(x0.shape[1:]), target.x_dtype, target.device)
    with torch.no_grad():
        return Subject(target.denoiser, x0, noise, target.text(captions))


def statistics(subject: Any) -> dict[str, np.ndarray]:
    """The statistics of each attack, timesteps by images."""
    from diffleak.attacks import ATTACKS as KINDS

    with torch.inference_mode():
        return {name: KINDS[name](timesteps=TIMESTEPS).statistics(subject).cpu().numpy() for name in ATTACKS}


@dataclass(frozen=True, eq=False)
class Moved(Around, wrapper=True):
    """A denoiser each of whose answers has a zero added, by which statistics can be differentiated; its network is not."""

    zeros: list[torch.Tensor]
    answers: list[torch.Tensor]

    def __call__(self, x_t: torch.Tensor, t: int, cond: Any = None) -> torch.Tensor:
        with torch.no_grad():
            self.answers.append(self.denoiser(x_t.detach(), t, cond))
        self.zeros.append(torch.zeros_like(self.answers[-1]).requires_grad_())
        return self.answers[-1] + self.zeros[-1]


def conditions(subject: Any) -> dict[str, np.ndarray]:
    """Of each attack sum of |ds/de| |e| / s over its predictions e: how many times their relative error weighs in the statistic s."""
    from diffleak.attacks import ATTACKS as KINDS

    found, norms = {}, lambda tensor: tensor.double().flatten(1).norm(dim=1)
    for name in ATTACKS:
        moved = Moved(subject.denoiser, [], [])
        s = KINDS[name](timesteps=TIMESTEPS).statistics(replace(subject, denoiser=moved))
        weights = []
        for each in s:
            slopes = torch.autograd.grad(each.sum(), moved.zeros, retain_graph=True, materialize_grads=True)
            weights.append(sum(norms(slope) * norms(e) for slope, e in zip(slopes, moved.answers, strict=True)) / each.detach())
        found[name] = torch.stack(weights).numpy()
    return found


def predictions(subject: Any) -> np.ndarray:
    """The predictions for the clean images, timesteps by images by numbers."""
    with torch.inference_mode():
        return np.stack([subject.denoiser(subject.x0, t, subject.cond).float().flatten(1).cpu().numpy() for t in (0, *TIMESTEPS)])


def roundings(subject: Any) -> tuple[int, int]:
    """The layers that one forward goes through, and the most terms in a sum of theirs."""
    network, called = subject.denoiser.network, list[torch.nn.Module]()
    layers = [module for module in network.modules() if not [*module.children()]]
    hooks = [layer.register_forward_hook(lambda module, given, made: called.append(module)) for layer in layers]
    predictions(subject)
    for hook in hooks:
        hook.remove()
    weights = [layer.weight for layer in called if getattr(layer, "weight", None) is not None]
    return len(called) // (1 + len(TIMESTEPS)), max(weight[0].numel() for weight in weights)


def judged(subject: Any, expected: "Expected", kind: tuple[str, bool]) -> dict[str, Any]:
    """What the statistics and predictions of a device differ by, and their tolerances."""
    off = np.linalg.norm(predictions(subject) - expected.predictions, axis=-1) / np.linalg.norm(expected.predictions, axis=-1)
    layers, terms = expected.roundings
    allowed, meant = UNIT[kind] * (layers * (terms if kind == ("float32", False) else 1)) ** 0.5, TOLERANCE[kind]
    differences = {name: np.abs(found / expected.statistics[name] - 1) for name, found in statistics(subject).items()}
    follows = {name: float(expected.conditions[name].max() * off.max()) for name in ATTACKS}
    largest, beyond = {name: float(each.max()) for name, each in differences.items()}, [name for name in ATTACKS if follows[name] > meant]
    return {
        "largest": max(largest.values()),
        "tolerance": meant,
        **largest,
        "beyond": beyond,
        "follows": follows,
        "conditions": {name: float(each.max()) for name, each in expected.conditions.items()},
        "predictions": float(off.max()),
        "predictions_tolerance": allowed,
        "within": bool(off.max() <= allowed) and all(largest[name] <= meant for name in ATTACKS if name not in beyond),
    }


def scoring(target: Any, root: Path, sides: dict[str, str], found: dict[str, Any]) -> Any:
    """Scores all images as an audit does; returns what was prepared."""
    from diffleak.auditing.config import AuditConfig
    from diffleak.auditing.plan import prepare
    from diffleak.auditing.run import score
    from diffleak.config import build

    run = root / "run"
    shutil.rmtree(run, ignore_errors=True)
    settings = {"attacks": ATTACKS, "timesteps": f"{TIMESTEPS[0]}:{TIMESTEPS[-1]}:100", "resize": True, "sweep": "all", "complexity": False}
    prepared = prepare(build(AuditConfig, {**settings, **sides, "model": target.name}), target)
    with measured(target.device, found):
        collected = score(prepared, run, log=lambda line: None, timed=False)
    found |= {"queries": collected.queries, "queries_per_s": collected.queries / found["seconds"], "halved_to": collected.halved_to}
    return prepared


def geometry(target: Any, prepared: Any, tiny: bool, found: dict[str, Any]) -> None:
    from diffleak.geometry.pullback import distortion, influence

    inputs, rows = prepared.inputs, list(prepared.inputs.alike)[:COMPARED]
    z = inputs.tensor(inputs.encode(inputs.pixels(rows), rows))
    noise = inputs.noise([inputs.cohort.keys[row] for row in rows], z.shape[1:])
    quick = {"top": 2, "oversampling": 0, "power": 0} if tiny else {}
    measures = {
        "influence": lambda: influence(target.codec, z, 8, noise=noise),
        "distortion": lambda: distortion(target.codec, z, noise=noise, **quick),
    }
    for name, measure in measures.items():
        of_one: dict[str, Any] = {}
        with measured(target.device, of_one):
            measure()
        found[name] = {"images_per_s": len(rows) / of_one["seconds"], "peak_mib": of_one["peak_mib"]}


def quality(target: Any, root: Path, sides: dict[str, str], tiny: bool, found: dict[str, Any]) -> None:
    from diffleak.config import build
    from diffleak.quality.config import QualityConfig
    from diffleak.quality.measure import measure

    count, steps = (4, 2) if tiny else (16, 10)
    settings = {
        "model": target.name,
        "reference": sides["nonmembers"],
        "images": count,
        "steps": steps,
        "extractor": "pixels",
        "resize": True,
    }
    with measured(target.device, found):
        costs = measure(build(QualityConfig, settings), target).record.costs
    found |= {"forwards": costs.forwards, "forwards_per_s": costs.forwards / costs.seconds_drawing}


def training(root: Path, model: Path, data: str, device: str, tiny: bool, found: dict[str, Any]) -> None:
    from diffleak.training.config import train_config
    from diffleak.training.run import train

    shutil.rmtree(root / "tuned", ignore_errors=True)
    steps = 2 if tiny else 20
    kind = "cpu" if device == "cpu" else "auto"
    settings = {"base": str(model), "data": data, "output": root / "tuned", "steps": steps, "batch_size": 2, "resize": 16 if tiny else 512}
    with measured(device, found):
        train(train_config(None, None, **settings, device=kind))
    found["steps_per_s"] = steps / found["seconds"]


def rounded(found: dict[str, Any]) -> dict[str, Any]:
    """The numbers to four digits."""
    short = lambda value: rounded(value) if isinstance(value, dict) else float(f"{value:.4g}") if isinstance(value, float) else value
    return {key: short(value) for key, value in found.items()}


def guarded(name: str, part: Callable[[dict[str, Any]], Any], about: dict[str, Any]) -> Any:
    """Prints the line of one part; an error of it is printed too, and does not keep the others from running."""
    found: dict[str, Any] = {}
    try:
        answer = part(found)
    except Exception as error:
        print(json.dumps({"part": name, **about, "error": f"{type(error).__name__}: {error}"}), flush=True)
        raise
    print(json.dumps({"part": name, **about, **rounded(found)}), flush=True)
    return answer


def main(arguments: list[str]) -> int:
    from diffleak import load
    from diffleak.diffusion.devices import checked_device, name_of

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--images", type=int, help="images a side; default 32, with --tiny 10")
    given = parser.parse_args(arguments)
    root, device, outside = given.folder, str(checked_device(given.device)), 0
    root.mkdir(parents=True, exist_ok=True)
    model = root / ("tiny" if given.tiny else "sd15")
    side = make(model, given.tiny)
    sides = images(root, side, given.images or (10 if given.tiny else 32))
    print(json.dumps({"part": "machine", "device": device, "name": name_of(device), "torch": torch.__version__, "side": side}), flush=True)
    on_cpu, expected = load(model, device="cpu"), None
    for dtype, fast in TOLERANCE:
        if device == "cpu" and dtype == "float32" and fast:
            continue  # nothing there is faster in float32
        target = load(model, dtype=dtype, device=device, fast=fast)
        about = {"dtype": dtype, "faster": list(target.faster)}
        prepared = guarded("audit", lambda found, target=target: scoring(target, root, sides, found), about)
        if expected is None:
            rows = list(prepared.inputs.alike)[:COMPARED]
            latents = replace(prepared.inputs, target=on_cpu).encode(prepared.inputs.pixels(rows), rows)
            captions = tuple(prepared.inputs.captions[row] for row in rows)
            own = subject_of(on_cpu, latents, captions)
            expected = Expected(statistics(own), conditions(own), predictions(own), roundings(own))
        guarded("bare", lambda found, target=target, prepared=prepared: found.update(rows_per_s=bare(target, prepared)), about)
        compared = judged(subject_of(target, latents, captions), expected, (dtype, fast))
        outside += not compared["within"]
        guarded("scores", lambda found, compared=compared: found.update(compared), about)
        guarded("geometry", lambda found, target=target, prepared=prepared: geometry(target, prepared, given.tiny, found), about)
        guarded("quality", lambda found, target=target: quality(target, root, sides, given.tiny, found), about)
        del target, prepared
    guarded("training", lambda found: training(root, model, sides["members"], device, given.tiny, found), {})
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
