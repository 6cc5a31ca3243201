"""What tests of `reproduce.py` share."""

import numpy as np
from reproduction.setting import Setting

from snfnp.data import Dataset


class FullSize(Setting):
    """As if there were all images."""

    def dataset(self, name):
        splits = [np.zeros((count, 28, 28, 1), np.uint8) for count in (500, 100, 100)]
        return Dataset(name, *splits, source="somewhere", is_sample=False)
