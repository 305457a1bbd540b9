"""The command line: parse, call, print. torch is imported only inside the commands that use it.

Long flags equal config keys; `-C FILE.yaml` is read first and flags win. Results go to stdout, everything else to stderr.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Never

import typer

from diffleak.errors import DiffleakError, UserError

if TYPE_CHECKING:
    from diffleak.auditing.config import AuditConfig
    from diffleak.auditing.plan import Prepared
    from diffleak.records.audit import AuditRecord

app = typer.Typer(
    name="diffleak",
    help="Measure what a diffusion model leaks about its training images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

File = Annotated[Path | None, typer.Option("-C", "--config", help="YAML file with any of these settings; flags win.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON on stdout.")]
Opt = typer.Option
# options that audit and geometry share
Resize = Annotated[bool | None, Opt("--resize/--no-resize", help="Convert images of another size or colour.", show_default=False)]
SkipUnreadable = Annotated[bool | None, Opt("--skip-unreadable/--no-skip-unreadable", help="Leave out damaged files.", show_default=False)]
# how image files become pixels, for every command that reads DATA
Exif = Annotated[
    str | None, Opt(help="EXIF orientation: apply (default), or ignore where the trainer does not turn images.", show_default=False)
]
Alpha = Annotated[
    str | None, Opt(help="Transparency: drop (default, as convert('RGB') does), or lay it on white or black.", show_default=False)
]
White = Annotated[
    int | None,
    Opt(help="What is white in grey images of more than 8 bits, such as 4095; default their range.", show_default=False),
]
Dtype = Annotated[str | None, Opt(help="float32, float16, bfloat16 or float64.", show_default=False)]
Device = Annotated[str | None, Opt(help="cpu, cuda, cuda:1, mps; default the first accelerator.", show_default=False)]
DryRun = Annotated[bool | None, Opt("--dry-run", help="Check everything and print the plan only.", show_default=False)]
AllowShift = Annotated[bool | None, Opt("--allow-shift", help="Exit 0 even if the sides differ without the model.", show_default=False)]
IgnoreModelSplit = Annotated[
    bool | None,
    Opt("--ignore-model-split", help="Go on although the split.json beside MODEL contradicts the two sides.", show_default=False),
]
Members = Annotated[str | None, Opt(help="DATA that the model was trained on.", show_default=False)]
Nonmembers = Annotated[str | None, Opt(help="Held-out DATA from the same source.", show_default=False)]
Split = Annotated[Path | None, Opt(help='JSON {"members": LIST OF IDS, "nonmembers": LIST OF IDS}.', show_default=False)]
Captions = Annotated[
    str | None,
    Opt(help="Text-to-image models: own (default), empty, fixed:TEXT, swapped, or a .json, .jsonl or .csv file.", show_default=False),
]
Lora = Annotated[
    str | None,
    Opt(help="A LoRA adapter to apply to a text-to-image MODEL: a .safetensors file, a folder or a hub id.", show_default=False),
]
LoraScale = Annotated[float | None, Opt(help="The strength of the LoRA (1.0).", show_default=False)]
Reference = Annotated[
    str | None,
    Opt(help="Report what leaks beyond this model; 'base' is MODEL without its --lora.", show_default=False),
]
Anonymous = Annotated[
    bool | None,
    Opt("--anonymous", help="Write and print keyed ids in place of file names; `reveal` finds the names again.", show_default=False),
]
AnonymousKey = Annotated[
    Path | None,
    Opt(
        help="The file of that key, for runs to be compared; made if it is not there. Default anonymous.key in the output.",
        show_default=False,
    ),
]
Probes = Annotated[int | None, Opt(help="Random probes per image for the influence (8).", show_default=False)]
SPLIT_NAMES = "(names the training images: do not release it with the model)"
INTERRUPTED = 130  # what shells expect after Ctrl-C
UsageError: Any = typer.BadParameter.__base__  # some versions of typer bring a click of their own


@app.command()
def demo(
    output: Annotated[Path, Opt("-o", "--output", help="Where the model and the run go.")] = Path("demo"),
    as_json: Json = False,
) -> None:
    """Real digits: train a small DDPM, audit it with every attack, write the report. CPU, no network, about two minutes."""
    from diffleak.demo import run_demo

    _print_audit(run_demo(output).record, output / "run", as_json)


@app.command()
def train(
    data: Annotated[str | None, Opt(help="Image folder, .npy, .npz, .parquet, 'digits' or hf:NAME.", show_default=False)] = None,
    output: Annotated[Path | None, Opt("-o", "--output", help="The model folder.", show_default=False)] = None,
    preset: Annotated[
        str | None,
        Opt(
            help="Pixels: digits, small (default), ddpm. Autoencoders: vae, vq. On latents: latent. With captions: text, fine-tune, lora.",
            show_default=False,
        ),
    ] = None,
    autoencoder: Annotated[
        Path | None,
        Opt(help="Train on the latents of this folder's vae/ or vqvae/, on its split unless told otherwise.", show_default=False),
    ] = None,
    base: Annotated[str | None, Opt(help="A text-to-image model to fine-tune: a diffusers folder or hub id.", show_default=False)] = None,
    lora_rank: Annotated[int | None, Opt(help="Fine-tune low-rank adapters of this rank only.", show_default=False)] = None,
    captions: Annotated[str | None, Opt(help="own (default), or a file of texts for every image.", show_default=False)] = None,
    diversify: Annotated[
        bool | None, Opt("--diversify/--no-diversify", help="Draw one of an image's texts at every step.", show_default=False)
    ] = None,
    caption_dropout: Annotated[float | None, Opt(help="Share of images trained without their caption.", show_default=False)] = None,
    random_crops: Annotated[int | None, Opt(help="This many random crops an image instead of the central one.", show_default=False)] = None,
    kl_weight: Annotated[float | None, Opt(help="The β of a β-VAE.", show_default=False)] = None,
    config: File = None,
    train_size: Annotated[
        int | None, Opt(help="Train on this many images drawn at random; the rest is held out.", show_default=False)
    ] = None,
    split: Annotated[
        Path | None, Opt(help='JSON {"members": LIST OF IDS, "nonmembers": LIST OF IDS}: train on the members.', show_default=False)
    ] = None,
    steps: Annotated[int | None, Opt(help="Optimiser steps; a larger number extends a finished run.", show_default=False)] = None,
    batch_size: Annotated[int | None, Opt(show_default=False)] = None,
    learning_rate: Annotated[float | None, Opt(show_default=False)] = None,
    weight_decay: Annotated[float | None, Opt(show_default=False)] = None,
    warmup_steps: Annotated[int | None, Opt(show_default=False)] = None,
    max_grad_norm: Annotated[float | None, Opt(show_default=False)] = None,
    ema_decay: Annotated[float | None, Opt(help="Save an exponential moving average of the weights.", show_default=False)] = None,
    flip: Annotated[bool | None, Opt("--flip/--no-flip", help="Random horizontal flips.", show_default=False)] = None,
    resize: Annotated[int | None, Opt(help="Resize (antialiased) and centre-crop images to this side.", show_default=False)] = None,
    exif: Exif = None,
    alpha: Alpha = None,
    white: White = None,
    mixed_precision: Annotated[str | None, Opt(help="no, fp16, bf16, or auto: bf16 where the device has it.", show_default=False)] = None,
    checkpoint_every: Annotated[int | None, Opt(help="Steps between checkpoints.", show_default=False)] = None,
    seed: Annotated[int | None, Opt(show_default=False)] = None,
    validation: Annotated[
        float | None, Opt(help="Set aside this share of the members; save the weights with the lowest loss on them.", show_default=False)
    ] = None,
    patience: Annotated[
        int | None, Opt(help="Stop when that loss has not fallen for this many checks, one a checkpoint.", show_default=False)
    ] = None,
    dp_epsilon: Annotated[
        float | None, Opt(help="DP-SGD: the epsilon that all steps may spend; chooses the noise.", show_default=False)
    ] = None,
    dp_delta: Annotated[float | None, Opt(help="DP-SGD: its delta, well below one over the number of images.", show_default=False)] = None,
    dp_noise_multiplier: Annotated[
        float | None, Opt(help="DP-SGD: the noise itself, in clipping norms, instead of --dp-epsilon.", show_default=False)
    ] = None,
    dp_max_grad_norm: Annotated[
        float | None, Opt(help="DP-SGD: the norm each image's gradient is clipped to (1.0).", show_default=False)
    ] = None,
    threads: Annotated[int | None, Opt(help="CPU threads of this process.", show_default=False)] = None,
    device: Annotated[str | None, Opt(help="auto or cpu.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Train a DDPM, an autoencoder, a DDPM on its latents, or fine-tune a text-to-image model. The same command resumes."""
    given = {k: v for k, v in locals().items() if k not in ("preset", "config", "as_json")}
    from diffleak.training.config import train_config
    from diffleak.training.run import describe, outcome
    from diffleak.training.run import train as train_model

    folder = train_model(train_config(preset, config, **given))
    ended = outcome(folder)
    text = f"model: {folder}\nsplit: {folder / 'split.json'} {SPLIT_NAMES}{describe(ended)}"
    _print({"model": str(folder), "split": str(folder / "split.json"), **ended}, as_json, text)


