"""Data sets of arrays: what they are, and one line for everything that is no image."""

from types import SimpleNamespace

import numpy as np
import pytest
from support.messages import assert_one_line

from snfnp.data import Dataset
from snfnp.errors import UsageError

IMAGES = np.arange(48, dtype=np.uint8).reshape(3, 4, 4, 1)


def test_a_data_set_leaves_its_arrays_as_they_were() -> None:
    images = IMAGES.copy()
    dataset = Dataset("mine", images, images[:1], images[:2], source="made here", is_sample=False)
    with pytest.raises(ValueError, match="read-only"):
        dataset.train[0] = 1
    images[0] = 1
    assert dataset.train[0].all()


WRONG = {
    "floats up to 1": (IMAGES / 47, "float64 from 0.0 to 1.0; multiply by 255 and cast to uint8"),
    "half precision": (IMAGES.astype("f2"), "float16 from 0.0 to 47.0; round and cast to uint8"),
    "truth values": (IMAGES > 9, "bool from False to True; multiply by 255 and cast"),
    "too large": (IMAGES + np.uint16(300), "values from 300 to 347; bring them to 0 to 255"),
    "negative": (IMAGES - 1.0, "values from -1.0 to 46.0; bring them to 0 to 255"),
    "NaN": (np.where(IMAGES == 3, np.nan, IMAGES), "values from nan to nan; bring them to"),
    "objects": (IMAGES.astype(object), "object instead of numbers; give a NumPy array of uint8"),
    "a list": (IMAGES.tolist(), "list instead of numbers; give a NumPy array of uint8"),
    "no array": (SimpleNamespace(shape=(3, 4, 4, 1), dtype=np.uint8), "SimpleNamespace instead"),
    "no channel axis": (IMAGES[..., 0], "(3, 4, 4) lacks the channel axis; give images[..., np."),
    "rows": (IMAGES.reshape(3, 16), "(3, 16) is not (N, H, W, C); reshape them"),
    "no dimension": (np.array(3, np.uint8), "() is not (N, H, W, C); reshape them"),
    "no images": (IMAGES[:0], "(0, 4, 4, 1) has no pixels; give every split at least one image"),
}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("images, problem", WRONG.values(), ids=WRONG.keys())
def test_what_is_no_image_is_one_line(split: str, images, problem: str) -> None:
    splits = dict.fromkeys(("train", "validation", "test"), IMAGES) | {split: images}
    with pytest.raises(UsageError) as caught:
        Dataset("mine", **splits, source="made here", is_sample=False)
    assert_one_line(caught.value, f"the {split} images of mine: ", problem)


def test_splits_of_two_shapes_are_one_line() -> None:
    with pytest.raises(UsageError, match=r"^the test images of mine: shape \(3, 2, 4, 1\) beside"):
        Dataset("mine", IMAGES, IMAGES, IMAGES[:, :2], source="made here", is_sample=False)
