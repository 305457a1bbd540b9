"""`diffleak demo`: the main job on real data, end to end, on two CPU cores."""

from pathlib import Path

from diffleak.auditing.config import AuditConfig
from diffleak.auditing.plan import prepare
from diffleak.auditing.run import Audit, run
from diffleak.config import build
from diffleak.training.config import train_config
from diffleak.training.run import train
from diffleak.work.progress import say

MEMBERS = 256
HELD_OUT = 400
ATTACKS = "loss,secmi,pia,pian,sima,sima_mc(m=4),noise_aggregation"
TIMESTEPS = "20:160:20"


def run_demo(output: Path) -> Audit:
    """Trains on MEMBERS of scikit-learn's digits, audits with ATTACKS, writes output/model and output/run."""
    model = train(train_config("digits", data="digits", train_size=MEMBERS, output=output / "model", device="cpu"))
    config = build(
        AuditConfig,
        {
            "model": str(model),
            "data": "digits",
            "split": model / "split.json",
            "limit": HELD_OUT,
            "attacks": ATTACKS,
            "timesteps": TIMESTEPS,
            "device": "cpu",
            "output": output / "run",
            "thumbnails": True,
        },
    )
    finished = run(prepare(config, log=say), output / "run")
    assert finished is not None
    finished.save(output / "run", thumbnails=True)  # the digits are public
    return finished
