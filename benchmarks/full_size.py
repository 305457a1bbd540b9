"""An audit of a full-size Stable Diffusion with random weights, its memory and its silence.

    python benchmarks/full_size.py sd15|sdxl FOLDER [FLAG...]

FLAGs go to `diffleak audit`, such as --offload or --dtype bfloat16. FOLDER keeps the model (4 or 14 GB) for the next call. 12 images a
side, one timestep, one thread. The images are 256 pixels a side, so that it ends in minutes on a CPU: the activations are those of a
quarter or a sixteenth of the model's own size, the weights are all there.

Prints the seconds from the start of Python to the first line, to the plan and to the first file of scores, which has 4 images, and the
longest silence between two lines; then the most memory that was in use (VmHWM) and how much of it the system could not take back: memory
of the process's own, without files that are mapped (RssAnon, looked at every 50 ms). The second call finds the hashes of the weights in
the cache folder.
"""

import json
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from threading import Thread

import diffusers
import numpy as np
import torch
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SIDE, IMAGES = 256, 12
CAPTIONS = ("red house", "old river", "a cat under the moon", "near the tree")
LINEAR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False, "steps_offset": 1}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": SIDE,
}
LARGE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "projection_dim": 768}
BIG_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20, "projection_dim": 1280}
XL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def make(kind: str) -> diffusers.DiffusionPipeline:
    """A pipeline of the sizes of Stable Diffusion 1.5 or XL, untrained, with a tokenizer of a few words."""
    tokenizer = CLIPTokenizer(model_max_length=77).train_new_from_iterator(CAPTIONS, 400)
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    vae, scheduler = diffusers.AutoencoderKL(**VAE), diffusers.DDIMScheduler(**LINEAR)
    first = CLIPTextModel(CLIPTextConfig(**LARGE, **marks))
    if kind == "sd15":
        unet = diffusers.UNet2DConditionModel(sample_size=SIDE // 8, cross_attention_dim=768, attention_head_dim=8)
        nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return diffusers.StableDiffusionPipeline(vae, first, tokenizer, unet, scheduler, **nothing)
    second = CLIPTextModelWithProjection(CLIPTextConfig(**BIG_G, **marks))
    unet = diffusers.UNet2DConditionModel(sample_size=SIDE // 8, **XL)
    return diffusers.StableDiffusionXLPipeline(vae, first, second, tokenizer, tokenizer, unet, scheduler)


def folders(kind: str, root: Path) -> tuple[Path, Path, Path]:
    """The model and two folders of captioned images, made unless they are there."""
    model, sides = root / kind, (root / "members", root / "nonmembers")
    if not model.exists():
        torch.manual_seed(0)
        make(kind).save_pretrained(root / f"{kind}.part")
        (root / f"{kind}.part").rename(model)
    rng = np.random.default_rng(0)
    for side in sides:
        side.mkdir(exist_ok=True)
        rows = [{"file_name": f"{i:03d}.png", "text": CAPTIONS[i % len(CAPTIONS)]} for i in range(IMAGES)]
        for row in rows:
            Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(side / row["file_name"])
        (side / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return model, *sides


def status(pid: int) -> dict[str, int]:
    """Memory of a process in bytes, by the names in /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}


def main(kind: str, root: str, *flags: str) -> None:
    folder = Path(root)
    folder.mkdir(parents=True, exist_ok=True)
    model, members, nonmembers = folders(kind, folder)
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "-m", "diffleak", "audit", str(model), "--members", str(members), "--nonmembers", str(nonmembers)]
    command += [
        "--attacks",
        "sima",
        "--timesteps",
        "100",
        "--batch-size",
        "4",
        "--chunk-size",
        "4",
        "--threads",
        "1",
        "-o",
        str(run),
        *flags,
    ]
    started, whole, own, last, scored = time.monotonic(), 0, 0, 0, None
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = list[tuple[float, str]]()
    reader = Thread(target=lambda: said.extend((time.monotonic() - started, shown(line)) for line in process.stderr or ()))
    reader.start()
    while process.poll() is None:
        if scored is None and next((run / "scores").glob("chunk-*.parquet"), None):
            scored = time.monotonic() - started
        try:
            now = status(process.pid)
        except (FileNotFoundError, ProcessLookupError):
            break
        whole, own, last = max(whole, now.get("VmHWM", 0)), max(own, now.get("RssAnon", 0)), now.get("RssAnon", last)
        time.sleep(0.05)
    reader.join()
    if process.wait() not in (0, 3, 4):
        sys.exit(f"the audit ended with exit code {process.returncode}")
    at = [0.0, *(when for when, _ in said)]
    plan = next(when for when, line in said if line.startswith("plan: "))
    longest = max(later - earlier for earlier, later in pairwise(at))
    print(f"{kind}: first line after {at[1]:.1f} s, plan {plan:.1f} s, first score {scored or 0:.1f} s; longest silence {longest:.1f} s")
    used = f"most in use {whole / 2**30:.1f} GiB, of its own {own / 2**30:.1f} GiB, at the end {last / 2**30:.1f} GiB"
    print(f"{kind} {' '.join(flags)}: {used}; {time.monotonic() - started:.0f} s")


def shown(line: str) -> str:
    print(line, end="", file=sys.stderr, flush=True)
    return line


if __name__ == "__main__":
    main(*sys.argv[1:])
