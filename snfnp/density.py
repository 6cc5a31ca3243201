"""An estimator of densities in the manner of scikit-learn, which this package does not import.

Derivation: derivations/02-change-of-variables.md.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import numpy as np

from snfnp.errors import CheckpointError, DivergedError, UsageError
from snfnp.likelihood import Likelihood
from snfnp.ops import get_ops
from snfnp.training.batches import Batches, Given
from snfnp.training.options import TrainConfig
from snfnp.training.runs.checkpoint import (
    Checkpoint,
    load_checkpoint,
    record_of,
    refused_if_damaged,
    save_checkpoint,
)
from snfnp.training.runs.folder import moments_of
from snfnp.training.trainer import Trainer

_EVALUATIONS = 40  # of a whole training, about
_BATCH = 16, 500  # rows of a step, at least and at most
_FEW = 2000  # rows up to which noise is tried
_NOISE = 0.3
_SMALL = 4096  # numbers in a batch for which a smooth leaky ReLU is fastest in plain NumPy


class FlowDensity:
    """A density of rows X (N, D), by a normalizing flow that is trained at maximum likelihood.

        density = snfnp.FlowDensity(random_state=0).fit(X)
        density.score_samples(X), density.sample(100), density.transform(X)

    It has the methods of scikit-learn's estimators, and works in a Pipeline and in GridSearchCV.
    The flow is the preset `vector`: see `snfnp.models.vector`.

    layers: dense layers but one (None: 6 for up to 8 columns, fewer for more, 1 from 114 on);
    activation: "spline" or "smooth-leaky-relu"; gradient: of log|det W|, by the learned inverse
    ("self-normalizing"), "exact" or "relative"; epochs: passes over the rows, at most (None: some
    2000 steps); batch_size: rows of a step (None: an eighth of them, from 16 to 500); lr: Adam's
    learning rate, which falls to 0 on half a wave (None: 0.01, less for more than 16 columns);
    noise: in standard deviations, added to the rows of every step, which smooths the density
    (None: 0, or up to 2000 rows 0.3 if held-out rows are more likely with it); validation_fraction:
    of the rows, which are held out to choose the best of some 40 evaluations by; patience: stop
    after so many of them without a better one (None: never, as the last, at the smallest rates, are
    mostly the best); random_state: None, a whole number, or a generator of NumPy's.

    After `fit`: n_features_in_ (D); n_iter_, the step of the best evaluation; likelihood_, a
    `snfnp.Likelihood`, and config_, the `TrainConfig` of it.
    """

    def __init__(
        self,
        layers: int | None = None,
        *,
        activation: str = "spline",
        gradient: str = "self-normalizing",
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        noise: float | None = None,
        validation_fraction: float = 0.1,
        patience: int | None = None,
        random_state=None,
    ):
        self.layers = layers
        self.activation = activation
        self.gradient = gradient
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.noise = noise
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.random_state = random_state

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """{parameter of the constructor: its value}."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params) -> FlowDensity:
        """Set parameters of the constructor by name. Raises ValueError for any other name."""
        for name, value in params.items():
            if name not in self._names():
                found = f"Invalid parameter {name!r} for estimator {self}"
                raise ValueError(f"{found}. Valid parameters are: {self._names()!r}.")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        usual = inspect.signature(type(self).__init__).parameters
        changed = {k: v for k, v in self.get_params().items() if v is not usual[k].default}
        return f"FlowDensity({', '.join(f'{name}={value!r}' for name, value in changed.items())})"

    def __sklearn_tags__(self):
        """Tags of scikit-learn, which is loaded if it asks for them."""
        known = sys.modules["sklearn.utils"]
        own = {"target_tags": known.TargetTags(required=False)}
        own["transformer_tags"] = known.TransformerTags()
        return known.Tags(estimator_type="density_estimator", **own)

    def fit(self, X, y=None) -> FlowDensity:
        """Train on rows X (N, D) of finite numbers, D from 1 on; y is ignored.

        Raises ValueError, in one line, for other rows, for fewer than 3, for columns that are
        constant, and for parameters that no training can have.
        """
        rows = _rows(X)
        if len(rows) < 3:  # one of which is held out
            raise ValueError(f"n_samples = {len(rows)}: a density needs at least 3 rows")
        with np.errstate(over="ignore", invalid="ignore"):
            spread = rows.std(axis=0)
        spread[np.ptp(rows, axis=0) == 0] = 0.0
        if (bad := np.flatnonzero(~(np.isfinite(spread) & (spread > 0)))).size:
            found = f"column {bad[0]} (from 0) of X has the standard deviation {spread[bad[0]]:g}"
            raise ValueError(f"{found}: leave such columns out, or rescale them")
        rng = _generator(self.random_state)
        seed, order = int(rng.integers(2**31)), rng.permutation(len(rows))
        try:
            if not 0 < self.validation_fraction < 1:
                found = f"validation_fraction is {self.validation_fraction!r}"
                raise UsageError(f"{found}: it must be between 0 and 1")
            held_out = min(max(1, round(self.validation_fraction * len(rows))), len(rows) - 1)
            parts = rows[order[held_out:]], rows[order[:held_out]]
            config = self._config(len(parts[0]), rows.shape[1], seed)
            levels = (0.0, _NOISE) if len(rows) <= _FEW else (0.0,)
            levels = levels if self.noise is None else (self.noise,)
            moments = rows.mean(axis=0), spread
            found = [self._train(config, moments, *parts, noise) for noise in levels]
        except UsageError as error:
            line = str(error).replace("`depth`", "`layers`")
            raise ValueError(line) from None
        _, p, step = max(found, key=lambda each: each[0])
        self._keep(config, moments, p, step)
        return self

    def _config(self, rows: int, columns: int, seed: int) -> TrainConfig:
        low, high = _BATCH
        batch = min(rows, max(low, min(high, rows // 8)))
        batch = batch if self.batch_size is None else self.batch_size
        own = {name: getattr(self, name) for name in ("activation", "gradient", "epochs", "lr")}
        own |= {"depth": self.layers, "batch_size": batch}
        plain = self.activation != "spline" and batch * columns <= _SMALL
        own["warmup_epochs"] = 0.5 if self.epochs == 1 else None
        how = {"lr_schedule": "cosine", "backend": "numpy" if plain else "numba", "seed": seed}
        return TrainConfig(model="vector", **own, **how).resolve(rows, (columns,))

    def _train(self, config: TrainConfig, moments, rows, held_out, noise: float):
        """(the mean exact log-likelihood of the rows held out, parameters, step) of the best
        evaluation: of the start, if nothing that follows is better, or finite."""
        ops = get_ops(config.backend)
        flow = config.build_flow(rows.shape[1:], moments)
        batches = Batches(ops, rows, config, flow.shape)
        trainer = Trainer(ops, flow, config, batches.steps_per_epoch)
        steps = config.epochs * batches.steps_per_epoch
        every, rng = max(1, steps // _EVALUATIONS), np.random.default_rng(config.seed)

        def noisy(step: int):
            rows = batches(step)
            return rows + noise * moments[1] * rng.standard_normal(rows.shape)

        given = Given(noisy) if noise else batches

        def evaluated():
            likely = trainer.likelihood().log_prob(held_out).mean()
            return likely if np.isfinite(likely) else -np.inf, trainer.p.copy(), trainer.step

        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            trainer.begin(batches)
            best, waited = evaluated(), 0
            patience = steps if self.patience is None else self.patience
            while trainer.step < steps and waited < patience:
                try:
                    trainer.training_step(given)
                except DivergedError:
                    break
                if trainer.step % every == 0 or trainer.step == steps:
                    now, waited = evaluated(), waited + 1
                    if now[0] > best[0]:
                        best, waited = now, 0
        return best

    def _keep(self, config: TrainConfig, moments, p, step: int) -> None:
        flow = config.build_flow(moments[0].shape, moments)
        self.n_features_in_, self.n_iter_, self.config_ = len(moments[0]), step, config
        self.likelihood_ = Likelihood(get_ops(config.backend), flow, flow.layout, p)
        self._learned = flow.layout, moments, p

    def score_samples(self, X) -> np.ndarray:
        """log p(x) of each row, exact, in nats and in the units of X: (N,)."""
        return self._fitted.log_prob(self._rows_like_those_before(X))

    def score(self, X, y=None) -> float:
        """The mean of `score_samples`; y is ignored."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state=None, exact: bool = True) -> np.ndarray:
        """Rows (n_samples, D) drawn from the density. exact: see `inverse_transform`."""
        seed = int(_generator(random_state).integers(2**31))
        try:
            return self._fitted.sample(n_samples, seed, exact=exact)
        except UsageError as error:
            raise ValueError(str(error).replace("count", "n_samples")) from None

    def transform(self, X) -> np.ndarray:
        """The latents of rows, (N, D), float64: standard normal if X is as the density says."""
        return self._fitted.latents(self._rows_like_those_before(X))[0]

    def fit_transform(self, X, y=None) -> np.ndarray:
        """`fit`, and then `transform` of the same rows."""
        return self.fit(X).transform(X)

    def inverse_transform(self, X, exact: bool = True) -> np.ndarray:
        """The rows (N, D) of latents X (N, D). exact: through the exact inverses of the dense
        layers; False: through those that they learned, one product each."""
        latents = self._rows_like_those_before(X)
        return self._fitted.sample(len(latents), latents=(latents,), exact=exact)

    def save(self, path: str | Path) -> None:
        """Write the estimator to a file, atomically: numbers and text alone."""
        _, (layout, moments, p) = self._fitted, self._learned
        zeros = np.zeros(layout.optimised.size, p.dtype)
        params = {**self.get_params(), "random_state": None}
        record = {"class": type(self).__name__, "params": params, "steps": self.n_iter_}
        config = self.config_
        record |= {"moments": np.array(moments).tolist(), "config": config.as_dict()}
        how = (self.n_iter_, config.lam, config.seed, record)
        save_checkpoint(Path(path), Checkpoint(layout, p, zeros, zeros, *how))

    @classmethod
    def load(cls, path: str | Path) -> FlowDensity:
        """The estimator in a file that `save` wrote. Raises CheckpointError for any other file."""
        record = record_of(Path(path))
        if record.get("class") != cls.__name__:
            raise CheckpointError(f"{path} holds no {cls.__name__}: give a file that it saved")
        with refused_if_damaged(Path(path)):
            density, moments = cls(**record["params"]), moments_of(record["moments"])
            config, steps = TrainConfig.from_dict(record["config"]), int(record["steps"])
            if config.model != "vector" or moments is None:
                raise ValueError("its model or moments")
            layout = config.build_flow(moments.shape[1:], moments).layout
            density._keep(config, moments, load_checkpoint(Path(path), layout).p, steps)
        return density

    @property
    def _fitted(self) -> Likelihood:
        if not hasattr(self, "likelihood_"):
            exceptions = sys.modules.get("sklearn.exceptions")
            kind = getattr(exceptions, "NotFittedError", ValueError)
            raise kind("this FlowDensity is not fitted yet: call fit first")
        return self.likelihood_

    def _rows_like_those_before(self, X) -> np.ndarray:
        rows, columns = _rows(X), self._fitted and self.n_features_in_
        if rows.shape[1] != columns:
            found = f"X has {rows.shape[1]} features, but FlowDensity is expecting {columns}"
            raise ValueError(f"{found} features as input")
        return rows


def _rows(X) -> np.ndarray:
    """X as rows (N, D) of finite float64 numbers. Raises ValueError (TypeError for what are no
    numbers at all) for anything else, in the words that scikit-learn has for it."""
    if hasattr(X, "toarray"):
        raise TypeError("Sparse data was passed for X, but dense data is required: X.toarray()")
    if isinstance(X, np.ma.MaskedArray):
        raise TypeError("X is a masked array: leave masked rows out, or fill them in")
    if np.iscomplexobj(array := np.asarray(X)):
        raise ValueError("Complex data not supported: give real numbers")
    rows = np.ascontiguousarray(array, np.float64)
    if rows.ndim != 2:
        found = f"Expected 2D array, got {rows.ndim}D array instead of shape {rows.shape}"
        raise ValueError(f"{found}. Reshape your data: rows are samples, columns are features")
    for axis, what in enumerate(("sample", "feature")):
        if rows.shape[axis] == 0:
            found = f"Found array with 0 {what}(s) (shape={rows.shape})"
            raise ValueError(f"{found} while a minimum of 1 is required.")
    if not np.isfinite(rows).all():
        row, column = np.argwhere(~np.isfinite(rows))[0]
        found = f"X contains NaN or infinity, first in row {row}, column {column} (from 0)"
        raise ValueError(f"{found}: leave such rows out, or fill them in")
    return rows


def _generator(random_state) -> np.random.Generator:
    """The generator that a `random_state` stands for: None, a number, or a generator of NumPy's."""
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31))
    return np.random.default_rng(random_state)
