"""What an audit counts: images, clusters of near-duplicates, or groups of images such as those of one person.

Intervals, p-values and rates hold for things that are independent of each other. Ten photos of one person are not: they leak together or
not at all, and a photo and its copy are one image twice. So these are one *unit*, and everything that statistics count is a unit:

    score of a unit    the mean of its images' scores, at the same timestep or setting (`diffleak.stats.rules.settled`)
    division           a unit is in the calibrate or in the test part as a whole, drawn by its key and so in any order of images alike
    intervals, rates   of units: a resampling draws units, a threshold lets so many of the held-out units pass

What is fitted to scores, such as a regression, is fitted to images, and its folds keep units together. Where every image is a unit of its
own, nothing changes. (Resampling of clusters: Cameron, Gelbach and Miller 2008; AUC of clustered data: Obuchowski 1997.)
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64, Int64

from diffleak.data.distinct import leading
from diffleak.data.duplicates import clusters_of
from diffleak.records.audit import Blind
from diffleak.records.scores import Samples, Scores, Unit, means, numbered
from diffleak.stats.blind import blind_auc, labels_p_value
from diffleak.stats.evaluation import Divisions, divided


@dataclass(frozen=True, eq=False)
class Units:
    """Which images count together; units are numbered in the order of their first images, and each is on one side.

    `keys` are what parts are drawn by, `names` what is written: they differ in an anonymous run.
    """

    of: Int64[np.ndarray, " n"]
    member: Bool[np.ndarray, " u"]
    keys: tuple[str, ...]
    names: tuple[str, ...]
    kind: Unit

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def alone(self) -> bool:
        """True where every image is a unit of its own."""
        return self.kind == "image"

    @property
    def first(self) -> Int64[np.ndarray, " u"]:
        """The row of the first image of each unit."""
        return np.unique(self.of, return_index=True)[1]

    @property
    def digest(self) -> str | None:
        """A hash of which images count together; None where each counts alone."""
        return None if self.alone else hashlib.sha256(json.dumps([self.kind, self.of.tolist()]).encode()).hexdigest()

    def taken(self, rows: Int64[np.ndarray, " n"]) -> "Units":
        """The same units with all images in another order."""
        order = self.of[rows][np.sort(np.unique(self.of[rows], return_index=True)[1])]  # the units by their first images
        again = lambda each: tuple(each[unit] for unit in order)
        return Units(numbered(self.of[rows]), self.member[order], again(self.keys), again(self.names), self.kind)

    def divided(self, fraction: float, seed: int, calibration: bool = True, most: int | None = None) -> Divisions:
        """How the images divide into calibrate and test, each unit as a whole; the record counts units, as `most` does."""
        of_units = divided(self.keys, self.member, fraction, seed, calibration, most)
        record = of_units.record if self.alone else of_units.record.model_copy(update={"unit": self.kind})
        return Divisions(of_units.calibrate[:, self.of], record)

    def reduced(self, split: Divisions) -> Divisions:
        """The divisions of the units, of those of the images."""
        return split if self.alone else Divisions(split.calibrate[:, self.first], split.record)

    def counting(self, scores: Scores) -> Scores:
        """Scores whose statistics count units."""
        return scores if self.alone else replace(scores, unit=self.of)

    def named(self, samples: Samples) -> Samples:
        """Samples of these images that say which of them count together."""
        return samples if self.alone else replace(samples, units=tuple(self.names[unit] for unit in self.of), unit=self.kind)

    def mean(self, values: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, "u k"]:
        """The mean over the images of each unit."""
        return values if self.alone else means(values, self.of)

    def most_often(self, numbers: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " u"]:
        """The number that most images of each unit have; of several the smallest."""
        if self.alone:
            return numbers
        counts = np.zeros((len(self), int(numbers.max()) + 1), dtype=np.int64)
        np.add.at(counts, (self.of, numbers), 1)
        return counts.argmax(axis=1)

    def blind(self, features: Float64[np.ndarray, "n f"], complexity: Float64[np.ndarray, "n c"], seed: int) -> Blind:
        """What tells the units of the two sides apart without the model, by the `image_features` and the `complexity` of every image."""
        return blind_auc(self.mean(features), self.member, seed, self.mean(complexity))

    def classes_p_value(self, labels: Int64[np.ndarray, " n"], seed: int) -> float:
        """How often chance makes the classes of the two sides as different (`labels_p_value`), each unit of the class that most of its
        images have."""
        return labels_p_value(self.most_often(labels), self.member, seed)

    def sizes(self) -> Int64[np.ndarray, " u"]:
        """The number of images of each unit."""
        return np.bincount(self.of, minlength=len(self))


def units_of(
    ids: Sequence[str],
    keys: Sequence[str],
    member: Bool[np.ndarray, " n"],
    clusters: Int64[np.ndarray, " n"],
    groups: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> Units:
    """The units of images: their groups where there are any, else clusters of near-duplicates, or where there are none the images.

    ids, keys: what is written of each image, and what it is drawn by. groups: the group of each image, which is on one side; names: what
    is written of it. A cluster on both sides is a unit on each. A cluster has the key, and the id, of its image with the smallest key, so
    that it is drawn alike in whatever order the images stand, as those of keyed ids or of buckets do.
    """
    if groups is not None:
        known = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        of = np.array([known[group] for group in groups], dtype=np.int64)
        kind: Unit = "group"
    else:
        of = numbered(2 * clusters + member)
        kind = "image" if len(of) == 0 or int(of[-1]) == len(of) - 1 == int(of.max()) else "cluster"
    first = np.unique(of, return_index=True)[1]
    if groups is not None:
        own = lambda each: tuple(each[row] for row in first)
        return Units(of, member[first], own(groups), own(names or groups), kind)
    named = leading(of, keys)[first]  # the row that names each unit
    return Units(of, member[first], tuple(keys[row] for row in named), tuple(ids[row] for row in named), kind)


def chained(first: Int64[np.ndarray, " n"], second: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """The finest units that are made of whole units of both numberings of the same images, from 0 in the order of their first images."""
    rows = np.arange(len(first))
    leading = [np.unique(of, return_index=True, return_inverse=True) for of in (first, second)]  # the first image of each unit
    return clusters_of(len(rows), np.tile(rows, 2), np.concatenate([where[inverse] for _, where, inverse in leading]))
