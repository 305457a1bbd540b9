"""The networks of pytorch-ddpm and guided-diffusion written out straight, in float64, from the names of their checkpoints.

The oracle of tests/hub/test_research.py. Nothing here comes from the package: a block is the lines of its formula. `state` is a state
dict, `keys` are the arguments of the original constructor, x has shape (b, c, h, w), t is one whole number.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

State = dict[str, Tensor]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def group_norm(state: State, name: str, x: Tensor) -> Tensor:
    groups = x.reshape(len(x), 32, -1)
    mean, variance = groups.mean(-1, keepdim=True), groups.var(-1, keepdim=True, unbiased=False)
    normal = ((groups - mean) / torch.sqrt(variance + 1e-5)).reshape(x.shape)
    sides = [1] * (x.ndim - 2)
    return normal * state[f"{name}.weight"].reshape(1, -1, *sides) + state[f"{name}.bias"].reshape(1, -1, *sides)


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """A convolution as a sum over the places of its kernel."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    pad = weight.shape[-1] // 2
    height, width = x.shape[-2:]
    padded = torch.zeros(*x.shape[:2], height + 2 * pad, width + 2 * pad, dtype=x.dtype)
    padded[:, :, pad : pad + height, pad : pad + width] = x
    places = [(i, j) for i in range(weight.shape[-2]) for j in range(weight.shape[-1])]
    moved = [padded[:, :, i : i + height : stride, j : j + width : stride] for i, j in places]
    return sum(torch.einsum("bchw,oc->bohw", m, weight[:, :, i, j]) for m, (i, j) in zip(moved, places, strict=True)) + bias[:, None, None]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def repeated(x: Tensor) -> Tensor:
    """Every pixel four times, in a square."""
    return x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).reshape(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])


def averaged(x: Tensor) -> Tensor:
    """The mean of every square of four pixels."""
    return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean((3, 5))


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of one head, each of shape (b, channels, pixels)."""
    seen = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(q.shape[1]), dim=-1)
    return (seen @ v.transpose(1, 2)).transpose(1, 2)


def doubles(state: State) -> State:
    return {key.removeprefix("module."): value.double() for key, value in state.items()}


def pytorch_ddpm(state: State, keys: dict[str, Any], x: np.ndarray, t: int) -> np.ndarray:
    """Ho et al.'s network: w86763777/pytorch-ddpm, whose time embedding is a table that is stored, and averaged, like a weight."""
    state = doubles(state)
    blocks, levels, attn = keys["num_res_blocks"], len(keys["ch_mult"]), keys["attn"]
    time = state["time_embedding.timembedding.0.weight"][t][None]
    time = linear(state, "time_embedding.timembedding.3", silu(linear(state, "time_embedding.timembedding.1", time)))

    def attention(name: str, h: Tensor) -> Tensor:
        n = group_norm(state, f"{name}.group_norm", h)
        q, k, v = (conv(state, f"{name}.proj_{part}", n).flatten(2) for part in "qkv")
        return h + conv(state, f"{name}.proj", attended(q, k, v).reshape(h.shape))

    def block(name: str, h: Tensor, attends: bool) -> Tensor:
        inner = conv(state, f"{name}.block1.2", silu(group_norm(state, f"{name}.block1.0", h)))
        inner = inner + linear(state, f"{name}.temb_proj.1", silu(time))[:, :, None, None]
        inner = conv(state, f"{name}.block2.3", silu(group_norm(state, f"{name}.block2.0", inner)))
        h = inner + (conv(state, f"{name}.shortcut", h) if h.shape[1] != inner.shape[1] else h)
        return attention(f"{name}.attn", h) if attends else h

    h = conv(state, "head", torch.from_numpy(x).double())
    kept, number = [h], 0
    for level in range(levels):
        for _ in range(blocks):
            h, number = block(f"downblocks.{number}", h, level in attn), number + 1
            kept.append(h)
        if level < levels - 1:
            h, number = conv(state, f"downblocks.{number}.main", h, 2), number + 1
            kept.append(h)
    h = block("middleblocks.1", block("middleblocks.0", h, True), False)
    number = 0
    for level in reversed(range(levels)):
        for _ in range(blocks + 1):
            h, number = block(f"upblocks.{number}", torch.cat([h, kept.pop()], 1), level in attn), number + 1
        if level:
            h, number = conv(state, f"upblocks.{number}.main", repeated(h)), number + 1
    return conv(state, "tail.2", silu(group_norm(state, "tail.0", h))).numpy()


