"""Kinds of files that people make: scores, settings, splits, captions, prompts, images and sets of them, keys.

`right` reads the file again by a few lines of its own, where a few lines can: what the package made of a file that was spoilt and is still
a valid file must be what is in it.
"""

import csv
import io
import json
import tarfile
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from posixpath import normpath
from typing import Any
from unicodedata import normalize
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from fixtures.pictures import encoded
from PIL import Image

from fuzz.trial import Kind, Read, finite

N = 12
IDS = [f"class-{i % 3}/{i:02d}.png" for i in range(N)]
CAPTIONS = ["a red fox", "two boats", "a house, with a garden", "sun"]
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 8, 8), dtype=np.uint8)


# files of scores


def scores_csv(folder: Path) -> Read:
    _scores().to_pandas().to_csv(folder / "scores.csv", index=False)
    return lambda case: _evaluated(case / "scores.csv")


def scores_parquet(folder: Path) -> Read:
    pq.write_table(_scores(), folder / "scores.parquet")
    return lambda case: _evaluated(case / "scores.parquet")


def _scores() -> pa.Table:
    scores = np.round(np.random.default_rng(1).normal(size=2 * N), 3)
    return pa.table({"id": [f"{i}.png" for i in range(2 * N)], "member": [int(i < N) for i in range(2 * N)], "score": scores})


def _evaluated(path: Path) -> Any:
    from diffleak.auditing.score_file import evaluate_file

    return evaluate_file(path).model_dump()


def right_scores(folder: Path, answer: Any) -> None:
    """The AUC by counting pairs."""
    if (folder / "scores.csv").exists():
        with (folder / "scores.csv").open(encoding="utf-8-sig", newline="") as file:
            rows = [(row["id"], row["member"], row["score"], row.get("part")) for row in csv.DictReader(file)]
    else:
        table = pq.read_table(folder / "scores.parquet")
        columns = [table.column(name).to_pylist() for name in ("id", "member", "score")]
        rows = [(*row, None) for row in zip(*columns, strict=True)]
    assert len({row[0] for row in rows}) == len(rows), "an id is there twice"
    assert not any(row[3] for row in rows), "a part was made up"
    number = lambda value: {"true": 1.0, "false": 0.0}[str(value).lower()] if str(value).lower() in ("true", "false") else float(value)
    assert {number(row[1]) for row in rows} == {0.0, 1.0}
    sides = [np.array([number(row[2]) for row in rows if number(row[1]) == side]) for side in (1, 0)]
    assert np.isfinite(sides[0]).all() and np.isfinite(sides[1]).all(), "a score is not finite"
    if min(map(len, sides)) < 2:
        assert answer["auc"]["value"] is None and answer["auc"]["reason"]
        return
    pairs = [(m > n) + 0.5 * (m == n) for m, n in product(*sides)]
    assert np.isclose(answer["auc"]["value"], np.mean(pairs), rtol=0, atol=1e-12), f"the AUC is {np.mean(pairs)}"
    assert [answer["n_members"], answer["n_nonmembers"]] == list(map(len, sides))


# settings


def audit_yaml(folder: Path) -> Read:
    settings = {
        "model": "m",
        "members": "a",
        "nonmembers": "b",
        "attacks": ["sima", "sima_mc(m=3,variant=norms)"],
        "timesteps": "10:50:10",
        "mask": "influence:0.3",
        "seed": 3,
    }
    settings |= {"calibrate-fraction": 0.25, "resize": True, "max-auc": 0.6, "batch-size": 8, "output": "run"}
    (folder / "audit.yaml").write_text(yaml.safe_dump(settings))

    def read(case: Path) -> Any:
        from diffleak.auditing.config import AuditConfig
        from diffleak.auditing.plan import choose_attacks, choose_masks
        from diffleak.config import build, read_yaml

        config = build(AuditConfig, read_yaml(case / "audit.yaml"))
        choose_attacks(config)
        choose_masks(config)
        return config.model_dump()

    return read


def train_yaml(folder: Path) -> Read:
    settings = {"data": "digits", "output": "model", "steps": 6, "learning-rate": 1e-3, "batch-size": 4, "resize": 8, "flip": False}
    settings |= {"model": {"block_out_channels": [8, 16], "norm_num_groups": 4}, "scheduler": {"prediction_type": "epsilon"}}
    (folder / "train.yaml").write_text(yaml.safe_dump(settings))

    def read(case: Path) -> Any:
        from diffleak.training.config import train_config

        return train_config(None, case / "train.yaml").model_dump()

    return read


