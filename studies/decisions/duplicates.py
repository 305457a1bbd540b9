"""How many planted copies `diffleak.data.duplicates` finds in real sets, and how many pairs it finds where nothing was planted.

    python studies/decisions/duplicates.py DATA [--images 3000] [--copies 300] [--rest] [--pairs FILE]

DATA holds cifar10/, tiny-imagenet/, fashion-mnist/ and captioned/ as studies/prepare.py expects them. Of every set so many images are
drawn, and of so many of them one copy of one kind at a time is added. "found": a copy and its original are a pair. "pairs": those of
the set alone, before anything is planted; on CIFAR-10 and the emoji many are true near-duplicates. Beside it, the same for a 64-bit
perceptual hash (DCT of 32 x 32 grey pixels), upright and mirrored, at a distance of 6 bits or less, the usual setting.

--rest: of images that a run without it, which the limits were read off, did not draw; sets that it drew whole are left out, and two
that it never opened are added. --pairs: a
picture of the pairs of the sets alone, to look at one by one.
"""

import argparse
import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageEnhance
from scipy.fft import dctn

from diffleak.data.duplicates import Pairs, find_duplicates, sketch
from diffleak.data.pixels import pixel_hash
from diffleak.data.sources import open_source

BITS = 6


def cifar10(data: Path) -> list[np.ndarray]:
    with np.load(data / "cifar10" / "cifar10-lossless-train4000-test1000.npz") as arrays:
        return list(np.concatenate([arrays["train_images"], arrays["test_images"]]))


def fashion(data: Path) -> list[np.ndarray]:
    content = gzip.decompress((data / "fashion-mnist" / "t10k-images-idx3-ubyte.gz").read_bytes())
    return list(np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28, 1))


def tiny(data: Path) -> list[np.ndarray]:
    source = open_source(data / "tiny-imagenet" / "tiny-imagenet-train-20k.parquet")
    return [source.read(i)[..., :3] for i in range(0, len(source), 3)]


def zipped(name: str) -> Callable[[Path], list[np.ndarray]]:
    def read(data: Path) -> list[np.ndarray]:
        with zipfile.ZipFile(data / "captioned" / f"{name}.zip") as archive:
            files = sorted(f for f in archive.namelist() if f.endswith((".png", ".jpg")))
            return [np.asarray(Image.open(io.BytesIO(archive.read(f))).convert("RGB")) for f in files]

    return read


def digits(data: Path) -> list[np.ndarray]:
    source = open_source("digits")
    return [source.read(i) for i in range(len(source))]


SETS = {
    "CIFAR-10, 32 px": cifar10,
    "Tiny-ImageNet, 64 px": tiny,
    "COCO, 128 px": zipped("coco-mini-128"),
    "emoji, 128 px": zipped("noto-emoji-128"),
    "Fashion-MNIST, 28 px": fashion,
    "digits, 8 px": digits,
}


def lossy(data: Path) -> list[np.ndarray]:
    """Images of CIFAR-10 that are not in its lossless part."""
    with np.load(data / "cifar10" / "cifar10-lossless-train4000-test1000.npz") as arrays:
        known = {*arrays["train_index"].tolist()}
    table = pq.read_table(data / "cifar10" / "cifar10-jpeg-train.parquet").slice(0, 20_000).to_pylist()
    return [np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")) for row in table if row["index"] not in known]


def trained(data: Path) -> list[np.ndarray]:
    content = gzip.decompress((data / "fashion-mnist" / "train-images-idx3-ubyte.gz").read_bytes())
    return list(np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28, 1))


UNSEEN = {"CIFAR-10 as JPEG, 32 px": lossy, "Fashion-MNIST of training, 28 px": trained}  # with --rest


def picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))


