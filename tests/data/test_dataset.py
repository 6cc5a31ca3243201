"""Data sets of arrays; what is no image is in tests/test_images.py."""

import numpy as np
import pytest

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


def test_splits_of_two_shapes_are_one_line() -> None:
    with pytest.raises(UsageError, match=r"^the test images of mine: shape \(3, 2, 4, 1\) beside"):
        Dataset("mine", IMAGES, IMAGES, IMAGES[:, :2], source="made here", is_sample=False)