def right_settings(folder: Path, answer: Any) -> None:
    """Every value of the file is in the settings, as it is written there."""
    file = _only(folder, "*.yaml")
    for key, value in (yaml.safe_load(file.read_text(encoding="utf-8-sig")) or {}).items():
        if value is None:
            continue
        got, name = answer[key.replace("-", "_")], key
        assert not (isinstance(value, bool) and not isinstance(got, bool)), f"{name} is {got!r} for {value!r}"
        if isinstance(value, int | float) and isinstance(got, int | float):
            assert got == (float(value) if isinstance(got, float) else value), f"{name} is {got!r} for {value!r}"
        elif isinstance(value, str) and isinstance(got, str | Path):
            assert got == value or Path(got) == Path(value), f"{name} is {got!r:.80} for {value!r:.80}"
        elif isinstance(value, dict):
            assert _same_setting(got, value), f"{name} is {got!r:.80} for {value!r:.80}"


def _same_setting(got: Any, value: Any) -> bool:
    """Nested values are the same; PyYAML takes 1e-3 for a text, which is a number here."""
    if isinstance(got, float) and isinstance(value, str):
        return got == float(value)
    if isinstance(value, dict | list) and type(got) is type(value) and len(got) == len(value):
        keys = value if isinstance(value, dict) else range(len(value))
        return all(_same_setting(got[key], value[key]) for key in keys)
    return bool(got == value)


# which images, and what is said of them


def _image_folder(folder: Path) -> None:
    for image_id, pixels in zip(IDS, PIXELS, strict=True):
        (folder / image_id).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / image_id)


def split_json(folder: Path) -> Read:
    _image_folder(folder / "data")
    halves, teachers = [IDS[:3], IDS[3:6]], ["sha256:1", "sha256:2"]
    split = {"members": IDS[:6], "nonmembers": IDS[6:10], "validation": IDS[10:], "halves": halves, "teachers": teachers}
    (folder / "split.json").write_text(json.dumps(split))

    def read(case: Path) -> Any:
        from diffleak.data.sources import open_source
        from diffleak.data.split import read_defence, read_model_split, read_split

        sides = read_split(case / "split.json", open_source(case / "data"))
        defence, roles = read_defence(case / "split.json"), read_model_split(case / "split.json")
        return [list(sides), list(defence.halves), list(defence.teachers), dict(roles.roles) if roles else None]

    return read


def right_split(folder: Path, answer: Any) -> None:
    said = json.loads((folder / "split.json").read_text(encoding="utf-8-sig"))
    texts = lambda listed: tuple(map(str, listed))
    assert [[*map(_spelt, side)] for side in answer[0]] == [[_spelt(str(i)) for i in said[side]] for side in ("members", "nonmembers")]
    assert answer[1] == [*map(texts, said["halves"])]
    assert answer[2] == list(map(str, said["teachers"])) and set(sum(answer[0], ())) <= set(IDS)
    assert not set(answer[0][0]) & set(answer[0][1])


def captions_file(ending: str) -> Any:
    def example(folder: Path) -> Read:
        rows = [{"file_name": image_id, "text": CAPTIONS[i % 4]} for i, image_id in enumerate(IDS)]
        _write_rows(folder / f"captions{ending}", rows, {row["file_name"]: [row["text"], "more"] for row in rows})

        def read(case: Path) -> Any:
            from diffleak.data.captions import read_captions

            return dict(read_captions(case / f"captions{ending}"))

        return read

    return example


def _write_rows(path: Path, rows: list[dict[str, Any]], as_object: Any = None) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(as_object))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        path.write_text(text.getvalue())


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()  # type: ignore[no-any-return]
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def _only(folder: Path, pattern: str) -> Path:
    """The one file of this name; what is none cannot have been read."""
    (path,) = folder.glob(pattern)
    assert path.is_file() and not path.is_char_device(), f"{path.name} is no file"
    return path


def _spelt(name: str) -> str:
    """A name of an image in the one way of all that mean the same."""
    return normpath(normalize("NFC", name).replace("\\", "/")).casefold()


def _texts(value: Any) -> list[str]:
    return [text for text in (value if isinstance(value, list) else [value]) if text is not None and text.strip()]


