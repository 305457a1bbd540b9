"""Finds the files of weights in a network's folder, and gives the libraries a view of the folder in which they find them too.

    STEM.safetensors                      as diffusers and transformers save them
    STEM.bin, .pt, .pth, .ckpt            state dicts of torch.save
    STEM.VARIANT.safetensors or .bin      another copy: fp16, bf16, ema, non_ema
    STEM-00001-of-00002.safetensors       pieces of any of these, with STEM.safetensors.index.json

STEM is diffusion_pytorch_model (diffusers), model or pytorch_model (transformers, accelerate), or any name if the folder has only one file
of weights. Of several copies one is opened: the plain one before variants, fp32 before other variants, .safetensors before state dicts.

State dicts are opened by torch.load(weights_only=True) alone, which builds tensors and containers and runs no code.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffleak.errors import WHY, UserError, refusing, shown
from diffleak.hub.configs import load_object
from diffleak.hub.states import SAFE, MoreThanTensors, is_state, load_state, wrapped_by
from diffleak.work.reading import STATE_DICTS, Unreadable, found_at, opened, parsing

DIFFUSERS, TRANSFORMERS = ("diffusion_pytorch_model",) * 2, ("model", "pytorch_model")  # stems of safetensors and of state dicts
STEMS = tuple(dict.fromkeys((*DIFFUSERS, *TRANSFORMERS)))
OTHERS = r"optimizer|scheduler|scaler|training_args|random_states|custom_checkpoint|rng_state|state$"  # what trainers save beside weights
EMA, NON_EMA = "ema", "non_ema"
AVERAGE = "_ema"  # what diffusers' training scripts add to the name of a denoiser's folder
VARIANTS = ("", "fp32", "fp16", "bf16", EMA, NON_EMA)  # in the order in which they are taken
EMA_KEYS = {"decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"}  # of EMAModel
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "ema", "model_ema", "params", "params_ema")  # a state dict in a checkpoint
PIECE = r"-\d{5}-of-\d{5}"
LISTED = 4  # names in a message
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
DTYPES |= {"I8": "int8", "U8": "uint8", "I16": "int16", "I32": "int32", "I64": "int64", "BOOL": "bool"}  # as safetensors calls them
LEARNED = (".weight", ".bias")  # ends of the names of what a network learned, which floating point alone can hold


@dataclass(frozen=True)
class Copy:
    """One copy of a network's weights in a folder: the names of its files."""

    stem: str
    variant: str
    ending: str
    files: tuple[str, ...]
    index: str | None

    @property
    def is_plain(self) -> bool:
        """True for safetensors that the libraries find without help."""
        return self.ending == SAFE and not self.variant and self.stem in STEMS

    @property
    def order(self) -> tuple[Any, ...]:
        """The sort key of a copy; the smallest is opened."""
        known = VARIANTS.index(self.variant) if self.variant in VARIANTS else len(VARIANTS)
        return self.stem not in STEMS, known, self.variant, self.ending != SAFE, self.stem not in DIFFUSERS


@dataclass(frozen=True)
class Weights:
    """The weights of one network: the files that are opened, and the config.json that describes the network.

    `copy` is the copy in the folder, `asked` is True if the user chose it, and `place` is the path that messages name.
    """

    files: tuple[Path, ...]
    config: Path
    copy: Copy
    place: Path
    asked: bool = False

    @property
    def safe(self) -> bool:
        return self.copy.ending == SAFE

    @property
    def hashed(self) -> list[Path]:
        """The files that a fingerprint covers besides config.json: those that are opened.

        For plain safetensors of a part of MODEL these are all .safetensors files in its folder, as in earlier versions.
        """
        plain = self.copy.is_plain and self.config.parent == self.place
        return sorted(self.place.glob(f"*{SAFE}")) if plain else sorted(self.files)


def copies(names: Iterable[str]) -> list[Copy]:
    """The copies of a network's weights among the file names of a folder, the one to open first."""
    found: dict[tuple[str, str, str], tuple[list[str], list[str]]] = {}
    for name in sorted(names):
        tokens = re.sub(PIECE, "", name).split(".")
        is_index = tokens[-1] == "json" and "index" in tokens
        rest = [token for token in tokens[1:] if token not in ("index", "json")] if is_index else tokens[1:]
        endings = [token for token in rest if f".{token}" in (SAFE, *STATE_DICTS)]
        if not tokens[0] or not endings or (not is_index and rest[-1] not in endings) or re.match(OTHERS, tokens[0]):
            continue
        key = tokens[0], ".".join(token for token in rest if token not in endings), f".{endings[-1]}"
        found.setdefault(key, ([], []))[is_index].append(name)
    made = [Copy(*key, tuple(files), indices[0] if indices else None) for key, (files, indices) in found.items() if files]
    return sorted(made, key=lambda each: each.order)


