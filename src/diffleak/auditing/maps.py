"""Where in the most exposed images the audited model and its reference differ.

    map = sum over channels of (eps(x_t, t, c) - eps_reference(x_t, t, c_reference))^2,   x_t = q(x0, t, e)

t is the timestep of the attack that leads, e the noise that the attacks are given first, and c the caption of the image, which each
model embeds itself. Both models answer as the attacks ask them, under guidance where there is some. Where the attack has no timestep of
its own, by a rule or since all attacks are combined, t is a tenth of the schedule. That takes one query of each model for an image.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32

from diffleak.auditing.plan import Prepared
from diffleak.auditing.score import Job
from diffleak.diffusion.devices import float64
from diffleak.records.audit import AuditRecord
from diffleak.records.maps import Maps
from diffleak.records.scores import Samples
from diffleak.report.audited import Audited
from diffleak.report.sections.audit.exposed import most_exposed
from diffleak.work.memory import memory_message
from diffleak.work.threads import one_thread_each


def maps_of(prepared: Prepared, record: AuditRecord, samples: Samples) -> Maps | None:
    """A map of each image that the report lists; None unless it shows images, and the models take latents and captions."""
    job, audit = prepared.job, Audited(record, samples)
    asked = prepared.config.thumbnails and not prepared.key and job.reference and job.target.latent and job.target.text
    ids = most_exposed(audit) if asked and audit.verdict.level != "invalid" else []
    rows = [samples.ids.index(image_id) for image_id in ids]
    if not rows:
        return None
    schedule, size = job.target.denoiser.schedule, max(1, job.plan.batch_size // job.target.denoiser.forwards)
    t = audit.lead.timestep if audit.lead and audit.lead.timestep is not None else len(schedule) // 10
    with one_thread_each(), memory_message(job.plan.batch_size), torch.inference_mode():
        parts = [_squares(job, rows[start : start + size], t) for start in range(0, len(rows), size)]
    return Maps(t, dict(zip(ids, np.concatenate(parts), strict=True)))


def _squares(job: Job, rows: Sequence[int], t: int) -> Float32[np.ndarray, "b h w"]:
    """The maps of some images, NaN where a prediction is not finite."""
    x0 = job.inputs.tensor(job.inputs.encode(job.inputs.pixels(rows), rows))
    noise = job.inputs.noise([job.cohort.keys[row] for row in rows], x0.shape[1:])
    subjects = [inputs.subject(inputs.target.denoiser, x0, noise, rows) for inputs in job.models]
    x_t = job.target.denoiser.schedule.add_noise(x0, t, noise(0))
    model, reference = (float64(subject.eps(x_t, t)) for subject in subjects)
    squares = (model - reference).square().sum(dim=1).float()
    return torch.where(squares.isfinite(), squares, torch.nan).cpu().numpy()
