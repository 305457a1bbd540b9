"""Opens the file of a checkpoint without running code, and chooses the network in it."""

import os
import pickletools
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from diffleak.errors import UserError, listed, shown
from diffleak.hub.research.layouts import INSTEAD, State, code_base_of, plain, refusal
from diffleak.hub.states import MoreThanTensors, is_state, load_state
from diffleak.work.reading import Unreadable, opened

AVERAGE = "ema_model"  # of pytorch-ddpm, beside its net_model
MOST_OPERATIONS = 10**5  # of a pickle that are looked at for it
EDM = ("torch_utils.", "dnnlib.")  # beginnings of what the pickles of NVlabs ask for


def open_checkpoint(path: Path) -> Any:
    """The content of a file that `torch.save` wrote, or of a safetensors file; raises `UserError` for all others. Runs no code in it."""
    if os.path.isdir(path):  # which is no error for a name that no path can have
        raise UserError(f"CHECKPOINT must be one file; {path} is a folder: if it is a diffusers folder, audit it without conversion")
    try:
        return load_state(path)
    except MoreThanTensors as error:
        raise _refused_pickle(path, error.asked or _asked(path)) from None
    except Unreadable as error:
        raise UserError(
            f"{path} must be a checkpoint that torch.save wrote; it is damaged or of another kind ({error}): copy or fetch it again"
        ) from None


def _asked(path: Path) -> str:
    """The first name of code in a pickle that torch did not write, read without running it; empty if there is none."""
    texts = ["", ""]
    with suppress(Exception), opened(path, None) as file:  # of what is no pickle at all
        for operation, value, _ in islice(pickletools.genops(file), MOST_OPERATIONS):
            if operation.name == "GLOBAL":
                return str(value).replace(" ", ".")
            if operation.name == "STACK_GLOBAL":
                return ".".join(texts[-2:])
            texts += [value] if isinstance(value, str) else []
    return ""


def _refused_pickle(path: Path, asked: str) -> UserError:
    if asked.startswith(EDM):
        return UserError(f"{path} is an EDM pickle (NVlabs), which would run its own code; it was not opened: {INSTEAD}")
    if not asked:
        return UserError(
            f"{path} must be a checkpoint that torch.save wrote; it is another pickle, or damaged: save its state_dict with torch.save"
        )
    return UserError(
        f"{path} is a pickle that would run code ({shown(asked)}); it was not opened: "
        "if you trust it, load it in PyTorch and save its state_dict alone with torch.save"
    )


def network_in(content: Any, weights: str | None, path: Path) -> tuple[str | None, State]:
    """The network in a checkpoint and its name there, which is None if the file is the network itself.

    weights: its name, where `ema` also finds `ema_model`; by default pytorch-ddpm's average, or the only network.
    Raises `UserError` if there is none, or if there are several and none is named.
    """
    if is_state(content):
        if weights is not None:
            raise UserError(f"--weights chooses among the networks of a checkpoint, and {path} holds one; leave it out")
        return None, _known(plain(content), f"{path}")
    parts = content.items() if isinstance(content, Mapping) else enumerate(content) if isinstance(content, list | tuple) else ()
    states = {str(name): plain(part) for name, part in parts if is_state(part)}
    networks = {name: state for name, state in states.items() if code_base_of(state)}
    if not networks:
        largest = max(states.values(), key=len, default={})
        raise refusal([*largest], f"{path}")
    if weights is not None:
        name = next((name for name in (weights, f"{weights}_model") if name in networks), None)
        if name is None:
            raise UserError(f"--weights must name a network of {path}, which holds {listed(networks, 100)}; got {shown(weights)}")
        return name, networks[name]
    if len(networks) > 1 and AVERAGE not in networks:
        raise UserError(f"{path} holds {len(networks)} networks ({listed(networks, 100)}): choose one of them with --weights NAME")
    name = AVERAGE if AVERAGE in networks else next(iter(networks))
    return name, networks[name]


def _known(state: State, where: str) -> State:
    if not code_base_of(state):
        raise refusal([*state], where)
    return state
