"""A research checkpoint in, a folder out that `load` reads."""

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

    checkpoint: a file of `torch.save`, of which no code is run, or of safetensors.
    output: the folder, which must not be there yet, or be empty.
    settings: JSON of the settings that the weights do not say, by the names of the original code (`given`).
    weights: which network of the file, by its key there; default the moving average, or the only one.
    Returns what is in the folder's convert.json. Raises `UserError` for a file that is no such checkpoint or is damaged, a network of
    another code base, settings that contradict the weights, several networks of which none is named, and an output that exists.

    Ho et al. 2020, arXiv 2006.11239, as in github.com/w86763777/pytorch-ddpm; Dhariwal and Nichol 2021, arXiv 2105.05233, as in
    github.com/openai/guided-diffusion; Nichol and Dhariwal 2021, arXiv 2102.09672, as in github.com/openai/improved-diffusion.
    """
    if os.path.lexists(output) and not _is_empty(output):
        raise UserError(f"{output} is there already, and a converted model is written into a new folder; choose another -o")
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
        raise UserError(f"--settings must be a JSON file of the settings of the original code; found none at {path}")
    return load_object(path)


def _refuse_other_answers(layout: Layout, where: str) -> None:
    """Raises `UserError` for a network of another kind in the same layout, one for super-resolution, which takes two images."""
    inside, out = layout.settings["in_channels"], layout.settings["out_channels"]
    if inside == 6 or out not in (inside, 2 * inside):
        raise UserError(
            f"{where} takes {inside} channels and gives {out}: it is no denoiser of images alone, but for super-resolution as it seems, "
            "and cannot be audited"
        )


def _network(layout: Layout, full: Completed, where: str) -> Any:
    """The network with its weights; raises `UserError` for weights that are not of it."""
    from diffleak.hub.research.network import ResearchUNet

    message = f"{where} cannot be a network with these settings: {WHY}"
    with refusing((ValueError, RuntimeError, TypeError), message, first_lines), torch.device("meta"):
        network = ResearchUNet(**full.network)
    check_shapes(layout, network, where)
    state = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in layout.state.items()}
    network.load_state_dict(state, assign=True)
    return network


def _write(output: Path, network: Any, scheduler: dict[str, Any], record: Conversion) -> None:
    """Writes the folder, whole or not at all."""
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
