"""The costs of the audit."""

from diffleak.errors import visible
from diffleak.report.audited import Audited
from diffleak.report.section import Section, prose
from diffleak.report.wording import count, duration


def section(audit: Audited) -> Section:
    """Forwards and time, and the price that an outsider pays."""
    costs, lead = audit.record.costs, audit.lead
    spent = (
        f"Scoring took {count(costs.queries)} forwards of one image each and {duration(costs.seconds)} of computing on "
        f"{visible(audit.record.environment.device_name)}, in {count(costs.chunks)} chunks; seconds of chunks that ran side by side are "
        "added up."
    )
    blocks = [prose(spent)]
    if lead and lead.queries_at_timestep is not None and lead.timestep is not None:
        queries = f"{count(lead.queries_at_timestep)} {'query' if lead.queries_at_timestep == 1 else 'queries'}"
        blocks += [
            prose(
                f"An outsider who already knows the timestep pays less: {visible(lead.attack)} needs {queries} per image at timestep "
                f"{lead.timestep}. The table has the queries of every attack."
            )
        ]
    return Section("costs", "What it cost", tuple(blocks), "Costs")
