"""The U-Net of guided-diffusion and pytorch-ddpm as a diffusers model, which loads and saves as other diffusers models do.

    time    e = W_2 silu(W_0 p(t)),  p(t) = [cos(w t), sin(w t)],  w_i = 10000^(-i / (d/2)),  or a stored table of T rows p(t)
    block   h = conv(silu(norm(x)));  h = h + W silu(e), or norm(h) (1 + scale) + shift with (scale, shift) = W silu(e);  x + conv(silu(h))
    heads   softmax(q k^T / sqrt(d)) v over all pixels; q, k and v either follow each other within each head, or each is one block for all

Names of parts and weights are those of guided-diffusion. UNet2DModel cannot be used: it has no blocks that resize the image inside their
residual path, no table of times, and another order of channels in its attention. Only checkpoints that `convert` wrote are loaded here.

Ho et al. 2020, arXiv 2006.11239; Nichol and Dhariwal 2021, arXiv 2102.09672; Dhariwal and Nichol 2021, arXiv 2105.05233.
"""

from math import log
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

GROUPS = 32  # of every normalisation, in both code bases
SLOWEST = 10000  # the longest wave of the time embedding, as a multiple of the shortest
Resample = Literal["down", "up"]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels)


def _double(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
    return interpolate(x, scale_factor=2, mode="nearest")


class Block(nn.Module):
    """A residual block that takes the time; with `resample` it halves or doubles the image on both of its paths."""

    def __init__(self, channels: int, out: int, time: int, scale_shift: bool, resample: Resample | None = None) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, {None: None, "down": lambda x: avg_pool2d(x, 2), "up": _double}[resample]
        self.in_layers = nn.Sequential(_norm(channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * out if scale_shift else out))
        dropout = nn.Identity()  # in the place that it has in the names; a finished model is never trained here
        self.out_layers = nn.Sequential(_norm(out), nn.SiLU(), dropout, nn.Conv2d(out, out, 3, padding=1))
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b d"]) -> Float[Tensor, "b c2 h2 w2"]:
        if self.resample:
            x, h = self.resample(x), self.in_layers[2](self.resample(self.in_layers[:2](x)))
        else:
            h = self.in_layers(x)
        said = self.emb_layers(time)[:, :, None, None]
        if self.scale_shift:
            scale, shift = said.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + said)
        return self.skip_connection(x) + h  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Attention of every pixel to all pixels. In the older order of channels each head has its q, k and v side by side."""

    def __init__(self, channels: int, heads: int, new_order: bool) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"{channels} channels of attention cannot be divided among {heads} heads")
        self.heads, self.new_order = heads, new_order
        self.norm = _norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        batch, channels, *sides = x.shape
        flat = x.reshape(batch, channels, -1)
        each = (3, self.heads) if self.new_order else (self.heads, 3)
        qkv = self.qkv(self.norm(flat)).reshape(batch, *each, channels // self.heads, -1)
        q, k, v = qkv.unbind(1 if self.new_order else 2)
        scale = (channels // self.heads) ** -0.25  # on both sides, so that half precision does not overflow
        seen = torch.einsum("bhct,bhcs->bhts", q * scale, k * scale)
        seen = seen.softmax(-1, dtype=torch.promote_types(seen.dtype, torch.float32)).to(seen.dtype)
        return x + self.proj_out(torch.einsum("bhts,bhcs->bhct", seen, v).reshape(batch, channels, -1)).reshape(batch, channels, *sides)


class Halve(nn.Module):
    """A convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.op(x)  # type: ignore[no-any-return]


