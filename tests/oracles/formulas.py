"""Every attack's statistic written out straight, in float64 numpy: the oracle of test_attacks.py.

Nothing here comes from the attacks' own code. `eps(x, t)` is any noise prediction on arrays of shape (b, ...), `table` the
alpha_bar table, `draws` the standard normals of draw 0, 1, ..., `mask` 0/1 like x0. Statistics have shape (timesteps, b).
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from math import factorial, log, pi, sqrt

import numpy as np

Eps = Callable[[np.ndarray, int], np.ndarray]

LINEAR = np.cumprod(1.0 - np.linspace(1e-4, 2e-2, 1000))


def q(table: np.ndarray, x0: np.ndarray, t: int, e: np.ndarray) -> np.ndarray:
    return sqrt(table[t]) * x0 + sqrt(1 - table[t]) * e


def ddim(table: np.ndarray, x: np.ndarray, e: np.ndarray, t: int, u: int) -> np.ndarray:
    x0_hat = (x - sqrt(1 - table[t]) * e) / sqrt(table[t])
    return sqrt(table[u]) * x0_hat + sqrt(1 - table[u]) * e


def norm_p(field: np.ndarray, p: float, mask: np.ndarray | None) -> np.ndarray:
    """sum of mask * |r|^p, image by image, without the root."""
    keep = np.ones_like(field) if mask is None else mask
    return np.array([sum(m * abs(r) ** p for r, m in zip(f.ravel(), k.ravel(), strict=True)) for f, k in zip(field, keep, strict=True)])


def loss(eps: Eps, table, x0, draws: Sequence[np.ndarray], timesteps, p=2.0, mask=None) -> np.ndarray:
    rows = []
    for t in timesteps:
        norms = [norm_p(eps(q(table, x0, t, e), t) - e, p, mask) for e in draws]
        rows.append(sum(norms) / len(draws))
    return np.array(rows)


def secmi(eps: Eps, table, x0, timesteps, k=10, p=2.0, mask=None) -> np.ndarray:
    """The direct definition: one stride up the deterministic chain, one stride back, and the distance to the start."""
    x, rows = x0, {}
    for t in range(0, max(timesteps) + 1, k):
        up = ddim(table, x, eps(x, t), t, t + k)
        back = ddim(table, up, eps(up, t + k), t + k, t)
        rows[t] = norm_p(back - x, p, mask)
        x = up
    return np.array([rows[t] for t in timesteps])


def secmi_identity(eps: Eps, table, x0, timesteps, k=10, p=2.0, mask=None) -> np.ndarray:
    """The same through r_t = c_t (eps_t - eps_{t+k})."""
    x, rows = x0, {}
    for t in range(0, max(timesteps) + 1, k):
        up = ddim(table, x, eps(x, t), t, t + k)
        rows[t] = norm_p(secmi_constant(table, t, k) * (eps(x, t) - eps(up, t + k)), p, mask)
        x = up
    return np.array([rows[t] for t in timesteps])


def secmi_constant(table, t: int, k: int) -> float:
    return sqrt(table[t]) * sqrt(1 - table[t + k]) / sqrt(table[t + k]) - sqrt(1 - table[t])


def pia(eps: Eps, table, x0, timesteps, p=4.0, mask=None) -> np.ndarray:
    e0 = eps(x0, 0)
    return np.array([norm_p(eps(q(table, x0, t, e0), t) - e0, p, mask) for t in timesteps])


def pian(eps: Eps, table, x0, timesteps, p=4.0, mask=None) -> np.ndarray:
    e0 = np.stack([e / np.abs(e).mean() * sqrt(2 / pi) for e in eps(x0, 0)])
    return np.array([norm_p(eps(q(table, x0, t, e0), t) - e0, p, mask) for t in timesteps])


def sima(eps: Eps, table, x0, timesteps, p=4.0, mask=None) -> np.ndarray:
    return np.array([norm_p(eps(x0, t), p, mask) for t in timesteps])


def sima_mc(eps: Eps, table, x0, draws: Sequence[np.ndarray], timesteps, variant="mean", p=4.0, mask=None) -> np.ndarray:
    rows = []
    for t in timesteps:
        predictions = [eps(q(table, x0, t, e), t) for e in draws]
        if variant == "mean":
            rows.append(norm_p(sum(predictions) / len(draws), p, mask))
        else:
            rows.append(sum(norm_p(prediction, p, mask) for prediction in predictions) / len(draws))
    return np.array(rows)


def damped(image: np.ndarray, radius: float, gain: float) -> np.ndarray:
    """One channel (h, w) with `gain` times the frequencies beyond `radius`: an explicit mask over the spectrum of np.fft."""
    height, width = image.shape
    mask = np.ones((height, width))
    for u in range(height):
        for v in range(width):
            down, right = min(u, height - u), min(v, width - v)  # cycles per image; beyond the middle they are negative
            if sqrt(down**2 + right**2) > radius:
                mask[u, v] = gain
    filtered = np.fft.ifft2(mask * np.fft.fft2(image))
    assert np.abs(filtered.imag).max() < 1e-12 * max(1.0, np.abs(image).max())
    return filtered.real


def frequency(eps: Eps, table, x0, e, timesteps, p, radius=5.0, gain=0.2, decode=lambda z: z, mask=None) -> np.ndarray:
    """Both guesses of the image decoded and filtered, each on its own; e is the noise that was added."""
    rows = []
    for t in timesteps:
        x_t = q(table, x0, t, e)
        guess = (x_t - sqrt(1 - table[t]) * eps(x_t, t)) / sqrt(table[t])
        target = (x_t - sqrt(1 - table[t]) * e) / sqrt(table[t])
        sides = [np.array([[damped(c, radius, gain) for c in image] for image in decode(z)]) for z in (guess, target)]
        rows.append(norm_p(sides[0] - sides[1], p, mask))
    return np.array(rows)


def loss_frequency(eps: Eps, table, x0, e, timesteps, p=2.0, **filters) -> np.ndarray:
    return frequency(eps, table, x0, e, timesteps, p, **filters)


def pia_frequency(eps: Eps, table, x0, timesteps, p=4.0, **filters) -> np.ndarray:
    return frequency(eps, table, x0, eps(x0, 0), timesteps, p, **filters)


def resized(channel: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear enlargement between the centres of pixels; beyond the outermost centres their values."""
    old = channel.shape
    found = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * old[0] / height - 0.5, 0), old[0] - 1)
            x = min(max((j + 0.5) * old[1] / width - 0.5, 0), old[1] - 1)
            up, left = int(y), int(x)
            down, right = min(up + 1, old[0] - 1), min(left + 1, old[1] - 1)
            above = channel[up, left] * (1 - (x - left)) + channel[up, right] * (x - left)
            below = channel[down, left] * (1 - (x - left)) + channel[down, right] * (x - left)
            found[i, j] = above * (1 - (y - up)) + below * (y - up)
    return found


