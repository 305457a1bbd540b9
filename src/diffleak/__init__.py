"""diffleak: what a diffusion model leaks about its training images, and what a defence buys.

    import diffleak
    target = diffleak.load("path/or/hub-id")
    audit = diffleak.audit(target, members="dir", nonmembers="dir", attacks=["sima", "pia"])
    diffleak.evaluate(member_scores, nonmember_scores)

Names are imported when first used, so that what needs no torch does not pay for it.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "ATTACKS": "attacks",
    "Attack": "attacks",
    "ResidualAttack": "attacks",
    "Audit": "auditing.run",
    "audit": "auditing.run",
    "caption_images": "training.captioning",
    "compare": "comparison.compare",
    "defend": "defenses.defend",
    "defend_config": "defenses.config",
    "Denoiser": "diffusion.denoiser",
    "Dual": "diffusion.dual",
    "Noise": "diffusion.noise",
    "Schedule": "diffusion.schedule",
    "GateFailed": "errors",
    "InvalidAudit": "errors",
    "DiffleakError": "errors",
    "UserError": "errors",
    "evaluate": "stats.evaluation",
    "generate": "generation",
    "find_memorised": "prompts.score",
    "measure_quality": "quality.measure",
    "Target": "diffusion.target",
    "load": "hub",
    "AuditRecord": "records.audit",
    "Estimate": "records.base",
    "Result": "records.audit",
    "Scores": "records.scores",
    "TrainConfig": "training.config",
    "train": "training.run",
    "train_config": "training.config",
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
