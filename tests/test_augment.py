"""Random flips and shifts: every one as likely as it should be, and a function of the key."""

import numpy as np
from support.data_files import colour_images

from snfnp.ops import RandomKey
from snfnp.ops.images.definition import augment
from snfnp.ops.random.philox import uniform


def shifted(image: np.ndarray, down: int, right: int, flip: bool) -> np.ndarray:
    """The definition, on one image: pad by its border, cut, flip."""
    height, width, _ = image.shape
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    cut = padded[1 - down : 1 - down + height, 1 - right : 1 - right + width]
    return cut[:, ::-1] if flip else cut


def test_augment() -> None:
    """Every result is one of the 18 possible ones, as the key's numbers say, each as often as it
    should be."""
    count, key = 1800, RandomKey(1, 2, 3)
    images = np.random.default_rng(0).integers(0, 256, (count, 5, 6, 3), dtype=np.uint8)
    before = images.copy()
    result = augment(images, key)
    u = uniform(np, key, (count, 3))
    assert result.shape == images.shape
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(images, before)
    kinds = [(d, r, f) for d in (-1, 0, 1) for r in (-1, 0, 1) for f in (False, True)]
    tally = dict.fromkeys(kinds, 0)
    for image, changed, (f, *shift) in zip(images, result, u, strict=True):
        same = [kind for kind in kinds if np.array_equal(shifted(image, *kind), changed)]
        down, right = (int(3 * each) - 1 for each in shift)
        assert same == [(down, -right if f < 0.5 else right, f < 0.5)]  # the flip comes first
        tally[same[0]] += 1
    # Chi squared with 17 degrees of freedom is above 51 once in 30,000 draws; the draw is fixed.
    assert sum((n - 100) ** 2 / 100 for n in tally.values()) < 51


def test_augment_depends_on_the_key_alone() -> None:
    images = colour_images(50, seed=0)
    first = augment(images, RandomKey(1, 2, 3))
    np.testing.assert_array_equal(augment(images, RandomKey(1, 2, 3)), first)
    for key in (RandomKey(0, 2, 3), RandomKey(1, 0, 3), RandomKey(1, 2, 0)):
        assert (augment(images, key) != first).any()


def test_augment_nothing() -> None:
    assert augment(np.zeros((0, 32, 32, 3), np.uint8), RandomKey(0, 0)).shape == (0, 32, 32, 3)