def centre_crop(x: np.ndarray, share: float) -> np.ndarray:
    height, width = x.shape[2:]
    h, w = round(share * height), round(share * width)
    top, left = (height - h) // 2, (width - w) // 2
    return np.array([[resized(c[top : top + h, left : left + w], height, width) for c in image] for image in x])


def mse(eps_t: np.ndarray, e: np.ndarray) -> np.ndarray:
    return np.array([((p - n) ** 2).mean() for p, n in zip(eps_t, e, strict=True)])


def pfami(eps: Eps, table, x0, draws, timesteps, crops=10, encode=lambda x: x, pixels=None) -> np.ndarray:
    """One number per image; `draws` has one noise per timestep. `pixels` are the images that x0 encodes."""
    ratios = []
    for t, e in zip(timesteps, draws, strict=True):
        own = mse(eps(q(table, x0, t, e), t), e)
        for i in range(crops):
            crop = encode(centre_crop(x0 if pixels is None else pixels, 0.95 - i * (0.95 - 0.7) / (crops - 1)))
            ratios.append((mse(eps(q(table, crop, t, e), t), e) - own) / own)
    return sum(ratios) / len(ratios)


def reduced_caption(text: str, vector, percent: int) -> str:
    words = text.split()
    cosine = lambda u, v: u @ v / sqrt(u @ u) / sqrt(v @ v)
    importance = [1 - cosine(vector(text), vector(" ".join(words[:i] + words[i + 1 :]))) for i in range(len(words))]
    count = max(1, int(percent * len(words) / 100 + 0.5))
    kept = sorted(range(len(words)), key=lambda i: (-importance[i], i))[:count]
    return " ".join(words[i] for i in sorted(kept))


