"""diffleak: what a diffusion model leaks about its training images, and what a defence buys.

    import diffleak
    images = diffleak.cohort(members="train/", nonmembers="heldout/")
    audit = diffleak.audit("path/or/hub-id", images, attacks=["sima", diffleak.SecMI(k=5)])
    audit["sima"].auc.low

Names are imported when first used, so that what needs no torch does not pay for it; editors and mypy see their types.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffleak.attacks import ATTACKS as ATTACKS
    from diffleak.attacks import Attack as Attack
    from diffleak.attacks import ResidualAttack as ResidualAttack
    from diffleak.attacks.black_box import BlackBox as BlackBox
    from diffleak.attacks.clid import CLiD as CLiD
    from diffleak.attacks.frequency import LossFrequency as LossFrequency
    from diffleak.attacks.frequency import PIAFrequency as PIAFrequency
    from diffleak.attacks.loss import Loss as Loss
    from diffleak.attacks.noise_aggregation import NoiseAggregation as NoiseAggregation
    from diffleak.attacks.noise_probe import NoiseProbe as NoiseProbe
    from diffleak.attacks.pfami import PFAMI as PFAMI
    from diffleak.attacks.pia import PIA as PIA
    from diffleak.attacks.pia import PIAN as PIAN
    from diffleak.attacks.secmi import SecMI as SecMI
    from diffleak.attacks.sima import SimA as SimA
    from diffleak.attacks.sima import SimAMonteCarlo as SimAMonteCarlo
    from diffleak.attacks.subject import Subject as Subject
    from diffleak.auditing.run import Audit as Audit
    from diffleak.auditing.run import audit as audit
    from diffleak.comparison.compare import compare as compare
    from diffleak.data.cohort import Cohort as Cohort
    from diffleak.data.cohort import cohort as cohort
    from diffleak.defenses.config import defend_config as defend_config
    from diffleak.defenses.defend import defend as defend
    from diffleak.diffusion.denoiser import Denoiser as Denoiser
    from diffleak.diffusion.dual import Dual as Dual
    from diffleak.diffusion.noise import Noise as Noise
    from diffleak.diffusion.schedule import Schedule as Schedule
    from diffleak.diffusion.target import Target as Target
    from diffleak.errors import DiffleakError as DiffleakError
    from diffleak.errors import GateFailed as GateFailed
    from diffleak.errors import InvalidAudit as InvalidAudit
    from diffleak.errors import UserError as UserError
    from diffleak.extraction.extract import extract as extract
    from diffleak.gating.check import gate as gate
    from diffleak.generation import generate as generate
    from diffleak.hub import load as load
    from diffleak.prompts.score import find_memorised as find_memorised
    from diffleak.quality.measure import measure_quality as measure_quality
    from diffleak.records.audit import AuditRecord as AuditRecord
    from diffleak.records.audit import Result as Result
    from diffleak.records.base import Estimate as Estimate
    from diffleak.records.scores import Scores as Scores
    from diffleak.stats.evaluation import evaluate as evaluate
    from diffleak.training.captioning import caption_images as caption_images
    from diffleak.training.config import TrainConfig as TrainConfig
    from diffleak.training.config import train_config as train_config
    from diffleak.training.run import train as train

_HOMES = {
    "ATTACKS": "attacks",
    "Attack": "attacks",
    "ResidualAttack": "attacks",
    "BlackBox": "attacks.black_box",
    "CLiD": "attacks.clid",
    "LossFrequency": "attacks.frequency",
    "PIAFrequency": "attacks.frequency",
    "Loss": "attacks.loss",
    "NoiseAggregation": "attacks.noise_aggregation",
    "NoiseProbe": "attacks.noise_probe",
    "PFAMI": "attacks.pfami",
    "PIA": "attacks.pia",
    "PIAN": "attacks.pia",
    "SecMI": "attacks.secmi",
    "SimA": "attacks.sima",
    "SimAMonteCarlo": "attacks.sima",
    "Subject": "attacks.subject",
    "Audit": "auditing.run",
    "audit": "auditing.run",
    "compare": "comparison.compare",
    "Cohort": "data.cohort",
    "cohort": "data.cohort",
    "defend_config": "defenses.config",
    "defend": "defenses.defend",
    "Denoiser": "diffusion.denoiser",
    "Dual": "diffusion.dual",
    "Noise": "diffusion.noise",
    "Schedule": "diffusion.schedule",
    "Target": "diffusion.target",
    "DiffleakError": "errors",
    "GateFailed": "errors",
    "InvalidAudit": "errors",
    "UserError": "errors",
    "extract": "extraction.extract",
    "gate": "gating.check",
    "generate": "generation",
    "load": "hub",
    "find_memorised": "prompts.score",
    "measure_quality": "quality.measure",
    "AuditRecord": "records.audit",
    "Result": "records.audit",
    "Estimate": "records.base",
    "Scores": "records.scores",
    "evaluate": "stats.evaluation",
    "caption_images": "training.captioning",
    "TrainConfig": "training.config",
    "train_config": "training.config",
    "train": "training.run",
}
__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("diffleak")
    elif name in _HOMES:
        value = getattr(import_module(f"diffleak.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'diffleak' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
