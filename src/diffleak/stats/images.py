"""Statistics of generated against real images, from features: float64 numpy, no torch.

    Fréchet     |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))          Heusel et al. 2017, arXiv 1706.08500
    KID         unbiased MMD^2 with k(x, y) = (x.y / d + 1)^3            Bińkowski et al. 2018, arXiv 1801.01401
    IS          exp(mean KL(p(y|x) || p(y)))                             Salimans et al. 2016, arXiv 1606.03498
    precision   share of generated images within the balls of real ones  Kynkäänniemi et al. 2019, arXiv 1904.06991
    copy rate   share of generated images nearer to training than 99 % of unseen real images are
    KID difference   KID of generated images to members minus KID to held-out images    after Li et al. 2025, arXiv 2502.02970

    CLIP score  mean max(100 cos(E_I, E_C), 0) of image and caption      Hessel et al. 2021, arXiv 2104.08718, with w = 100 for 2.5

Every one is an `Estimate` with a 95 % interval and the method of the interval; None with a reason where the sample is too small.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float64, Int64
from numpy.linalg import eigh
from scipy.special import bdtr, ndtri, stdtrit, xlogy

from diffleak.errors import one_or_more
from diffleak.records.base import Estimate
from diffleak.stats.metrics import order_statistics

Features = Float[np.ndarray, "_ d"]  # the sides differ in size
Z = float(ndtri(0.975))
BLOCK = 1024  # rows of a kernel or distance matrix at a time
SPLITS = 10  # of the Inception score, as in its paper
FEWEST_PER_SPLIT = 10
NEIGHBOURS = 3  # of precision and recall, as in their paper
FEWEST_FOR_BALLS = 50
COPY_QUANTILE = 0.01
COUNTED = "near-duplicates counted once"  # of the real images that statistics of copies are given
RESAMPLES = 1000  # of a bootstrap, or exchanges of sides
MOST_EXCHANGED = 2500  # images a side whose sides are exchanged: each exchange costs the square of them


def frechet_distance(generated: Features, real: Features) -> Estimate:
    """The squared Wasserstein distance of the two normals with the features' means and covariances; 0 means equal moments.

    Refused unless both sides have at least as many images as features have dimensions: below that the covariances are
    singular, and the distance measures the sample size. It is biased upwards in any finite sample, so values compare only
    at equal numbers of images. The interval is the delta method (Rippl et al. 2016, arXiv 1507.04090): with T the optimal
    map from one normal to the other, the influence of an image x is 2 (mu1 - mu2).(x - mu1) + (x - mu1)^T (I - T) (x - mu1).
    It says how far the value varies with the images drawn, and does not remove the bias.
    """
    (n, d), m = generated.shape, len(real)
    if min(n, m) < max(d, 2):
        return Estimate(
            reason=f"needs at least {max(d, 2)} images a side, the dimension of the features; got {n} generated and {m} real: use KID"
        )
    x, y = generated.astype(np.float64), real.astype(np.float64)
    gap = x.mean(axis=0) - y.mean(axis=0)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    s1, s2 = x.T @ x / (n - 1), y.T @ y / (m - 1)
    root, inverse = _roots(s1)
    middle, inverse_middle = _roots(root @ s2 @ root)
    value = float(gap @ gap + np.trace(s1) + np.trace(s2) - 2 * np.trace(middle))
    to_real, to_generated = inverse @ middle @ inverse, root @ inverse_middle @ root
    variance = _influence(x, 2 * gap, to_real).var() / n + _influence(y, -2 * gap, to_generated).var() / m
    half = Z * float(np.sqrt(variance))
    method = f"delta method (Rippl et al. 2016); biased upwards, {n} generated and {m} real images"
    return Estimate(value=max(0.0, value), low=max(0.0, value - half), high=max(0.0, value + half), method=method)


def _roots(symmetric: Float64[np.ndarray, "d d"]) -> tuple[Float64[np.ndarray, "d d"], Float64[np.ndarray, "d d"]]:
    """The square root of a positive matrix and the pseudo-inverse of that root."""
    values, vectors = eigh(symmetric)
    values = np.sqrt(np.clip(values, 0, None))
    usable = values > 1e-6 * values[-1] if values[-1] > 0 else np.zeros_like(values, dtype=bool)
    inverse = np.divide(1, values, out=np.zeros_like(values), where=usable)
    return (vectors * values) @ vectors.T, (vectors * inverse) @ vectors.T


def _influence(
    centred: Float64[np.ndarray, "n d"], slope: Float64[np.ndarray, " d"], transport: Float64[np.ndarray, "d d"]
) -> Float64[np.ndarray, " n"]:
    return centred @ slope + ((centred - centred @ transport) * centred).sum(axis=1)  # type: ignore[no-any-return]


def kernel_distance(generated: Features, real: Features) -> Estimate:
    """The unbiased squared maximum mean discrepancy; 0 for equal distributions, and then negative about half of the time.

    The interval is normal, with the variance of the delete-one jackknife over the images of both sides, which is too large
    rather than too small (Efron and Stein 1981): near 0 it covers more than 95 %.
    """
    n, m = len(generated), len(real)
    if min(n, m) < 10:
        return Estimate(reason=f"needs at least 10 images a side; got {n} generated and {m} real")
    within_x, within_y, across = _kernel_sums(generated, generated), _kernel_sums(real, real), _kernel_sums(generated, real)
    x, y = within_x[0] - _diagonal(generated), within_y[0] - _diagonal(real)  # each image's sum over the others of its side
    to_y, to_x = across
    a, b, c = x.sum(), y.sum(), to_y.sum()
    value = a / (n * (n - 1)) + b / (m * (m - 1)) - 2 * c / (n * m)
    without_x = (a - 2 * x) / ((n - 1) * (n - 2)) + b / (m * (m - 1)) - 2 * (c - to_y) / ((n - 1) * m)
    without_y = a / (n * (n - 1)) + (b - 2 * y) / ((m - 1) * (m - 2)) - 2 * (c - to_x) / (n * (m - 1))
    half = Z * float(np.sqrt((n - 1) * without_x.var() + (m - 1) * without_y.var()))
    method = f"jackknife over images; unbiased, {n} generated and {m} real images"
    return Estimate(value=float(value), low=float(value) - half, high=float(value) + half, method=method)


def kernel_difference(generated: Features, members: Features, held_out: Features, seed: int = 0) -> tuple[Estimate, float | None]:
    """KID of generated images to members minus KID to held-out images, and a one-sided p-value; below 0 is closer to the members.

    Images of a model that treats members as it treats other images of their distribution have 0 on average. Then the sides of
    the real images may be exchanged, and the p-value is exact: among RESAMPLES exchanges and the true sides, the share whose
    difference is as low or lower. The interval moves the quantiles of the exchanges to the value. At most MOST_EXCHANGED images
    a side, drawn by `seed`.
    """
    random = np.random.default_rng(seed)
    if min(len(generated), len(members), len(held_out)) < 10:
        counts = f"{one_or_more(len(generated), 'generated image')}, {one_or_more(len(members), 'member')} and "
        counts += one_or_more(len(held_out), "held-out image")
        return Estimate(reason=f"needs at least 10 images of each kind; got {counts}, {COUNTED}"), None
    drawn = [side[np.sort(random.permutation(len(side))[:MOST_EXCHANGED])] for side in (generated, members, held_out)]
    real, n, m = np.concatenate(drawn[1:]), len(drawn[1]), len(drawn[2])
    across = _kernel_sums(drawn[0], real)[1] / len(drawn[0])  # each real image's mean over the generated ones
    sides = np.zeros((n + m, 1 + RESAMPLES))
    sides[:n, 0] = 1
    for column in range(1, 1 + RESAMPLES):
        sides[random.permutation(n + m)[:n], column] = 1
    within, total = np.zeros(1 + RESAMPLES), np.zeros(n + m)  # sums over pairs of the first side, and of each image with all others
    for part in _blocks(n + m):
        k = (real[part].astype(np.float64) @ real.T.astype(np.float64) / real.shape[1] + 1) ** 3
        k[np.arange(len(k)), np.arange(part.start, part.stop)] = 0
        within += (sides[part] * (k @ sides)).sum(axis=0)
        total[part] = k.sum(axis=1)
    rest = total.sum() - 2 * total @ sides + within
    first = within / (n * (n - 1)) - 2 * across @ sides / n
    values = first - rest / (m * (m - 1)) + 2 * across @ (1 - sides) / m
    low, high = np.quantile(values[1:], [0.025, 0.975])
    method = f"permutation: {n} members and {m} held-out images divided at random {RESAMPLES} times; {len(drawn[0])} generated"
    p_value = float(np.mean(values <= values[0] + 1e-12 * np.abs(values).max()))
    return Estimate(value=float(values[0]), low=float(values[0] - high), high=float(values[0] - low), method=method), p_value


def _kernel_sums(x: Features, y: Features) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " m"]]:
    """The row and column sums of the kernel matrix, a block at a time."""
    rows, columns = np.zeros(len(x)), np.zeros(len(y))
    for part in _blocks(len(x)):
        left = x[part].astype(np.float64)
        for other in _blocks(len(y)):
            k = (left @ y[other].astype(np.float64).T / x.shape[1] + 1) ** 3
            rows[part] += k.sum(axis=1)
            columns[other] += k.sum(axis=0)
    return rows, columns


def _diagonal(x: Features) -> Float64[np.ndarray, " n"]:
    return (np.square(x.astype(np.float64)).sum(axis=1) / x.shape[1] + 1) ** 3  # type: ignore[no-any-return]


def inception_score(probabilities: Float[np.ndarray, "n c"] | None) -> Estimate:
    """exp of the mean divergence of each image's class probabilities from their mean; from 1 to the number of classes.

    The mean over 10 splits, as in its paper, with Student's interval over them; it grows with the images per split.
    """
    if probabilities is None:
        return Estimate(reason="the feature extractor gives no class probabilities; --extractor inception does")
    n = len(probabilities)
    if n < SPLITS * FEWEST_PER_SPLIT:
        fewest = f"{SPLITS * FEWEST_PER_SPLIT} generated images, {FEWEST_PER_SPLIT} for each of {SPLITS} splits"
        return Estimate(reason=f"needs at least {fewest}; got {n}")
    scores = np.array([_score(part) for part in np.array_split(probabilities.astype(np.float64), SPLITS)])
    half = float(stdtrit(SPLITS - 1, 0.975) * scores.std(ddof=1) / np.sqrt(SPLITS))
    value = float(scores.mean())
    return Estimate(
        value=value, low=max(1.0, value - half), high=value + half, method=f"Student's t over {SPLITS} splits of about {n // SPLITS} images"
    )


def _score(p: Float64[np.ndarray, "n c"]) -> float:
    mean = p.mean(axis=0)
    return float(np.exp((xlogy(p, p).sum(axis=1) - xlogy(p, np.where(mean > 0, mean, 1.0)).sum(axis=1)).mean()))


def clip_score(cosines: Float[np.ndarray, " n"], seed: int = 0) -> Estimate:
    """How well generated images fit their captions, 0 to 100; `cosines` are of CLIP's embeddings of both, `seed` of the bootstrap."""
    n = len(cosines)
    if n < 2:
        return Estimate(reason=f"needs at least 2 images; got {n}")
    values, random = np.maximum(100 * cosines.astype(np.float64), 0), np.random.default_rng(seed)
    means = [values[random.integers(n, size=n)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(value=float(values.mean()), low=float(low), high=float(high), method=f"bootstrap over {n} images with their captions")


def precision_recall(generated: Features, real: Features, seed: int = 0) -> tuple[Estimate, Estimate]:
    """Precision: the share of generated images that lie in the ball of some real image, whose radius is the distance to its
    third neighbour. Recall: the same with the sides changed. Both grow with the images that make the balls, so equal
    numbers of both sides are used, drawn by seed. Wilson intervals, for balls as they are.
    """
    n = min(len(generated), len(real))
    if n < FEWEST_FOR_BALLS:
        reason = f"needs at least {FEWEST_FOR_BALLS} images a side; got {len(generated)} generated and {len(real)} real"
        return Estimate(reason=reason), Estimate(reason=reason)
    random = np.random.default_rng(seed)
    x, y = (side[np.sort(random.permutation(len(side))[:n])].astype(np.float64) for side in (generated, real))
    method = f"Wilson; {NEIGHBOURS} neighbours, {n} images a side"
    return wilson(int(_covered(x, y).sum()), n, method), wilson(int(_covered(y, x).sum()), n, method)


def _covered(points: Float64[np.ndarray, "n d"], centres: Float64[np.ndarray, "m d"]) -> np.ndarray:
    """Which points lie in the ball of some centre."""
    radii = np.concatenate(
        [np.partition(_squared_distances(centres[part], centres), NEIGHBOURS, axis=1)[:, NEIGHBOURS] for part in _blocks(len(centres))]
    )
    return np.concatenate([(_squared_distances(points[part], centres) <= radii).any(axis=1) for part in _blocks(len(points))])


def _squared_distances(x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "m d"]) -> Float64[np.ndarray, "n m"]:
    squares = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)[None]
    return np.clip(squares - 2 * x @ y.T, 0, None)  # type: ignore[no-any-return]


