"""Settings of a command that reads images."""

from pydantic import Field

from diffleak.config import Config
from diffleak.records.images import Alpha, Decoding, Exif


class DataConfig(Config):
    """Settings of a command that reads images: how files become pixels (`diffleak.records.images`)."""

    exif: Exif = "apply"
    alpha: Alpha = "drop"
    white: int | None = Field(None, ge=1, lt=2**32)

    @property
    def decoding(self) -> Decoding:
        """The choices together, as readers take them."""
        return Decoding(self.exif, self.alpha, self.white)
