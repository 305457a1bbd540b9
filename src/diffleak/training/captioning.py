"""Extra captions of images, by an image captioner: what prompt diversification draws from.

    logit_k / T + g_k,   g_k Gumbel noise of the image's own generator;   the next word is the largest within the nucleus

which is a draw from the softmax, cut to the fewest words that hold a share p of it (Holtzman et al. 2019, arXiv 1904.09751).
The noise is keyed by seed, image id and round, so a caption does not depend on what else is in its batch. The captioner is a
BLIP of transformers (Li et al. 2022, arXiv 2201.12086); any other captions can be written into such a file by hand.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Generator, Tensor

from diffleak.config import build, names_of
from diffleak.data.decoding import WITHOUT_HINT, UnreadableImage
from diffleak.data.image_source import ImageSource, Texts, texts_of
from diffleak.data.names import say_strays
from diffleak.data.pixels import ImageShape, fit
from diffleak.data.sources import open_source
from diffleak.data.split import read_split
from diffleak.diffusion.finite import advice
from diffleak.errors import WHY, UserError, of_system, pip_install, refusing
from diffleak.hub import checked_device, folder_of, heard
from diffleak.hub.configs import read_json
from diffleak.hub.encoders import channel_statistics
from diffleak.hub.folders import WEIGHTS, check_weights, from_transformers, hashed_weights
from diffleak.records.images import AS_TRAINERS, Decoding, Tally
from diffleak.training.config import CaptionConfig
from diffleak.training.task import keyed
from diffleak.work.files import open_private, write_text
from diffleak.work.folder import Folder, read_object, spelled
from diffleak.work.progress import progress, say
from diffleak.work.reading import Unreadable, load_lines, load_text
from diffleak.work.remembered import hash_weights

FILES = ("*.json", "*.txt")  # beside the weights
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # BLIP's own, where the folder says none
TOP_P, TEMPERATURE, WORDS = 0.9, 1.0, 30  # the last in tokens
ROUNDS = 4  # of draws, until an image has n captions that differ


@dataclass(frozen=True, eq=False)
class Captioner:
    """A BLIP with its tokenizer; `fingerprint` is a hash of the weights, configs and vocabulary."""

    network: Any
    tokenizer: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    device: str


def caption_images(
    data: "str | Path | ImageSource",
    output: str | Path,
    captioner: str | None = None,
    n: int | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    split: Path | None = None,
    limit: int | None = None,
    decoding: Decoding = AS_TRAINERS,
) -> Path:
    """Writes a captions file: a line {"file_name": id, "text": [own caption if any, n others]} for every image.

    Beside the file lies FILE.plan.json; the same call again goes on where the last one stopped. What is None has the default of
    `CaptionConfig`.

    Args:
        data: The images, as `cohort` takes them.
        output: The captions file, a .jsonl.
        captioner: A BLIP, as a local folder or hub id.
        n: Captions an image, at least 1; one that an image has already is drawn again, up to 4 rounds, so an image of which there is little
            to say may end with fewer.
        seed: Seed of the draws.
        batch_size: Images captioned at once; it changes no caption.
        device: A torch device.
        split: Caption only the members of that file.
        limit: Caption only the first images.
        decoding: How image files become pixels.

    Returns:
        The path of the captions file.

    Raises:
        UserError: For a captioner that cannot be used, and for a file that is there and was made by another call.
    """
    name = str(data) if isinstance(data, str | Path) else data.name
    settings = {"captioner": captioner, "n": n, "seed": seed, "batch_size": batch_size, "device": device, "split": split, "limit": limit}
    config = build(CaptionConfig, {"data": name, "output": output, **settings, **asdict(decoding)})
    return write_captions(config, open_source(data, decoding))


def write_captions(config: CaptionConfig, source: ImageSource) -> Path:
    """Writes the captions file of a config about the images of a source; says and raises what `caption_images` does."""
    output, n, seed = config.output, config.n, config.seed
    ids = read_split(config.split, source)[0] if config.split else source.ids
    captions = source.captions()
    own_texts = dict(zip(source.ids, captions or (), strict=False))
    say_strays([names] if captions and (names := source.names()) else [], source.ids[0])
    model = load_captioner(config.captioner, config.device)
    plan = {"schema_version": 1, "data": source.name, "captioner": config.captioner, "fingerprint": model.fingerprint, "n": n, "seed": seed}
    plan |= {"top_p": TOP_P, "temperature": TEMPERATURE, "tokens": WORDS} | asdict(config.decoding)
    wanted, done = ids[: config.limit], _resumed(output, plan)
    left = [image_id for image_id in wanted if image_id not in done]
    position = {image_id: i for i, image_id in enumerate(source.ids)}
    _check(source, [position[image_id] for image_id in left], config.decoding)
    with progress("captioning", len(wanted), "images", len(wanted) - len(left)) as advance:
        for start in range(0, len(left), config.batch_size):
            batch = left[start : start + config.batch_size]
            with refusing(UnreadableImage, WHY, WITHOUT_HINT):
                images = [source.read(position[image_id]) for image_id in batch]
            own = [tuple(own_texts.get(image_id, ())[:1]) for image_id in batch]
            others = _others(model, images, batch, own, n, seed)
            texts = [{"file_name": i, "text": [*a, *b]} for i, a, b in zip(batch, own, others, strict=True)]
            _append(output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in texts))
            advance(len(batch))
    return output


def _check(source: ImageSource, rows: Sequence[int], decoding: Decoding) -> None:
    """Says how the images are read; raises `UserError` where nothing says which value is white."""
    tally = Tally().with_left_out([source.left_out])
    with progress("checking images", len(rows), "images") as advance:
        for row in rows:
            with refusing(UnreadableImage, WHY, WITHOUT_HINT):
                tally = tally.plus(source.decoded(row).notes)
            advance(1)
    tally.refuse(source.name, decoding)
    if images := tally.described(decoding):
        say(f"images: {', '.join(images)}")


def load_captioner(model: str | Path, device: str | None = None) -> Captioner:
    """The captioner in a folder or of a hub id; raises `UserError` for anything that is no BLIP."""
    with refusing(ImportError, f"captioning needs transformers: {pip_install('encoders')}"):
        import transformers
    folder = folder_of(model, "the captioner", [*FILES, *WEIGHTS])
    try:
        kind = read_json(folder / "config.json", "it is no folder of transformers").get("model_type")
        if kind != "blip":
            raise ValueError(f"its config.json says model_type {kind}")
        check_weights(folder)
        blip: Any = transformers.BlipForConditionalGeneration
        with heard() as said:
            network, info = from_transformers(blip, folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        mean, std = _preprocessing(folder)
    except Exception as error:  # json, safetensors, tokenizers and transformers each raise their own; all mean an unusable folder
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"the captioner must be a BLIP of transformers; {model} cannot be used ({reason}): "
            "pass the local folder of one, or write the captions file in another way"
        ) from None
    lost = [key for key in info["missing_keys"] if key.startswith(("vision_model", "text_decoder"))]
    if lost:
        raise UserError(f"the captioner must have a decoder of text; the weights of {model} lack {sorted(lost)[0]}: pass another folder")
    for line in said:
        say(f"warning: while {model} was loaded: {line}")
    where = str(checked_device(device))
    files = hash_weights(sorted({*hashed_weights(folder), *(file for ending in FILES for file in folder.glob(ending))}))
    return Captioner(network.to(where).eval().requires_grad_(False), tokenizer, mean, std, files, where)


def _preprocessing(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the channels, from whichever file this version of transformers writes them to."""
    config: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            content = read_json(folder / name, "")
            config = content.get("image_processor", content)
            break
    if not isinstance(config, dict):
        raise ValueError(f"its {name} must give image_processor as an object")
    return channel_statistics(config, folder / name, (MEAN, STD))


