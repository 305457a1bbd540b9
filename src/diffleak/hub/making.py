"""Makes new, untrained parts (networks, autoencoders, schedulers, samplers), and writes trained ones to a folder."""

import inspect
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffleak.diffusion.codec import Autoencoder, Codec
from diffleak.diffusion.sampling import FlowSampler
from diffleak.diffusion.schedule import Schedule
from diffleak.errors import WHY, SettingError, UserError, first_lines, pip_install, refusing, shown, unknown
from diffleak.hub.folders import PARTS, diffusers_library
from diffleak.hub.pipelines import pipeline_of, quiet, write_index

VOCABULARY = 4096  # tokens of a tokenizer that is built from captions
MARKS = ("<|startoftext|>", "<|endoftext|>")
PRIVATE = 0xE000  # where the characters begin that mean nothing by themselves
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
FLOW_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
FLOW_PREDICTION = "flow_prediction"  # how schedulers of diffusion say that they are run on it
SCHEDULERS = ("DDPMScheduler", FLOW_SCHEDULER)  # of new models
SAMPLERS = {"ddim": "DDIMScheduler", "ddpm": "DDPMScheduler", "dpm": "DPMSolverMultistepScheduler"}


def new_network(config: dict[str, Any]) -> torch.nn.Module:
    """An untrained UNet2DModel with `config`; raises `UserError` if diffusers refuses it."""
    return new_component("UNet2DModel", config, "model key")


