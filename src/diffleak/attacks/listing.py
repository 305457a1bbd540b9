"""`diffleak attacks`: the table of all attacks."""

from typing import Any

import numpy as np

from diffleak.attacks import ATTACKS
from diffleak.attacks.base import SWEEP, written
from diffleak.attacks.spec import FLOW_SWEEP, fit_to_schedule
from diffleak.diffusion.schedule import Schedule

USUAL = Schedule(np.linspace(1, 0, 1001)[1:])  # only its length matters, 1000


def listing() -> list[dict[str, Any]]:
    """One row per attack: name, access, what a small or large statistic means, default parameters, queries, source.

    The queries of the default sweep are those of the timesteps at which the attack is defined.
    """
    rows = []
    for name, kind in ATTACKS.items():
        attack = kind()
        rows.append(
            {
                "attack": name,
                "access": attack.access,
                "member_is": attack.direction,
                "parameters": attack.parameters(),
                "queries_default_sweep": fit_to_schedule(attack, USUAL).queries,
                "queries_one_timestep": attack.queries if attack.rule else kind(timesteps=(attack.published_timestep or 100,)).queries,
                "published_timestep": attack.published_timestep,
                "about": (kind.__doc__ or "").split("\n")[0],
                "source": attack.source,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> Any:
    """The rows for a terminal."""
    from rich.table import Table

    view = Table(
        box=None,
        padding=(0, 1),
        title="queries: denoiser forwards per image, one timestep / the default sweep\n"
        f"default sweep: {written('timesteps', SWEEP)}, for flow matching {written('timesteps', FLOW_SWEEP)} of 1000 timesteps\n"
        "an audit also reports each one corrected for how simple the images are (calibrated) and, with 200 images or more on each side,\n"
        "all in one logistic regression (combined; without gradient and the classifier of black_box)",
        title_justify="left",
    )
    for heading in ("attack", "access", "queries", "parameters", "source"):
        view.add_column(heading, overflow="fold")
    for row in rows:
        parameters = ", ".join(f"{k}={written(k, v)}" for k, v in row["parameters"].items())
        both = [row["queries_one_timestep"], row["queries_default_sweep"]]
        view.add_row(row["attack"], row["access"], " / ".join(map(str, dict.fromkeys(both))), parameters, row["source"])
    return view
