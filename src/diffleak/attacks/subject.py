"""What an attack looks at: one batch of images, and everything that an attacker may ask the model about them.

eps(x_t, t)                   the predicted noise, the one query of grey-box attacks
x0, noise(j), schedule, cond  the clean images (latents of a latent model), keyed normals, the noise schedule, labels or captions
pixels(), encode, decode      the images themselves, and the way to latents and back; the identity on a pixel model
draw(steps, scale, n)         images that the model generates for the conditions of the batch
encoder(spec)                 the attacker's own network that says which images look alike
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import index
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from diffleak.attacks.answers import Answers
from diffleak.diffusion.conditions import joined
from diffleak.diffusion.denoiser import Denoiser, guided
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.sampling import AtOnce, sample_alike
from diffleak.diffusion.schedule import Schedule
from diffleak.errors import UserError

STREAM = "black-box"  # of the noise that images are drawn from

Images = Float[Tensor, "b c h w"]
Make = Callable[[Noise, Any], Images]  # draws an image for each id of the noise and each condition
Kept = Callable[[Make, Noise, Any, int, float], tuple[Images, int]]  # drawings of so many steps and guidance, and how many were there


def _same(x: Tensor) -> Tensor:
    return x


@final
@dataclass(frozen=True, eq=False)
class Encoder:
    """A network that says which images look alike: `embed` gives vectors (b, d) of images in [-1, 1]; `fingerprint` hashes its weights."""

    fingerprint: str
    embed: Callable[[Images], Float[Tensor, "b d"]]


@final
@dataclass(frozen=True, eq=False)
class Subject:
    """A batch of b images as the attacker sees it.

    Args:
        denoiser: The model that is queried.
        x0: The clean images in [-1, 1], or the latents of a latent model.
        noise: Normals like x0, keyed by image: `noise(j)` is draw j.
        cond: None, class labels (b,) or the `Prompts` of b captions.
        encode: From images to x0.
        decode: From x0 to images.
        images: Reads the images of a latent model.
        sampler: Makes a diffusers scheduler of a number of steps.
        open_encoder: The `Encoder` of a spec.
        reference: The batch as the attacker of a reference model sees it, with the captions as that model embeds them.
        answers: Predictions that other attacks have needed, of `denoiser` about this very batch; scores are the same without.
        at_once: Images of every forward that draws, and the memory that they have; None: all of them.
        kept: Gives drawings that are kept already, and makes and keeps the others; scores are the same without.
        on_kept: Is called with the forwards that those would have taken.
        on_halved: Is called with the images of a forward that drew fewer than `at_once`, since memory had no room for them.
    """

    denoiser: Denoiser
    x0: Float[Tensor, "b *s"]
    noise: Noise
    cond: Any = None
    encode: Callable[[Tensor], Tensor] = _same
    decode: Callable[[Tensor], Tensor] = _same
    images: Callable[[], Tensor] | None = None
    sampler: Callable[[int], Any] | None = None
    open_encoder: Callable[[str], Encoder] | None = None
    reference: "Subject | None" = None
    answers: Answers | None = None
    at_once: AtOnce | None = None
    kept: Kept | None = None
    on_kept: Callable[[int], None] = lambda forwards: None
    on_halved: Callable[[int], None] = lambda images: None

    def __len__(self) -> int:
        return len(self.x0)

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of the model."""
        return self.denoiser.schedule

    def eps(self, x_t: Float[Tensor, "wb *s"], t: int | Sequence[int], cond: Any = None) -> Float[Tensor, "wb *s"]:
        """The predicted noise of w times b rows, which are queried under the conditions of the batch, w times over, or `cond`.

        Args:
            x_t: Noisy images, or latents.
            t: One timestep in [0, T), or one for each of as many equal parts of x_t.
            cond: Other conditions than those of the batch.

        Returns:
            The noise, like x_t.

        Raises:
            UserError: For rows that are no whole number of batches.
        """
        own = cond is None
        if own and self.cond is not None:
            times, rest = divmod(len(x_t), len(self.x0))
            if rest or not times:
                raise UserError(f"eps takes a whole number of batches of {len(self.x0)} rows, or their cond; got {len(x_t)} rows")
            cond = self.cond if times == 1 else joined([self.cond] * times)
        if isinstance(t, Sequence):
            return self.denoiser.at_once(x_t, t, cond)
        t, kept = index(t), self.answers
        if own and kept and kept.denoiser is self.denoiser and kept.cond is self.cond:
            return kept.eps(x_t, t, lambda: self.denoiser(x_t, t, cond))
        return self.denoiser(x_t, t, cond)

    def pixels(self) -> Images:
        """The images of the batch in [-1, 1], whatever the denoiser works on; read once."""
        return self._pixels

    @cached_property
    def _pixels(self) -> Images:
        return self.x0 if self.images is None else self.images()

    def draw(self, steps: int, guidance_scale: float, n: int) -> Float[Tensor, "nb c h w"]:
        """Draws n images for the condition of each image of the batch, draw by draw, from noise of their own.

        Args:
            steps: Of the sampler.
            guidance_scale: Of classifier-free guidance in place of the model's; 1 is none.
            n: Images for each condition.

        Returns:
            The images in [-1, 1], (n b, c, h, w).

        Raises:
            UserError: Where nothing can be drawn.
        """
        seeds = replace(self.noise, ids=tuple(f"{i}\0{j}" for j in range(n) for i in self.noise.ids), stream=STREAM)
        denoiser, cond = guided(self.denoiser, guidance_scale), joined([self.cond] * n)

        def make(noise: Noise, cond: Any) -> Images:
            at_once = self.at_once or AtOnce(len(noise.ids))
            x = sample_alike(denoiser, lambda: self.new_sampler(steps), noise, cond, at_once, lambda z, _: self.decode(z))
            if at_once.halved_to is not None:
                self.on_halved(at_once.halved_to)
            return x

        if self.kept is None:
            return make(seeds, cond)
        images, read = self.kept(make, seeds, cond, steps, guidance_scale)
        self.on_kept(read * steps * denoiser.forwards)
        return images

    def new_sampler(self, steps: int) -> Any:
        """A sampler of so many steps; raises `UserError` where the model cannot be drawn from."""
        if self.sampler is None:
            raise UserError("the attack draws images, and this subject has no sampler: give Subject(..., sampler=...)")
        return self.sampler(steps)

    def encoder(self, spec: str) -> Encoder:
        """The encoder of a spec, as `diffleak quality --extractor` takes it; raises `UserError` for one that cannot be opened."""
        if self.open_encoder is None:
            raise UserError("the attack compares images, and this subject has no encoder: give Subject(..., open_encoder=...)")
        return self.open_encoder(spec)
