"""diffleak: what a diffusion model leaks about its training images, and what a defence buys.

    import diffleak
    images = diffleak.cohort(members="train/", nonmembers="heldout/")
    audit = diffleak.audit("path/or/hub-id", images, attacks=["sima", diffleak.SecMI(k=5)])
    audit["sima"].auc.low

Names are imported when first used, so that what needs no torch does not pay for it; editors and mypy see their types.
"""

import re
from importlib import import_module
from pathlib import Path
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
    from diffleak.bounds.epsilon import epsilon as epsilon
    from diffleak.checking.check import check as check
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
    from diffleak.inquiry.run import inquire as inquire
    from diffleak.prompts.score import find_memorised as find_memorised
    from diffleak.quality.measure import measure_quality as measure_quality
    from diffleak.records.audit import AuditRecord as AuditRecord
    from diffleak.records.audit import Result as Result
    from diffleak.records.base import Estimate as Estimate
    from diffleak.records.digests import verify as verify
    from diffleak.records.inquiry import InquiryRecord as InquiryRecord
    from diffleak.records.scores import Scores as Scores
    from diffleak.splitting.split import split as split
    from diffleak.stats.evaluation import evaluate as evaluate
    from diffleak.training.captioning import caption_images as caption_images
    from diffleak.training.config import TrainConfig as TrainConfig
    from diffleak.training.config import train_config as train_config
    from diffleak.training.run import train as train

# The imports above, which editors and mypy read, are the one list of public names, so they are read here too.
_IMPORTS = re.findall(r"^    from diffleak\.(\S+) import (\w+) as \2$", Path(__file__).read_text(encoding="utf-8"), re.MULTILINE)
_HOMES = {name: module for module, name in _IMPORTS}
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
