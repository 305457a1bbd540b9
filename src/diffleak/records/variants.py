"""The variants of a result, and how each is labelled: plain, under a mask, on a reference, and the excess over it. No torch."""

from typing import Literal, get_args

Variant = Literal["reference", "excess"]
VARIANTS: tuple[Variant, Variant] = get_args(Variant)

CALIBRATED = "calibrated"  # the label of a result from which the complexity of images is taken out

COMBINED = "combined"  # the label of the result of all attacks together

Control = Literal["influence", "random", "reverse"]
CONTROLS: tuple[Control, ...] = get_args(Control)


Estimator = Literal["filtered", "hutchinson"]  # of the influence of latent coordinates
SingularValues = Literal["krylov", "randomized"]  # how those of a decoder's Jacobian are found
Sweep = Literal["calibrate", "coarse", "all"]  # which images are scored at which timesteps
CoarseStep = Literal[3]  # of how many timesteps a coarse sweep begins with one


def masked_label(attack: str, mask: str) -> str:
    """How an attack is named in results, scores and tables under a mask, `sima[influence:0.4]`, or beside a reference, `sima[excess]`."""
    return f"{attack}[{mask}]"


def speaks_of(label: str, variant: Variant) -> bool:
    """True for a label of scores in the reference, or on the excess over it."""
    return masked_label("", variant) in label


def base_label(label: str, *variants: str | None) -> str:
    """The attack behind a label: `sima` for `sima[influence:0.4]`, given the variants that were put after it, the first one first."""
    for variant in reversed(variants):
        label = label.removesuffix(f"[{variant}]")
    return label


def control_of(mask: str) -> str:
    """What decides which coordinates a mask drops: `influence` for `influence:0.4` and `influence:auto`."""
    return mask.partition(":")[0]


def may_lead(mask: str | None) -> bool:
    """True if a result under this mask speaks for the audit: controls show what a mask should not do, so they never do."""
    return mask is None or control_of(mask) == "influence"
