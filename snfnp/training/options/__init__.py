"""The options of a run (`groups`), the relations between them (`relations`), and the configuration
that they make (`config`)."""

from snfnp.training.options.config import OPTIONS, TrainConfig

__all__ = ["OPTIONS", "TrainConfig"]
