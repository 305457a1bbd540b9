"""The attacks, by the name that `--attacks` takes. Adding one is a file with a frozen dataclass and a line here."""

from diffleak.attacks.base import Attack, ResidualAttack
from diffleak.attacks.black_box import BlackBox
from diffleak.attacks.clid import CLiD
from diffleak.attacks.frequency import LossFrequency, PIAFrequency
from diffleak.attacks.gradient import Gradient
from diffleak.attacks.loss import Loss
from diffleak.attacks.noise_aggregation import NoiseAggregation
from diffleak.attacks.noise_probe import NoiseProbe
from diffleak.attacks.pfami import PFAMI
from diffleak.attacks.pia import PIA, PIAN
from diffleak.attacks.secmi import SecMI
from diffleak.attacks.sima import SimA, SimAMonteCarlo

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
    "gradient": Gradient,
    "noise_probe": NoiseProbe,
}

__all__ = ["ATTACKS", "Attack", "ResidualAttack"]
