"""The versions and the machine that numbers come from."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from diffleak.diffusion.devices import name_of
from diffleak.records.plan import Environment

PACKAGES = ("torch", "diffusers", "accelerate", "numpy", "scipy", "scikit-learn", "pyarrow", "pillow")


def environment(target: Any, threads: int, seed: int, data_fingerprint: str) -> Environment:
    """The environment of this process auditing `target` with `threads` chunks side by side."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return Environment(
        diffleak=version("diffleak"),
        python=platform.python_version(),
        platform=platform.platform(),
        packages=found,
        device=target.device,
        device_name=name_of(target.device),
        dtype=target.dtype,
        threads=threads,
        seed=seed,
        model_fingerprint=target.fingerprint,
        data_fingerprint=data_fingerprint,
        faster=target.faster or None,
    )
