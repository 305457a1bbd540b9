"""Audits of a small Stable Diffusion against the same U-Net called in a bare loop, with its captions, in one run."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffleak.work.folder import Folder

SIDE = 32
LATENT = 16
ROWS = {"sima": 30, "secmi": 30, "clid": 30, "pfami(timesteps=0+250)": 33}  # in a forward: clid takes 2 images of 15 rows, pfami 3 of 11
IMAGES = 60
ROUNDS = 2
WORDS = ("red", "blue", "old", "house", "river", "cat", "under", "near", "moon", "tree")


def make_pipeline(folder: Path) -> Path:
    """An untrained pipeline, and 32 x 32 images with captions of five words."""
    from diffleak import hub
    from diffleak.hub import new_autoencoder, new_scheduler, new_text_to_image

    torch.manual_seed(0)
    levels = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "block_out_channels": [16, 16]}
    codec = hub.codec_of(new_autoencoder("AutoencoderKL", {**levels, "norm_num_groups": 8, "latent_channels": 4}), 1.0)
    network = {
        "sample_size": LATENT,
        "block_out_channels": [64, 128],
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "attention_head_dim": 4,
        "norm_num_groups": 16,
    }
    encoder = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    rng = np.random.default_rng(0)
    rows = [{"file_name": f"{i:03d}.png", "text": " ".join(rng.choice(WORDS, 5))} for i in range(IMAGES)]
    for side in (0, 1):
        images = folder / str(side)
        images.mkdir()
        own = rows[side * IMAGES // 2 : (side + 1) * IMAGES // 2]
        for row in own:
            Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(images / row["file_name"])
        (images / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in own))
    new_text_to_image([row["text"] for row in rows], network, encoder, codec, new_scheduler({})).save_pretrained(folder / "model")
    return folder / "model"


def ratios(scratch: Path) -> Iterator[tuple[str, float]]:
    """Queries/s of each attack, latents encoded, over rows/s of the bare network; the best of interleaved rounds."""
    from diffleak import hub
    from diffleak.auditing import score as scoring
    from diffleak.auditing.config import AuditConfig
    from diffleak.auditing.plan import prepare
    from diffleak.config import build

    model = make_pipeline(scratch)
    for attack, rows in ROWS.items():
        given = {"members": str(scratch / "0"), "nonmembers": str(scratch / "1"), "attacks": attack, "timesteps": "20:120:20"}
        bare, audited = [], []
        for round_ in range(ROUNDS):
            target = hub.load(model, device="cpu")  # anew, so that no caption is embedded already
            settings = {**given, "batch_size": rows, "chunk_size": rows, "device": "cpu", "threads": 1}
            prepared = prepare(build(AuditConfig, settings), target)
            queries = prepared.queries_per_image * IMAGES
            x, words = torch.randn(rows, 4, LATENT, LATENT), target.text(["red house"] * rows).tensors["encoder_hidden_states"]
            torch.set_num_threads(1)
            started = time.perf_counter()
            with torch.inference_mode():
                for i in range(queries // rows):
                    _ = target.denoiser.network(x, torch.tensor(i % 1000), encoder_hidden_states=words).sample
            bare.append(queries // rows * rows / (time.perf_counter() - started))
            started = time.perf_counter()
            assert scoring.score(prepared.job, Folder(scratch / f"{attack}-{round_}"), prepared.worker) == 0
            audited.append(queries / (time.perf_counter() - started))
        yield attack, max(audited) / max(bare)
