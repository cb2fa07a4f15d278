"""Where the shared evaluation data lies, and the skip for checkouts without it.

    @pytest.mark.shared_data
    def test_...(): captures = shared_data("malformed")

``TEGUMENTAR_SHARED`` names the directory that holds ``data``; by default it is ``../shared`` beside the checkout."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def shared_root() -> Path:
    """The directory that holds ``data``, present or not."""
    return Path(os.environ.get("TEGUMENTAR_SHARED") or ROOT.parent / "shared")


def shared_data(*parts: str) -> Path:
    """A path below the shared data. Skips the test when the data as a whole is absent; a missing part is a failure."""
    data = shared_root() / "data"
    if not data.is_dir():
        pytest.skip(f"the shared evaluation data is not at {data}; set TEGUMENTAR_SHARED to the directory above it")
    path = data.joinpath(*parts)
    assert path.exists(), f"the shared data at {data} has no {path.relative_to(data)}"
    return path