def nearest(queries: Features, candidates: Features) -> tuple[Float64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """The cosine of each query with the candidate nearest to it in direction, and which one that is."""
    x, y = _directions(queries), _directions(candidates)
    similarity, index = np.full(len(x), -np.inf), np.zeros(len(x), dtype=np.int64)
    for part in _blocks(len(x)):
        for other in _blocks(len(y)):
            cosines = x[part] @ y[other].T
            best = cosines.argmax(axis=1)
            values = np.clip(cosines[np.arange(len(best)), best], -1, 1)
            better = values > similarity[part]
            similarity[part] = np.where(better, values, similarity[part])
            index[part] = np.where(better, best + other.start, index[part])
    return similarity, index


def _directions(x: Features) -> Float64[np.ndarray, "n d"]:
    lengths = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    return x / np.where(lengths > 0, lengths, 1.0)  # type: ignore[no-any-return]


def copy_threshold(reference: Float64[np.ndarray, " m"], share: float = COPY_QUANTILE) -> float | None:
    """The similarity to training that a share of unseen real images exceed or reach, by default 1 %; None below 99 of them (1 / share - 1).

    The k-th largest of m with k = floor(share (m + 1)): another unseen image exceeds it with probability k / (m + 1).
    """
    k = int(share * (len(reference) + 1) + 1e-9)
    return float(np.sort(reference)[-k]) if k else None


def copy_rate(generated: Float64[np.ndarray, " n"], reference: Float64[np.ndarray, " m"]) -> Estimate:
    """The share of generated images whose similarity to training exceeds `copy_threshold`; 1 % for a perfect model that copies nothing."""
    threshold = copy_threshold(reference)
    if threshold is None:
        return Estimate(reason=f"needs at least 99 reference images, of which 1 % sets the threshold; got {len(reference)}, {COUNTED}")
    method = f"joint order statistics; threshold from {len(reference)} unseen images, of which 1 % exceed it"
    return copy_rate_of(generated, reference, threshold, COPY_QUANTILE, method)


def copy_rate_of(
    similarities: Float64[np.ndarray, " n"], reference: Float64[np.ndarray, " m"], threshold: float, share: float, method: str
) -> Estimate:
    """The share of similarities above a threshold, which the reference images set and so leave uncertain: the interval counts that.

    It is for the similarity that exactly `share` of unseen images exceed (`metrics.order_statistics`).
    """
    value = float((similarities > threshold).mean())
    low, high = order_statistics(similarities, reference, share)
    return Estimate(value=value, low=min(low, value), high=max(high, value), method=method)


def copy_chance(generated: Float64[np.ndarray, " n"], reference: Float64[np.ndarray, " m"], share: float = COPY_QUANTILE) -> float | None:
    """How often as many images or more would exceed `copy_threshold` if generated images were like unseen real ones.

    Exact for independent images: the number is beta-binomial with parameters k and m + 1 - k, so a threshold from few
    reference images, which may lie low by chance, does not pass for copying. None where there is no threshold.
    """
    from scipy.stats import betabinom

    threshold, m = copy_threshold(reference, share), len(reference)
    if threshold is None:
        return None
    k = int((reference >= threshold).sum())
    return float(betabinom.sf(int((generated > threshold).sum()) - 1, len(generated), k, m + 1 - k))


def percentile(values: Float64[np.ndarray, " n"], percent: float | int) -> Estimate:
    """A percentile with the interval that two order statistics give, whatever the distribution; None where there are too few.

    The maximum (100) is that of the sample, without an interval.
    """
    ordered, n = np.sort(values), len(values)
    if percent == 100:
        return Estimate(value=float(ordered[-1]), method="the sample's largest")
    value = float(np.quantile(ordered, percent / 100, method="inverted_cdf"))
    below = bdtr(np.arange(n + 1), n, percent / 100)  # P(at most k of n lie below the true percentile)
    low, high = int(np.searchsorted(below, 0.025, side="right")), int(np.searchsorted(below, 0.975)) + 1
    if low < 1 or high > n:
        return Estimate(value=value, reason=f"{one_or_more(n, 'image is', 'images are')} too few for an interval of this percentile")
    return Estimate(value=value, low=float(ordered[low - 1]), high=float(ordered[high - 1]), method="order statistics")


def wilson(successes: int, trials: int, method: str = "Wilson") -> Estimate:
    """A share with Wilson's interval."""
    p, z2 = successes / trials, Z**2
    centre, half = (p + z2 / (2 * trials)) / (1 + z2 / trials), Z / (1 + z2 / trials) * np.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    low, high = (0.0 if successes == 0 else float(centre - half)), (1.0 if successes == trials else float(centre + half))
    return Estimate(value=p, low=low, high=high, method=method)


def _blocks(n: int) -> Iterator[slice]:
    yield from (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))
