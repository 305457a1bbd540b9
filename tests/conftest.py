"""Shared by every test: one thread, no network, shapes and types checked at run time, tiny models and real images."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
install_import_hook("leakscope", "beartype.beartype")  # hence no import of the package at the top of this file
torch.set_num_threads(1)

TINY = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}


@pytest.fixture
def tiny_network() -> Callable[..., torch.nn.Module]:
    """An untrained UNet2DModel of about 17 000 weights, the same ones for the same keys: `tiny_network(in_channels=3)`."""
    from leakscope.hub import new_network

    def make(**keys: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        return new_network({**TINY, **keys}).eval().requires_grad_(False)

    return make


@pytest.fixture
def model_folder(tmp_path: Path, tiny_network: Callable[..., torch.nn.Module]) -> Callable[..., Path]:
    """A diffusers folder with a tiny network: `model_folder("name", scheduler={...}, in_channels=3)`."""
    from leakscope.hub import new_scheduler, save

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