def _resumed(output: Path, plan: dict[str, Any]) -> set[str]:
    """The ids that are captioned already; cuts off a line that was not finished. Raises `UserError` for another plan's file."""
    path = output.with_name(output.name + ".plan.json")
    if output.exists() and not path.exists():
        raise UserError(f"{output} was not written by this command; choose another -o")
    names = names_of(CaptionConfig)
    Folder(output.parent).claim(
        plan,
        lambda changed: f"{output} holds other captions ({spelled(changed, names)}); choose another -o, or the same settings to resume",
        file=path.name,
        read=lambda: asdict(AS_TRAINERS) | read_object(path, f"delete it and {output} to begin again"),
    )
    if not output.exists():
        return set()
    try:
        text = load_text(output)
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_text(output, whole, private=True)
        return {str(row["file_name"]) for row in load_lines(output)}
    except (Unreadable, TypeError, KeyError) as error:
        reason = error if isinstance(error, Unreadable) else "a line is no object with file_name and text"
        raise UserError(f"{output} is damaged ({reason}); delete it and run the same command again") from None


def _append(output: Path, lines: str) -> None:
    with refusing(OSError, f"{output} cannot be written ({WHY}); free the disk and run the same command again", of_system):
        if not output.exists():
            open_private(output).close()
        with output.open("a", encoding="utf-8") as file:
            file.write(lines)