def right_captions(folder: Path, answer: Any) -> None:
    path = _only(folder, "captions.*")
    expected: dict[str, list[str]] = {}
    pairs = json.loads(path.read_text(encoding="utf-8-sig")).items() if path.suffix == ".json" else None
    for image_id, value in pairs or [(str(row["file_name"] if "file_name" in row else row["id"]), row["text"]) for row in _rows(path)]:
        expected.setdefault(image_id, []).extend(_texts(value))
    assert answer == {image_id: tuple(dict.fromkeys(texts)) for image_id, texts in expected.items()}


def metadata_file(ending: str) -> Any:
    def example(folder: Path) -> Read:
        _image_folder(folder / "data")
        _write_rows(
            folder / "data" / f"metadata{ending}",
            [{"file_name": image_id, "label": i % 3, "text": CAPTIONS[i % 4]} for i, image_id in enumerate(IDS)],
        )

        def read(case: Path) -> Any:
            from diffleak.data.cohort import images_alone
            from diffleak.data.sources import open_source

            cohort = images_alone(open_source(case / "data"))
            labels = cohort.labels(3)
            return [
                dict(zip(cohort.ids, part, strict=True))
                for part in (cohort.captions() or N * [()], labels.numbers.tolist() if labels else N * [None])
            ]

        return read

    return example


def right_metadata(folder: Path, answer: Any) -> None:
    """Each caption and label is that of the image's own rows; an image without a row has no caption."""
    if not [*folder.glob("data/metadata.*")]:
        return finite(folder, answer)
    path = _only(folder, "data/metadata.*")
    for image_id in IDS:
        rows = [row for row in _rows(path) if _spelt(str(row["file_name"])) == image_id]
        texts = dict.fromkeys(text for row in rows for text in _texts([row.get("text"), row.get("caption")]))
        if rows:
            assert [*answer[0][image_id]] == [*texts], f"{image_id} has {texts}"
        labels = {str(row["label"]).strip() for row in rows if row.get("label") not in (None, "")}
        folders = image_id[6] if not any(str(row.get("label") or "").strip() for row in _rows(path)) else None
        assert str(answer[1][image_id]) in (labels or {folders, "None"}), f"{image_id} has the label {labels}"


def prompts_file(ending: str) -> Any:
    def example(folder: Path) -> Read:
        rows = [{"id": str(i), "text": text} for i, text in enumerate(CAPTIONS)]
        path = folder / f"prompts{ending}"
        if ending == ".txt":
            path.write_text("\n".join(CAPTIONS) + "\n")
        else:
            _write_rows(path, rows, {row["id"]: row["text"] for row in rows})

        def read(case: Path) -> Any:
            from diffleak.data.prompts import read_prompts

            return read_prompts(case / f"prompts{ending}")

        return read

    return example


def right_prompts(folder: Path, answer: Any) -> None:
    path = _only(folder, "prompts.*")
    if path.suffix == ".txt":
        expected = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    else:
        found: dict[Any, str] = {}
        pairs = json.loads(path.read_text(encoding="utf-8-sig")).items() if path.suffix == ".json" else None
        named = lambda row: next((_spelt(str(row[key])) for key in ("file_name", "id") if row.get(key) not in (None, "")), None)
        for i, (name, value) in enumerate(pairs or [(named(row), row["text"]) for row in _rows(path)]):
            if texts := _texts(value):
                found.setdefault(i if name is None else _spelt(name), texts[0].strip() if pairs is None else texts[0])
        expected = list(found.values())
    assert answer == expected


