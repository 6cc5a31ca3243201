"""Checks of images, wherever they enter: of anything else a likelihood would be no likelihood."""

import numpy as np


def fault(images, shape: tuple[int, ...] | None = None, levels: int = 256) -> str | None:
    """The reason why something is no array (N, *shape) of integers in [0, levels), and the remedy;
    None if it is that. shape: None for a data set's: any (H, W, C), NumPy's and uint8.

    Bytes need no look at their values if all 256 are levels: O(1), and no device is waited for.
    """
    kind, wanted = getattr(images, "dtype", None), ", ".join(map(str, ("N", *(shape or "HWC"))))
    taken = shape is not None or isinstance(images, np.ndarray)
    taken = taken and not isinstance(images, np.ma.MaskedArray)  # which hides values
    array = isinstance(kind, np.dtype) and taken
    if not array or kind.kind not in "buif":
        found = kind if array else type(images).__name__
        return f"{found} instead of numbers; give a NumPy array of uint8, ({wanted})"
    found = f"shape {images.shape}"
    if images.ndim == 3 and shape in (None, (*images.shape[1:], 1)):
        return f"{found} lacks the channel axis; give images[..., np.newaxis]"
    if images.ndim != 4 if shape is None else images.shape[1:] != shape:
        return f"{found} is not ({wanted}); give images of that shape"
    if images.size == 0:
        return f"{found} has no pixels; give at least one image"
    if kind == np.uint8 and levels == 256:
        return None
    low, high = images.min(), images.max()
    cast = "" if shape is not None and kind.kind in "ui" else " and cast to uint8"
    if not (low >= 0 and high < levels):
        return f"values from {low} to {high}; bring them to 0 to {levels - 1}{cast}"
    if not cast:
        return None
    remedy = f"multiply by {levels - 1}" if kind.kind in "bf" and high <= 1 else "round"
    return f"{kind} from {low} to {high}; {remedy}{cast}"
