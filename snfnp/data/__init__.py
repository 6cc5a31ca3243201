"""Image data for the flows: MNIST and Fashion-MNIST."""

from snfnp.data.mnist import Dataset, load_dataset

__all__ = ["Dataset", "load_dataset"]