def chosen(found: list[Copy], want: str | None = None) -> Copy | None:
    """The copy that is opened: the first one, or the one that `want` names, ema or non_ema; None if it is missing.

    A plain copy counts as ema beside a non_ema copy, and as non_ema beside an ema copy.
    """
    if want is None or not found:
        return found[0] if found else None
    named, other = {EMA: (EMA, NON_EMA), NON_EMA: (NON_EMA, EMA)}[want]
    by_variant = {copy.variant: copy for copy in reversed(found)}
    return by_variant.get(named) or (by_variant.get("") if other in by_variant else None)


def wanted(names: Iterable[str], patterns: Iterable[str], want: str | None = None) -> list[str]:
    """The files of a hub repository to download: those that match, with one of several copies of the weights in a folder."""
    matching, folders = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)], dict[str, list[str]]()
    for name in matching:
        folders.setdefault(str(PurePosixPath(name).parent), []).append(PurePosixPath(name).name)
    left_out = set[str]()
    for folder, inside in folders.items():
        found = copies(inside)
        taken = chosen(found, want) or chosen(found)
        others = [copy for copy in found if copy != taken and (copy.stem in STEMS or copy.ending != SAFE)]
        left_out |= {(PurePosixPath(folder) / name).as_posix() for copy in others for name in (*copy.files, copy.index) if name}
    return [name for name in matching if name not in left_out]


def find(folder: Path, want: str | None = None, config: Path | None = None) -> Weights:
    """The weights in a folder; raises `UserError` if there are none, or several under unknown names.

    config: the network's config.json, if it is not in the folder.
    """
    names = [path.name for path in folder.iterdir() if path.is_file()]
    found = copies(names)
    copy = chosen(found, want)
    if copy is None and found:
        alone = shown(", ".join(each.files[0] for each in found))
        raise UserError(
            f"--weights {want} chooses between two copies: {folder.name}/ and {folder.name}{AVERAGE}/, or *.non_ema.* and the plain file; "
            f"{folder} holds only {alone}: leave --weights out"
        )
    if copy is None:
        held = [name for name in sorted(names) if not name.endswith(".json")][:LISTED]
        said = f"only {shown(', '.join(held))}" if held else "none"
        raise UserError(f"{folder} must hold the weights as .safetensors, or as a state dict (.bin, .pt, .pth, .ckpt); found {said}")
    if copy.stem not in STEMS and len({each.stem for each in found}) > 1:
        named = ", ".join(shown(each.files[0]) for each in found[:LISTED])
        raise UserError(
            f"{folder} must hold the weights of one network; it has {named}: name the right one {DIFFUSERS[0]}, with its own ending"
        )
    opened_names = copy.files if copy.is_plain else _pieces(folder, copy)
    return Weights(tuple(folder / name for name in opened_names), config or folder / "config.json", copy, folder, want is not None)


def _pieces(folder: Path, copy: Copy) -> list[str]:
    """The files of a copy: those that its index lists, which must all be there, or without an index the file that is whole."""
    whole = [name for name in copy.files if not re.search(PIECE, name)]
    if copy.index is None:
        if not whole:
            raise UserError(
                f"{folder / copy.files[0]} is one of several files of weights, and the index that lists them is missing: download it too"
            )
        return whole[:1]
    mapped = load_object(folder / copy.index).get("weight_map")
    if not isinstance(mapped, dict) or not mapped or not all(isinstance(name, str) for name in mapped.values()):
        raise UserError(f"{folder / copy.index} must give the file of each weight in weight_map; fetch it again")
    names = sorted(set(mapped.values()))
    lost = next((name for name in names if name not in copy.files), None)
    if lost is not None:
        raise UserError(f"{folder} must hold every file that {copy.index} names; {shown(lost)} is missing: fetch the model again")
    return names


def said_of(weights: Weights) -> str | None:
    """A warning if weights of 8 bits were opened, or a less precise copy or an average because there is no other; None otherwise."""
    copy, opened_file = weights.copy, weights.files[0]
    eighths = sorted({kind for file in weights.files for kind in header(file).values() if kind.startswith("float8")})
    if eighths:
        name = f"{opened_file.parent.name}/{opened_file.name}"
        return f"{name} stores weights in 8 bits ({', '.join(eighths)}); the rounded weights are used"
    if not copy.variant or weights.asked:
        return None
    averages = {EMA: "an average (EMA)", NON_EMA: "not the average (EMA)"}
    kind = averages.get(copy.variant) or " and ".join(sorted({kind for kind in header(opened_file).values() if "float" in kind}))
    return f"{weights.place.name}/ holds no plain weights: {opened_file.name} was opened, which is {kind}"


def refuse_quantised(file: Path, kinds: Mapping[str, str]) -> None:
    """Raises `UserError` for a quantised weight, whose stored whole numbers a library would take for the weight itself.

    kinds: the dtype of every tensor by name, as `header` gives them.
    """
    odd = next((name for name, kind in kinds.items() if name.endswith(LEARNED) and "float" not in kind), None)
    if odd is not None:
        said = f"{shown(odd)} is quantised (stored as {kinds[odd]}): give a copy in 16 or 32 bits"
        raise UserError(f"{file}: weights must be floating point; {said}")


