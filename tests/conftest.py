"""Shared by every test: one thread, no network, shapes and types checked at run time, tiny models and real images."""

import gc
import os
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.checks import check_types
from fixtures.models import AUTOENCODERS, TINY

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
check_types("diffleak")  # hence no import of the package at the top of this file
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Searches for garbage less often, and not among the several hundred thousand objects that the imports have made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def pytest_runtest_setup() -> None:
    """No test gets the threads of the one before: on shared cores, those of OpenMP spend most of their time spinning."""
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def clock_unwatched() -> Iterator[None]:
    """Nothing is said only because this machine is slow; tests of that look at a clock of their own."""
    from diffleak.work import progress

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(progress._Watch, "start", lambda self: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_power_cut() -> Iterator[None]:
    """Files are not forced onto the disk: tests end processes, which loses nothing that was written, and never the machine."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def images_measured_once() -> Iterator[None]:
    """The scan of an audit measures equal pixels once in all tests: many audits are of the same images.

    Tests of what is measured call `image_features` and `complexity` themselves.
    """
    from diffleak.data import scan

    def once(measure: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        found: dict[tuple[tuple[int, ...], bytes], np.ndarray] = {}

        def measured(pixels: np.ndarray) -> np.ndarray:
            key = (pixels.shape, sha256(pixels.tobytes()).digest())
            if key not in found:
                found[key] = measure(pixels)
            return found[key].copy()

        return measured

    with pytest.MonkeyPatch.context() as patched:
        for name in ("image_features", "complexity"):
            patched.setattr(scan, name, once(getattr(scan, name)))
        yield


@pytest.fixture(scope="module")
def few_divisions() -> Iterator[None]:
    """Small sides are divided 5 times into calibrate and test, not 25 times: what that does to the numbers is tested in tests/stats."""
    from diffleak.stats import evaluation

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(evaluation, "REPEATS", 5)
        yield


@pytest.fixture(scope="module")
def undrawn() -> Iterator[Any]:
    """Figures are made, and matplotlib's drawing of them, a tenth of an audit's time, is left out.

    Drawings are tested in tests/report; the audits of test_audit.py, test_latent_audit.py and test_cli.py draw theirs. See `drawn`.
    """
    from matplotlib.figure import Figure

    draw = Figure.savefig
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Figure, "savefig", lambda figure, file, **how: file.write('<svg viewBox="0 0 1 1"><g id="undrawn"></g></svg>'))
        yield draw


@pytest.fixture
def drawn(undrawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of one test are drawn though those of its module are not."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", undrawn)


@pytest.fixture
def tiny_network() -> Callable[..., torch.nn.Module]:
    """An untrained UNet2DModel of about 17 000 weights, the same ones for the same keys: `tiny_network(in_channels=3)`."""
    from diffleak.hub import new_network

    def make(**keys: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        return new_network({**TINY, **keys}).eval().requires_grad_(False)

    return make


@pytest.fixture
def model_folder(tmp_path: Path, tiny_network: Callable[..., torch.nn.Module]) -> Callable[..., Path]:
    """A diffusers folder with a tiny network: `model_folder("name", scheduler={...}, in_channels=3)`."""
    from diffleak.hub import new_scheduler, save

    def make(name: str = "model", scheduler: dict[str, Any] | None = None, **keys: Any) -> Path:
        folder = tmp_path / name
        save(folder, tiny_network(**keys), new_scheduler(scheduler or {}))
        return folder

    return make


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """scikit-learn's 1797 handwritten digits as uint8 images of shape (n, 8, 8, 1)."""
    from sklearn.datasets import load_digits

    return np.rint(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]


@pytest.fixture
def autoencoder() -> Callable[..., torch.nn.Module]:
    """An untrained autoencoder of diffusers that halves grey images of 8 x 8: `autoencoder("vqvae", latent_channels=3)`.

    The kinds are vae (AutoencoderKL), tiny (AutoencoderTiny) and vqvae (VQModel). The same keys give the same weights.
    """
    from diffusers import AutoencoderKL, AutoencoderTiny, VQModel

    images = {"in_channels": 1, "out_channels": 1, "latent_channels": 4}
    blocks = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 8,
    }
    halves = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "num_encoder_blocks": (1, 1)}
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "vae": (AutoencoderKL, {**images, **blocks, "scaling_factor": 0.5}),
        "tiny": (AutoencoderTiny, {**images, **halves, "num_decoder_blocks": (1, 1), "scaling_factor": 1.3}),
        "vqvae": (VQModel, {**images, **blocks, "num_vq_embeddings": 16, "scaling_factor": 0.7}),
    }

    def make(kind: str = "vae", **keys: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        network_class, config = kinds[kind]
        network = network_class(**{**config, **keys})
        if kind == "vqvae":  # codes among the latents; those of a new network all lie next to zero
            torch.nn.init.normal_(network.quantize.embedding.weight)
        return network.eval().requires_grad_(False)

    return make


@pytest.fixture
def tiny_transformer() -> Callable[..., torch.nn.Module]:
    """An untrained DiT of 10 classes for latents of 4 channels and 4 x 4, with learned variance: `tiny_transformer(out_channels=4)`."""
    from diffusers import DiTTransformer2DModel

    config = {"num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 4, "out_channels": 8, "num_layers": 1}
    config |= {"sample_size": 4, "patch_size": 2, "num_embeds_ada_norm": 10, "norm_num_groups": 4}

    def make(**keys: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        return DiTTransformer2DModel(**{**config, **keys}).eval().requires_grad_(False)

    return make


@pytest.fixture
def latent_folder(
    tmp_path: Path,
    autoencoder: Callable[..., torch.nn.Module],
    tiny_network: Callable[..., torch.nn.Module],
    tiny_transformer: Callable[..., torch.nn.Module],
) -> Callable[..., Path]:
    """A latent model of grey 8 x 8 images, latents 4 x 4 x 4, each part as diffusers itself writes it:

    `latent_folder("name", kind="vqvae", network="transformer", classes=7, encoder={"scaling_factor": 2.0}, sample_size=8)`.
    `encoder` are keys of the autoencoder, the others are keys of the denoiser; a transformer has 10 classes by default.
    """
    from diffusers import DDPMScheduler

    def make(
        name: str = "latent",
        kind: str = "vae",
        network: str = "unet",
        classes: int | None = None,
        encoder: dict[str, Any] | None = None,
        scheduler: dict[str, Any] | None = None,
        **keys: Any,
    ) -> Path:
        folder = tmp_path / name
        if network == "transformer":
            denoiser = tiny_transformer(**{"num_embeds_ada_norm": classes or 10, **keys})
        else:
            denoiser = tiny_network(**{"sample_size": 4, "in_channels": 4, "out_channels": 4, "num_class_embeds": classes, **keys})
        denoiser.save_pretrained(folder / network)
        autoencoder(kind, **(encoder or {})).save_pretrained(folder / AUTOENCODERS[kind])
        DDPMScheduler(**(scheduler or {})).save_pretrained(folder / "scheduler")
        return folder

    return make
