"""Makes the inputs of the studies from the raw data sets: `python studies/prepare.py RAW OUT`.

RAW holds cifar10/, fashion-mnist/ and splits/ as published; OUT gets

    cifar10.npy, cifar10-split.json       the lossless part; members are 128 of the public split's members among the
                                          4000, held out are all 1973 of its non-members
    fashion-mnist.npy, fashion-mnist-split.json     2128 training images in a seeded order: 128 and 2000

and for the latent models, which need more members to memorise less of each:

    cifar10-latent-split.json         1000 of the public members, the same held-out images
    cifar10-reference-split.json      the public members that are in neither split, to train reference models on;
                                      cifar10-128-reference-split.json: 128 of them
    fashion-mnist-32.npy, fashion-mnist-32-split.json     3000 images padded to 32 x 32: 1000 and 2000

    cifar10-16.npy     9000 of the lossy copy, halved to 16 x 16; cifar10-16-N-split.json: its first N of 128, 512, 2000, 8000 as
                       members, its last 1000, all of the public split's other side, held out

    tiny-imagenet.npy, tiny-imagenet-split.json     128 and 600 training images of the public split, resized to 32 x 32

and for the defences, whose feature extractors and autoencoder must know neither side:

    cifar10-defences-split.json       600 public members, 600 held out; cifar10-others-split.json: all others as members
    fashion-mnist-defences-split.json       400 and 600 of fashion-mnist.npy
    cifar10-others.npz, fashion-mnist-others.npz      images of neither side with their labels, 2800 and 10000
"""

import gzip
import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

MEMBERS = 128
LATENT_MEMBERS = 1000
DEFENCES_MEMBERS = {"cifar10": 600, "fashion-mnist": 400}
DEFENCES_HELD_OUT = 600
OTHERS = 10000
FASHION_HELD_OUT = 2000
TINY_HELD_OUT = 600
SIZES, SIZES_HELD_OUT = (128, 512, 2000, 8000), 1000


def cifar10(raw: Path, out: Path) -> None:
    with np.load(raw / "cifar10" / "cifar10-lossless-train4000-test1000.npz") as arrays:
        images, index, labels = arrays["train_images"], arrays["train_index"], arrays["train_labels"]
    with np.load(raw / "splits" / "CIFAR10_train_ratio0.5.npz") as split:
        public_members = np.isin(index, split["mia_train_idxs"])
    members = np.random.default_rng(0).choice(np.flatnonzero(public_members), MEMBERS, replace=False)
    save(out / "cifar10", images, np.sort(members), np.flatnonzero(~public_members))
    more = np.random.default_rng(1).choice(np.flatnonzero(public_members), LATENT_MEMBERS, replace=False)
    save_split(out / "cifar10-latent", np.sort(more), np.flatnonzero(~public_members))
    rest = np.setdiff1d(np.flatnonzero(public_members), np.concatenate([np.sort(members), more]))
    save_split(out / "cifar10-reference", rest, np.array([], dtype=int))
    save_split(out / "cifar10-128-reference", rest[:MEMBERS], np.array([], dtype=int))
    draw = np.random.default_rng(2)
    members = draw.choice(np.flatnonzero(public_members), DEFENCES_MEMBERS["cifar10"], replace=False)
    held_out = draw.choice(np.flatnonzero(~public_members), DEFENCES_HELD_OUT, replace=False)
    others = np.setdiff1d(np.arange(len(images)), np.concatenate([members, held_out]))
    save_split(out / "cifar10-defences", np.sort(members), np.sort(held_out))
    save_split(out / "cifar10-others", others, np.array([], dtype=int))
    np.savez(out / "cifar10-others.npz", images=images[others], labels=labels[others].astype(np.int64).ravel())


def set_sizes(raw: Path, out: Path) -> None:
    table = pq.read_table(raw / "cifar10" / "cifar10-jpeg-train.parquet")
    with np.load(raw / "splits" / "CIFAR10_train_ratio0.5.npz") as split:
        member = np.isin(table["index"].to_numpy(), split["mia_train_idxs"])
    draw = np.random.default_rng(4)
    rows = [draw.choice(np.flatnonzero(side), n, replace=False) for side, n in ((member, SIZES[-1]), (~member, SIZES_HELD_OUT))]
    pictures = table["img"].combine_chunks()
    images = np.stack([halved(pictures[int(row)].as_py()["bytes"]) for row in np.concatenate(rows)])
    np.save(out / "cifar10-16.npy", images)
    for n in SIZES:
        save_split(out / f"cifar10-16-{n}", np.arange(n), np.arange(SIZES[-1], len(images)))


def halved(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB").reduce(2))


def fashion_mnist(raw: Path, out: Path) -> None:
    content = gzip.decompress((raw / "fashion-mnist" / "train-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)
    order = np.random.default_rng(0).permutation(len(images))
    chosen = images[order[: MEMBERS + FASHION_HELD_OUT]]
    save(out / "fashion-mnist", chosen, np.arange(MEMBERS), np.arange(MEMBERS, len(chosen)))
    more = images[np.random.default_rng(1).permutation(len(images))[: LATENT_MEMBERS + FASHION_HELD_OUT]]
    padded = np.pad(more, ((0, 0), (2, 2), (2, 2)))
    save(out / "fashion-mnist-32", padded, np.arange(LATENT_MEMBERS), np.arange(LATENT_MEMBERS, len(padded)))
    n = DEFENCES_MEMBERS["fashion-mnist"]
    save_split(out / "fashion-mnist-defences", np.arange(n), np.arange(n, n + DEFENCES_HELD_OUT))
    labels = np.frombuffer(gzip.decompress((raw / "fashion-mnist" / "train-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    others = order[len(chosen) : len(chosen) + OTHERS]
    np.savez(out / "fashion-mnist-others.npz", images=images[others], labels=labels[others].astype(np.int64))


def tiny_imagenet(raw: Path, out: Path) -> None:
    table = pq.read_table(raw / "tiny-imagenet" / "tiny-imagenet-train-20k.parquet")
    with np.load(raw / "splits" / "TINY-IN_train_ratio0.5.npz") as split:
        member = np.isin(table["index"].to_numpy(), split["mia_train_idxs"])
    draw = np.random.default_rng(3)
    rows = [draw.choice(np.flatnonzero(side), n, replace=False) for side, n in ((member, MEMBERS), (~member, TINY_HELD_OUT))]
    images = [resized(table["image"][int(row)].as_py()["bytes"]) for row in np.concatenate(rows)]
    save(out / "tiny-imagenet", np.stack(images), np.arange(MEMBERS), np.arange(MEMBERS, len(images)))


def resized(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))


def save(stem: Path, images: np.ndarray, members: np.ndarray, nonmembers: np.ndarray) -> None:
    np.save(stem.with_suffix(".npy"), images)
    save_split(stem, members, nonmembers)
    print(f"{stem.name}: images {images.shape}")


def save_split(stem: Path, members: np.ndarray, nonmembers: np.ndarray) -> None:
    split = {"members": [str(i) for i in members], "nonmembers": [str(i) for i in nonmembers]}
    stem.with_name(f"{stem.name}-split.json").write_text(json.dumps(split), encoding="utf-8")
    print(f"{stem.name}: {len(members)} members, {len(nonmembers)} held out")


if __name__ == "__main__":
    raw_folder, out_folder = map(Path, sys.argv[1:3])
    out_folder.mkdir(parents=True, exist_ok=True)
    cifar10(raw_folder, out_folder)
    fashion_mnist(raw_folder, out_folder)
    tiny_imagenet(raw_folder, out_folder)
    set_sizes(raw_folder, out_folder)