def captions_so_far(folder: Path) -> Read:
    """The file that `caption` goes on with, and its plan; the captioner is two lines."""
    _image_folder(folder / "data")

    def read(case: Path) -> Any:
        from diffleak.config import build
        from diffleak.data.captions import read_captions
        from diffleak.data.sources import open_source
        from diffleak.training import captioning

        source = replace(open_source(case / "data"), name="data")
        config = build(
            captioning.CaptionConfig, {"data": "data", "output": case / "captions.jsonl", "n": 2, "batch_size": 3, "device": "cpu"}
        )
        told = lambda model, images, ids, own, n, seed: [[f"{i} {k}" for k in range(n)] for i in ids]
        model = captioning.Captioner(None, None, (), (), "f", "cpu")
        with ExitStack() as stack:
            stack.enter_context(patch.object(captioning, "load_captioner", lambda *_: model))
            stack.enter_context(patch.object(captioning, "_others", told))
            file = captioning.write_captions(config, source)
        return dict(read_captions(file))

    read(folder)
    lines = (folder / "captions.jsonl").read_text().splitlines()
    (folder / "captions.jsonl").write_text("".join(line + "\n" for line in lines[: N // 2]))
    return read


def right_captions_so_far(folder: Path, answer: Any) -> None:
    assert answer.keys() >= set(IDS), "an image has no caption"


# images and sets of them

PICTURES = {
    "png": lambda: encoded(Image.fromarray(np.stack([PIXELS[0]] * 3, axis=-1)), "PNG"),
    "grey-png": lambda: encoded(Image.fromarray(PIXELS[0]), "PNG"),
    "deep-png": lambda: encoded(Image.fromarray(PIXELS[0].astype(np.uint16) * 257), "PNG"),
    "palette-png": lambda: encoded(Image.fromarray(PIXELS[0]).convert("P"), "PNG", transparency=3),
    "jpeg": lambda: encoded(_photo(), "JPEG", exif=_turned()),
    "gif": lambda: encoded(Image.fromarray(PIXELS[0]), "GIF", save_all=True, append_images=[Image.fromarray(PIXELS[1])]),
    "webp": lambda: encoded(_photo(), "WEBP", lossless=True),
    "tiff": lambda: encoded(_photo(), "TIFF", compression="tiff_lzw", exif=_turned()),
    "deep-tiff": lambda: encoded(Image.fromarray(PIXELS[0].astype(np.uint16)), "TIFF"),
    "bmp": lambda: encoded(Image.fromarray(PIXELS[0]), "BMP"),
    "ppm": lambda: encoded(_photo(), "PPM"),
    "tga": lambda: encoded(_photo(), "TGA"),
    "jp2": lambda: encoded(_photo(), "JPEG2000"),
}


def _photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(2).integers(0, 256, (16, 12, 3), dtype=np.uint8))


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def pictures(folder: Path) -> Read:
    for name, made in PICTURES.items():
        (folder / f"{name}.{name.rpartition('-')[2]}").write_bytes(made())

    def read(case: Path) -> Any:
        from diffleak.data.decoding import decode

        found = {}
        for path in sorted(case.iterdir()):
            content = path.read_bytes() if path.is_file() and path.stat().st_mode & 0o400 and not path.is_char_device() else path
            found[path.name] = [decode(each, path.name).pixels for each in (path, content)]
        return found

    return read


def right_pictures(folder: Path, answer: Any) -> None:
    """Images as uint8 of 1, 3 or 4 channels, the same from the file and from its bytes."""
    for one, other in answer.values():
        assert one.dtype == np.uint8 and one.ndim == 3 and one.size and one.shape[2] in (1, 3, 4)
        assert np.array_equal(one, other)


def image_folder(folder: Path) -> Read:
    _image_folder(folder / "data")
    (folder / "data" / "photo.jpeg").write_bytes(PICTURES["jpeg"]())
    return lambda case: _read_all(case / "data")


def array_file(ending: str) -> Any:
    def example(folder: Path) -> Read:
        if ending == ".npz":
            np.savez(folder / "images.npz", images=PIXELS, label=np.arange(N) % 3)
        else:
            np.save(folder / "images.npy", PIXELS)
        return lambda case: _read_all(case / f"images{ending}")

    return example


def image_table(folder: Path) -> Read:
    cells = [{"bytes": encoded(Image.fromarray(pixels)), "path": f"{i}.png"} for i, pixels in enumerate(PIXELS)]
    table = pa.table({"image": cells, "label": [i % 3 for i in range(N)], "text": [CAPTIONS[i % 4] for i in range(N)]})
    pq.write_table(table, folder / "images.parquet", row_group_size=5)
    return lambda case: _read_all(case / "images.parquet")


def tar_shard(folder: Path) -> Read:
    with tarfile.open(folder / "shard.tar", "w") as shard:
        for i, pixels in enumerate(PIXELS):
            said = {"png": encoded(Image.fromarray(pixels)), "txt": CAPTIONS[i % 4].encode(), "cls": str(i % 3).encode()}
            for ending, content in said.items():
                member = tarfile.TarInfo(f"{i:02d}.{ending}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    return lambda case: _read_all(case / "shard.tar")


def arrow_file(folder: Path) -> Read:
    cells = [{"bytes": encoded(Image.fromarray(pixels)), "path": f"{i}.png"} for i, pixels in enumerate(PIXELS)]
    table = pa.table({"image": cells, "label": [i % 3 for i in range(N)], "text": [CAPTIONS[i % 4] for i in range(N)]})
    with pa.OSFile(str(folder / "images.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    return lambda case: _read_all(case / "images.arrow")


def _read_all(path: Path) -> Any:
    from diffleak.data.sources import open_source

    source = open_source(path)
    labels, captions = source.labels(), source.captions()
    images = {image_id: source.decoded(i).pixels for i, image_id in enumerate(source.ids)}
    return {"images": images, "labels": labels and list(labels.values), "folders": labels and list(labels.folders), "captions": captions}


def right_images(folder: Path, answer: Any) -> None:
    """Each image as numpy or Pillow reads it, and a label and texts for each or for none."""
    path = next(path for path in sorted(folder.iterdir()) if path.name != "data" or path.is_dir())
    images = list(answer["images"].values())
    assert all(image.dtype == np.uint8 and image.ndim == 3 and image.size and image.shape[2] in (1, 3, 4) for image in images)
    for part in ("labels", "folders", "captions"):
        assert not answer[part] or len(answer[part]) == len(images)
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        column = next(name for name in ("image", "img", "images", "pixels") if name in table.column_names)
        cells = table.column(column).to_pylist()
        contents = [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
        with_colours = [np.asarray(Image.open(io.BytesIO(content))) for content in contents]
        assert all(np.array_equal(image.squeeze(-1), pixels) for image, pixels in zip(images, with_colours, strict=True))
        if "label" in table.column_names:
            assert [str(label) for label in answer["labels"]] == [
                str(label).strip() or "None" for label in table.column("label").to_pylist()
            ]
    elif path.suffix in (".npy", ".npz"):
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = [loaded]
        else:
            arrays = [array for name in loaded.files if (array := loaded[name]).dtype == np.uint8 and array.ndim >= 3]
        assert len(arrays) == 1
        assert all(np.array_equal(image, np.atleast_3d(pixels)) for image, pixels in zip(images, arrays[0], strict=True))


def anonymous_key(folder: Path) -> Read:
    from diffleak.data.anonymity import choose_key

    key = choose_key(True, None, folder, {})
    assert key is not None

    def read(case: Path) -> Any:
        found = choose_key(True, None, case, {case / "plan.json": key.name})
        return found and list(found.ids(IDS))

    return read


KINDS = (
    Kind("metrics csv", scores_csv, ("scores.csv",), right_scores, 8),
    Kind("metrics parquet", scores_parquet, ("scores.parquet",), right_scores),
    Kind("config of audit", audit_yaml, ("audit.yaml",), right_settings, 8),
    Kind("config of train", train_yaml, ("train.yaml",), right_settings, 8),
    Kind("split", split_json, ("split.json",), right_split),
    *(Kind(f"captions {ending}", captions_file(f".{ending}"), ("captions.*",), right_captions) for ending in ("json", "jsonl", "csv")),
    *(
        Kind(f"metadata {ending}", metadata_file(f".{ending}"), ("data/metadata.*",), right_metadata)
        for ending in ("jsonl", "csv", "parquet")
    ),
    *(
        Kind(f"prompts {ending}", prompts_file(f".{ending}"), ("prompts.*",), right_prompts, 3)
        for ending in ("txt", "csv", "jsonl", "json")
    ),
    Kind("captions so far", captions_so_far, ("captions.jsonl*",), right_captions_so_far),
    Kind("pictures", pictures, ("*.*",), right_pictures, 12),
    Kind("image folder", image_folder, ("data/*/*.png", "data/photo.jpeg"), right_images),
    *(Kind(f"images {ending}", array_file(f".{ending}"), ("images.*",), right_images) for ending in ("npy", "npz")),
    Kind("images parquet", image_table, ("images.parquet",), right_images, 6),
    Kind("images arrow", arrow_file, ("images.arrow",), right_images, 4),
    Kind("images tar", tar_shard, ("shard.tar",), right_images, 4),
    Kind("anonymous key", anonymous_key, ("*.key",), None, 3),
)
