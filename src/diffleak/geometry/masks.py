"""Which latent coordinates an attack looks at: `--mask influence[:0.4]`, its controls, and `auto`. No torch.

A mask drops a share `ratio` of each image's coordinates: those of lowest influence on the decoded image, or, as controls,
as many at random (`random`) or those of highest influence (`reverse`). `auto` leaves the ratio to the calibrate part.
(Rao, Qu and Moyer 2025, arXiv 2511.20592, section 4.3 and appendix B.)
"""

from dataclasses import dataclass

from diffleak.errors import UserError, unknown
from diffleak.records.variants import CONTROLS, Control

PAPER_RATIO = 0.4
AUTO_RATIOS = tuple(i / 10 for i in range(10))


@dataclass(frozen=True, order=True)
class Mask:
    """A share `ratio` in [0, 1) of the coordinates is dropped; at 0 none is, whatever the control."""

    control: Control
    ratio: float

    @property
    def label(self) -> str:
        """As `--mask` takes it: `influence:0.4`."""
        return f"{self.control}:{self.ratio:g}"


@dataclass(frozen=True)
class MaskChoice:
    """One masked result: the `masks` that the calibrate part chooses from, usually one."""

    label: str
    masks: tuple[Mask, ...]


def parse_mask(text: str) -> MaskChoice:
    """The mask that `influence`, `random:0.3`, `reverse` or `auto` stands for; raises `UserError` for another."""
    name, given, ratio = text.strip().partition(":")
    if name == "auto" and given:
        raise UserError(f"auto takes no ratio, it chooses one; for {ratio or 'a ratio of yours'} write influence:{ratio or PAPER_RATIO}")
    if name == "auto":
        return MaskChoice("influence:auto", tuple(Mask("influence", r) for r in AUTO_RATIOS))
    control = next((c for c in CONTROLS if c == name), None)
    if control is None:
        raise unknown("mask", name, (*CONTROLS, "auto"))
    try:
        share = float(ratio) if given else PAPER_RATIO
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise UserError(f"a mask's ratio is the share of coordinates dropped, above 0 and below 1, as in {name}:0.4; got {ratio!r}")
    mask = Mask(control, share)
    return MaskChoice(mask.label, (mask,))


def distinct(choices: tuple[MaskChoice, ...]) -> tuple[Mask, ...]:
    """Every mask that some choice needs, once; masks of ratio 0 are no masks and left out."""
    return tuple(dict.fromkeys(mask for choice in choices for mask in choice.masks if mask.ratio > 0))