class Double(nn.Module):
    """A convolution after each pixel is repeated to 2 x 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(_double(x))  # type: ignore[no-any-return]


class ResearchUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The U-Net of the module's docstring; see `convert` for where each setting comes from.

    model_channels: d, the width of p(t). head_channels: the channels of the first convolution. attention_levels: the levels of
    `block_out_channels`, from 0, that have attention. num_head_channels: the channels of a head; -1 if `num_heads` gives the number of
    heads and `num_heads_upsample` the number on the way up. table_length: the rows of a stored p(t), 0 for none. time_scale: the factor
    on t.
    """

    config_name = "config.json"  # type: ignore[assignment]

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        model_channels: int = 128,
        head_channels: int = 128,
        block_out_channels: list[int] | tuple[int, ...] = (128, 256, 256, 256),
        layers_per_block: int = 2,
        attention_levels: list[int] | tuple[int, ...] = (1,),
        num_heads: int = 1,
        num_heads_upsample: int = 1,
        num_head_channels: int = -1,
        use_new_attention_order: bool = False,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        num_class_embeds: int | None = None,
        table_length: int = 0,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        time = 4 * model_channels
        block = lambda inside, out, resample=None: Block(inside, out, time, use_scale_shift_norm, resample)
        of_width = lambda width: 0 if num_head_channels < 1 or width % num_head_channels else width // num_head_channels
        heads = lambda width, usual: usual if num_head_channels == -1 else of_width(width)
        attention = lambda width, usual: Attention(width, heads(width, usual), use_new_attention_order)

        self.time_embed = nn.Sequential(nn.Linear(model_channels, time), nn.SiLU(), nn.Linear(time, time))
        if table_length:
            self.register_buffer("time_table", torch.zeros(table_length, model_channels))
        if num_class_embeds:
            self.label_emb = nn.Embedding(num_class_embeds, time)
        width, skips, last = head_channels, [head_channels], len(block_out_channels) - 1
        down: list[list[nn.Module]] = [[nn.Conv2d(in_channels, width, 3, padding=1)]]
        for level, out in enumerate(block_out_channels):
            for _ in range(layers_per_block):
                down.append([block(width, out), *([attention(out, num_heads)] if level in attention_levels else [])])
                width = out
                skips.append(width)
            if level != last:
                down.append([block(width, width, "down") if resblock_updown else Halve(width)])
                skips.append(width)
        middle = [block(width, width), attention(width, num_heads), block(width, width)]
        up: list[list[nn.Module]] = []
        for level, out in reversed([*enumerate(block_out_channels)]):
            for number in range(layers_per_block + 1):
                up.append([block(width + skips.pop(), out), *([attention(out, num_heads_upsample)] if level in attention_levels else [])])
                width = out
                if level and number == layers_per_block:
                    up[-1].append(block(width, width, "up") if resblock_updown else Double(width))
        self.input_blocks, self.output_blocks = (nn.ModuleList(map(nn.ModuleList, parts)) for parts in (down, up))
        self.middle_block = nn.ModuleList(middle)
        self.out = nn.Sequential(_norm(width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(
        self, sample: Float[Tensor, "b c h w"], timestep: Int[Tensor, " b"], class_labels: Int[Tensor, " b"] | None = None
    ) -> UNet2DOutput:
        time = self.time_embed(self._waves(timestep).to(sample.dtype))
        if hasattr(self, "label_emb"):
            time = time + self.label_emb(class_labels)
        h, skips = sample, []
        for part in self.input_blocks:
            h = _through(part, h, time)
            skips.append(h)
        h = _through(self.middle_block, h, time)
        for part in self.output_blocks:
            h = _through(part, torch.cat([h, skips.pop()], dim=1), time)
        return UNet2DOutput(sample=self.out(h))

    def _waves(self, timestep: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """p(t), in float32 as the networks were trained with it."""
        if hasattr(self, "time_table"):
            return self.time_table[timestep]  # type: ignore[no-any-return]
        settings: Any = self.config
        half = settings.model_channels // 2
        waves = torch.exp(-log(SLOWEST) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half)
        angles = (timestep.float() * settings.time_scale)[:, None] * waves
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def _through(parts: Any, h: Float[Tensor, "b c h w"], time: Float[Tensor, "b d"]) -> Float[Tensor, "b c2 h2 w2"]:
    for part in parts:
        h = part(h, time) if isinstance(part, Block) else part(h)
    return h