def header(file: Path) -> dict[str, str]:
    """The name and the dtype of every tensor in a file of weights; errors are those of `read_state`."""
    if file.suffix != SAFE:
        return {name: str(value.dtype).removeprefix("torch.") for name, value in read_state(file).items()}
    from safetensors import safe_open

    message = f"{file} must be a whole safetensors file ({WHY}); it is damaged: copy or fetch it again"
    with refusing(Unreadable, message), opened(file, None), parsing(), safe_open(file, "pt") as content:
        kinds = {name: content.get_slice(name).get_dtype() for name in sorted(content.keys())}
    return {name: DTYPES.get(kind, kind) for name, kind in kinds.items()}


def read_state(file: Path) -> dict[str, Tensor]:
    """The tensors of a state dict by name; they stay on the disk until they are used, if the format allows it.

    Raises `UserError` for a damaged file, for pickles that ask to run code, and for a file with no state dict or several.
    """
    return _state_dict(_unpickled(file), file)


def _unpickled(file: Path) -> Any:
    """The content of a file of a state dict; raises a `UserError` that says why it was not opened."""
    try:
        return load_state(file)
    except Unreadable as error:
        if isinstance(error, MoreThanTensors) and error.asked:
            raise UserError(
                f"{file} is a pickle that would run code when it is opened ({shown(error.asked)}), and only tensors are read; if you trust "
                "it, open it in PyTorch and save its tensors alone: torch.save(model.state_dict(), NEW)"
            ) from None
        if "TorchScript" in str(error):
            said = "it is TorchScript, which is code: save model.state_dict()"
            raise UserError(f"{file} must be a state dict as torch.save writes it; {said}") from None
        reason = shown(str(error), 80)
        raise UserError(
            f"{file} must be a state dict as torch.save writes it; it is damaged or of another kind ({reason}): copy or fetch it again"
        ) from None


def _state_dict(content: Any, file: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint: the content itself, or its entry under one of WRAPPERS."""
    if isinstance(content, Mapping) and not is_state(content):
        inside = [key for key in WRAPPERS if is_state(content.get(key))]
        if len(inside) > 1:
            held = f"it holds {' and '.join(inside)}"
            raise UserError(f"{file} must hold one state dict; {held}: save the one to measure, torch.save(checkpoint['{inside[0]}'], NEW)")
        content = content[inside[0]] if inside else content
    if not is_state(content):
        held = ", ".join(map(str, content)) if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise UserError(f"{file} must hold a state dict, tensors by name; got {shown(held)}: save one, torch.save(model.state_dict(), NEW)")
    return dict(content)


@contextmanager
def viewed(weights: Weights, stems: tuple[str, str]) -> Iterator[Path]:
    """The folder of a network as a library expects it: its own, or a temporary one with links under the library's names.

    stems: DIFFUSERS or TRANSFORMERS. Only configs are copied, and state dicts that must be taken out of a checkpoint.
    """
    config = load_object(weights.config)
    stem = stems[not weights.safe]
    is_own = weights.config.parent == weights.place and not weights.copy.variant and weights.copy.stem == stem
    if weights.safe and is_own and not config.keys() & EMA_KEYS:
        yield weights.place
        return
    with tempfile.TemporaryDirectory(prefix="diffleak-") as made:
        view = Path(made)
        for file in sorted(weights.config.parent.glob("*.json")):
            if ".index." not in file.name and found_at(file) == "a file":
                shutil.copyfile(file, view / file.name)
        (view / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key not in EMA_KEYS}))
        name = stem + (SAFE if weights.safe else ".bin")
        if weights.copy.index:
            shutil.copyfile(weights.place / weights.copy.index, view / f"{name}.index.json")
            for file in weights.files:
                _link(file, view / file.name)
        else:
            _place(weights.files[0], view / name)
        try:
            yield view
        except UserError:
            raise
        except Exception as error:
            if str(view) in str(error):
                raise OSError(str(error).replace(str(view), str(weights.place))) from error
            raise


def _place(file: Path, name: Path) -> None:
    """Puts a file of weights into a view: as a link, or rewritten if its state dict is inside a checkpoint or its names have a prefix."""
    content = _unpickled(file) if file.suffix != SAFE else None
    prefix = wrapped_by(header(file) if content is None else _state_dict(content, file))
    if not prefix and (content is None or is_state(content)):
        return _link(file, name)
    state = load_file(file) if content is None else _state_dict(content, file)
    plain = {key.removeprefix(prefix): value for key, value in state.items()}
    if content is None:
        save_file(plain, name, {"format": "pt"})
    else:
        torch.save(plain, name)


def _link(file: Path, link: Path) -> None:
    try:
        link.symlink_to(file.resolve())
    except OSError:  # a file system or a Windows without links
        shutil.copyfile(file, link)
