"""The machine that commands run on, and where files from the hub are kept."""

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import final

from diffleak.errors import first_lines
from diffleak.report.media.pdf import BROWSERS
from diffleak.work.memory import free_on_the_cpu
from diffleak.work.threads import cores


@final
@dataclass(frozen=True)
class Device:
    """Where a model may run: its name for `--device`, what it is, and its free memory in bytes, None where nothing says so."""

    name: str
    what: str
    free: int | None


@final
@dataclass(frozen=True)
class Machine:
    """python, platform: as Python names them. cores: the number of CPU cores that this process may use. threads: of one forward, by
    OMP_NUM_THREADS, None where that is not set. cache: the folder of the hub's files. cached: if it is there. free_disk: bytes where it
    is. browser: the path of the one that prints PDF, None without one.
    """

    python: str
    executable: str
    platform: str
    cores: int
    threads: int | None
    cache: str | None
    cached: bool
    free_disk: int | None
    browser: str | None


def devices() -> tuple[Device, ...]:
    """The CPU, and the accelerators that torch sees; those that a command takes by default come first."""
    cpu = Device("cpu", platform.processor() or platform.machine(), free_on_the_cpu())
    if why_not("torch"):
        return (cpu,)
    from diffleak.diffusion.devices import free_memory, name_of, names

    return (*(Device(name, name_of(name), free_memory(name)) for name in names()), cpu)


def machine() -> Machine:
    """This machine as a command sees it."""
    cache = _hub_cache()
    near = next((folder for folder in (cache, *cache.parents) if folder.is_dir()), None) if cache else None
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return Machine(
        python=platform.python_version(),
        executable=sys.executable,
        platform=platform.platform(),
        cores=cores(),
        threads=int(threads) if threads.isdigit() else None,
        cache=str(cache) if cache else None,
        cached=bool(cache and cache.is_dir()),
        free_disk=shutil.disk_usage(near).free if near else None,
        browser=next(filter(None, map(shutil.which, BROWSERS)), None),
    )


def why_not(module: str) -> str | None:
    """What stops a module from being imported: it is not there, or a library of the system that it needs is not; None if nothing does."""
    try:
        import_module(module)
    except (ImportError, OSError) as error:
        return first_lines(error)
    return None


def _hub_cache() -> Path | None:
    """The folder in which huggingface_hub keeps what it has loaded; None without that library."""
    if why_not("huggingface_hub"):
        return None
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)
