"""The options of a run: what there are (`parts`), what they need of each other (`rules`), and the
configuration that they make (`config`)."""

from snfnp.training.options.config import OPTIONS, RetiredError, TrainConfig

__all__ = ["OPTIONS", "RetiredError", "TrainConfig"]
