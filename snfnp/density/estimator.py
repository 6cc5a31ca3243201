"""`FlowDensity`: fit, score, sample, transform, save and load.

Derivation: derivations/03-change-of-variables.md and 25-an-average-of-densities.md.
"""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np

from snfnp.data.dataset import labels_of
from snfnp.density import files, rows
from snfnp.density.ensemble import Fit
from snfnp.density.fitting import Options, fit_density
from snfnp.errors import (
    UsageError,
    require_instance,
    require_real,
    require_whole,
)

# no floating-point warnings, whatever the caller's `np.errstate` is
_quiet = np.errstate(all="ignore")


class FlowDensity(Options):
    """A density of rows, by an average of normalizing flows, with scikit-learn's methods.

        density = snfnp.FlowDensity(random_state=0).fit(X)
        density.score_samples(X), density.sample(100), density.transform(X)

    Each flow is trained at maximum likelihood on the rows outside one of `members` folds, and
    judged by the fold: a fifth of the rows, or of many rows some 4000. Mixtures of Gaussians are
    candidates beside the flows; they are fitted in the same way, on more than 5000 rows until more
    components are no better. The density is Σ w p of all of them, with the weights at which the
    rows held out are most likely; it is exact, and so are samples.
    The flow is the preset `vector`: see `snfnp.models.vector`. On Linux, where there are several
    cores, flows and mixtures are fitted side by side by forked processes, to the same bits, and one
    after another if NUMBA_NUM_THREADS and OPENBLAS_NUM_THREADS are 1.

    Columns with ties, such as whole numbers, are modelled with noise of one step. Scores are then
    of cells of one step, and another estimator's scores of the same rows are not: a mixture that
    closes in on repeated values seems better by several nats. To compare, score the same rows with
    noise by both, `noisy = density.dequantise(test)`: `density.score(noisy)` and
    `other.fit(density.dequantise(train)).score(noisy)`. Or leave the ties in both, `ties="keep"`.
    Samples have the values of such a column between its least and its greatest. Codes of categories
    are taken for numbers; give a column of 0 and 1 for each category where their order has no
    meaning.

    Args:
        layers: number of hidden dense layers (None: 6 up to 8 columns, fewer for more, 1 from 114
            on; 3 at most for a flow that is trained on up to 2000 rows).
        members: flows of each kind in the average, each with another part of the rows held out;
            1: a single flow, and no mixture.
        mixtures: whether mixtures are candidates.
        activation: "spline" or "smooth-leaky-relu".
        gradient: of log|det W|, by the learned inverse ("self-normalizing"), "exact" or "relative".
        epochs: passes over the rows that a flow is trained on, at most (None: as many steps as
            there are of these, from 800 to 2000; on more than 5000 rows 2000 steps, and as long as
            that is of use twice as many again, up to 4000, or a step for 32 rows).
        batch_size: rows of a step (None: an eighth of those that a flow is trained on, from 16 to
            500).
        lr: Adam's learning rate, which falls to 0 along a cosine (None: 0.01, less for more than 16
            columns).
        noise: standard deviation of Gaussian noise, in units of each column's own, in the rows of
            every step, which smooths the density (None: 0; up to 1000 rows 0 and
            0.1 are candidates, up to 500 rows 0.2, too).
        ties: columns with repeated values, as whole numbers: "dequantise" makes uniform noise of
            one step part of the model, and rounds samples back; "keep" leaves them as they are,
            and the density may have spikes there; "raise" refuses them. Copies of whole rows are
            no ties, except in a table of one column.
        validation_fraction: of the rows, held out to choose the best evaluation of a single flow.
        patience: stop after this many evaluations, of some 40, without a better one; None: never.
        time_limit: seconds after which nothing more is tried, whatever is best by then; a result
            then depends on the machine. None: no limit.
        verbose: True: lines on what is fitted, and a progress bar; False: nothing; None: the bar
            alone, in terminals and notebooks.
        random_state: None, a whole number, or a generator of NumPy's.

    Attributes:
        n_features_in_: D.
        feature_names_in_: names of the columns, (D,), if X was a DataFrame whose names are text.
        weights_: {candidate, in words: its weight}.
        step_: step of each column that has ties, else 0, (D,).
        n_iter_: the step of the evaluation that was chosen, of the best flow.
        likelihood_: the best flow, a `snfnp.Likelihood`; `transform` and `inverse_transform` are
            its, as an average of densities has no latents.
        config_: the flows' `TrainConfig`.
    """

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """{parameter of the constructor: its value}."""
        return {
            name: getattr(self, name)
            for name in inspect.signature(type(self)).parameters
        }

    def set_params(self, **params: Any) -> "FlowDensity":
        """Set parameters of the constructor by name. Raises ValueError for any other name."""
        valid = list(self.get_params())
        for name, value in params.items():
            if name not in valid:
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {self}. Valid parameters are: "
                    f"{valid!r}."
                )
            setattr(self, name, value)
        return self

    def set_output(self, *, transform: str | None = None) -> "FlowDensity":
        """Set what `transform` returns, and `sample` after a fit on a DataFrame: "default" (an
        array), "pandas" or "polars"."""
        if transform not in (None, "default", "pandas", "polars"):
            raise ValueError(
                f"transform is {transform!r}: give default, pandas or polars"
            )
        if transform is not None:
            self._sklearn_output_config = {"transform": transform}
        return self

    def __repr__(self) -> str:
        changed = [
            f"{name}={getattr(self, name)!r}"
            for name, parameter in inspect.signature(type(self)).parameters.items()
            if repr(getattr(self, name)) != repr(parameter.default)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_tags__(self) -> Any:
        """Tags of scikit-learn, which is loaded if it asks for them."""
        utils = sys.modules["sklearn.utils"]
        return utils.Tags(
            estimator_type="density_estimator",
            target_tags=utils.TargetTags(required=False),
            transformer_tags=utils.TransformerTags(),
        )

    @_quiet
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "FlowDensity":
        """Fit the density of rows.

        The order of the rows does not matter.

        Args:
            X: rows (N, D) of finite numbers, N from 3 (with `members` from 2 on, from 4) and D
                from 1 on; an array or a DataFrame.
            y: ignored.
            sample_weight: weights of the rows, (N,): whole numbers are counts of copies of a row;
                others are importances, by which N rows are drawn. Copies of a row are held out
                together.

        Raises:
            ValueError: for other rows, constant columns, ties if `ties` is "raise", and parameters
                that no training can have.
        """
        table = rows.checked(X)
        names = rows.names_of(X)
        rng = rows.generator(self.random_state)
        table, groups = rows.drawn(table, sample_weight, rng)
        with _value_errors():
            require_real(None, 1, validation_fraction=self.validation_fraction)
            require_whole(None, 1, members=self.members)
            require_instance(None, bool, mixtures=self.mixtures)
            if self.time_limit is not None:
                require_real(None, np.inf, or_zero=True, time_limit=self.time_limit)
            fit = fit_density(
                self, table, groups, labels_of(names, table.shape[1]), rng
            )
        fitted = copy(self)
        fitted._keep(fit, names)
        self.__dict__ = vars(fitted)  # at once: an interruption keeps the former fit
        return self

    def _keep(self, fit: Fit, names: np.ndarray | None) -> None:
        """Set the attributes of a fitted estimator."""
        self._fit = fit
        vars(self).pop("feature_names_in_", None)
        if names is not None:
            self.feature_names_in_ = names
        self.n_features_in_ = len(fit.preprocess.mean)
        self.n_iter_ = fit.best.step or 0
        self.config_ = fit.config
        self.weights_ = {candidate.name: weight for candidate, weight in fit.kept}
        self.step_ = np.array(fit.preprocess.step or np.zeros(self.n_features_in_))
        self.likelihood_ = fit.best_flow.likelihood

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the latents that `transform` returns: flowdensity0, flowdensity1, …"""
        _ = self._fitted
        return np.array(
            [f"flowdensity{k}" for k in range(self.n_features_in_)], dtype=object
        )

    @_quiet
    def score_samples(self, X: Any) -> np.ndarray:
        """The exact log-density of rows.

        Args:
            X: rows (N, D).

        Returns:
            log p(x) in nats and in the units of X, (N,). In columns with ties p is the probability
            of the cell of one step around x, divided by the step; it is estimated by 16 points of
            the cell, which for rows of many coarse columns may be off by a nat or two; the integral
            over all x is 1 nevertheless.
        """
        return self._ensemble.log_prob(self._checked(X))

    @_quiet
    def dequantise(self, X: Any, random_state: Any = None) -> np.ndarray:
        """Rows with uniform noise of one `step_` in columns with ties, which other estimators can
        be fitted to and scored on if scores are to be compared with this one's.

        Args:
            X: rows (N, D).
            random_state: None, a whole number, or a generator of NumPy's.

        Returns:
            Rows (N, D).
        """
        table = self._checked(X)
        return table + self.step_ * (
            rows.generator(random_state).random(table.shape) - 0.5
        )

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of `score_samples`; y is ignored."""
        return float(self.score_samples(X).mean())

    @_quiet
    def sample(
        self, n_samples: int = 1, random_state: Any = None, exact: bool = True
    ) -> Any:
        """Draw rows from the density. Columns with ties have values between the least and the
        greatest that were fitted: other rows are drawn again.

        Args:
            n_samples: N.
            random_state: None, a whole number, or a generator of NumPy's.
            exact: see `inverse_transform`; it is for the flows among the members.

        Returns:
            Rows (N, D); a DataFrame after `set_output`, if X was one.
        """
        rng = rows.generator(random_state)
        with _value_errors():
            require_whole(None, 1, n_samples=n_samples)
            values = self._ensemble.sample(int(n_samples), rng, exact)
        names = getattr(self, "feature_names_in_", None)
        if names is None or self._container is None:
            return values
        return rows.in_container(values, names, None, self._container)

    @_quiet
    def transform(self, X: Any) -> Any:
        """The latents (N, D) of rows (N, D) under the best flow: standard normal if X follows that
        flow's density."""
        latents = self._fitted.best_flow.without_noise.latents(self._checked(X))[0]
        return rows.in_container(
            latents, self.get_feature_names_out(), X, self._container
        )

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """`fit`, and then `transform` of the same rows."""
        return self.fit(X, sample_weight=sample_weight).transform(X)

    @_quiet
    def inverse_transform(self, X: Any, exact: bool = True) -> np.ndarray:
        """The rows of latents, under the best flow.

        Args:
            X: latents (N, D).
            exact: through the exact inverses of the dense layers; False: through those that they
                learned, one product each.

        Returns:
            Rows (N, D); in columns with ties, rounded to the nearest of their values.
        """
        latents = self._checked(X, named=False)
        return self.likelihood_.sample(len(latents), latents=(latents,), exact=exact)

    def save(self, path: str | Path) -> None:
        """Write the estimator to a file, atomically: numbers and text alone."""
        files.save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> "FlowDensity":
        """The estimator in a file that `save` wrote. Raises CheckpointError for any other file."""
        return files.load(cls, Path(path))

    @property
    def _fitted(self) -> Fit:
        if not hasattr(self, "_fit"):
            exceptions = sys.modules.get("sklearn.exceptions")
            kind = getattr(exceptions, "NotFittedError", ValueError)
            raise kind("this FlowDensity is not fitted yet: call fit first")
        return self._fit

    @property
    def _ensemble(self) -> Any:
        return self._fitted.ensemble

    @property
    def _container(self) -> str | None:
        return getattr(self, "_sklearn_output_config", {}).get("transform")

    def _checked(self, X: Any, named: bool = True) -> np.ndarray:
        """X as rows of as many columns as were fitted; named: with the same names."""
        _ = self._fitted
        if named:
            rows.check_names(X, getattr(self, "feature_names_in_", None))
        table = rows.checked(X)
        if table.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {table.shape[1]} features, but FlowDensity is expecting "
                f"{self.n_features_in_} features as input"
            )
        return table


@contextmanager
def _value_errors() -> Iterator[None]:
    """Raise ValueError for a UsageError, as scikit-learn expects; `depth` is called `layers`."""
    try:
        yield
    except UsageError as error:
        raise ValueError(str(error).replace("`depth`", "`layers`")) from None
