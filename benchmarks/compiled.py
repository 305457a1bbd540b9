"""An audit with `--compile` beside the same one without: `python benchmarks/compiled.py`, the real compiler, on a CPU.

The network is a U-Net of a few thousand weights, 8 x 8 pixels, so that the compiler ends in minutes; every attack that takes no captions,
gradients or drawings, at two timesteps. Prints the seconds of the first forward of every size (the warm-up), those of a later one, and the
largest difference of a statistic, relative, against the tolerance that is meant to hold. Exit code 1 where it does not.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import make_model

from diffleak import audit, load

TOLERANCE = 1e-3  # of a statistic, relative: that of float32 in full on another device (benchmarks/accelerator.py)
ATTACKS = ("loss", "sima", "pia", "pian", "secmi")
EACH = 16


def forwards(target: Any, images: int) -> tuple[float, float]:
    """Seconds of the first forward of so many images, and of the fastest of some later ones."""
    x, seconds = torch.randn(images, 3, 8, 8), list[float]()
    with torch.inference_mode():
        for _ in range(11):
            started = time.perf_counter()
            target.denoiser(x, 100)
            seconds.append(time.perf_counter() - started)
    return seconds[0], min(seconds[1:])


def main() -> int:
    torch.set_num_threads(1)
    rng, found = np.random.default_rng(0), dict[str, np.ndarray]()
    with tempfile.TemporaryDirectory() as scratch:
        make_model(Path(scratch) / "model", size=8, channels=(8, 16))
        sides = {name: rng.integers(0, 256, (EACH, 8, 8, 3), dtype=np.uint8) for name in ("members", "nonmembers")}
        for compiled in (False, True):
            target = load(Path(scratch) / "model", device="cpu", compile=compiled)
            for images in (EACH, 2):
                first, later = forwards(target, images)
                name = "compiled" if compiled else "as it is"
                print(f"compiled  {name}, {images} images: {first:.1f} s at first, then {1e3 * later:.2f} ms a forward", flush=True)
            settings = {"attacks": ",".join(ATTACKS), "timesteps": "100:200:100", "batch_size": EACH, "threads": 1, "allow_shift": True}
            frame = audit(target, **sides, **settings).to_frame()
            found[name] = frame["statistic"].to_numpy()
            for attack in ATTACKS if compiled else ():
                rows = (frame["attack"] == attack).to_numpy()
                gap = float(np.abs(found["compiled"][rows] / found["as it is"][rows] - 1).max())
                print(f"compiled  {attack}: largest difference {gap:.1e} of a statistic (most {TOLERANCE:g})", flush=True)
    return int(np.abs(found["compiled"] / found["as it is"] - 1).max() > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
