"""Images and rows of numbers on entry: arrays in files, and checks, since the likelihood of other
data would be meaningless."""

from pathlib import Path
from typing import Any

import numpy as np

from snfnp.files import open_binary

_COLOURS = (3, 4)  # channels of a colour image
# the first hides values, * of the second is @
_OTHER_ARRAYS = (np.ma.MaskedArray, np.matrix)


def open_array(path: str | Path) -> np.ndarray:
    """The array in a .npy file. Raises ValueError or OSError for a file that is no such array, or
    shorter or longer than its header says."""
    with open_binary(path) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError("more bytes follow than its header describes")
    return array


def evenly_spread(samples: Any, count: int) -> Any:
    """`count` samples, or all if there are fewer, at even distances: the first samples of a file
    that is sorted are no sample of it."""
    if count >= len(samples):
        return samples
    return samples[np.arange(count) * len(samples) // count]


def with_channels(images: Any, shape: tuple[int, ...] | None = None) -> Any:
    """Images (N, H, W) as (N, H, W, 1), anything else unchanged. shape: (H, W, 1), a model's."""
    if getattr(images, "ndim", 0) != 3:
        return images
    if (
        _is_one_colour_image(images)
        if shape is None
        else (*images.shape[1:], 1) != shape
    ):
        return images
    return images[..., None]


def _is_one_colour_image(images: Any) -> bool:
    """True if an array of three axes is (H, W, C) rather than (N, H, W)."""
    return (
        images.ndim == 3
        and images.shape[-1] in _COLOURS
        and images.shape[1] > max(_COLOURS)
    )


def is_rows(samples: Any) -> bool:
    """True for rows of floats, (N, D)."""
    return (
        isinstance(samples, np.ndarray)
        and samples.ndim == 2
        and samples.dtype.kind == "f"
    )


def fault(
    images: Any, shape: tuple[int, ...] | None = None, levels: int | None = 256
) -> str | None:
    """The reason why something is no array (N, *shape) of integers in [0, levels), and the remedy,
    or None.

    Values of bytes are not read if all 256 are levels: O(1), without waiting for a device. Rows on
    a device are not read either.

    Args:
        images: images or rows, or anything else.
        shape: of an image (H, W, C) or a row (D,); None for samples of a data set: uint8 images of
            any size, or rows of floats, on the host.
        levels: of images; None for rows (N, D) of finite numbers.
    """
    if levels is None or shape is None and is_rows(images):
        return _fault_of_rows(images, shape)
    wanted = f"({', '.join(map(str, ('N', *(shape or 'HWC'))))})"
    if problem := _fault_of_type(images, on_host=shape is None):
        rows = ", or of floats, (N, D)" if shape is None else ""
        return f"{problem}; give a NumPy array of uint8, {wanted}{rows}"
    if problem := _fault_of_shape(images, shape, wanted):
        return problem
    if images.dtype == np.uint8 and levels == 256:
        return None
    low = images.min()
    high = images.max()
    kind = images.dtype.kind
    cast = "" if shape is not None and kind in "ui" else " and cast to uint8"
    extent = f"from {low:.4g} to {high:.4g}" if kind == "f" else f"from {low} to {high}"
    if not (low >= 0 and high < levels):
        return f"values {extent}; bring them to 0 to {levels - 1}{cast}"
    if not cast:
        return None
    fraction = kind in "bf" and high <= 1
    remedy = f"multiply by {levels - 1}" if fraction else "round"
    return f"{images.dtype} {extent}; {remedy}{cast}"


def _fault_of_type(samples: Any, on_host: bool) -> str | None:
    """The reason why something is no array of numbers, or None; on_host: nor one of a device."""
    dtype: Any = getattr(samples, "dtype", None)
    is_array = isinstance(dtype, np.dtype) and not isinstance(samples, _OTHER_ARRAYS)
    if not is_array or on_host and not isinstance(samples, np.ndarray):
        return f"{type(samples).__name__} instead of numbers"
    return None if dtype.kind in "buif" else f"{dtype} instead of numbers"


def _fault_of_shape(
    images: Any, shape: tuple[int, ...] | None, wanted: str
) -> str | None:
    message = f"shape {images.shape}"
    if shape is None and _is_one_colour_image(images):
        return (
            f"{message} is one image (H, W, C) without an axis of samples; give "
            "images[np.newaxis]"
        )
    if images.ndim == 3 and shape in (None, (*images.shape[1:], 1)):
        return f"{message} lacks the channel axis; give images[..., np.newaxis]"
    if shape is None and images.ndim != 4:
        return (
            f"{images.dtype} of {message} is not {wanted}; give images of that shape, or rows of "
            "floats"
        )
    if shape is not None and images.shape[1:] != shape:
        return f"{message} is not {wanted}; give images of that shape"
    if images.size == 0:
        return f"{message} has no pixels; give at least one image"
    if (
        shape is None
        and images.shape[1] in (1, *_COLOURS)
        and min(images.shape[2:]) > 4
    ):
        return (
            f"{message} has the channels on axis 1; give images.transpose(0, 2, 3, 1)"
        )
    return None


def _fault_of_rows(rows: Any, shape: tuple[int, ...] | None) -> str | None:
    wanted = f"(N, {shape[0] if shape else 'D'})"
    if problem := _fault_of_type(rows, on_host=False):
        return f"{problem}; give an array of floats, {wanted}"
    if len(rows.shape) != 2 or shape not in (None, rows.shape[1:]):
        return f"shape {rows.shape} is not {wanted}; give rows of that length"
    if 0 in rows.shape:
        return f"shape {rows.shape} has no numbers; give at least one row"
    if not isinstance(rows, np.ndarray):  # on a device
        return None
    finite = np.isfinite(rows)
    if finite.all():
        return None
    row, column = np.argwhere(~finite)[0]
    return (
        f"{rows[row, column]} in row {row}, column {column} (from 0); leave such rows out, or fill "
        "them in"
    )