def new_text_to_image(
    captions: Sequence[str], network: dict[str, Any], text_encoder: dict[str, Any], codec: Autoencoder, scheduler: Any, tokens: int = 32
) -> Any:
    """An untrained StableDiffusionPipeline: a tokenizer built from `captions`, a CLIP text encoder, a UNet2DConditionModel.

    `network` and `text_encoder` are the settings of the last two; `tokens` is the longest caption. Raises `UserError` for settings that
    diffusers or transformers refuse.
    """
    quiet()
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = _new_tokenizer(captions, tokens)
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with refusing((ValueError, TypeError), f"transformers refuses this text encoder: {WHY}", first_lines):
        config = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=tokens, **marks, **text_encoder)
        encoder = CLIPTextModel(config).eval().requires_grad_(False)
    unet = new_component("UNet2DConditionModel", {"cross_attention_dim": config.hidden_size, **network}, "model key")
    parts = {"vae": codec.network, "text_encoder": encoder, "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler}
    return diffusers_library().StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def _new_tokenizer(captions: Sequence[str], tokens: int) -> Any:
    """A CLIP tokenizer of the byte pairs in `captions`, the same every time for the same captions.

    The library's own training numbers the last letters of words in the order of a randomly hashed table. Here each last letter is a
    separate character while the pairs are learnt, so that all characters have their numbers before any text is read.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    blank = CLIPTokenizer(model_max_length=tokens).backend_tokenizer
    texts = [blank.normalizer.normalize_str(caption) for caption in captions]
    words = [word for text in texts for word, _ in blank.pre_tokenizer.pre_tokenize_str(text)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    last = {letter: chr(PRIVATE + i) for i, letter in enumerate(letters)}
    learner = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - len(MARKS), initial_alphabet=[*letters, *last.values()], show_progress=False)
    learner.train_from_iterator([word[:-1] + last[word[-1]] for word in words], trainer)
    spelt = str.maketrans({own: letter + "</w>" for letter, own in last.items()})
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in json.loads(learner.to_str())["model"]["merges"]]
    vocabulary = {token.translate(spelt): number for token, number in learner.get_vocab().items()}
    vocabulary |= {mark: len(vocabulary) + i for i, mark in enumerate(MARKS)}
    merges: Any = [tuple(part.translate(spelt) for part in pair) for pair in pairs]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=tokens)


def new_autoencoder(name: str, config: dict[str, Any]) -> torch.nn.Module:
    """An untrained AutoencoderKL or VQModel with `config`; raises `UserError` if diffusers refuses it."""
    if config.get("lookup_from_codebook"):
        raise UserError("lookup_from_codebook must be left out: its decoder takes code numbers, which no diffusion model predicts")
    return new_component(name, config, "model key")


def new_scheduler(config: dict[str, Any]) -> Any:
    """A diffusers DDPMScheduler with `config`, or the one of SCHEDULERS that its `_class_name` names.

    Raises `UserError` for a setting that the scheduler does not have, and for settings that make no valid schedule of flow matching.
    """
    name = config.get("_class_name", SCHEDULERS[0])
    if name not in SCHEDULERS:
        raise unknown("_class_name of scheduler", str(name), SCHEDULERS)
    made = new_component(name, {key: value for key, value in config.items() if key != "_class_name"}, "scheduler key")
    flow_schedule(made)
    return made


def flow_schedule(scheduler: Any) -> Schedule | None:
    """The noise schedule of a diffusers scheduler of flow matching; None for other schedulers.

    A diffusion scheduler that runs on sigmas of flow matching, as Sana's does, has no schedule before the number of steps is set. It then
    is that of FLOW_SCHEDULER, sigma = shift s / (1 + (shift - 1) s) for s = 1/T, ..., 1.
    """
    if type(scheduler).__name__ != FLOW_SCHEDULER:
        config: Any = getattr(scheduler, "config", {})
        if not (config.get("use_flow_sigmas") and config.get("prediction_type") == FLOW_PREDICTION):
            return None
        if type(config.flow_shift) not in (int, float) or not 0 < config.flow_shift < np.inf:
            raise UserError(f"flow_shift in scheduler_config.json must be a number above 0; got {shown(config.flow_shift)}: correct it")
        even = np.arange(1, config.num_train_timesteps + 1) / config.num_train_timesteps
        return Schedule.flow(config.flow_shift * even / (1 + (config.flow_shift - 1) * even), config.num_train_timesteps)
    return Schedule.flow(scheduler.sigmas.flip(0), scheduler.config.num_train_timesteps)


def new_sampler(name: str, schedule: Schedule, steps: int, clip: bool) -> Any:
    """A diffusers scheduler over `steps` timesteps of `schedule`, to be driven by a `Denoiser` (prediction_type epsilon).

    For a schedule of flow matching it is a `FlowSampler`.

    name: ddim (deterministic), ddpm (ancestral) or dpm (DPM-Solver++, second order). clip: True clips the predicted clean image to
    [-1, 1], which is right for pixels and wrong for latents. Raises `UserError` for an unknown name or too many steps.
    """
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    if schedule.is_flow and name != "ddim":
        raise UserError(f"a flow-matching model is sampled with Euler steps, which are --sampler ddim here; got {name}")
    most = len(schedule) - schedule.is_flow  # which is never asked at its last timestep
    if not 1 <= steps <= most:
        raise SettingError("steps", f"must lie in [1, {most}], the model's schedule; got {steps}")
    if schedule.is_flow:
        return FlowSampler(schedule, steps)
    kept = np.concatenate([[1.0], schedule.alphas_cumprod])
    if name == "ddpm":  # whose steps are draws, which have no variance where the table rises at its end (see `Schedule`)
        kept = np.minimum.accumulate(kept)
    with np.errstate(invalid="ignore", divide="ignore"):
        betas = np.nan_to_num(1 - kept[1:] / kept[:-1], nan=1.0)
    config = {"num_train_timesteps": len(schedule), "trained_betas": betas.tolist(), "prediction_type": "epsilon"}
    sampler = getattr(diffusers_library(), SAMPLERS[name])(**config, **({} if name == "dpm" else {"clip_sample": clip}))
    sampler.set_timesteps(steps)
    return sampler


def new_component(name: str, config: dict[str, Any], noun: str) -> Any:
    kind = getattr(diffusers_library(), name)
    allowed = [k for k in inspect.signature(kind.__init__).parameters if k != "self"]  # not all of them have annotations
    for key in config:
        if key not in allowed:
            raise unknown(noun, key, allowed)
    raised = (ValueError, TypeError, AssertionError, NotImplementedError, IndexError)
    with refusing(raised, f"diffusers refuses this {name} configuration: {WHY}", first_lines):
        return kind(**config)


def moving_average(network: torch.nn.Module, decay: float) -> Any:
    """The exponential moving average of a network's weights, as diffusers computes it."""
    from diffusers.training_utils import EMAModel

    return EMAModel(network.parameters(), decay=decay)


def save(folder: Path, network: torch.nn.Module, scheduler: Any, codec: Codec | None = None) -> None:
    """Writes a folder that diffusers and `load` read: a DDPMPipeline, or with a codec the parts of a latent model.

    With a VQModel it is an LDMPipeline. For AutoencoderKL, and for flow matching on latents, diffusers has no unconditional pipeline, so
    only the parts are written.
    """
    from diffusers import DDPMPipeline, LDMPipeline

    if not isinstance(codec, Autoencoder):
        pipeline: Any = DDPMPipeline(unet=network, scheduler=scheduler)
        return pipeline.save_pretrained(folder)  # type: ignore[no-any-return]
    if type(codec.network).__name__ == "VQModel" and not flow_schedule(scheduler):
        pipeline = LDMPipeline(vqvae=codec.network, unet=network, scheduler=scheduler)
        return pipeline.save_pretrained(folder)  # type: ignore[no-any-return]
    save_autoencoder(folder, codec)
    network.save_pretrained(folder / "unet")  # type: ignore[operator]
    scheduler.save_pretrained(folder / "scheduler")


def save_fine_tuned(folder: Path, base: Path, network: torch.nn.Module) -> None:
    """Writes a text-to-image model with the trained `network` as denoiser and all other parts of `base`, as a folder of its pipeline."""
    part = _network_part(base)
    for name in PARTS:
        if (base / name).is_dir() and name != part:
            shutil.copytree(base / name, folder / name, dirs_exist_ok=True)
    network.save_pretrained(folder / part)  # type: ignore[operator]
    write_index(folder, base)


def add_lora(base: Path, network: torch.nn.Module, rank: int) -> None:
    """Adds low-rank adapters to the attention layers of the network of `base`, and freezes everything else.

    Raises `UserError` for a pipeline for which diffusers cannot load adapters. Hu et al. 2021, arXiv 2106.09685.
    """
    name = str(pipeline_of(base))
    if not hasattr(getattr(diffusers_library(), name), "save_lora_weights"):
        raise UserError(
            f"diffusers has no low-rank adapters for a {name}, which {base} is; to train all weights, leave out --lora-rank and the preset "
            "lora"
        )
    with refusing(ImportError, f"low-rank adapters need the peft library: {pip_install('lora')}"):
        from peft import LoraConfig
    layers = [module for name, module in network.named_modules() if name.rpartition(".")[2] in LORA_TARGETS]
    widest = max((min(layer.weight.shape) for layer in layers if hasattr(layer, "weight")), default=rank)
    if rank > widest:
        raise UserError(f"--lora-rank must be at most {widest}, the width of the layers it adapts; got {rank}")
    network.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(LORA_TARGETS))
    network.add_adapter(config)  # type: ignore[operator]


def save_lora(folder: Path, base: Path, network: torch.nn.Module) -> None:
    """Writes the adapters of a network as the pytorch_lora_weights.safetensors that diffusers' load_lora_weights reads."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    pipeline = getattr(diffusers_library(), str(pipeline_of(base)))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(network))
    pipeline.save_lora_weights(folder, **{f"{_network_part(base)}_lora_layers": layers}, safe_serialization=True)


def _network_part(base: Path) -> str:
    return "transformer" if (base / "transformer").is_dir() else "unet"


def save_autoencoder(folder: Path, codec: Autoencoder) -> None:
    """Writes folder/vae/ (or vqvae/ for a VQModel), as diffusers' from_pretrained and `load_codec` read it."""
    name = "vqvae" if type(codec.network).__name__ == "VQModel" else "vae"
    codec.network.save_pretrained(folder / name)
