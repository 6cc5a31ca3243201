"""Small trainers of every preset, on any operations, and small runs in a folder."""

import weakref

import numpy as np

from snfnp.data import Dataset
from snfnp.models import PRESETS
from snfnp.ops import BACKENDS
from snfnp.step.trainer import Trainer
from snfnp.training import session
from snfnp.training.options import TrainConfig
from snfnp.training.runs.folder import RunFolder
from support.arrays import pixels

SIDE = 8
BATCH = 6
SMALL_GLOW = {"levels": 2, "depth": 1, "width": 8}
MODELS_AND_GRADIENTS = [
    (model, gradient)
    for model, preset in PRESETS.items()
    for gradient in preset.gradients
]
# Other presets of Glow are the same flow in the size of `make_trainer`.
SMALL_MODELS = [pair for pair in MODELS_AND_GRADIENTS if "glow-" not in pair[0]]


class ReferenceAdam:
    """Algorithm 1 of Kingma & Ba (2014)."""

    def __init__(self, beta1=0.9, beta2=0.999, eps=1e-8):
        self.betas = beta1, beta2
        self.eps = eps
        self.t = self.m = self.v = 0

    def direction(self, g):
        """The next step, up to its rate."""
        b1, b2 = self.betas
        self.t += 1
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g**2
        v_hat = self.v / (1 - b2**self.t)
        return self.m / (1 - b1**self.t) / (np.sqrt(v_hat) + self.eps)


class Given:
    """Batches from a function of the step, each copied to one place for the step that takes it."""

    def __init__(self, images_of):
        self._images_of = images_of
        self._staged = None

    def stage(self, step):
        images = self._images_of(step)
        if self._staged is None:
            self._staged = images.copy()
        elif images is not self._staged:
            self._staged[...] = images
        return 0

    def take(self, step, first):
        return self._staged


def make_trainer(
    ops,
    model="fc",
    gradient=None,
    *,
    report=print,
    side=SIDE,
    flow=None,
    epoch=100,
    **changes,
):
    """A trainer for images (side, side, 1), `epoch` steps an epoch; gradient None: the preset's."""
    size = SMALL_GLOW if "glow" in model else {"depth": 2} if model == "vector" else {}
    backend = ops.name if ops.name in BACKENDS else "numpy"
    defaults = {"lr": 1e-3, "batch_size": BATCH, "warmup_epochs": 1, "backend": backend}
    config = TrainConfig(
        model=model, gradient=gradient, **{**defaults, **size, **changes}
    )
    config = config.resolve(1000)
    flow = flow or config.build_flow((side, side, 1))
    return Trainer(ops, flow, config, epoch, report)


def images_of(trainer, step, batch=BATCH):
    """The images of a step, on the trainer's device."""
    return trainer.ops.asarray(pixels(batch, *trainer.flow.shape, seed=step))


def batches_of(trainer, batch=BATCH):
    """The batches of `images_of`, for the trainer: the same object in each call."""
    if getattr(trainer, "batch", None) != batch:
        trainer.batch = batch
        own = weakref.proxy(trainer)
        trainer.batches = Given(lambda step: images_of(own, step, batch))
    return trainer.batches


def take_steps(trainer, steps, batch=BATCH):
    """Steps with images of their own, the first one's data-dependent initialisation included."""
    batches = batches_of(trainer, batch)
    for step in steps:
        if step == 0:
            trainer.begin(batches)
        trainer.training_step(batches)
    return trainer


def host(trainer, name):
    """A trainer's array of that name, on the host; its state flat."""
    if name == "state":
        return np.concatenate(
            [
                *(
                    each.ravel()
                    for each in map(trainer.ops.to_host, trainer.state.values())
                ),
                [],
            ]
        )
    return trainer.ops.to_host(getattr(trainer, name))


def gradient_of(trainer, images):
    """The gradient of a step on these images, with all else as before."""
    arrays = (trainer.p, trainer.m, trainer.v, *trainer.state.values())
    kept = [array.copy() for array in arrays]
    trainer.ascend(images)
    for array, before in zip(arrays, kept, strict=True):
        array[...] = before
    return trainer.gradient.copy()


# ---------------------------------------------------------------- small runs: 5 steps per epoch

ROWS = np.random.default_rng(0).normal((5.0, -30.0), (1.0, 4.0), (140, 2))
DATA = Dataset("mine", ROWS[40:], ROWS[:20], ROWS[20:40])
EPOCHS = 3
QUICK = {
    "backend": "numpy",
    "batch_size": 20,
    "warmup_epochs": 1,
    "lr": 1e-3,
    "epochs": EPOCHS,
}
IMAGES = 100


def small_dataset(images=IMAGES, side=5):
    rng = np.random.default_rng(1)
    splits = [
        rng.integers(0, 256, (count, side, side, 1)).astype(np.uint8)
        for count in (images, 30, 30)
    ]
    return Dataset("mnist", *splits, source="random images", is_sample=False)


def small_config(**changes):
    return TrainConfig(
        **{
            "epochs": EPOCHS,
            "eval_every": 1,
            "batch_size": 20,
            "lr": 1e-3,
            "warmup_epochs": 1,
            **changes,
        }
    ).resolve(IMAGES)


def run_training(
    path,
    dataset=None,
    resume=False,
    report=lambda text: None,
    optimiser=None,
    **changes,
):
    """A small run, or more of it, on NumPy unless told otherwise: (its folder, its summary)."""
    changes = {"backend": "numpy", **changes}
    dataset = dataset or small_dataset()
    if resume:
        changes = {"epochs": EPOCHS, "rollback": resume == "best", **changes}
        summary = session.resume(
            path, dataset=dataset, report=report, optimiser=optimiser, **changes
        )
    else:
        config = small_config(out=path, **changes)
        summary = session.train(config, dataset, report=report, optimiser=optimiser)
    return RunFolder(path), summary


def without_time(records):
    """Metrics without what a clock has a part in."""
    return [
        {k: v for k, v in record.items() if "second" not in k} for record in records
    ]


def at_step(monkeypatch, step, action):
    """Do something right before a step; the trainer is its argument."""
    original = Trainer.training_step

    def changed(trainer, images):
        if trainer.step == step:
            action(trainer)
        return original(trainer, images)

    monkeypatch.setattr(Trainer, "training_step", changed)


def spoil(trainer):
    """Worse from here on, and finite."""
    trainer.p += trainer.ops.asarray(np.full(trainer.p.shape, 0.02), trainer.p.dtype)
