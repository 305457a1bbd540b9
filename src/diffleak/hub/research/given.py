"""The settings that a checkpoint does not hold: those of `--settings`, under the names of the original code.

Accepted are the arguments of the network's constructor and of the noise: pytorch-ddpm's flags, guided-diffusion's
`model_and_diffusion_defaults`. A setting that the weights determine must agree with them. A setting that is missing takes the code's
default and is listed as assumed; the number of heads must be given, because no default fits most models.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from diffleak.errors import UserError, shown, unknown
from diffleak.hub.research.layouts import CodeBase, Layout

WHOLE: tuple[str, ...] = (
    *("image_size", "img_size", "in_channels", "model_channels", "num_channels", "out_channels", "num_res_blocks", "num_classes", "dims"),
    *("T", "ch", "num_heads", "num_head_channels", "num_heads_upsample", "diffusion_steps"),
)
TRUTHS: tuple[str, ...] = (
    *("class_cond", "learn_sigma", "use_scale_shift_norm", "resblock_updown", "use_new_attention_order", "predict_xstart"),
    *("conv_resample", "rescale_timesteps", "use_checkpoint", "use_fp16", "use_kl", "rescale_learned_sigmas", "sigma_small"),
)
NUMBERS, TEXTS = ("dropout", "beta_1", "beta_T"), ("noise_schedule", "timestep_respacing", "mean_type", "var_type")
LISTS = ("channel_mult", "attention_resolutions", "ch_mult", "attn")  # of numbers, or in guided-diffusion's flags a text with commas
DDPM = {"T", "ch", "ch_mult", "attn", "num_res_blocks", "dropout", "beta_1", "beta_T", "mean_type", "var_type", "img_size"}
NAMES: dict[CodeBase, set[str]] = {
    "pytorch-ddpm": DDPM,
    "guided-diffusion": {*WHOLE, *TRUTHS, *NUMBERS, *TEXTS, *LISTS} - DDPM | {"num_res_blocks", "dropout"},
}
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}  # guided-diffusion's names, and diffusers'
MEANS = {"epsilon": "epsilon", "xstart": "sample"}  # pytorch-ddpm's
STEPS = 1000  # of training, in both code bases
MOST_STEPS = 10**6


class Completed(NamedTuple):
    """All settings of a network and of its scheduler; `assumed` has those that neither the weights nor `--settings` gave."""

    network: dict[str, Any]
    scheduler: dict[str, Any]
    assumed: dict[str, Any]


def completed(layout: Layout, given: Mapping[str, Any], where: str) -> Completed:
    """All settings of a network, from its weights and `given`; raises `UserError` if the two contradict each other."""
    names = NAMES[layout.code_base]
    for key, value in given.items():
        if key not in names:
            raise unknown(f"setting of {layout.code_base} in {where}", key, names)
        if not _of_kind(key, value):
            raise UserError(f"{key} in {where} must be {_kind(key)}; got {shown(repr(value))}")
    _compare(layout, given, where)
    size = given.get("img_size", given.get("image_size"))
    least = 2 ** (len(layout.settings["block_out_channels"]) - 1)
    if size is not None and (size < 1 or size % least):
        raise UserError(f"the image size in {where} must be a multiple of {least}, by which the network divides it; got {size}")
    assumed: dict[str, Any] = {}

    def say(key: str, default: Any) -> Any:
        return given[key] if given.get(key) is not None else assumed.setdefault(key, default)

    rest = _ddpm if layout.code_base == "pytorch-ddpm" else _guided
    network, scheduler = rest(layout, given, say, where)
    variance = {"variance_type": "learned_range"} if layout.settings["out_channels"] == 2 * layout.settings["in_channels"] else {}
    return Completed({**layout.settings, "sample_size": size, **network}, {**scheduler, **variance}, assumed)


Say = Callable[[str, Any], Any]
Rest = tuple[dict[str, Any], dict[str, Any]]


def _ddpm(layout: Layout, given: Mapping[str, Any], say: Say, where: str) -> Rest:
    mean = say("mean_type", "epsilon")
    if mean not in MEANS:
        raise UserError(f"mean_type in {where} must be {' or '.join(MEANS)}; got {shown(mean)}, which cannot be converted into noise")
    first, last = float(say("beta_1", 1e-4)), float(say("beta_T", 0.02))
    if not 0 < first <= last < 1:
        raise UserError(f"beta_1 and beta_T in {where} must grow between 0 and 1; got {first:g} and {last:g}")
    betas = {"beta_schedule": "linear", "beta_start": first, "beta_end": last}
    return {}, {"num_train_timesteps": layout.settings["table_length"], "prediction_type": MEANS[mean], **betas}


def _guided(layout: Layout, given: Mapping[str, Any], say: Say, where: str) -> Rest:
    heads, width = given.get("num_heads"), given.get("num_head_channels") or -1
    if heads is None and width == -1:
        raise UserError(
            "the weights of guided-diffusion do not determine the number of attention heads, on which every prediction depends: give "
            '--settings FILE.json with num_heads or num_head_channels, for example {"num_heads": 4}'
        )
    upsample = given.get("num_heads_upsample", -1)
    number = 1 if heads is None else heads
    network: dict[str, Any] = {"num_heads": number, "num_head_channels": width, "num_heads_upsample": number}
    network |= {"num_heads_upsample": upsample} if upsample != -1 else {}
    if width != -1 or max(network["num_heads"], network["num_heads_upsample"]) > 1:  # with a single head both orders are one
        network["use_new_attention_order"] = say("use_new_attention_order", False)
    steps, name = say("diffusion_steps", STEPS), say("noise_schedule", "linear")
    if not 1 <= steps <= MOST_STEPS:
        raise UserError(f"diffusion_steps in {where} must lie in [1, {MOST_STEPS}]; got {steps}")
    if name not in SCHEDULES:
        raise UserError(f"noise_schedule in {where} must be {' or '.join(SCHEDULES)}; got {shown(name)}")
    if steps != STEPS and "rescale_timesteps" not in given:
        raise UserError(
            f"with diffusion_steps {steps}, {where} must also have rescale_timesteps: true if t was scaled to {STEPS} steps (the default "
            "of improved-diffusion), else false (that of guided-diffusion)"
        )
    if given.get("rescale_timesteps"):
        network["time_scale"] = STEPS / steps
    scale = STEPS / steps
    betas = {"beta_start": scale * 1e-4, "beta_end": scale * 0.02} if name == "linear" else {}
    prediction = "sample" if say("predict_xstart", False) else "epsilon"
    return network, {"num_train_timesteps": steps, "beta_schedule": SCHEDULES[name], "prediction_type": prediction, **betas}


def _compare(layout: Layout, given: Mapping[str, Any], where: str) -> None:
    """Raises `UserError` for a setting that contradicts the weights."""
    s = layout.settings
    widths, levels, channels = s["block_out_channels"], s["attention_levels"], s["in_channels"]
    base = s["model_channels"]
    learnt, classes = s["out_channels"] == 2 * channels, s["num_class_embeds"]
    said = {"in_channels": channels, "out_channels": s["out_channels"], "num_res_blocks": s["layers_per_block"], "num_classes": classes}
    said |= {"model_channels": base, "num_channels": base, "ch": base, "T": s["table_length"], "dims": 2, "conv_resample": True}
    said |= {"learn_sigma": learnt, "class_cond": classes is not None, "use_scale_shift_norm": s["use_scale_shift_norm"]}
    said |= {"resblock_updown": s["resblock_updown"]} if len(widths) > 1 else {}
    said |= dict.fromkeys(("channel_mult", "ch_mult"), widths) | dict.fromkeys(("attn", "attention_resolutions"), levels)
    for key, value in given.items():
        if key not in said or value == "":
            continue
        found = value
        if key in ("channel_mult", "ch_mult"):
            found = [int(base * factor) for factor in _numbers(value)]
        elif key == "attn":
            found = sorted({*_numbers(value)} & {*range(len(widths))})
        elif key == "attention_resolutions":
            if isinstance(value, str) and not given.get("image_size"):
                raise UserError(
                    f"attention_resolutions in {where} is a text, so it means sides of images; give image_size too, or a list of factors"
                )
            halved = (
                [int(given.get("image_size") or 0) // max(1, int(side)) for side in _numbers(value)] if isinstance(value, str) else value
            )
            found = [level for level in range(len(widths)) if 2**level in halved]
        if found != said[key]:
            unit = {"channel_mult": " channels", "ch_mult": " channels"}.get(key, " (levels from 0)" if said[key] is levels else "")
            raise UserError(
                f"{key} in {where} is {shown(value)}, but the weights have {shown(said[key])}{unit}; "
                "leave it out, or give the settings of this checkpoint"
            )


def _numbers(value: Any) -> list[int | float]:
    return [float(each) for each in value.split(",")] if isinstance(value, str) else list(value)


def _of_kind(key: str, value: Any) -> bool:
    if value is None:
        return key in ("num_classes", "image_size", "img_size")
    if key in LISTS:
        try:
            return isinstance(value, str | list) and (value == "" or all(type(n) in (int, float) and 0 <= n < 1e6 for n in _numbers(value)))
        except ValueError:
            return False
    kinds: dict[str, tuple[type, ...]] = {**dict.fromkeys(WHOLE, (int,)), **dict.fromkeys(TRUTHS, (bool,)), **dict.fromkeys(TEXTS, (str,))}
    return type(value) in kinds.get(key, (int, float))


def _kind(key: str) -> str:
    spelled = ((WHOLE, "a whole number"), (TRUTHS, "true or false"), (TEXTS, "a text"), (LISTS, "a list of numbers"))
    return next((kind for keys, kind in spelled if key in keys), "a number")
