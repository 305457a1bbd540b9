"""Images that trainings of a few steps are of."""

from pathlib import Path

import numpy as np
import pytest
from fixtures.models import IMAGES


@pytest.fixture
def data(tmp_path) -> Path:
    np.save(tmp_path / "images.npy", IMAGES)
    return tmp_path / "images.npy"
