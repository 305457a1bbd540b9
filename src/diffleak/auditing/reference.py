"""A reference model beside the audited one: what its training has added to what was known before.

    excess(x) = statistic(x; model) - statistic(x; reference)

Some images look like members to any model, because they are simple. The reference, which has not seen the members, says how
hard each image is; what is left is due to the training of the audited model ("difficulty calibration": Watson, Guo, Cormode
and Sablayrolles 2022, arXiv 2111.08440). Both models see the same images, with the same noise and captions, each
embedded by the model's own text encoder. What an attack settles on calibration images, it settles on the audited model.
"""

import os

import numpy as np

from diffleak import hub
from diffleak.auditing.config import AuditConfig
from diffleak.config import BASE, is_hub_id, no_model
from diffleak.diffusion.denoiser import Guided
from diffleak.diffusion.preconditioning import ROUNDING
from diffleak.diffusion.target import Target
from diffleak.errors import UserError, one_or_more


def load_reference(config: AuditConfig, target: Target) -> Target | None:
    """The reference model that a config names, None without one; raises `UserError` for one that is not there."""
    if config.reference is None:
        return None
    own = config.reference == BASE
    network, weights = (config.network, config.weights) if own else (None, None)
    model = config.model if own else config.reference
    if not own and not os.path.exists(model) and not is_hub_id(model):
        raise no_model(model, "--reference")
    settings = config.model_config_ if os.path.isfile(model) else None
    fast = config.FAST if config.fast is None else config.fast
    return hub.load(
        model,
        target.dtype,
        target.device,
        config.guidance_scale,
        network=network,
        weights=weights,
        model_config=settings,
        fast=fast,
        compile=config.compile,
    )


def refuse_incompatible(target: Target, reference: Target) -> None:
    """Raises `UserError` unless the statistics of two models are of the same inputs, and so can be subtracted."""
    shapes = (target.shape, reference.shape)
    if None not in shapes and shapes[0] != shapes[1]:
        raise UserError(f"the reference must take the same images as the model; they take {shapes[1]} and {shapes[0]}")
    if not hub.same_codec(target.codec, reference.codec):
        raise UserError("the reference and the model must share one autoencoder; these two differ")
    scales = [model.denoiser.scale if isinstance(model.denoiser, Guided) else 1.0 for model in (target, reference)]
    if scales[0] != scales[1]:
        raise UserError(f"the reference must be guided as the model is; their guidance scales are {scales[1]:g} and {scales[0]:g}")
    one, other = target.denoiser.schedule, reference.denoiser.schedule
    alike = len(one) == len(other) and one.is_flow == other.is_flow
    if not alike or not np.allclose(one.alphas_cumprod, other.alphas_cumprod, rtol=0, atol=ROUNDING):
        raise UserError(
            "the reference and the model must share one noise schedule; these two differ, so a timestep is not the same noise in both"
        )
    if target.classes != reference.classes:
        said = [one_or_more(n, "class", "classes") if n else "no classes" for n in (reference.classes, target.classes)]
        raise UserError(f"the reference must take the labels that the model takes; they take {said[0]} and {said[1]}")
    one_of, other_of = target.class_names.numbers, reference.class_names.numbers
    unlike = sorted(name for name in one_of.keys() & other_of.keys() if one_of[name] != other_of[name])
    if unlike or (target.class_names.closed and reference.class_names.closed and one_of != other_of):
        what = f"{unlike[0]} is {other_of[unlike[0]]} and {one_of[unlike[0]]}" if unlike else "they name other classes"
        raise UserError(f"the reference must number its classes as the model does; {what}: train both on data with the same classes")
    if (target.text is None) != (reference.text is None):
        raise UserError(
            f"the reference and the model must both take captions, or neither; {(reference if target.text else target).name} takes none"
        )
    if (target.dtype, target.device) != (reference.dtype, reference.device):
        said = [f"{model.dtype} on {model.device}" for model in (reference, target)]
        raise UserError(f"the reference must run as the model does; they run in {said[0]} and in {said[1]}")
