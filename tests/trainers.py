"""Small trainers of every preset, on any operations."""

from snfnp.config import TrainConfig
from snfnp.models import PRESETS
from snfnp.ops import BACKENDS
from snfnp.trainer import Trainer

SIDE, BATCH = 8, 6
SMALL_GLOW = {"levels": 2, "depth": 1, "width": 8}


def make_trainer(ops, model="fc", gradient=None, *, say=print, side=SIDE, flow=None, **changes):
    """A trainer for images (side, side, 1); gradient None: the preset's."""
    size = SMALL_GLOW if PRESETS[model].size else {}
    backend = ops.name if ops.name in BACKENDS else "numpy"
    defaults = {"lr": 1e-3, "batch_size": BATCH, "warmup_epochs": 1, "backend": backend}
    config = TrainConfig(model=model, gradient=gradient, **{**defaults, **size, **changes})
    config.resolve(1000)
    return Trainer(ops, flow or config.build_flow((side, side, 1)), config, 100, say)


def host(trainer, name):
    """A trainer's array of that name, on the host."""
    return trainer.ops.to_host(getattr(trainer, name))
