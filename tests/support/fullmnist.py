"""Where the tests find the full MNIST images, which are not part of the repository."""

import os
from pathlib import Path

from snfnp.data.published import cache_folder
from snfnp.data.sets import MNIST


def find_full_mnist() -> Path | None:
    """Return a folder with both MNIST image files, or None.

    Looked at, in order: SNFNP_DATA_DIR (its subfolder "mnist" first), the user's cache, and
    shared/data/mnist beside the checkout. Nothing is downloaded.
    """
    given = Path(os.environ.get("SNFNP_DATA_DIR") or "none").expanduser()
    shared = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist"
    places = (given / "mnist", given, cache_folder("mnist"), shared)
    return next((place for place in places if len(MNIST.find(place)) == 2), None)
