"""The histograms of the scores of prompts, and their images and maps."""

import io

import matplotlib
import numpy as np
from jaxtyping import Float32, UInt8
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from diffleak.data.pixels import png
from diffleak.records.prompts import PromptsRecord, Statistic
from diffleak.report.figures.drawing import bars, canvas, edges, settings, svg
from diffleak.report.sections.prompts import STATISTICS

BINS = 24
SIDE = 192  # pixels of the longer side of an image, at most; of a map the same
COLOURS = matplotlib.colormaps["viridis"]  # from dark to light, also for the colour-blind


def histogram(record: PromptsRecord, name: Statistic) -> str:
    """One statistic of the memorised (filled) and the ordinary prompts (line); of all, filled, where there are no lists."""
    of = lambda wanted: np.array([getattr(row, name) for row in record.prompts if wanted(row.memorised)], dtype=np.float64)
    filled, line = of(lambda memorised: memorised is not False), of(lambda memorised: memorised is False)
    with settings():
        figure, axes = canvas(4.4, 2.8)
        bars(axes, edges(np.concatenate([filled, line]), BINS), filled, line)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.set(xlabel=STATISTICS[name].title, ylabel="share of prompts")
        what = "memorised against ordinary prompts" if len(line) else "all prompts"
        return svg(figure, name, f"Histogram of the {STATISTICS[name].title.lower()}: {what}")


def shrunk(pixels: UInt8[np.ndarray, "h w c"]) -> bytes:
    """An image as a PNG of at most SIDE pixels a side, and of about as many where it is smaller."""
    height, width, channels = pixels.shape
    if (longer := max(height, width)) <= SIDE:
        times = SIDE // longer
        return png(pixels.repeat(times, axis=0).repeat(times, axis=1))
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    array = np.asarray(image)
    return png(array[..., None] if array.ndim == 2 else array)


def scale() -> bytes:
    """The colours of a map from 0 to its largest value, as a PNG, which a browser's dark mode leaves as it is."""
    return heat_map(np.linspace(0, 1, SIDE, dtype=np.float32)[None])


def heat_map(squares: Float32[np.ndarray, "h w"]) -> bytes:
    """A map as a PNG of 256 colours, from 0 to its largest value; one of zeros is all dark."""
    top = float(squares.max())
    levels = np.rint(255 * (squares / top if top > 0 else np.zeros_like(squares))).astype(np.uint8)
    if max(levels.shape) > SIDE:
        image = Image.fromarray(levels)
        image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
        levels = np.asarray(image)
    coloured = Image.frombytes("P", levels.shape[::-1], levels.tobytes())
    coloured.putpalette(COLOURS(np.arange(256), bytes=True)[:, :3].tobytes())
    buffer = io.BytesIO()
    coloured.save(buffer, format="PNG")
    return buffer.getvalue()