@app.command()
def defend(
    method: Annotated[str, typer.Argument(help="dual, distill, or the control one-teacher.", show_default=False)],
    data: Annotated[str | None, Opt(help="Image folder, .npy, .npz, .parquet, 'digits' or hf:NAME.", show_default=False)] = None,
    output: Annotated[Path | None, Opt("-o", "--output", help="Where teachers, student or dual go.", show_default=False)] = None,
    preset: Annotated[str | None, Opt(help="digits, small (default), ddpm, latent.", show_default=False)] = None,
    autoencoder: Annotated[Path | None, Opt(help="Train on the latents of this folder's vae/ or vqvae/.", show_default=False)] = None,
    base: Annotated[str | None, Opt(help="A text-to-image model to fine-tune: a diffusers folder or hub id.", show_default=False)] = None,
    captions: Annotated[str | None, Opt(help="own (default), or a file of texts for every image.", show_default=False)] = None,
    diversify: Annotated[
        bool | None, Opt("--diversify/--no-diversify", help="Draw one of an image's texts at every step.", show_default=False)
    ] = None,
    caption_dropout: Annotated[float | None, Opt(help="Share of images trained without their caption.", show_default=False)] = None,
    random_crops: Annotated[int | None, Opt(help="This many random crops an image instead of the central one.", show_default=False)] = None,
    config: File = None,
    teachers: Annotated[
        str | None, Opt(help="Folders that are trained already, as A,B (one-teacher: A); the student is like them.", show_default=False)
    ] = None,
    halves: Annotated[
        Path | None, Opt(help='What given teachers were trained on: JSON {"halves": [IDS, IDS]}.', show_default=False)
    ] = None,
    near_duplicates: Annotated[
        float | None, Opt(help="RMS difference of thumbnails below which two images stay on one side (0.03).", show_default=False)
    ] = None,
    choice: Annotated[str | None, Opt(help="How two models take turns: alternate (default) or random.", show_default=False)] = None,
    train_size: Annotated[int | None, Opt(help="Train on this many images; the rest is held out.", show_default=False)] = None,
    split: Annotated[
        Path | None, Opt(help='JSON {"members": LIST OF IDS, "nonmembers": LIST OF IDS}: defend the members.', show_default=False)
    ] = None,
    steps: Annotated[int | None, Opt(help="Optimiser steps of every model.", show_default=False)] = None,
    teacher_steps: Annotated[int | None, Opt(help="Steps of each teacher, if not --steps.", show_default=False)] = None,
    student_steps: Annotated[int | None, Opt(help="Steps of the student, if not --steps.", show_default=False)] = None,
    side_by_side: Annotated[
        bool | None, Opt("--side-by-side/--one-by-one", help="Train both teachers at once; default where it pays.", show_default=False)
    ] = None,
    batch_size: Annotated[int | None, Opt(show_default=False)] = None,
    learning_rate: Annotated[float | None, Opt(show_default=False)] = None,
    weight_decay: Annotated[float | None, Opt(show_default=False)] = None,
    warmup_steps: Annotated[int | None, Opt(show_default=False)] = None,
    ema_decay: Annotated[float | None, Opt(help="Save exponential moving averages of the weights.", show_default=False)] = None,
    flip: Annotated[bool | None, Opt("--flip/--no-flip", help="Random horizontal flips.", show_default=False)] = None,
    resize: Annotated[int | None, Opt(help="Resize (antialiased) and centre-crop images to this side.", show_default=False)] = None,
    exif: Exif = None,
    alpha: Alpha = None,
    white: White = None,
    mixed_precision: Annotated[str | None, Opt(help="no, fp16, bf16, or auto: bf16 where the device has it.", show_default=False)] = None,
    checkpoint_every: Annotated[int | None, Opt(help="Steps between checkpoints.", show_default=False)] = None,
    seed: Annotated[int | None, Opt(show_default=False)] = None,
    threads: Annotated[int | None, Opt(help="CPU threads of each training process.", show_default=False)] = None,
    device: Annotated[str | None, Opt(help="auto or cpu.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Train a defence: DualMD (dual), DistillMD (distill), or plain distillation to compare with. The same command resumes."""
    given = {k: v for k, v in locals().items() if k not in ("method", "preset", "config", "as_json")}
    from diffleak.defenses.defend import defend as train_defence
    from diffleak.defenses.defend import defend_config

    settings = defend_config(method, preset, config, **given)
    folder = train_defence(settings)
    split_file = settings.output / "split.json"
    _print({"model": str(folder), "split": str(split_file)}, as_json, f"model: {folder}\nsplit: {split_file} {SPLIT_NAMES}")


@app.command()
def caption(
    data: Annotated[str, typer.Argument(help="Image folder, .npy, .npz, .parquet, 'digits' or hf:NAME.", show_default=False)],
    output: Annotated[Path, Opt("-o", "--output", help="The captions file, a .jsonl.")] = Path("captions.jsonl"),
    captioner: Annotated[str, Opt(help="A BLIP of transformers: a folder or hub id.")] = "Salesforce/blip-image-captioning-base",
    n: Annotated[int, Opt("-n", "--n", help="Captions an image, beside its own.")] = 5,
    seed: Annotated[int, Opt(min=0)] = 0,
    batch_size: Annotated[int, Opt(help="Images captioned at once; changes no caption.")] = 8,
    split: Annotated[
        Path | None, Opt(help='JSON {"members": LIST OF IDS, "nonmembers": LIST OF IDS}: the members.', show_default=False)
    ] = None,
    limit: Annotated[int | None, Opt(help="Only this many images, the first ones.", show_default=False)] = None,
    exif: Exif = None,
    alpha: Alpha = None,
    white: White = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Write extra captions of images, for `train --captions FILE --diversify`. The same command resumes."""
    from diffleak.config import build
    from diffleak.data.config import DataConfig
    from diffleak.training.captioning import caption_images

    decoding = build(DataConfig, {"exif": exif, "alpha": alpha, "white": white}).decoding
    file = caption_images(data, output, captioner, n, seed, batch_size, device, split, limit, decoding)
    _print({"captions": str(file)}, as_json, f"captions: {file}")


@app.command()
def audit(
    model: Annotated[str, typer.Argument(help="A diffusers folder or a hub id; safetensors only.", show_default=False)],
    lora: Lora = None,
    lora_scale: LoraScale = None,
    guidance_scale: Annotated[float | None, Opt(help="Attack predictions under guidance (1: none).", show_default=False)] = None,
    reference: Reference = None,
    members: Members = None,
    nonmembers: Nonmembers = None,
    data: Annotated[str | None, Opt(help="One DATA for both sides, with --split.", show_default=False)] = None,
    split: Split = None,
    output: Annotated[Path | None, Opt("-o", "--output", help="The run folder.", show_default=False)] = None,
    config: File = None,
    attacks: Annotated[str | None, Opt(help="all, or names such as 'sima,sima_mc(m=10)'.", show_default=False)] = None,
    timesteps: Annotated[str | None, Opt(help="start:stop:step, stop included; default 10:300:10.", show_default=False)] = None,
    mask: Annotated[
        str | None,
        Opt(help="Latent models: also under influence[:0.4], auto, or the controls random[:0.4], reverse[:0.4].", show_default=False),
    ] = None,
    captions: Captions = None,
    probes: Probes = None,
    calibration: Annotated[
        bool | None, Opt("--calibration/--no-calibration", help="Choose settings on a calibrate part.", show_default=False)
    ] = None,
    calibrate_fraction: Annotated[
        float | None, Opt(help="Share of each side that settings are chosen on (0.2).", show_default=False)
    ] = None,
    seed: Annotated[int | None, Opt(show_default=False)] = None,
    batch_size: Annotated[str | None, Opt(help="auto, or images per forward.", show_default=False)] = None,
    chunk_size: Annotated[int | None, Opt(help="Images per score file (128).", show_default=False)] = None,
    shard: Annotated[str | None, Opt(help="i/n: score the i-th of n shares.", show_default=False)] = None,
    limit: Annotated[int | None, Opt(help="At most this many images a side.", show_default=False)] = None,
    resize: Resize = None,
    exif: Exif = None,
    alpha: Alpha = None,
    white: White = None,
    skip_unreadable: SkipUnreadable = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Annotated[
        int | None,
        Opt(help="Chunks this worker scores side by side, one CPU thread each; default its share of the cores.", show_default=False),
    ] = None,
    dry_run: DryRun = None,
    thumbnails: Annotated[
        bool | None, Opt("--thumbnails", help="Show the members that score highest in the report.", show_default=False)
    ] = None,
    max_auc: Annotated[float | None, Opt(help="Gate: exit 3 if any attack's AUC may exceed this.", show_default=False)] = None,
    max_tpr: Annotated[float | None, Opt(help="Gate: exit 3 if any TPR at 1 % FPR may exceed this.", show_default=False)] = None,
    max_excess_auc: Annotated[
        float | None, Opt(help="Gate: exit 3 if any attack's AUC beyond the --reference may exceed this.", show_default=False)
    ] = None,
    allow_shift: AllowShift = None,
    ignore_model_split: IgnoreModelSplit = None,
    anonymous: Anonymous = None,
    anonymous_key: AnonymousKey = None,
    as_json: Json = False,
) -> None:
    """Audit a model with membership inference attacks. The same command resumes."""
    given = {k: v for k, v in locals().items() if k not in ("config", "as_json")}
    from diffleak.auditing import run as api
    from diffleak.config import build, read_yaml

    settings = build(api.AuditConfig, read_yaml(config) if config else {}, given)
    prepared = api.prepare(settings)
    if settings.dry_run:
        return _print(prepared.summary(), as_json, prepared.describe())
    if settings.output is None:
        raise UserError("an audit needs a run folder: give -o RUN")
    _run_audit(prepared, settings, as_json)


@app.command()
def geometry(
    model: Annotated[str, typer.Argument(help="A latent model: a diffusers folder or a hub id.", show_default=False)],
    lora: Lora = None,
    lora_scale: LoraScale = None,
    data: Annotated[str | None, Opt(help="Images; with --split also who is a member.", show_default=False)] = None,
    split: Split = None,
    members: Members = None,
    nonmembers: Nonmembers = None,
    output: Annotated[Path | None, Opt("-o", "--output", help="The output folder.", show_default=False)] = None,
    config: File = None,
    captions: Captions = None,
    probes: Probes = None,
    top: Annotated[int | None, Opt(help="Singular values in the distortion (20).", show_default=False)] = None,
    attacks: Annotated[str | None, Opt(help="Attacks that the analyses look at.", show_default=False)] = None,
    mask: Annotated[str | None, Opt(help="Masks that the analyses look at.", show_default=False)] = None,
    timesteps: Annotated[str | None, Opt(help="start:stop:step, stop included; default 10:300:10.", show_default=False)] = None,
    seed: Annotated[int | None, Opt(show_default=False)] = None,
    batch_size: Annotated[str | None, Opt(help="auto, or images per forward.", show_default=False)] = None,
    chunk_size: Annotated[int | None, Opt(help="Images per file (128).", show_default=False)] = None,
    shard: Annotated[str | None, Opt(help="i/n: work on the i-th of n shares.", show_default=False)] = None,
    limit: Annotated[int | None, Opt(help="At most this many images (a side).", show_default=False)] = None,
    resize: Resize = None,
    exif: Exif = None,
    alpha: Alpha = None,
    white: White = None,
    skip_unreadable: SkipUnreadable = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Annotated[int | None, Opt(help="Chunks worked on side by side, one CPU thread each.", show_default=False)] = None,
    dry_run: DryRun = None,
    thumbnails: Annotated[bool | None, Opt("--thumbnails", help="Show images in the report.", show_default=False)] = None,
    allow_shift: AllowShift = None,
    ignore_model_split: IgnoreModelSplit = None,
    anonymous: Anonymous = None,
    anonymous_key: AnonymousKey = None,
    as_json: Json = False,
) -> None:
    """Measure how a decoder stretches each image and latent coordinate, and whether leakage follows. The same command resumes.

    Leaves geometry.parquet (id, distortion) and influence.npy; with members and held-out images also a whole audit.
    """
    given = {k: v for k, v in locals().items() if k not in ("config", "as_json")}
    from diffleak.auditing import run as api
    from diffleak.auditing.config import GeometryConfig
    from diffleak.config import build, read_yaml

    settings = build(GeometryConfig, read_yaml(config) if config else {}, given)
    prepared = api.prepare(settings)
    if settings.dry_run:
        return _print(prepared.summary(), as_json, prepared.describe())
    if settings.output is None:
        raise UserError("the geometry needs an output folder: give -o DIR")
    if settings.two_sided:
        return _run_audit(prepared, settings, as_json)
    finished = api.measure(prepared, settings.output)
    text = f"geometry: {settings.output / 'geometry.parquet'}\ninfluence: {settings.output / 'influence.npy'}"
    _print({"finished": finished, "images": len(prepared.scan.cohort)}, as_json, text if finished else "this shard is done")


@app.command()
def quality(
    model: Annotated[str, typer.Argument(help="A diffusers folder or a hub id; safetensors only.", show_default=False)],
    lora: Lora = None,
    lora_scale: LoraScale = None,
    reference: Annotated[str | None, Opt(help="Real DATA to compare with, normally held out.", show_default=False)] = None,
    training: Annotated[str | None, Opt(help="DATA that the model was trained on: looks for copies of it.", show_default=False)] = None,
    data: Annotated[str | None, Opt(help="One DATA for both, with --split.", show_default=False)] = None,
    split: Split = None,
    output: Annotated[
        Path | None, Opt("-o", "--output", help="quality.json, quality.html and the images; may be a run folder.", show_default=False)
    ] = None,
    config: File = None,
    images: Annotated[int | None, Opt(help="Images to draw (2048).", show_default=False)] = None,
    steps: Annotated[int | None, Opt(help="Steps of the sampler (50).", show_default=False)] = None,
    sampler: Annotated[str | None, Opt(help="ddim (default), ddpm or dpm.", show_default=False)] = None,
    rounds: Annotated[int | None, Opt(help="Of the adaptive attack on two models that take turns.", show_default=False)] = None,
    captions: Annotated[
        str | None,
        Opt(help="Text-to-image models draw the reference's own captions (default), fixed:TEXT, or those of a file.", show_default=False),
    ] = None,
    prompts: Annotated[Path | None, Opt(help="Or these: a text per line, or a .json, .jsonl or .csv.", show_default=False)] = None,
    guidance_scale: Annotated[float | None, Opt(help="Of classifier-free guidance (7.5); 1 is none.", show_default=False)] = None,
    clip: Annotated[
        str | None, Opt(help="A CLIP for the CLIP score; hub id or folder (openai/clip-vit-large-patch14).", show_default=False)
    ] = None,
    extractor: Annotated[
        str | None,
        Opt(help="inception[:FILE] (default), dinov2[:MODEL], clip[:MODEL], torchscript:FILE, sscd:FILE or pixels.", show_default=False),
    ] = None,
    copy_encoder: Annotated[str | None, Opt(help="What copies are found with; default the extractor.", show_default=False)] = None,
    scores: Annotated[
        bool | None, Opt("--scores", help="Write nearest.csv: each image's nearest generation, for `metrics`.", show_default=False)
    ] = None,
    seed: Annotated[int | None, Opt(show_default=False)] = None,
    batch_size: Annotated[int | None, Opt(help="Images per forward; default by their size.", show_default=False)] = None,
    limit: Annotated[int | None, Opt(help="At most this many real images a side.", show_default=False)] = None,
    resize: Resize = None,
    exif: Exif = None,
    alpha: Alpha = None,
    white: White = None,
    skip_unreadable: SkipUnreadable = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Annotated[int | None, Opt(help="Chunks drawn side by side, one CPU thread each.", show_default=False)] = None,
    thumbnails: Annotated[
        bool | None, Opt("--thumbnails", help="Show the closest training images in the report.", show_default=False)
    ] = None,
    ignore_model_split: IgnoreModelSplit = None,
    anonymous: Anonymous = None,
    anonymous_key: AnonymousKey = None,
    as_json: Json = False,
) -> None:
    """Draw images and compare them with real ones: Fréchet distance, KID, precision, copies. The same command resumes."""
    given = {k: v for k, v in locals().items() if k not in ("config", "as_json")}
    from diffleak.config import build, read_yaml
    from diffleak.quality.config import QualityConfig
    from diffleak.quality.measure import measure

    settings = build(QualityConfig, read_yaml(config) if config else {}, given)
    measured = measure(settings)
    if settings.output:
        measured.save(settings.output, settings.thumbnails)
    from diffleak.report.pages.quality import print_quality

    _print_record(measured.record, print_quality, settings.output / "quality.html" if settings.output else None, as_json)


@app.command()
def prompts(
    model: Annotated[str, typer.Argument(help="A text-to-image model: a diffusers folder or a hub id.", show_default=False)],
    lora: Lora = None,
    lora_scale: LoraScale = None,
    memorised: Annotated[
        Path | None, Opt(help="Prompts that may be memorised: one a line, or the column 'text' of .csv or .jsonl.", show_default=False)
    ] = None,
    ordinary: Annotated[Path | None, Opt(help="Prompts of the same kind that are not.", show_default=False)] = None,
    prompts: Annotated[Path | None, Opt(help="One list without labels: scores only.", show_default=False)] = None,
    output: Annotated[
        Path | None, Opt("-o", "--output", help="prompts.json, .csv and .html, and finished chunks.", show_default=False)
    ] = None,
    config: File = None,
    images: Annotated[int | None, Opt(help="Images drawn for each prompt, whose scores are averaged (1).", show_default=False)] = None,
    steps: Annotated[int | None, Opt(help="DDIM steps of each image (50).", show_default=False)] = None,
    guidance_scale: Annotated[float | None, Opt(help="Classifier-free guidance while drawing (7.5).", show_default=False)] = None,
    timestep: Annotated[int | None, Opt(help="Where the t-error is taken (90).", show_default=False)] = None,
    size: Annotated[int | None, Opt(help="Pixels a side, for a model that draws any size.", show_default=False)] = None,
    seed: Annotated[int | None, Opt(show_default=False)] = None,
    batch_size: Annotated[int | None, Opt(help="Images at once; default by their size.", show_default=False)] = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Annotated[int | None, Opt(help="Chunks asked side by side, one CPU thread each.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Score prompts by how memorised they look: t-error and magnitude of what the model draws for them. The same command resumes."""
    given = {k: v for k, v in locals().items() if k not in ("config", "as_json")}
    from diffleak.config import build, read_yaml
    from diffleak.prompts.config import PromptsConfig
    from diffleak.prompts.score import find

    settings = build(PromptsConfig, read_yaml(config) if config else {}, given)
    found = find(settings)
    if settings.output:
        found.save(settings.output)
    from diffleak.report.pages.prompts import print_prompts

    _print_record(found.record, print_prompts, settings.output / "prompts.html" if settings.output else None, as_json)


@app.command()
def metrics(
    file: Annotated[
        Path, typer.Argument(help="CSV or Parquet of id,member,score; member 0/1, higher = more likely a member.", show_default=False)
    ],
    convention: Annotated[str, Opt(help="member-exact, secmi-grid, pia-strict, swapped-strict or first-ge.")] = "member-exact",
    score: Annotated[str, Opt(help="The column of scores, as for samples.csv of a run.")] = "score",
    as_json: Json = False,
) -> None:
    """The statistics of a score file; needs no model."""
    from diffleak.auditing.score_file import evaluate_file, which_number

    result = evaluate_file(file, convention, score)
    said = which_number(file, score, result)
    if said:
        print(f"note: {said}", file=sys.stderr)
    if as_json:
        return _print(result.model_dump(), True, "")
    from diffleak.report import print_result

    print_result(result)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="The folder of a finished audit.", show_default=False)],
    thumbnails: Annotated[bool, Opt("--thumbnails", help="Show the members that score highest (private); reads the data again.")] = False,
    markdown: Annotated[bool, Opt("--markdown", help="Print the table as Markdown.")] = False,
    as_json: Json = False,
) -> None:
    """Write report.html again from a run folder, and print the table."""
    from diffleak.auditing.results import rewrite_report
    from diffleak.report import markdown as to_markdown

    record = rewrite_report(run, thumbnails)
    if markdown:
        return print(to_markdown(record))
    _print_audit(record, run, as_json)


@app.command()
def reveal(
    run: Annotated[Path, typer.Argument(help="The folder of an anonymous run, with its key.", show_default=False)],
    anonymous_key: Annotated[Path | None, Opt(help="The key, if not the file that the run was made with.", show_default=False)] = None,
    output: Annotated[
        Path | None, Opt("-o", "--output", help="The table; default ids.csv in RUN, readable by its owner only.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the file name of every keyed id of an anonymous run; reads the names of the data again."""
    from diffleak.reveal import reveal as reveal_names

    table = reveal_names(run, anonymous_key, output)
    _print({"ids": str(table)}, as_json, f"ids: {table}\nhandling: the table names every image; never pass it on with the run")


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="RUN, or NAME=RUN[,RUN...]; the first is the reference, undefended.", show_default=False),
    ],
    output: Annotated[Path | None, Opt("-o", "--output", help="Where compare.json and compare.html go.", show_default=False)] = None,
    attack: Annotated[list[str] | None, Opt(help="Only this attack; may be repeated. Default all that every run has.")] = None,
    halves: Annotated[
        Path | None,
        Opt(help="split.json of a defence with two teachers, for the swap audit; default beside the audited models.", show_default=False),
    ] = None,
    quality: Annotated[list[str] | None, Opt(help="NAME=FILE: an entry's quality.json; may be repeated.", show_default=False)] = None,
    seed: Annotated[int, Opt(help="Of the bootstrap.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare finished audits image by image with the first of them: which leaks less, by how much, at what quality."""
    from diffleak.comparison import compare as api

    record = api.compare(runs, attack or (), halves, quality or (), seed, output)
    if output:
        api.save(record, output)
    from diffleak.report.pages.comparison import print_comparison

    _print_record(record, print_comparison, output / "compare.html" if output else None, as_json)
    api.refuse_invalid(record)


@app.command()
def attacks(as_json: Json = False) -> None:
    """List the attacks: access, parameters, queries, source."""
    from diffleak.attacks.listing import listing, table

    rows = listing()
    if as_json:
        return _print(rows, True, "")
    _console().print(table(rows))


@app.command()
def selfcheck(seed: Annotated[int, Opt()] = 0, as_json: Json = False) -> None:
    """Run every attack on a model that memorised its images (AUC 1) and on one that did not (AUC one half)."""
    from diffleak.auditing.selfcheck import selfcheck as check

    checks = check(seed)
    rows = [{"attack": c.attack, "memoriser": c.memoriser, "gaussian": c.gaussian, "band": c.band, "passed": c.passed} for c in checks]
    lines = [
        f"{c.attack:<18} memoriser {c.memoriser:.3f}  gaussian {c.gaussian:.3f} (0.5 ± {c.band:.3f})  {'ok' if c.passed else 'FAILED'}"
        for c in checks
    ]
    _print(rows, as_json, "\n".join(lines))
    if not all(c.passed for c in checks):
        raise DiffleakError("selfcheck failed: this installation's numbers cannot be trusted; report it with `pip freeze`")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, Opt("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"diffleak {installed('diffleak')}")
        raise typer.Exit


def main() -> Never:
    """Runs the command line and exits with the code of what happened."""
    try:
        code = app(standalone_mode=False) or 0
        if code == INTERRUPTED:  # some versions of typer return it instead of raising
            raise KeyboardInterrupt
        sys.exit(code)
    except DiffleakError as error:
        _stop(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _stop("interrupted; finished work is kept, the same command resumes", INTERRUPTED)
    except UsageError as error:
        if not error.format_message():  # no command was given: the help is already there
            sys.exit(2)
        _stop(error.format_message(), 2)


def _run_audit(prepared: "Prepared", settings: "AuditConfig", as_json: bool) -> None:
    from diffleak.auditing import run as api

    assert settings.output is not None
    finished = api.run(prepared, settings.output)
    if finished is None:
        return _print({"finished": False}, as_json, "this shard is done")
    finished.save(settings.output, settings.thumbnails)
    _print_audit(finished.record, settings.output, as_json)
    api.gate(finished.record, settings)


def _stop(message: str, code: int) -> Never:
    print(f"diffleak: {message}", file=sys.stderr)
    sys.exit(code)


def _print(value: Any, as_json: bool, text: str) -> None:
    print(json.dumps(value, indent=2) if as_json else text)


def _print_record(record: Any, show: Callable[[Any, Any], None], page: Path | None, as_json: bool) -> None:
    """A record as JSON, or as `show` prints it, with where its page is."""
    if as_json:
        return print(record.model_dump_json(indent=2))
    show(record, _console())
    if page:
        print(f"report: {page}")


def _print_audit(record: "AuditRecord", folder: Path, as_json: bool) -> None:
    if as_json:
        return print(record.model_dump_json(indent=2))
    from diffleak.report import handling, print_terminal

    print_terminal(record, _console())
    print(f"report: {folder / 'report.html'}")
    print(handling.in_terminal(record.plan.anonymous is not None, folder))


def _console() -> Any:
    from rich.console import Console

    return Console()