def _others(
    model: Captioner, images: list[UInt8[np.ndarray, "_h _w _c"]], ids: Sequence[str], own: Sequence[Texts], n: int, seed: int
) -> list[list[str]]:
    """n captions of every image that differ from each other and from its own one, fewer where so many rounds did not find them."""
    pixels = torch.stack([_pixels(model, image) for image in images]).to(model.device)
    with torch.inference_mode():
        seen = model.network.vision_model(pixel_values=pixels)[0]
    found: list[list[str]] = [[] for _ in ids]
    for number in range(ROUNDS):
        rows = [row for row, texts in enumerate(found) if len(texts) < n]
        if not rows:
            break
        generators = [keyed(seed, number, *ids[row].encode()) for row in rows]
        drawn = _drawn(model, seen[rows], generators, n)
        for row, texts in zip(rows, drawn, strict=True):
            fresh = [text for text in texts_of([*own[row], *found[row], *texts]) if text and text not in own[row]]
            found[row] = fresh[:n]
    return found


def _pixels(model: Captioner, image: UInt8[np.ndarray, "h w c"]) -> Float[Tensor, "3 s s"]:
    """The whole image as a square, bicubic, each channel normalised."""
    side = int(model.network.config.vision_config.image_size)
    colour = fit(image, ImageShape(3, *image.shape[:2]), True, "")
    square = np.asarray(Image.fromarray(colour).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    return torch.from_numpy((square - np.array(model.mean, np.float32)) / np.array(model.std, np.float32)).permute(2, 0, 1).float()


def _drawn(model: Captioner, seen: Float[Tensor, "b p d"], generators: list[Generator], n: int) -> list[list[str]]:
    """n captions of every image, drawn by its generator."""
    text = model.network.config.text_config
    features = seen.repeat_interleave(n, dim=0)

    def chosen(_: Int[Tensor, "bn l"], logits: Float[Tensor, "bn k"]) -> Float[Tensor, "bn k"]:
        if bool(logits.isnan().any()):
            raise UserError(f"the captioner must give numbers; got NaN: {advice(model.network)}")
        noise = torch.cat([-torch.empty(n, logits.shape[1]).exponential_(generator=g).log() for g in generators])
        return nucleus(logits.float().cpu() / TEMPERATURE, TOP_P).add(noise).to(logits.device)

    with torch.inference_mode():
        tokens = model.network.text_decoder.generate(
            input_ids=torch.full((len(features), 1), text.bos_token_id, device=model.device),
            encoder_hidden_states=features,
            encoder_attention_mask=torch.ones(features.shape[:2], dtype=torch.long, device=model.device),
            eos_token_id=text.sep_token_id,
            pad_token_id=text.pad_token_id,
            logits_processor=[chosen],
            do_sample=False,
            num_beams=1,
            max_new_tokens=WORDS,
        )
    texts = [" ".join(text.split()) for text in model.tokenizer.batch_decode(tokens[:, 1:], skip_special_tokens=True)]
    return [texts[row * n : (row + 1) * n] for row in range(len(generators))]


def nucleus(logits: Float[Tensor, "b k"], share: float) -> Float[Tensor, "b k"]:
    """The logits of the fewest words that hold `share` of the probability; minus infinity for the others."""
    ordered, order = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
    kept = torch.where(before < share, ordered, torch.full_like(ordered, -torch.inf))
    return torch.empty_like(logits).scatter_(-1, order, kept)
