"""Recognises the code base of a network, renames its weights as in `ResearchUNet`, and reads the settings off their shapes."""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from diffleak.errors import WHY, UserError, refusing, shown
from diffleak.hub.states import wrapped_by

State = dict[str, Tensor]
CodeBase = Literal["pytorch-ddpm", "guided-diffusion"]
TABLE = "time_embedding.timembedding.0.weight"
OURS: dict[CodeBase, tuple[str, ...]] = {  # keys by which the code bases that are converted are known
    "pytorch-ddpm": ("time_embedding.timembedding.1.weight", "head.weight"),
    "guided-diffusion": ("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.0.in_layers.0.weight"),
}
OTHERS = (  # keys of networks that are not converted, whose they are, and what to do with them
    (r"^model\.diffusion_model\.", "CompVis latent diffusion (a whole model in one file)", "give the file itself to `diffleak audit`"),
    (r"^(down_blocks|mid_block)\.", "diffusers", "put it into unet/ of a folder, beside its config.json"),
    (r"\.transformer_blocks\.\d+\.", "a text-to-image model in the layout of CompVis", "give it to `diffleak audit` with --network"),
    (r"(^|\.)init_conv\.|(^|\.)downs\.\d+\.", "lucidrains' denoising-diffusion-pytorch", ""),
    (r"^all_modules\.\d+\.", "score_sde (Song et al.)", ""),
    (r"^down\.\d+\.block\.\d+\.norm1\.", "ermongroup/ddim or pesser/pytorch_diffusion", ""),
    (r"(^|\.)(enc|dec)\.\d+x\d+_\w+\.", "EDM (NVlabs)", ""),
    (r"^blocks\.\d+\.adaLN_modulation\.", "DiT (facebookresearch)", "convert it with the script of diffusers"),
)
INSTEAD = "write a function that returns it as a diffleak.Denoiser, and give --model-from MODULE:FUNCTION to `diffleak audit`"
ATTENTION = tuple(f"attn.{name}.{end}" for name in ("group_norm", "proj_q", "proj_k", "proj_v", "proj") for end in ("weight", "bias"))
PDDPM = (  # parts of pytorch-ddpm's blocks, and their names here; `attn.` is a part of its own
    ("block1.0.", "0.in_layers.0."),
    ("block1.2.", "0.in_layers.2."),
    ("temb_proj.1.", "0.emb_layers.1."),
    ("block2.0.", "0.out_layers.0."),
    ("block2.3.", "0.out_layers.3."),
    ("shortcut.", "0.skip_connection."),
    ("attn.group_norm.", "1.norm."),
    ("attn.proj.", "1.proj_out."),
)
ENDS = {
    "time_embedding.timembedding.0.weight": "time_table",
    **{f"time_embedding.timembedding.{a}.{end}": f"time_embed.{b}.{end}" for a, b in ((1, 0), (3, 2)) for end in ("weight", "bias")},
    **{f"head.{end}": f"input_blocks.0.0.{end}" for end in ("weight", "bias")},
    **{f"tail.{i}.{end}": f"out.{i}.{end}" for i in (0, 2) for end in ("weight", "bias")},
}


class Layout(NamedTuple):
    """A network: its weights under the names of `ResearchUNet`, and the settings that they determine."""

    code_base: CodeBase
    state: State
    settings: dict[str, Any]


def plain(state: Mapping[str, Tensor]) -> State:
    """A state dict without the prefixes of wrappers: DataParallel's `module.`, `torch.compile`'s `_orig_mod.`."""
    prefix = wrapped_by(state)
    return {key.removeprefix(prefix): value for key, value in state.items()}


def code_base_of(state: Mapping[str, Tensor]) -> CodeBase | None:
    """The code base that wrote these weights; None for a code base that is not supported."""
    if any(re.search(pattern, key) for pattern, *_ in OTHERS for key in state):
        return None
    return next((name for name, keys in OURS.items() if all(key in state for key in keys)), None)


def refusal(keys: list[str], where: str) -> UserError:
    """The error for weights of another code base, which it names if the weights' names show it."""
    for pattern, name, instead in OTHERS:
        if any(re.search(pattern, key) for key in keys):
            return UserError(f"{where} is of {name}, which convert does not support: {instead or INSTEAD}")
    found = f"its first weight is {shown(keys[0])}" if keys else "it holds no weights"
    return UserError(f"{where} must be a network of pytorch-ddpm, guided-diffusion or improved-diffusion; {found}: {INSTEAD}")


def layout_of(code_base: CodeBase, state: State, where: str) -> Layout:
    """The layout of a network; raises `UserError` if weights that determine its settings are missing."""
    raised = (KeyError, IndexError, ValueError, RuntimeError)  # where a weight that its layout has is not there, or has no such shape
    message = f"{where} is a {code_base} network, but weights are missing ({WHY}): fetch or save it again"
    with refusing(raised, message, lambda error: shown(error, 120)):
        renamed = _from_pytorch_ddpm(state) if code_base == "pytorch-ddpm" else dict(state)
        settings = _settings(renamed)
    return Layout(code_base, renamed, settings)


