"""Moves weights out of memory while they are not used.

    released    text encoders, once all captions are embedded: on the CPU into a memory-mapped file, from which the system reads them if
                they are used again; on an accelerator into the memory of the CPU
    offloaded   the denoiser on an accelerator, with --offload: accelerate keeps the weights in the memory of the CPU and copies those of
                each layer while it runs

Neither changes a number by more than its last bit: some CPUs multiply in another order if a file puts the weights at another offset in
memory. The weights of a denoiser on the CPU need none of this: they are the mapped file itself, as long as its dtype is that of the audit.
"""

from collections.abc import Iterable
from pathlib import Path

import torch

from diffleak.work.files import scratch
from diffleak.work.progress import say


def map_weights(networks: Iterable[torch.nn.Module], place: Path) -> None:
    """Moves the weights of networks on the CPU into a memory-mapped file in the folder `place`.

    The file is unlinked once it is mapped, so nothing is left when the process ends, however it ends. If a process is killed while it
    writes, the file stays until another one maps weights in that folder. If the folder has too little room, the weights stay in memory
    and a warning says so.
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
    """Keeps the weights of a network in the memory of the CPU, and those of a layer on the `device` while that layer runs."""
    from accelerate import cpu_offload

    cpu_offload(network, execution_device=device, offload_buffers=True)
