"""The gradient of a whole training step, against central differences of Eq. 3 (every preset).

Eq. 3 is written out here once more, from images on, and shares no gradient with the package. Linear
layers are D × D matrices, and what the self-normalizing gradient holds constant (bars) is a number
found before anything moves:

* T(W) stands in the flow as T(W̄ + c (W − W̄)): the derivative is c times that of the density;
* R moves the layer's input by −c' (T(R) − T(R̄)) z̄, which needs no δ_x: with x = T(R) z̄, the
  density of g is that of f at x, and its derivative along R the negative of f's along x;
* ⟨T(W), T(R̄)ᵀ⟩ and ⟨T(R), T(W̄)ᵀ⟩ stand for the log-determinants of f and of g;
* −λ/N Σ_n ‖T(R) T(W) x̄_n − x̄_n‖² is the reconstruction error of every layer, its input held.

(c, c') = (½, ½) for the mixture, (1, 0) for the forward objective. An exact gradient has c = 1 and
log|det T(W)| itself; so have layers whose determinant does not depend on the data.

Then recomputed layer inputs: the stored version's gradients, without its memory.
"""

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy import linalg
from numpy.random import default_rng
from support.explicit import convolution_matrix
from support.trainers import (
    BATCH,
    MODELS_AND_GRADIENTS,
    ReferenceAdam,
    make_trainer,
)

from snfnp.gradcheck.differences import central_difference
from snfnp.layers import (
    Linear,
)
from snfnp.ops import RandomKey, get_ops
from snfnp.step.batches import Repeated

NUMPY = get_ops("numpy")
TRAINING_STREAM = 0  # of the generator that the noise of training steps is read from
LAM = 3.0
RTOL = 1e-9
H = 1e-3


def every_choice():
    sizes = {"glow-3l-32k": {"levels": 3}, "glow-3l-48k": {"levels": 3, "kernel": 3}}
    sizes |= {
        "vector": {"init": "identity"},
        "glow": {"kernel": 1},
        "glow-2l-4k": {"kernel": 3, "depth": 2},
    }
    for model, gradient in MODELS_AND_GRADIENTS:
        yield {"model": model, "gradient": gradient, **sizes.get(model, {})}
    yield {"model": "fc", "objective": "forward"}
    yield {"model": "conv", "inverse_kernel": 5}
    yield {"model": "glow", "recompute": True}


def words(choice):
    return "-".join(
        str(v) if k in ("model", "gradient") else f"{k}={v}" for k, v in choice.items()
    )


CHOICES = list(every_choice())


def images(trainer):
    """Pixels whose logit is near −4, 0 or 4, or −2.5, −0.5 or 0.5 for vector: in the middle of a
    spline's bins."""
    rng = default_rng(5)
    pixels = [19, 97, 159] if trainer.config.model == "vector" else [4, 127, 251]
    return rng.choice(pixels, (BATCH, *trainer.flow.shape)).astype(np.uint8)


def move(trainer):
    """Every parameter off its start (R is then no inverse of W), and away from kinks.

    Weights move by little: values are to stay in their bins. A coupling's biases keep its ReLUs a
    unit away from where they open, half of them on either side.
    """
    rng = default_rng(6)
    for layer in trainer.params.values():
        for name, p in layer.items():
            fan = (
                np.prod(p.shape[:-1])
                if name in ("U", "W", "R", "w1", "w2", "w3")
                else 1
            )
            p += 0.02 / np.sqrt(fan) * rng.standard_normal(p.shape)
            if name in ("b1", "b2"):
                p[:] += np.resize([1.5, -1.5], p.shape)


def matrix(w, shape):
    """T(w) (D, D): w itself, or a convolution's."""
    return w if w.ndim == 2 else convolution_matrix(w, shape)


def affine_matrix(layer, p, shape):
    """The matrix of a layer z = T x + b, column by column."""
    size = int(np.prod(shape))
    points = np.concatenate([np.zeros((1, size)), np.eye(size)]).reshape(-1, *shape)
    z = layer.forward(NUMPY, p, points)[0].reshape(size + 1, -1)
    return (z[1:] - z[0]).T


def gaussian(z):
    return -0.5 * np.sum(z * z + np.log(2 * np.pi), axis=tuple(range(1, z.ndim)))


@dataclass
class Frozen:
    """Bars: x̄, z̄ (rows), T(W̄) and T(R̄) of a layer that learns its inverse."""

    x: np.ndarray
    z: np.ndarray
    w: np.ndarray
    r: np.ndarray