def check_shapes(layout: Layout, network: torch.nn.Module, where: str) -> None:
    """Raises `UserError` unless the weights are those of `network`, names and shapes."""
    needed = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in layout.state.items()}
    kind = f"{where} looks like a {layout.code_base} network"
    if missing := [key for key in needed if key not in found]:
        raise UserError(
            f"{kind}, but weights are missing (first: {shown(missing[0])}): it is damaged, or a variant that convert does not support"
        )
    if left := [key for key in found if key not in needed]:
        raise UserError(f"{kind}, but has more weights (first: {shown(left[0], 100)}): a variant that convert does not support; {INSTEAD}")
    for key, shape in needed.items():
        if found[key] != shape:
            raise UserError(f"{kind}, but {key} has shape {found[key]}, and {shape} would fit: it is damaged, or another variant")
        if not layout.state[key].is_floating_point():
            dtype = str(layout.state[key].dtype).removeprefix("torch.")
            raise UserError(f"{kind}, but {key} is stored as {dtype}, which is not floating point: save it again")


def _from_pytorch_ddpm(state: State) -> State:
    """The weights under the names of guided-diffusion, with the three convolutions of q, k and v joined into one."""
    found: State = {ENDS[key]: value for key, value in state.items() if key in ENDS}
    blocks: dict[tuple[str, int], State] = {}
    for key, value in state.items():
        if match := re.fullmatch(r"(down|middle|up)blocks\.(\d+)\.(.+)", key):
            blocks.setdefault((match[1], int(match[2])), {})[match[3]] = value
        elif key not in ENDS:
            found[key] = value  # which `check_shapes` refuses by name
    above = -1
    for (part, number), inside in sorted(blocks.items()):
        resamples = "main.weight" in inside
        above += part == "up" and not resamples
        place = {"down": f"input_blocks.{number + 1}", "up": f"output_blocks.{above}"}.get(part, "middle_block")
        here: State = {}
        if resamples:
            name = f"{1 + (f'{place}.1.norm.weight' in found)}.conv" if part == "up" else "0.op"
            here = {f"{name}.{key.removeprefix('main.')}": value for key, value in inside.items()}
        else:
            here = {_renamed(key): value for key, value in inside.items()}
            if any(key in inside for key in ATTENTION):
                if lacking := next((key for key in ATTENTION if key not in inside), None):
                    raise KeyError(f"{part}blocks.{number}.{lacking}")
                for end in ("weight", "bias"):
                    joined = torch.cat([here.pop(f"attn.proj_{name}.{end}") for name in "qkv"])
                    here[f"1.qkv.{end}"] = joined.flatten(2) if end == "weight" else joined
                here["1.proj_out.weight"] = here["1.proj_out.weight"].flatten(2)
        if part == "middle":  # of which the second block comes after the attention of the first, and is the third part
            here = {f"{number + 1}{key[1:]}" if number else key: value for key, value in here.items()}
        found |= {f"{place}.{key}": value for key, value in here.items()}
    return found


def _renamed(key: str) -> str:
    return next((new + key.removeprefix(old) for old, new in PDDPM if key.startswith(old)), key)


def _settings(state: State) -> dict[str, Any]:
    """The settings of a `ResearchUNet` that names and shapes of weights determine; raises `KeyError` if a needed weight is missing.

    On the way up, the last block of a level doubles the image. This gives the number of blocks per level, and so the number of levels.
    """
    numbers = {int(match[1]) for key in state if (match := re.match(r"output_blocks\.(\d+)\.", key))}
    count = len(numbers)
    if not count or numbers != {*range(count)}:
        raise KeyError(f"output_blocks.{count}")
    doubling = {
        int(match[1]): match[2] == "in_layers.0"
        for key in state
        if (match := re.fullmatch(r"output_blocks\.(\d+)\.[12]\.(in_layers\.0|conv)\.weight", key))
    }
    each = min(doubling, default=count - 1) + 1
    levels = count // each
    first = [f"input_blocks.{1 + level * each}" for level in range(levels)]
    widths = [state[f"{block}.0.in_layers.2.weight"].shape[0] for block in first]
    said = state["input_blocks.1.0.emb_layers.1.weight"].shape[0]
    return {
        "in_channels": state["input_blocks.0.0.weight"].shape[1],
        "out_channels": state["out.2.weight"].shape[0],
        "model_channels": state["time_embed.0.weight"].shape[1],
        "head_channels": state["input_blocks.0.0.weight"].shape[0],
        "block_out_channels": widths,
        "layers_per_block": each - 1,
        "attention_levels": [level for level, block in enumerate(first) if f"{block}.1.qkv.weight" in state],
        "use_scale_shift_norm": said == 2 * widths[0],
        "resblock_updown": any(doubling.values()),
        "num_class_embeds": state["label_emb.weight"].shape[0] if "label_emb.weight" in state else None,
        "table_length": state["time_table"].shape[0] if "time_table" in state else 0,
    }
