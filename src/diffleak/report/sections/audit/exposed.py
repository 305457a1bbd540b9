"""The members that score highest, beside a reference with maps of where the models differ about them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from diffleak.errors import visible
from diffleak.records.maps import Maps
from diffleak.records.scores import Samples, Unit
from diffleak.report.audited import MOST_PICTURED, Audited
from diffleak.report.media.html import data_uri
from diffleak.report.section import Block, Section, drawn, prose
from diffleak.report.wording import exposed, percent
from diffleak.stats.metrics import exposure

# What the list means, by the verdict.
EXPOSURE = {
    "leak": "By their scores, these are the members that the leak exposes most. This does not prove that any one of them is exposed.",
    "no-leak-found": "No leak was found, so this list does not show that these members are exposed: every ranking has a top.",
    "undecided": "Whether these members are exposed is undecided, as the verdict is: every ranking has a top.",
}
COUNTED: dict[Unit, str] = {
    "image": "",
    "cluster": " Near-duplicates count as one image, with the mean of their scores.",
    "group": " Images are compared one by one here, so those of one group may fill the list; the groups are ranked above.",
}
ENDS = ("no difference", "largest difference")  # of the colours of a map
NO_MAPS = "There are no maps of where the model and its reference differ; an audit of a latent model with --thumbnails makes them."


def section(audit: Audited) -> Section:
    """The members of the test part that the attack is surest of."""
    return Section("exposed", "The members that score highest", (), "Highest scores", later=lambda: _listed(audit))


def _listed(audit: Audited) -> tuple[Block, ...]:
    ids = most_exposed(audit)
    if not ids:
        return (prose("There are no scores of members to rank.", ""),)
    part, attack = "of the test part " if audit.record.plan.calibration else "", visible(audit.verdict.attack or "")
    what = EXPOSURE[audit.verdict.level]
    said = prose(
        f"The members {part}to which {attack} gives the highest scores. {what} A higher score is stronger evidence for a member. A score "
        "may be negative: only the order counts. samples.csv "
        f"has every image.{COUNTED[audit.scores.unit]}"
    )
    if audit.maps and audit.thumbnail:
        return said, *_with_maps(audit, ids, audit.maps, audit.thumbnail)
    none = audit.thumbnail and audit.record.plan.reference and audit.record.plan.captions
    found = [audit.pictured(*words) for words in _words(audit, ids)]
    return said, *audit.no_pictures("are"), *((prose(NO_MAPS, "prose muted"),) if none else ()), drawn("exposed", items=found)


def most_exposed(audit: Audited) -> list[str]:
    """The ids of the members that the list has, the highest score first, equal ones in their own order; of a cluster one image."""
    samples, attack = _ranked(audit), audit.verdict.attack
    if attack not in samples.scores:
        return []
    scores = samples.scores[attack]
    usable = np.isfinite(scores) & samples.test
    if not (usable & ~samples.member).any():
        return []
    rows = sorted(np.flatnonzero(usable & samples.member).tolist(), key=lambda i: (-scores[i], samples.ids[i]))[:MOST_PICTURED]
    return [samples.ids[row] for row in rows]


def _ranked(audit: Audited) -> Samples:
    """What is ranked: images, of which near-duplicates are one with the mean of their scores. Groups have a section of their own."""
    return audit.scores.counted if audit.scores.unit == "cluster" else audit.scores


def _words(audit: Audited, ids: list[str]) -> list[tuple[str, str, str]]:
    """The id of each image, how few held-out images score as high, and its score."""
    samples = _ranked(audit)
    rows = [samples.ids.index(image_id) for image_id in ids]
    scores = samples.scores[str(audit.verdict.attack)]
    nonmembers = scores[np.isfinite(scores) & samples.test & ~samples.member]
    words = [exposed(float(share), len(nonmembers)) for share in exposure(scores[rows], nonmembers)]
    return [(samples.ids[i], said, f"{scores[i]:.4g}, rank {rank}") for rank, (i, said) in enumerate(zip(rows, words, strict=True), 1)]


def _with_maps(audit: Audited, ids: list[str], maps: Maps, thumbnail: Callable[[str], bytes]) -> tuple[Block, ...]:
    from diffleak.report.figures.heat import half_lies_in, heat_map, scale, small

    def item(image_id: str, said: str, score: str) -> dict[str, Any]:
        """An image and its map, of which there is none where a prediction is not finite."""
        squares = maps.of.get(image_id)
        if squares is None or not np.isfinite(squares).all():
            squares, place = None, ""
        elif squares.max() > 0:
            place = f"half of the difference lies in {percent(half_lies_in(squares), 0)} of the image"
        else:
            place = "the two models do not differ"
        return {
            "name": visible(image_id),
            "image": data_uri(small(thumbnail(image_id), squares if audit.record.plan.resize else None)),
            "shows": f"Member {visible(image_id)}",
            "map": None if squares is None else data_uri(heat_map(squares)),
            "where": f"Map of where the two models differ: {place}",
            "said": "; ".join(filter(None, (f"score {score}", said, place))),
        }

    swept = audit.lead and audit.lead.timestep is not None
    own = "" if swept else " (a tenth of the schedule, since the attack has no timestep of its own)"
    what = (
        f"Left, the image. Right, the map of where the model and its reference, {visible(audit.record.plan.reference or '')}, differ about "
        f"it. It shows the squared difference of their noise predictions at timestep {maps.timestep}{own}, with the same caption, summed "
        "over channels. Where the map is bright the two models differ most; whether the image was learnt, the map does not say: held-out "
        "images have such maps too. A map takes one query of each model, which the costs leave out."
    )
    items = [item(*words) for words in _words(audit, ids)]
    return prose(what), drawn("scale", picture=data_uri(scale()), ends=ENDS), drawn("maps", items=items)
