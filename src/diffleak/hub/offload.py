"""Weights leave memory while they are not used.

    released    text encoders, once all captions are embedded: on the CPU into a file that is mapped into memory, so that the system reads
                them from there if they are used once more; from an accelerator into the memory of the CPU
    offloaded   the denoiser of an accelerator, with --offload: accelerate keeps the weights in the memory of the CPU and copies those of
                each layer while it runs

Neither changes a number by more than its last bit: some CPUs multiply in another order where a file puts the weights at another
offset in memory. On the CPU the weights of a denoiser need no such thing: as they are loaded they are the file itself, mapped,
as long as its dtype is that of the audit.
"""

from collections.abc import Iterable
from pathlib import Path

import torch

from diffleak.work.files import scratch
from diffleak.work.progress import say


def map_weights(networks: Iterable[torch.nn.Module], place: Path) -> None:
    """Moves the weights of networks on the CPU into a file in the folder `place` that is mapped into memory.

    The file loses its name once it is mapped, so nothing is left of it when the process ends, however it ends. Of a process that is
    killed while it writes, the file stays until the next one maps weights in that folder. Where the folder has too little room the
    weights stay in memory, and a line says so.
    """
    for network in networks:
        try:
            with scratch(place, ".weights-") as folder:
                file = folder / "weights.pt"
                torch.save(network.state_dict(), file)
                mapped = torch.load(file, mmap=True, weights_only=True)
        except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError for a full disk
            say(f"warning: the weights of a {type(network).__name__} stay in memory: they cannot be written to a file ({error})")
            return
        network.load_state_dict(mapped, assign=True)


def offload(network: torch.nn.Module, device: torch.device) -> None:
    """Keeps the weights of a network in the memory of the CPU, and those of each layer on the `device` while it runs."""
    from accelerate import cpu_offload

    cpu_offload(network, execution_device=device, offload_buffers=True)
