"""Where the tests find the full MNIST images, which are not part of the repository."""

import os
from pathlib import Path

from snfnp.data.files import cache_folder
from snfnp.data.mnist import find_images


def find_full_mnist() -> Path | None:
    """Return a folder with both MNIST image files, or None.

    Looked at, in order: SNFNP_DATA_DIR (its subfolder "mnist" first), the user's cache, and
    shared/data/mnist beside the checkout. Nothing is downloaded.
    """
    places = []
    if os.environ.get("SNFNP_DATA_DIR"):
        given = Path(os.environ["SNFNP_DATA_DIR"]).expanduser()
        places += [given / "mnist", given]
    places.append(cache_folder("mnist"))
    places.append(Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist")
    return next((place for place in places if len(find_images(place)) == 2), None)
