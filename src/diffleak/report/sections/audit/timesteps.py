"""The AUC of each timestep."""

from diffleak.report.audited import Audited
from diffleak.report.section import Block, Section, figure, prose


def section(audit: Audited) -> Section:
    """AUC by timestep on the calibrate part."""
    return Section("timesteps", "AUC by timestep", (), "Timesteps", later=lambda: _sweeps(audit))


def _sweeps(audit: Audited) -> tuple[Block, ...]:
    from diffleak.report.figures.audit import key, timesteps

    lead, repeats = audit.verdict.attack, audit.record.split.repeats
    svg = timesteps(audit.results, lead)
    often = f" (most often, over {repeats} divisions)" if repeats > 1 else ""
    read = (
        f"AUC on the calibrate part. The dot is the timestep that was chosen there and then used on the test part{often}; the test AUC is "
        "in the table and tends to be a little lower than the dot."
    )
    none = "No timestep was chosen on these images, so there is no sweep to draw."
    swept = [r for r in audit.ordered if r.timestep is not None]
    return (figure(svg, (read,), key(audit.results, swept, lead)) if svg else prose(none, ""),)
