"""Feature extractors, by which images are compared: one spec string, one `Extractor` from uint8 images to features.

    inception            the Inception network of the FID literature, through torch-fidelity
    inception:FILE       its TorchScript file as NVIDIA publishes it (inception-2015-12-05.pt: takes uint8, resizes itself)
    dinov2[:MODEL]       the class token of a DINOv2 through transformers; MODEL is a local folder or hub id
    clip[:MODEL]         the image embedding of a CLIP through transformers
    deit[:MODEL]         the class token of a DeiT through transformers
    FOLDER               the one of these three that its config.json names
    sscd:FILE            a copy-detection TorchScript file (Pizzi et al. 2022): 288 pixels a side, normalised as ImageNet is
    torchscript:FILE     any TorchScript file (or just FILE.pt): float images in [-1, 1], (b, 3 or c, h, w) -> (b, d),
                         or a pair (features, class logits or probabilities)
    pixels               the image shrunk to 8 x 8, antialiased: offline, for tests and as a baseline

Numbers of different extractors cannot be compared; the fingerprint of an extractor's weights is recorded.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from diffleak.data.given import SCRIPTS
from diffleak.data.pixels import ImageShape, to_model
from diffleak.diffusion.finite import broken_weight
from diffleak.errors import WHY, UserError, first_lines, pip_install, refusing, shown, unknown
from diffleak.hub import folder_of, heard
from diffleak.hub.configs import are_numbers, read_json
from diffleak.hub.folders import LONGEST_PATH, WEIGHTS, check_weights, from_transformers, hashed_weights
from diffleak.work.remembered import hash_weights

KINDS = ("inception", "dinov2", "clip", "deit", "sscd", "torchscript", "pixels")
HUB = {
    "dinov2": "facebook/dinov2-large",
    "clip": "openai/clip-vit-large-patch14",
    "deit": "facebook/deit-base-distilled-patch16-224",
}
TRANSFORMERS = {"dinov2": "Dinov2Model", "clip": "CLIPVisionModelWithProjection", "deit": "DeiTModel"}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SSCD_SIDE = 288
PIXELS_SIDE = 8
LONGEST_SIDE = 2**13  # pixels that an encoder may want its images to have, ten times those of known ones
BATCH = 64

Images = UInt8[np.ndarray, "b h w c"]
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of the channels
Answer = Any  # of a network: features (b, d), or a pair with class logits or probabilities (b, classes)


class Features(NamedTuple):
    """Features of n images, and their class probabilities if the extractor returns them."""

    features: Float[np.ndarray, "n d"]
    probabilities: Float[np.ndarray, "n c"] | None


@dataclass(frozen=True, eq=False)
class Extractor:
    """uint8 images (b, h, w, c) to an `Answer`.

    `name` and `fingerprint` identify it, `warnings` are those of loading it, and `network` holds its weights.
    """

    name: str
    fingerprint: str
    run: Callable[[Images], Answer]
    warnings: tuple[str, ...] = ()
    network: Any = None


def open_extractor(spec: "str | Path | Callable[[Tensor], Answer] | Extractor", device: str = "cpu") -> Extractor:
    """The extractor behind a spec (see the module), or of a function of float images in [-1, 1] of shape (b, c, h, w).

    Raises `UserError` for an unknown spec, a file of another kind, and a library that is not installed.
    """
    if isinstance(spec, Extractor):
        return spec
    if callable(spec):
        return Extractor(getattr(spec, "__name__", "function"), "unknown", _on_floats(spec, device), network=spec)
    text = str(spec)
    kind, _, where = text.partition(":")
    if kind not in KINDS and text.endswith(SCRIPTS):
        kind, where = "torchscript", text
    if kind not in KINDS and os.path.isdir(text):
        kind, where = _kind_of(Path(text)), text
    if kind not in KINDS:
        raise unknown("extractor", kind, KINDS)
    if kind in ("sscd", "torchscript") and not where:
        raise UserError(f"the extractor {kind} needs its TorchScript file: {kind}:FILE")
    if kind == "pixels":
        return Extractor("pixels", f"{PIXELS_SIDE} x {PIXELS_SIDE}", _shrunk)
    if kind == "inception" and not where:
        return _torch_fidelity(device)
    if kind in HUB:
        return _transformer(kind, where or HUB[kind], device)
    network = _torchscript(Path(where), device)
    run = {"inception": _inception, "sscd": _sscd, "torchscript": _either_channels}[kind](network, device)
    return Extractor(text if kind == "inception" else f"{kind}:{where}", hash_weights([Path(where)]), run, network=network)


def probe(extractor: Extractor, shape: ImageShape) -> int:
    """The dimension of the features of images of `shape`; raises `UserError` if the extractor cannot take such images."""
    blank = np.full((2, shape.height, shape.width, shape.channels), 128, dtype=np.uint8)
    return int(extract(extractor, [blank]).features.shape[1])


def extract(extractor: Extractor, batches: Iterable[Images], advance: Callable[[int], object] = lambda n: None) -> Features:
    """The features of all images, with one batch in memory at a time; `advance` is called with the size of each finished batch.

    Raises `UserError` if the extractor fails, or returns another shape than (b, d), or numbers that are not finite.
    """
    features, probabilities = list[np.ndarray](), list[np.ndarray]()
    for images in batches:
        first, second = _checked(extractor, images)
        for what, found, before in (("features", first, features), ("logits", second, probabilities)):
            if found is not None and before and found.shape[1] != before[0].shape[1]:
                raise UserError(
                    f"the extractor {extractor.name} must return {what} of one length; got {before[0].shape[1]}, then {found.shape[1]}"
                )
        features.append(first)
        if second is not None:
            probabilities.append(second)
        advance(len(images))
    if probabilities and len(probabilities) < len(features):
        raise UserError(f"the extractor {extractor.name} must return logits for every batch or for none; got them for some")
    return Features(np.concatenate(features), np.concatenate(probabilities) if probabilities else None)


def _checked(extractor: Extractor, images: Images) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with torch.inference_mode():
            answer = extractor.run(images.copy())  # a function that writes into its images must not change those that follow
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UserError(
            f"the extractor {extractor.name} must take images of shape {images.shape[1:]}; it fails: {lines[-1][:200]}"
        ) from None
    pair = answer if isinstance(answer, tuple | list) else (answer, None)
    if len(pair) != 2 or not all(isinstance(part, Tensor | np.ndarray | None) for part in pair) or pair[0] is None:
        raise UserError(
            f"the extractor {extractor.name} must return features, or a pair of features and logits; got {type(answer).__name__}"
        )
    features, classes = (None if part is None else np.asarray(torch.as_tensor(part).float().cpu()) for part in pair)
    for what, found in (("features", features), ("logits", classes)):
        if found is not None and (found.ndim != 2 or len(found) != len(images) or not found.size):
            raise UserError(f"the extractor {extractor.name} must return {what} of shape ({len(images)}, d); got {found.shape}")
        if found is not None and not np.isfinite(found).all():
            why = broken_weight(extractor.network) or "use another file or image size"
            raise UserError(f"the extractor {extractor.name} must return finite {what}; got NaN or infinity: {why}")
    assert features is not None
    return features, None if classes is None else _as_probabilities(classes)


def _as_probabilities(classes: Float[np.ndarray, "b c"]) -> Float[np.ndarray, "b c"]:
    """Probabilities as they are; anything else is treated as logits."""
    if (classes >= 0).all() and np.allclose(classes.sum(axis=1), 1, atol=1e-3):
        return classes
    powers = np.exp(classes - classes.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def _rgb(images: Images) -> UInt8[np.ndarray, "b h w 3"]:
    """Three channels: grey is repeated, transparency is dropped."""
    return images.repeat(3, axis=3) if images.shape[3] == 1 else images[..., :3]


def _on_floats(network: Callable[[Tensor], Answer], device: str) -> Callable[[Images], Answer]:
    return lambda images: network(torch.from_numpy(to_model(images)).to(device))


def _either_channels(network: Callable[[Tensor], Answer], device: str) -> Callable[[Images], Answer]:
    """Grey images as they are if the network takes one channel, else repeated to three."""
    plain = _on_floats(network, device)

    def run(images: Images) -> Answer:
        try:
            return plain(images)
        except RuntimeError:
            if images.shape[3] == 3:
                raise
            return plain(_rgb(images))

    return run


def _inception(network: Any, device: str) -> Callable[[Images], Answer]:
    def run(images: Images) -> Answer:
        x = torch.from_numpy(np.ascontiguousarray(_rgb(images).transpose(0, 3, 1, 2))).to(device)
        return network(x, return_features=True), network(x, no_output_bias=True)

    return run


def _sscd(network: Any, device: str) -> Callable[[Images], Answer]:
    mean, std = (np.array(values, dtype=np.float32) for values in IMAGENET)

    def run(images: Images) -> Answer:
        sized = np.stack([_resized(image, SSCD_SIDE, SSCD_SIDE, Image.Resampling.BILINEAR) for image in _rgb(images)])
        return network(_normalised(sized, mean, std, device))

    return run


def _shrunk(images: Images) -> Float[np.ndarray, "b d"]:
    small = np.stack([_resized(image, PIXELS_SIDE, PIXELS_SIDE, Image.Resampling.BICUBIC) for image in images])
    return to_model(small).reshape(len(images), -1)


def _resized(image: UInt8[np.ndarray, "h w c"], height: int, width: int, how: int) -> UInt8[np.ndarray, "h2 w2 c"]:
    """Resized with antialiasing."""
    sized = np.asarray(Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).resize((width, height), Image.Resampling(how)))
    return sized[..., None] if sized.ndim == 2 else sized


def _normalised(images: Images, mean: np.ndarray, std: np.ndarray, device: str) -> Float[Tensor, "b 3 h w"]:
    x = (images.astype(np.float32) / 255 - mean) / std
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=np.float32)).to(device)


def _torchscript(path: Path, device: str) -> Any:
    if not os.path.isfile(path):
        raise UserError(f"the extractor must be a TorchScript file; there is no file at {shown(path, LONGEST_PATH)}")
    said = lambda error: (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    # damaged bytes bring out many kinds
    with refusing(Exception, f"{path} must be a TorchScript file, as torch.jit.save writes it ({WHY})", said):
        return torch.jit.load(str(path), map_location=device).eval()


def _torch_fidelity(device: str) -> Extractor:
    others = (
        "give the TorchScript file as inception:inception-2015-12-05.pt, or another --extractor (dinov2, clip, torchscript:FILE, pixels)"
    )
    with refusing(ImportError, f"the extractor inception needs torch-fidelity: {pip_install('inception')}; or {others}"):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    # it downloads its weights; whatever goes wrong is about that
    with refusing(Exception, f"torch-fidelity cannot load its weights ({WHY}); give inception:FILE instead", first_lines):
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"]).to(device).eval()
    digest = hashlib.sha256()
    for name, weights in sorted(network.state_dict().items()):
        digest.update(name.encode() + weights.cpu().numpy().tobytes())
    run = lambda images: network(torch.from_numpy(np.ascontiguousarray(_rgb(images).transpose(0, 3, 1, 2))).to(device))
    return Extractor("inception", digest.hexdigest(), run, network=network)


def _transformer(kind: str, model: str, device: str) -> Extractor:
    """A vision transformer with the preprocessing of its preprocessor_config.json, done here with Pillow."""
    with refusing(ImportError, f"the extractor {kind} needs transformers: {pip_install('encoders')}"):
        import transformers
    folder = encoder_folder(model, form=f"{kind}:FOLDER")
    unused: dict[str, Any] = {"add_pooling_layer": False} if kind == "deit" else {}  # which most of its checkpoints lack
    preprocess = preprocessing(folder, kind)
    check_weights(folder)
    # transformers, safetensors and torch each raise their own; all mean an unusable folder
    with refusing((UserError, Exception), f"{model} cannot be used as {kind} ({WHY})", first_lines), heard() as said:
        network, info = from_transformers(getattr(transformers, TRANSFORMERS[kind]), folder, **unused)
    if info["missing_keys"]:
        raise UserError(f"{model} must hold a {kind} model; its weights lack {sorted(info['missing_keys'])[0]}")
    network = network.to(device).eval()
    embed = (lambda x: network(x).image_embeds) if kind == "clip" else (lambda x: network(x).last_hidden_state[:, 0])
    files = [*hashed_weights(folder), folder / "config.json", folder / "preprocessor_config.json"]
    warnings = tuple(f"while {model} was loaded: {line}" for line in said)
    return Extractor(f"{kind}:{model}", hash_weights(files), lambda images: embed(preprocess(images).to(device)), warnings, network)


def _kind_of(folder: Path) -> str:
    """The kind of transformer in a folder: dinov2, clip or deit."""
    must = f"the encoder {folder} must be a folder of transformers, with model_type in its config.json"
    said = read_json(folder / "config.json", must).get("model_type")
    if said is None:
        raise UserError(must)
    kind = said.removesuffix("_vision_model")
    if kind not in TRANSFORMERS:
        raise UserError(f"encoders in a folder must be one of {', '.join(TRANSFORMERS)}; {folder} holds a {shown(said)}")
    return kind


def encoder_folder(model: str, patterns: tuple[str, ...] = (), form: str = "") -> Path:
    """The folder of a transformers model, downloaded if it is a hub id; `patterns`: further files to download; `form`: see `folder_of`."""
    return folder_of(model, "the encoder", ["config.json", "preprocessor_config.json", *WEIGHTS, "*.index.json", *patterns], form)


def preprocessing(folder: Path, what: str) -> Callable[[Images], Tensor]:
    """Resize, centre crop and normalisation by the preprocessor_config.json of a folder.

    what: what the folder is used as in messages, "a CLIP" for example. Raises `UserError` for a missing file or a wrong setting in it.
    """
    path = folder / "preprocessor_config.json"
    config = read_json(path, f"{folder} cannot be used as {what}: it must have a file with its preprocessing")
    size, crop = config.get("size", 224), config.get("crop_size") if config.get("do_center_crop") else None
    shortest = size.get("shortest_edge") if isinstance(size, dict) else size
    sides = _pair(path, "size", size) if shortest is None else None
    if shortest is not None and not (type(shortest) is int and 0 < shortest <= LONGEST_SIDE):
        raise UserError(f"size of {path} must be a number of pixels; got {shown(json.dumps(size))}: correct it, or fetch the file again")
    cropped = None if crop is None else _pair(path, "crop_size", crop if isinstance(crop, dict) else {"height": crop, "width": crop})
    how = config.get("resample", 3)
    if how not in [*Image.Resampling]:
        raise UserError(
            f"resample of {path} must be the number of a Pillow filter, 0 to {max(Image.Resampling)}; got {shown(json.dumps(how))}"
        )
    mean, std = (np.array(values, dtype=np.float32) for values in channel_statistics(config, path))

    def one(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        height, width = image.shape[:2]
        if shortest is None:
            assert sides is not None, "a size is either"
            sized = _resized(image, *sides, how)
        else:
            scale = shortest / min(height, width)
            sized = _resized(image, max(shortest, round(height * scale)), max(shortest, round(width * scale)), how)
        if cropped is None:
            return sized
        top, left = (sized.shape[0] - cropped[0]) // 2, (sized.shape[1] - cropped[1]) // 2
        return sized[max(top, 0) :, max(left, 0) :][: cropped[0], : cropped[1]]

    return lambda images: _normalised(np.stack([one(image) for image in _rgb(images)]), mean, std, "cpu")


def _pair(path: Path, key: str, given: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width in pixels; raises `UserError` for anything else."""
    height, width = (given.get(side) for side in ("height", "width"))
    if type(height) is not int or type(width) is not int or not 0 < min(height, width) <= max(height, width) <= LONGEST_SIDE:
        raise UserError(
            f"{key} of {path} must be height and width in pixels; got {shown(json.dumps(given))}: correct it, or fetch the file again"
        )
    return height, width


def channel_statistics(config: Mapping[str, Any], path: Path, default: Statistics | None = None) -> Statistics:
    """Mean and standard deviation of the three channels in a preprocessor's config; raises `UserError` unless each is three numbers."""
    found = []
    for key, usual in zip(("image_mean", "image_std"), default or (None, None), strict=True):
        values: Any = config.get(key) if usual is None or config.get(key) is not None else list(usual)
        if not are_numbers(values, 3, positive=key == "image_std"):
            kind = "numbers" if key == "image_mean" else "positive numbers"
            raise UserError(f"{key} of {path} must be three {kind}; got {shown(json.dumps(values))}: correct it, or fetch the file again")
        found.append(tuple(map(float, values)))
    return found[0], found[1]
