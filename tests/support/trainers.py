"""Small trainers of every preset, on any operations."""

from snfnp.models import PRESETS
from snfnp.ops import BACKENDS
from snfnp.training.config import TrainConfig
from snfnp.training.trainer import Trainer

SIDE, BATCH = 8, 6
SMALL_GLOW = {"levels": 2, "depth": 1, "width": 8}


def make_trainer(ops, model="fc", gradient=None, *, report=print, side=SIDE, flow=None, **changes):
    """A trainer for images (side, side, 1); gradient None: the preset's."""
    size = SMALL_GLOW if PRESETS[model].size else {}
    backend = ops.name if ops.name in BACKENDS else "numpy"
    defaults = {"lr": 1e-3, "batch_size": BATCH, "warmup_epochs": 1, "backend": backend}
    config = TrainConfig(model=model, gradient=gradient, **{**defaults, **size, **changes})
    config = config.resolve(1000)
    return Trainer(ops, flow or config.build_flow((side, side, 1)), config, 100, report)


def host(trainer, name):
    """A trainer's array of that name, on the host."""
    return trainer.ops.to_host(getattr(trainer, name))