def guided_diffusion(state: State, keys: dict[str, Any], x: np.ndarray, t: int, label: int | None = None) -> np.ndarray:
    """Dhariwal and Nichol's network, openai/guided-diffusion, with the variance that it appends."""
    state = doubles(state)
    blocks, levels, base = keys["num_res_blocks"], len(keys["channel_mult"]), keys["model_channels"]
    at = {level for level in range(levels) if 2**level in keys["attention_resolutions"]}
    waves = np.exp(-math.log(10000) * np.arange(base // 2, dtype=np.float32) / np.float32(base // 2)).astype(np.float32)
    angles = (np.float32(t) * waves).astype(np.float64)
    time = torch.from_numpy(np.concatenate([np.cos(angles), np.sin(angles)]))[None]
    time = linear(state, "time_embed.2", silu(linear(state, "time_embed.0", time)))
    if label is not None:
        time = time + state["label_emb.weight"][label]

    def attention(name: str, h: Tensor, heads: int) -> Tensor:
        c, flat = h.shape[1], group_norm(state, f"{name}.norm", h.flatten(2))
        heads = heads if keys["num_head_channels"] == -1 else c // keys["num_head_channels"]
        qkv = torch.einsum("bcs,oc->bos", flat, state[f"{name}.qkv.weight"][:, :, 0]) + state[f"{name}.qkv.bias"][:, None]
        size, parts = c // heads, []
        for i in range(heads):
            starts = [j * c + i * size for j in range(3)] if keys["use_new_attention_order"] else [(3 * i + j) * size for j in range(3)]
            parts.append(attended(*(qkv[:, start : start + size] for start in starts)))
        out = torch.einsum("bcs,oc->bos", torch.cat(parts, 1), state[f"{name}.proj_out.weight"][:, :, 0])
        return h + (out + state[f"{name}.proj_out.bias"][:, None]).reshape(h.shape)

    def block(name: str, h: Tensor, sample: Any = lambda x: x) -> Tensor:
        inner = conv(state, f"{name}.in_layers.2", sample(silu(group_norm(state, f"{name}.in_layers.0", h))))
        h = sample(h)
        said = linear(state, f"{name}.emb_layers.1", silu(time))[:, :, None, None]
        if keys["use_scale_shift_norm"]:
            scale, shift = said[:, : inner.shape[1]], said[:, inner.shape[1] :]
            inner = group_norm(state, f"{name}.out_layers.0", inner) * (1 + scale) + shift
        else:
            inner = group_norm(state, f"{name}.out_layers.0", inner + said)
        inner = conv(state, f"{name}.out_layers.3", silu(inner))
        return inner + (conv(state, f"{name}.skip_connection", h) if f"{name}.skip_connection.weight" in state else h)

    up = keys["num_heads"] if keys["num_heads_upsample"] == -1 else keys["num_heads_upsample"]
    h = conv(state, "input_blocks.0.0", torch.from_numpy(x).double())
    kept = [h]
    for level in range(levels):
        for _ in range(blocks):
            name = f"input_blocks.{len(kept)}"
            h = block(f"{name}.0", h)
            h = attention(f"{name}.1", h, keys["num_heads"]) if level in at else h
            kept.append(h)
        if level < levels - 1:
            name = f"input_blocks.{len(kept)}.0"
            h = block(name, h, averaged) if keys["resblock_updown"] else conv(state, f"{name}.op", h, 2)
            kept.append(h)
    h = block("middle_block.2", attention("middle_block.1", block("middle_block.0", h), keys["num_heads"]))
    number = 0
    for level in reversed(range(levels)):
        for i in range(blocks + 1):
            name = f"output_blocks.{number}"
            h = block(f"{name}.0", torch.cat([h, kept.pop()], 1))
            h = attention(f"{name}.1", h, up) if level in at else h
            if level and i == blocks:
                name = f"{name}.{2 if level in at else 1}"
                h = block(name, h, repeated) if keys["resblock_updown"] else conv(state, f"{name}.conv", repeated(h))
            number += 1
    return conv(state, "out.2", silu(group_norm(state, "out.0", h))).numpy()
