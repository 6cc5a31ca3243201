"""Random changes of training images that leave them natural images (appendix A.3, CIFAR-10)."""

import numpy as np

from snfnp.ops.random.philox import RandomKey, uniform

DRAWS = 3  # numbers that each image takes: whether to flip it, and how far to shift it each way


def augment(images: np.ndarray, key: RandomKey) -> np.ndarray:
    """Flip each image horizontally with probability 1/2, then shift it by -1, 0 or 1 pixels.

    Appendix A.3 of Keller et al. 2021: "random horizontal flipping with probability 0.5 and
    random jitter by 1 pixel". Both directions are shifted independently, each of the three
    values with probability 1/3; what a shift leaves without pixels repeats the image's border: a
    density model would spend likelihood on a black line, which no test image has.

    images (N, H, W, C), of any type, on the host -> a new array of the same shape and type.
    key: of the random numbers, each step's own; with key.first the images are those of a larger
    batch from that one on, and are changed as they would be in it. O(N H W C).
    """
    count, height, width, _ = images.shape
    u = uniform(np, key, (count, DRAWS))
    flipped = u[:, 0, np.newaxis] < 0.5
    down, right = np.floor(3 * u[:, 1:, np.newaxis]).astype(np.int64).swapaxes(0, 1) - 1
    # Row y of the result is row y - down of the image; clipping an index repeats the border.
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    columns = np.where(flipped, width - 1 - columns, columns)
    n = np.arange(count)
    return images[n[:, np.newaxis, np.newaxis], rows[:, :, np.newaxis], columns[:, np.newaxis]]
