"""Converts a research checkpoint to a folder that `load` reads."""

import os
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from diffleak.errors import WHY, UserError, first_lines, refusing
from diffleak.hub.configs import load_object
from diffleak.hub.folders import diffusers_library
from diffleak.hub.research.checkpoint import network_in, open_checkpoint
from diffleak.hub.research.given import Completed, completed
from diffleak.hub.research.layouts import Layout, check_shapes, code_base_of, layout_of
from diffleak.records.conversion import FILE, Conversion
from diffleak.work.files import hash_file, write_text


def convert(checkpoint: Path, output: Path, settings: Path | None = None, weights: str | None = None) -> Conversion:
    """Writes the network of a pytorch-ddpm or guided-diffusion checkpoint as a folder that `load` reads.

    Args:
        checkpoint: A file of `torch.save`, no code of which is run, or of safetensors.
        output: A new or empty folder.
        settings: A JSON file with the settings that the weights do not determine, by the names of the original code (see `given`).
        weights: The key of the network in the file; by default the moving average, or the only network.

    Returns:
        The content of the folder's convert.json.

    Raises:
        UserError: For a file that is damaged or no such checkpoint, a network of another code base, settings that contradict the weights,
            several networks of which none is named, and an output that exists.

    Source:
        Ho et al. 2020, arXiv 2006.11239 (github.com/w86763777/pytorch-ddpm); Dhariwal and Nichol 2021, arXiv 2105.05233
        (github.com/openai/guided-diffusion); Nichol and Dhariwal 2021, arXiv 2102.09672 (github.com/openai/improved-diffusion).
    """
    if os.path.lexists(output) and not _is_empty(output):
        raise UserError(f"the output must be a new folder; {output} exists: choose another -o")
    given = {} if settings is None else _settings(settings)
    content = open_checkpoint(checkpoint)
    name, state = network_in(content, weights, checkpoint)
    where = f"{checkpoint}" if name is None else f"{name} of {checkpoint}"
    code_base = code_base_of(state)
    assert code_base, "or the network is refused"
    layout = layout_of(code_base, state, where)
    _refuse_other_answers(layout, where)
    full = completed(layout, given, f"{settings}")
    network = _network(layout, full, where)
    step = content.get("step") if name is not None and isinstance(content, dict) else None
    from diffleak import __version__

    record = Conversion(
        diffleak=__version__,
        checkpoint=checkpoint.name,
        sha256=hash_file(checkpoint),
        code_base=layout.code_base,
        weights=name,
        step=step if type(step) is int else None,
        given=given,
        assumed=full.assumed,
    )
    _write(output, network, full.scheduler, record)
    return record


def _is_empty(folder: Path) -> bool:
    try:
        return not os.listdir(folder)
    except OSError:  # a file, or a folder that may not be read
        return False


def _settings(path: Path) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise UserError(f"--settings must be a JSON file with settings of the original code; there is no file at {path}")
    return load_object(path)


def _refuse_other_answers(layout: Layout, where: str) -> None:
    """Raises `UserError` for a network of the same layout that takes two images, as one for super-resolution."""
    inside, out = layout.settings["in_channels"], layout.settings["out_channels"]
    if inside == 6 or out not in (inside, 2 * inside):
        raise UserError(
            f"{where} takes {inside} channels and returns {out}, so it is probably a model for super-resolution; only denoisers of single "
            "images can be audited"
        )


def _network(layout: Layout, full: Completed, where: str) -> Any:
    """The network with its weights; raises `UserError` for weights that do not fit it."""
    from diffleak.hub.research.network import ResearchUNet

    message = f"{where} cannot be a network with these settings: {WHY}"
    with refusing((ValueError, RuntimeError, TypeError), message, first_lines), torch.device("meta"):
        network = ResearchUNet(**full.network)
    check_shapes(layout, network, where)
    state = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in layout.state.items()}
    network.load_state_dict(state, assign=True)
    return network


def _write(output: Path, network: Any, scheduler: dict[str, Any], record: Conversion) -> None:
    """Writes the folder completely, or not at all."""
    output = output.absolute()  # which has a name, where it was given as "."
    part = output.with_name(f".{output.name}.{uuid4().hex}.part")
    try:
        part.mkdir(parents=True)
        network.save_pretrained(part / "unet")
        diffusers_library().DDPMScheduler(**scheduler).save_pretrained(part / "scheduler")
        write_text(part / FILE, record.model_dump_json(indent=2))
        if os.path.isdir(output):  # an empty one, in which somebody may stand
            for path in part.iterdir():
                os.replace(path, output / path.name)
            part.rmdir()
        else:
            os.replace(part, output)
    except Exception as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":  # which a full disk is to safetensors
            raise UserError(f"{output} cannot be written ({first_lines(error)}); choose another -o") from None
        raise