@dataclass
class Objective:
    """Eq. 3 of a trainer's flow at images; `density` and `reconstruction` are of the last call."""

    trainer: object
    pixels: np.ndarray
    bars: dict[str, Frozen] = field(default_factory=dict)

    def __post_init__(self):
        trainer = self.trainer
        self.shares = (
            (0.5, 0.5) if trainer.config.objective == "mixture" else (1.0, 0.0)
        )
        key = RandomKey(trainer.config.seed, TRAINING_STREAM, trainer.step)
        self.x, self.ldj = trainer.flow.encode(NUMPY, self.pixels, key, np.float64)
        self(trainer.p.copy())

    def __call__(self, flat) -> float:
        x = self.x
        density = self.ldj
        self.reconstruction = 0.0
        volume = 0.0
        params = self.trainer.layout.views(flat)
        shape = self.trainer.flow.shape
        for name, layer in self.trainer.flow.layers:
            p = params[name]
            if isinstance(layer, Linear):
                x, log_det = self._linear(name, layer, p, x, shape)
                volume += log_det
            else:
                if layer.log_det(NUMPY, p, shape) is not None:
                    volume += linalg.slogdet(affine_matrix(layer, p, shape))[1]
                x, ldj, cache = layer.forward(NUMPY, p, x)
                density = density + ldj
                if layer.latent_shape(shape) is not None:
                    density = density + gaussian(cache["latent"])
            shape = layer.output_shape(shape)
        self.density = (density + gaussian(x)).mean()
        return self.density + volume - self.trainer.config.lam * self.reconstruction

    def _linear(self, name, layer, p, x, shape):
        """z, and what stands for the layer's log-determinants."""
        rows = x.reshape(len(x), -1)
        w = matrix(p["W"], shape)
        if layer.learns_inverse:
            r = matrix(p["R"], shape)
            c_f, c_g = self.shares
            bar = self.bars.setdefault(name, Frozen(rows, rows @ w.T, w, r))
            error = bar.x @ (r @ w).T - bar.x
            self.reconstruction += np.sum(error * error) / len(x)
            log_det = c_f * np.sum(w * bar.r.T) - c_g * np.sum(r * bar.w.T)
            rows = rows - c_g * bar.z @ (r - bar.r).T
            w = bar.w + c_f * (w - bar.w)
        else:
            log_det = linalg.slogdet(w)[1]
        z = (rows @ w.T).reshape(x.shape)
        return (z + p["b"] if layer.bias else z), log_det


def relative(layout, flat, direction):
    """U WᵀW in the place of U: for a relative gradient, ⟨G WᵀW, U⟩ = ⟨G, U WᵀW⟩."""
    turned = direction.copy()
    params = layout.views(flat)
    for name, u in layout.views(turned).items():
        if "W" in u:
            w = params[name]["W"]
            u["W"][...] = u["W"] @ w.T @ w
    return turned


def learned(layout):
    """The entries of what steps change."""
    return [entry for entry in layout.entries if entry.start < layout.fixed]


def along(layout, rng, only=None):
    """A direction of unit length in every parameter (or one): none is drowned by a larger one."""
    flat = np.zeros(layout.size)
    for entry in learned(layout):
        if only in (None, entry):
            u = rng.standard_normal(entry.stop - entry.start)
            flat[entry.start : entry.stop] = u / linalg.norm(u)
    return flat


@dataclass
class Comparison:
    """⟨gradient, u⟩ of a step beside the central difference of Eq. 3 along u, before the step."""

    trainer: object
    objective: Objective
    before: np.ndarray
    gradient: np.ndarray

    def error(self, u) -> float:
        layout = self.trainer.layout
        config = self.trainer.config
        along = relative(layout, self.before, u) if config.gradient == "relative" else u
        numeric = central_difference(self.objective, self.before, along, H)
        result = self.gradient * u
        return abs(numeric - result.sum()) / linalg.norm(result)

    def by_parameter(self) -> str:
        layout = self.trainer.layout
        rng = default_rng(8)
        errors = {
            entry.key: self.error(along(layout, rng, entry))
            for entry in learned(layout)
        }
        return ", ".join(
            f"{key}: {error:.0e}" for key, error in errors.items() if error > RTOL
        )


def step(ops, choice):
    """A trainer after a step, and what its gradient is to be compared with."""
    learns = choice.get("gradient", "self-normalizing") == "self-normalizing"
    trainer = make_trainer(
        ops, dtype="float64", **({"lam": LAM} if learns else {}), **choice
    )
    pixels = images(trainer)
    x, _ = trainer.encode(pixels, 0)
    trainer.flow.init_from_data(ops, trainer.params, x)
    move(trainer)
    trainer.step = 2  # its noise is not that of step 0
    objective = Objective(trainer, pixels)
    before = trainer.p.copy()
    for layer in trainer.grads.values():
        for gradient in layer.values():
            gradient[...] = np.nan  # what the step does not write
    trainer.training_step(Repeated(pixels))
    gradient = np.zeros(trainer.layout.size)  # 0 for the numbers that no step changes
    gradient[: trainer.gradient.size] = trainer.gradient
    return Comparison(trainer, objective, before, gradient)


@pytest.mark.parametrize("choice", CHOICES, ids=words)
def test_the_gradient_of_a_step_is_that_of_eq_3(ops, choice):
    """And the step tells what Eq. 3 was, without the log-determinants that self-normalizing
    training never computes."""
    compared = step(ops, choice)
    rng = default_rng(7)
    objective = compared.objective
    metrics = compared.trainer.metrics()
    assert metrics.reconstruction == pytest.approx(objective.reconstruction, rel=1e-12)
    surrogate = (
        objective.density - compared.trainer.config.lam * objective.reconstruction
    )
    assert metrics.surrogate == pytest.approx(surrogate, rel=1e-12)
    assert metrics.gradient_norm == pytest.approx(
        linalg.norm(compared.gradient), rel=1e-12
    )
    for _ in range(2):
        error = compared.error(along(compared.trainer.layout, rng))
        assert error <= RTOL, compared.by_parameter()


@pytest.mark.parametrize("clip_norm", [None, 3.0])
def test_steps_ascend_by_adam(ops, clip_norm):
    """The rate rises from 0 over an epoch of 100 steps."""
    trainer = make_trainer(ops, dtype="float64", lr=0.25, clip_norm=clip_norm)
    adam = ReferenceAdam()
    for number in (1, 2, 3):
        before = trainer.p.copy()
        trainer.training_step(Repeated(images(trainer)))
        norm = linalg.norm(trainer.gradient)
        assert norm > 10
        scale = clip_norm / (norm + 1e-6) if clip_norm else 1.0
        expected = before + 0.25 * number / 100 * adam.direction(
            scale * trainer.gradient
        )
        np.testing.assert_allclose(trainer.p, expected, rtol=1e-12, atol=1e-15)