def clid(eps, table, x0, draws, timesteps, texts: Sequence[str], vector) -> np.ndarray:
    """-L(c) and the mean of L(c_i) - L(c); `eps(x, t, texts)` is conditioned, `vector` embeds a text."""

    def loss_of(conditions: Sequence[str]) -> np.ndarray:
        each = [mse(eps(q(table, x0, t, e), t, conditions), e) for t, e in zip(timesteps, draws, strict=True)]
        return sum(each) / len(each)

    others = [[reduced_caption(text, vector, percent) for text in texts] for percent in (30, 50, 70)] + [[""] * len(texts)]
    own = loss_of(texts)
    return np.array([-own, sum(loss_of(other) - own for other in others) / 4])


def walked_predictions(eps: Eps, table, x0, e, t, k=5, stride=10, sigma=0.1, sigma_scale="relative", mask=None) -> np.ndarray:
    """The k (masked) predictions of noise aggregation, of shape (k, b, d)."""
    own = sqrt(1 - table[t])
    x = sqrt(table[t]) * x0 + {"fixed": sigma, "relative": sigma * own, "schedule": own}[sigma_scale] * e
    collected = []
    for _ in range(k):
        prediction = eps(x, t)
        collected.append((prediction if mask is None else prediction * mask).reshape(len(x0), -1))
        if len(collected) < k:
            x = ddim(table, x, prediction, t, t - stride)
            t = t - stride
    return np.stack(collected)


def pair_distances(vectors: np.ndarray) -> list[float]:
    """The Euclidean distances of all pairs i < j of k vectors."""
    return [sqrt(((u - v) ** 2).sum()) for u, v in combinations(vectors, 2)]


def dispersion(metric: str, vectors: np.ndarray, bandwidth: float) -> float:
    """How far apart k vectors (k, d) lie. A density measures the opposite, so its inverse is the dispersion."""
    k = len(vectors)
    pairs = list(combinations(vectors, 2))
    if metric == "l2":
        return sum(((u - v) ** 2).sum() for u, v in pairs) / len(pairs)
    if metric == "l1":
        return sum(np.abs(u - v).sum() for u, v in pairs) / len(pairs)
    if metric == "centroid":
        centre = vectors.mean(axis=0)
        return sum(sqrt(((v - centre) ** 2).sum()) for v in vectors) / k
    if metric == "density":
        return 1 / (sum(np.exp(-(d**2) / (2 * bandwidth**2)) for d in pair_distances(vectors)) / len(pairs))
    if metric == "hull":
        # The product of the edges' heights over each other is sqrt(det Gram); QR gives it without a determinant.
        heights = np.abs(np.diag(np.linalg.qr((vectors[1:] - vectors[0]).T)[1]))
        return float(np.prod(heights)) / factorial(k - 1)
    raise AssertionError(metric)


def noise_aggregation(eps: Eps, table, x0, e, timesteps, metric="l2", bandwidths=None, mask=None, **walk) -> np.ndarray:
    rows = []
    for i, t in enumerate(timesteps):
        predictions = walked_predictions(eps, table, x0, e, t, mask=mask, **walk)
        bandwidth = bandwidths[i] if bandwidths is not None else float("nan")
        rows.append([-log(dispersion(metric, predictions[:, b], bandwidth) + 1e-12) for b in range(len(x0))])
    return np.array(rows)


def noise_probe(reference, eps, table, x0, timesteps: Sequence[int], pixels, decode=lambda z: z) -> np.ndarray:
    """One score per image; `timesteps` rise, `reference(x, t)` and `eps(x, t)` are noise predictions. Level 0 is the clean image."""
    kept = [1.0, *(table[t] for t in timesteps)]
    z = x0
    for i, t in enumerate(timesteps):
        e = reference(z, t)
        z = sqrt(kept[i + 1]) * (z - sqrt(1 - kept[i]) * e) / sqrt(kept[i]) + sqrt(1 - kept[i + 1]) * e
    for i, t in reversed(list(enumerate(timesteps))):
        e = eps(z, t)
        z = sqrt(kept[i]) * (z - sqrt(1 - kept[i + 1]) * e) / sqrt(kept[i + 1]) + sqrt(1 - kept[i]) * e
    return np.array([-log(((image - seen) ** 2).mean() + 1e-12) for image, seen in zip(decode(z), pixels, strict=True)])