def array(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def encoded(quality: int) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    def make(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        stream = io.BytesIO()
        picture(pixels).save(stream, "JPEG", quality=quality)
        return array(Image.open(stream))

    return make


def resized(factor: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    def make(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        image = picture(pixels)
        return array(image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC))

    return make


def mirrored(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return pixels[:, ::-1]


def cropped(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """5 % of each side cut off, at a random place, and stretched back."""
    height, width = pixels.shape[:2]
    down, across = max(1, round(0.05 * height)), max(1, round(0.05 * width))
    top, left = rng.integers(0, down + 1), rng.integers(0, across + 1)
    part = np.ascontiguousarray(pixels[top : top + height - down, left : left + width - across])
    return array(picture(part).resize((width, height), Image.Resampling.BICUBIC))


def recoloured(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Hue by up to 28 degrees, saturation by half, brightness and contrast by a fifth; of grey images gamma and contrast."""
    if pixels.shape[2] == 1:
        changed = (pixels / 255) ** np.exp(rng.uniform(-0.35, 0.35)) * rng.uniform(0.75, 1) + rng.uniform(0, 0.1)
        return np.clip(changed * 255, 0, 255).astype(np.uint8)
    hue = np.array(picture(pixels).convert("HSV"))
    hue[..., 0] += np.uint8(rng.integers(-20, 21) % 256)
    image = Image.fromarray(hue, "HSV").convert("RGB")
    image = ImageEnhance.Color(image).enhance(rng.uniform(0.5, 1.5))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.8, 1.2))
    return array(ImageEnhance.Contrast(image).enhance(rng.uniform(0.8, 1.2)))


def everything(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return encoded(75)(cropped(recoloured(mirrored(pixels, rng), rng), rng), rng)


KINDS = {
    "JPEG 75": encoded(75),
    "JPEG 30": encoded(30),
    "half size": resized(0.5),
    "double size": resized(2),
    "mirrored": mirrored,
    "cropped 5 %": cropped,
    "recoloured": recoloured,
    "the last three and JPEG": everything,
}


def looked_at(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sketches, pixel hashes, and perceptual hashes upright and mirrored."""
    hashes = np.stack([np.frombuffer(pixel_hash(image), dtype=np.uint8) for image in images])
    grey = np.stack([np.asarray(picture(image).convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=float) for image in images])
    low = dctn(np.stack([grey, grey[:, :, ::-1]]), axes=(2, 3))[:, :, :8, :8].reshape(2, len(images), 64)
    return np.stack([sketch(image) for image in images]), hashes, (low > np.median(low, axis=2, keepdims=True)).astype(np.float32)


def bits_apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The smaller Hamming distance of upright and mirrored hashes, of all pairs."""
    upright = other[0]
    return np.minimum(*(one[k] @ (1 - upright.T) + (1 - one[k]) @ upright.T for k in (0, 1)))


def side_by_side(images: list[np.ndarray], pairs: Pairs) -> Image.Image:
    """The images of each pair beside each other, twelve pairs in a row, the closest first."""
    sheet = Image.new("RGB", (12 * 140, 72 * -(-len(pairs.first) // 12)), "white")
    for k, ends in enumerate(zip(pairs.first, pairs.second, strict=True)):
        for side, row in enumerate(ends):
            sheet.paste(picture(images[row]).convert("RGB").resize((64, 64)), (k % 12 * 140 + 66 * side, k // 12 * 72))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--copies", type=int, default=300)
    parser.add_argument("--rest", action="store_true")
    parser.add_argument("--pairs", type=Path)
    given = parser.parse_args()
    print("| set | images | pairs (hash) | " + " | ".join(KINDS) + " | false pairs |")
    print("|---" * (len(KINDS) + 4) + "|")
    for name, read in {**SETS, **(UNSEEN if given.rest else {})}.items():
        rng = np.random.default_rng(0)
        every = read(given.data)
        order = rng.permutation(len(every))
        drawn = order[given.images : 2 * given.images] if given.rest else order[: given.images]
        if not len(drawn):
            continue
        images = [every[i] for i in sorted(drawn)]
        sketches, hashes, bits = looked_at(images)
        alone = find_duplicates(sketches, hashes).pairs
        natural = {*zip(alone.first.tolist(), alone.second.tolist(), strict=True)}
        if given.pairs and natural:
            side_by_side(images, alone).save(given.pairs.with_stem(f"{given.pairs.stem}-{name.partition(',')[0].lower()}"))
        close = np.triu(bits_apart(bits, bits) <= BITS, 1).sum()
        originals = rng.permutation(len(images))[: given.copies]
        cells, false = [], 0
        for make in KINDS.values():
            more = looked_at([make(images[i], rng) for i in originals])
            found = find_duplicates(np.concatenate([sketches, more[0]]), np.concatenate([hashes, more[1]])).pairs
            planted = {*zip(originals.tolist(), range(len(images), len(images) + len(originals)), strict=True)}
            pairs = {*zip(found.first.tolist(), found.second.tolist(), strict=True)}
            of = np.concatenate([np.arange(len(images)), originals])  # the image that each row is, or is a copy of
            ends = {(min(of[i], of[j]), max(of[i], of[j])) for i, j in pairs if of[i] != of[j]}
            false += len(ends - natural)
            by_hash = bits_apart(more[2], bits[:, originals]).diagonal() <= BITS
            cells.append(f"{len(pairs & planted) / len(originals):.0%} ({by_hash.mean():.0%})")
        print(f"| {name} | {len(images):,} | {len(natural)} ({close}) | " + " | ".join(cells) + f" | {false} |", flush=True)


if __name__ == "__main__":
    main()
