"""A model that the user's own function makes: `--model-from package.module:function`.

The function takes no arguments, or MODEL as text if one is given, so that one function serves many checkpoints. It returns a `Denoiser`, a
pair of a `Denoiser` and a `Codec`, or a `Target`. Its module is imported and run because the user names it.

    fingerprint = SHA-256 of the module's source, of MODEL where that is a file or folder, and of every weight that can be seen

The weights of networks and autoencoders can be seen, those inside a function cannot. If some weights cannot be seen and MODEL is no file
or folder, the model has no fingerprint, and its run folder cannot be resumed.
"""

import hashlib
import inspect
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffleak.diffusion.codec import Autoencoder, Codec, Identity
from diffleak.diffusion.denoiser import Denoiser, NetworkDenoiser, unguided
from diffleak.diffusion.own_code import called, imported, source_hash
from diffleak.diffusion.target import PIXELS, Target
from diffleak.errors import UserError, shown
from diffleak.work.folder import UNKNOWN
from diffleak.work.remembered import hash_weights

RETURNS = "a diffleak.Denoiser, a pair (Denoiser, Codec), or a diffleak.Target"


def model_from(name: str, model: str | None = None, dtype: str = "float32", device: str | None = None) -> Target:
    """The model that the function `package.module:function` returns, called with `model` if that is given.

    `dtype` and `device` are those of images and noise, by default float32 and the device of the network's weights; a `Target` has its own.
    Raises `UserError` for a name of another form, a function that fails, and a return value of another kind.
    """
    what = "a function that makes the model is named package.module:function"
    if not all(name.partition(":")):
        raise UserError(f"{what}, as in mine:load_model; got {shown(name)}")
    function = imported(name, what)
    if not callable(function):
        raise UserError(f"{name} must be a function that returns {RETURNS}; got {shown(repr(function))}")
    with called(name, "no argument, as no MODEL is given" if model is None else "MODEL as its argument"):
        made = function() if model is None else function(model)
    target = _target(name, made, dtype, device)
    code = source_hash([inspect.unwrap(function) if inspect.isroutine(function) else type(function)])
    which = UNKNOWN if code is None else _fingerprint(code, model, target)
    return replace(target, name=model or name, fingerprint=which, made_by=name, code=code or UNKNOWN)


def _target(name: str, made: Any, dtype: str, device: str | None) -> Target:
    if isinstance(made, Target):
        return made
    denoiser, codec = made if isinstance(made, tuple) and len(made) == 2 else (made, PIXELS)
    if not isinstance(denoiser, Denoiser) or not isinstance(codec, Codec):
        got = f"({type(denoiser).__name__}, {type(codec).__name__})" if isinstance(made, tuple) else shown(repr(made))
        raise UserError(f"{name} must return {RETURNS}; got {got}: diffleak.Denoiser.from_function makes a Denoiser from a function")
    where = next((str(value.device) for network in _networks(denoiser, codec) for value in network.parameters()), "cpu")
    return Target(denoiser, dtype=dtype, device=device or where, codec=codec)


def _networks(denoiser: Denoiser, codec: Codec) -> Iterator[torch.nn.Module]:
    """The networks whose weights can be seen."""
    for each in map(unguided, denoiser.exposed):
        if isinstance(each, NetworkDenoiser):
            yield each.network
    if isinstance(codec, Autoencoder):
        yield codec.network


def _fingerprint(code: str, model: str | None, target: Target) -> str:
    digest, networks = hashlib.sha256(code.encode()), list(_networks(target.denoiser, target.codec))
    path = Path(model) if model and os.path.exists(model) else None
    denoisers = [unguided(each) for each in target.denoiser.exposed]
    seen = all(isinstance(each, NetworkDenoiser) for each in denoisers) and isinstance(target.codec, Identity | Autoencoder)
    if path is None and not seen and target.fingerprint == UNKNOWN:
        return UNKNOWN
    digest.update(target.fingerprint.encode())
    if path:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        digest.update(hash_weights(files).encode())
    schedule = target.denoiser.schedule
    tables = [schedule.alphas_cumprod, schedule.times]
    for each in denoisers:
        if isinstance(each, NetworkDenoiser):
            digest.update(f"{each.prediction_type} {each.learned_variance}".encode())
            tables += each.precondition.tables if each.precondition else []
    scaling = (target.codec.scale, target.codec.shift) if isinstance(target.codec, Autoencoder) else ()
    tables += [value.detach().cpu().double().numpy() for value in scaling]
    for table in tables:
        digest.update(np.ascontiguousarray(table).tobytes())
    for network in networks:
        for key, value in network.state_dict().items():
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
