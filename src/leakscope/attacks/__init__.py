"""The attacks, by the name that `--attacks` takes. Adding one is a file with a frozen dataclass and a line here."""

from leakscope.attacks.base import Attack, ResidualAttack
from leakscope.attacks.black_box import BlackBox
from leakscope.attacks.clid import CLiD
from leakscope.attacks.frequency import LossFrequency, PIAFrequency
from leakscope.attacks.loss import Loss
from leakscope.attacks.noise_aggregation import NoiseAggregation
from leakscope.attacks.pfami import PFAMI
from leakscope.attacks.pia import PIA, PIAN
from leakscope.attacks.secmi import SecMI
from leakscope.attacks.sima import SimA, SimAMonteCarlo

ATTACKS: dict[str, type[Attack]] = {
    "loss": Loss,
    "secmi": SecMI,
    "pia": PIA,
    "pian": PIAN,
    "sima": SimA,
    "sima_mc": SimAMonteCarlo,
    "noise_aggregation": NoiseAggregation,
    "pfami": PFAMI,
    "clid": CLiD,
    "loss_frequency": LossFrequency,
    "pia_frequency": PIAFrequency,
    "black_box": BlackBox,
}

__all__ = ["ATTACKS", "Attack", "ResidualAttack"]
