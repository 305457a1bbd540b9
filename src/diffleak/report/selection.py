"""The results that each table and figure shows: the first table and figures stay readable, the tables of masks show the rest."""

from diffleak.records.audit import AuditRecord, Result
from diffleak.records.variants import masked_label
from diffleak.report.judgement import verdict

MAIN_MASK = "influence:0.4"
SHOWN_MASKS = (MAIN_MASK, "influence:auto")


def shown(record: AuditRecord) -> tuple[Result, ...]:
    """The results of the main table, the ROC curves, the timesteps and the histograms, which are of the audited model.

    Calibrated ones have a table of their own; here are those that the verdict and the headline speak of. Where the geometry was
    studied there are a dozen masks per attack: then only the unmasked results, the mask of the paper and the chosen one are shown,
    and always the results that the verdict and the headline speak of.
    """
    named = {verdict(record).attack, record.headline}
    if record.geometry is None:
        return tuple(r for r in record.results if r.variant != "reference" and (r.complexity is None or r.attack in named))
    return tuple(r for r in record.results if r.mask is None or r.mask in SHOWN_MASKS or (r.attack in named and r.leads))


def masked(record: AuditRecord) -> tuple[Result, ...]:
    """Every attack under every mask, in the order of the record."""
    return tuple(r for r in record.results if r.mask is not None and r.complexity is None)


def under(record: AuditRecord, attack: str, mask: str | None) -> Result | None:
    """An attack's result under a mask, unmasked for None; None where the record has none."""
    label = attack if mask is None else masked_label(attack, mask)
    return next((r for r in record.results if r.attack == label and r.mask == mask), None)
