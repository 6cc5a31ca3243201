"""`FlowDensity`: fit, score, sample, transform, save and load.

Derivation: derivations/03-change-of-variables.md and 25-an-average-of-densities.md.
"""

from __future__ import annotations

import inspect
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from tqdm.auto import tqdm

from snfnp import threads
from snfnp.data.dataset import labels_of, moments_of
from snfnp.data.ties import TIES, with_ties
from snfnp.density import files, rows
from snfnp.density.ensemble import Ensemble, FlowMember, MixtureMember, stacked_weights
from snfnp.density.training import FEW, Candidate, Progress, flow_candidate, mixture_candidates
from snfnp.errors import UsageError
from snfnp.layers.preprocess import Standardise
from snfnp.ops import RandomKey, get_ops
from snfnp.training.options import TrainConfig
from snfnp.training.progress import compilations_shown, progress_bar, silent

_NOISE = {0.0: 2**63, 0.1: 1000, 0.2: 500}  # candidates: rows up to which they are tried
_TOLD = set()  # columns with ties, and their steps, of which this process has warned
_FIRST, _LONGEST = 2000, 4000  # steps of a flow on many rows: the first training, the longest
_JUDGED = 4000  # rows of a fold, at most: the others are trained on by all members
_SMALL = 4096  # numbers in a batch for which a smooth leaky ReLU is fastest in plain NumPy


@dataclass(eq=False, repr=False)
class FlowDensity:
    """A density of rows, by an average of normalizing flows, with scikit-learn's methods.

        density = snfnp.FlowDensity(random_state=0).fit(X)
        density.score_samples(X), density.sample(100), density.transform(X)

    Each flow is trained at maximum likelihood on four fifths of the rows and judged by the last
    fifth. Mixtures of Gaussians are candidates beside the flows; they are fitted in the same way,
    on more than 5000 rows until more components are no better. The density is Σ w p of all of them,
    with the weights at which the rows held out are most likely; it is exact, and so are samples.
    The flow is the preset `vector`: see `snfnp.models.vector`.

    Columns with ties, such as whole numbers, are modelled with noise of one step. Scores are then
    of cells of one step, and another estimator's scores of the same rows are not: a mixture that
    closes in on repeated values seems better by several nats. To compare, score the same rows with
    noise by both, `other.fit(density.dequantise(train)).score(density.dequantise(test))` against
    `density.score(test)`, or leave the ties in both, `ties="keep"`. Samples have the values of
    such a column between its least and its greatest. Codes of categories are taken for numbers;
    give a column of 0 and 1 for each category where their order has no meaning.

    Args:
        layers: number of hidden dense layers (None: 3 up to 2000 rows; else 6 up to 8 columns,
            fewer for more, 1 from 114 on).
        members: flows of each kind in the average, each with another part of the rows held out;
            1: a single flow, and no mixture.
        mixtures: whether mixtures are candidates.
        activation: "spline" or "smooth-leaky-relu".
        gradient: of log|det W|, by the learned inverse ("self-normalizing"), "exact" or "relative".
        epochs: passes over the rows, at most (None: as many steps as rows, from 800 to 2000; on
            more than 5000 rows 2000 steps, and 4000 more if they are of use).
        batch_size: rows of a step (None: an eighth of them, from 16 to 500).
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

    layers: int | None = None
    _: KW_ONLY
    members: int = 5
    mixtures: bool = True
    activation: str = "spline"
    gradient: str = "self-normalizing"
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    noise: float | None = None
    ties: str = "dequantise"
    validation_fraction: float = 0.1
    patience: int | None = None
    time_limit: float | None = None
    verbose: bool | None = None
    random_state: int | np.random.Generator | np.random.RandomState | None = None

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """{parameter of the constructor: its value}."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params) -> FlowDensity:
        """Set parameters of the constructor by name. Raises ValueError for any other name."""
        valid = list(self.get_params())
        for name, value in params.items():
            if name not in valid:
                found = f"Invalid parameter {name!r} for estimator {self}"
                raise ValueError(f"{found}. Valid parameters are: {valid!r}.")
            setattr(self, name, value)
        return self

    def set_output(self, *, transform: str | None = None) -> FlowDensity:
        """Set what `transform` returns, and `sample` after a fit on a DataFrame: "default" (an
        array), "pandas" or "polars"."""
        if transform not in (None, "default", "pandas", "polars"):
            raise ValueError(f"transform is {transform!r}: give default, pandas or polars")
        if transform is not None:
            self._sklearn_output_config = {"transform": transform}
        return self

    def __repr__(self) -> str:
        usual, values = inspect.signature(type(self)).parameters, self.get_params()
        shown = {name: repr(value) for name, value in values.items()}
        changed = [f"{k}={text}" for k, text in shown.items() if text != repr(usual[k].default)]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_tags__(self):
        """Tags of scikit-learn, which is loaded if it asks for them."""
        known = sys.modules["sklearn.utils"]
        own = {"target_tags": known.TargetTags(required=False)}
        own["transformer_tags"] = known.TransformerTags()
        return known.Tags(estimator_type="density_estimator", **own)

    @np.errstate(all="ignore")  # whatever state the caller has
    def fit(self, X, y=None, sample_weight=None) -> FlowDensity:
        """Fit the density of rows.

        The order of the rows does not matter.

        Args:
            X: rows (N, D) of finite numbers, N from 3 and D from 1 on; an array or a DataFrame.
            y: ignored.
            sample_weight: weights of the rows, (N,): whole numbers are counts of copies of a row;
                others are importances, by which N rows are drawn. Copies of a row are held out
                together.

        Raises:
            ValueError: for other rows, constant columns, ties if `ties` is "raise", and parameters
                that no training can have.
        """
        table, names = rows.checked(X), rows.names_of(X)
        rng = rows.generator(self.random_state)
        table, groups = rows.drawn(table, sample_weight, rng)
        if len(table) < 3:  # one of which is held out
            raise ValueError(f"n_samples = {len(table)}: a density needs at least 3 rows")
        try:
            self._check()
            moments = self._moments(table, labels_of(names, table.shape[1]))
            alone = table.shape[1] == 1 and self.ties == "keep"
            if alone or (len(moments) > 2 and all(moments[2])):  # rows are equal by chance
                groups = np.arange(len(table))
            if (count := int(groups[-1]) + 1) < 3:
                raise UsageError(f"X has {count} different rows: a density needs at least 3")
            seed = int(rng.integers(2**31))
            groups = np.argsort(rng.permutation(count))[groups]
            shuffled = np.argsort(groups, kind="stable")
            found, config = self._candidates(table[shuffled], groups[shuffled], moments, seed)
        except UsageError as error:
            raise ValueError(str(error).replace("`depth`", "`layers`")) from None
        best = max((each for each in found if each.step is not None), key=lambda each: each.mean)
        if self.members == 1:  # nothing is averaged
            found = [best]
        weights = stacked_weights(np.stack([each.scores for each in found]))
        with threads.limited(1):  # of small products
            pairs = zip(found, weights.tolist(), strict=True)
            kept = [(each.refitted(seed), weight) for each, weight in pairs if weight > 0]
        fitted = copy(self)
        vars(fitted).pop("feature_names_in_", None)
        if names is not None:
            vars(fitted)["feature_names_in_"] = names
        fitted._keep(config, moments, kept, best)
        self.__dict__ = vars(fitted)  # at once: an interruption keeps the former fit
        return self

    def _check(self) -> None:
        fraction, members = self.validation_fraction, self.members
        if not isinstance(fraction, (int, float, np.number)) or not 0 < fraction < 1:
            raise UsageError(f"validation_fraction is {fraction!r}: it must be between 0 and 1")
        if isinstance(members, bool) or not isinstance(members, (int, np.integer)) or members < 1:
            raise UsageError(f"members is {members!r}: it must be a whole number from 1 on")
        limit = self.time_limit
        if limit is not None and not (isinstance(limit, (int, float, np.number)) and limit >= 0):
            raise UsageError(f"time_limit is {limit!r}: give seconds, or None")
        if self.ties not in TIES:
            raise UsageError(f"ties is {self.ties!r}: it must be one of {', '.join(TIES)}")

    def _moments(self, table: np.ndarray, labels: list[str]) -> tuple:
        """The arguments of `Standardise`: mean, spread, and what ties need."""
        moments = moments_of(table, "X", labels)
        known: dict[bytes, str] = {}
        for label, column in zip(labels, table.T, strict=True):
            same = known.setdefault((column + 0.0).tobytes(), label)  # -0.0 as 0.0
            if same is not label:
                text = f"{same} and {label} of X are equal"
                advice = "leave one of them out, as no density is finite there"
                warnings.warn(f"{text}: {advice}", stacklevel=4)
        lines = []
        moments = with_ties(moments, table, self.ties, labels, lines.append)
        if lines:
            columns = zip(labels, moments[2], moments[4], strict=True)
            # a step without decimals may be another one in each fold of a search
            tied = tuple((label, step * (unit > 0)) for label, step, unit in columns if step)
            if tied not in _TOLD:
                _TOLD.add(tied)
                advice = "compare with other estimators by `dequantise(X)`"
                text = f"{lines[0]}. Scores are of cells of `step_`: {advice}"
                warnings.warn(text, stacklevel=4)
        return moments

    def _candidates(self, table, groups, moments, seed: int) -> tuple[list[Candidate], TrainConfig]:
        """All candidates, and the flows' configuration."""
        (count, columns), number = table.shape, groups[-1] + 1
        members = min(int(self.members), int(number))
        if members == 1:
            held_out = min(max(1, round(self.validation_fraction * number)), number - 1)
            folds = [np.flatnonzero(groups < held_out)]
        else:
            held_out = groups < members * _JUDGED
            folds = [np.flatnonzero(held_out & (groups % members == k)) for k in range(members)]
        rows = count - max(map(len, folds))
        config = self._config(rows, columns, seed)
        levels = [each for each, most in _NOISE.items() if count <= most]
        levels = levels if self.noise is None else [self.noise]
        longest = _LONGEST if self.epochs is None and count > FEW else 0
        if longest:
            config = replace(config, epochs=max(1, _FIRST // config.steps_per_epoch(rows)))
        found = []
        workers = threads.most() if count > FEW else 1
        show = _progress(self.verbose, get_ops(config.backend), self.time_limit, workers)
        small = config.batch_size * columns <= _SMALL  # more threads would wait for each other
        with threads.limited(1 if small else None), show as (progress, report):
            for level in levels:
                how = (replace(config, noise=level), moments, table, folds, progress, longest)
                found.append(flow_candidate(*how))
                report(found[-1].line)
            if members > 1 and self.mixtures:
                z, ldj = Standardise(*map(tuple, moments)).forward(
                    get_ops("numpy"), table, RandomKey(seed, 0, 0), np.float64
                )
                with threads.limited(1):  # of which some fit mixtures side by side
                    mixtures = mixture_candidates(z, folds, seed, ldj, progress)
                for each in mixtures:
                    report(each.line)
                found += mixtures
        return found, config

    def _config(self, rows: int, columns: int, seed: int) -> TrainConfig:
        names = "activation", "gradient", "epochs", "batch_size", "lr", "patience"
        given: dict[str, Any] = {name: getattr(self, name) for name in names}
        given["depth"] = self.layers
        config = TrainConfig(model="vector", seed=seed, **given).resolve(rows, (columns,))
        small = self.activation != "spline" and config.batch_size * columns <= _SMALL
        return replace(config, backend="numpy" if small else "numba")

    def _keep(self, config: TrainConfig, moments, kept: list, best: Candidate) -> None:
        ops, self._fit = get_ops(config.backend), (config, kept, best, moments)
        columns = np.asarray(moments[0]).shape
        flow = config.build_flow(columns, moments)
        preprocess = cast(Standardise, flow.preprocess)
        weights, members = [], []
        for candidate, weight in kept:
            for each in candidate.members:
                flat = isinstance(each, np.ndarray)
                weights.append(weight / len(candidate.members))
                member = FlowMember(ops, flow, each) if flat else MixtureMember(preprocess, each)
                members.append(member)
        self.n_features_in_, self.n_iter_, self.config_ = columns[0], best.step, config
        self.weights_ = {candidate.name: weight for candidate, weight in kept}
        self.step_ = np.asarray(moments[2]) if len(moments) > 2 else np.zeros(columns)
        self._best = FlowMember(ops, flow, best.members[0])
        self._ensemble = Ensemble(np.array(weights), tuple(members), preprocess)
        self.likelihood_ = self._best.likelihood

    def get_feature_names_out(self, input_features=None) -> np.ndarray:
        """Names of the latents that `transform` returns: flowdensity0, flowdensity1, …"""
        _ = self._fitted
        return np.array([f"flowdensity{k}" for k in range(self.n_features_in_)], dtype=object)

    @np.errstate(all="ignore")
    def score_samples(self, X) -> np.ndarray:
        """The exact log-density of rows.

        Args:
            X: rows (N, D).

        Returns:
            log p(x) in nats and in the units of X, (N,). In columns with ties p is the probability
            of the cell of one step around x, divided by the step; it is estimated by 16 points of
            the cell, which for rows of many coarse columns may be off by a nat or two. The density
            that is reported sums to 1 over all cells nevertheless.
        """
        return self._fitted.log_prob(self._checked(X))

    @np.errstate(all="ignore")
    def dequantise(self, X, random_state: Any = None) -> np.ndarray:
        """Rows with uniform noise of one `step_` in columns with ties, which other estimators can
        be fitted to and scored on if scores are to be compared with this one's.

        Args:
            X: rows (N, D).
            random_state: None, a whole number, or a generator of NumPy's.

        Returns:
            Rows (N, D).
        """
        table = self._checked(X)
        return table + self.step_ * (rows.generator(random_state).random(table.shape) - 0.5)

    def score(self, X, y=None) -> float:
        """The mean of `score_samples`; y is ignored."""
        return float(self.score_samples(X).mean())

    @np.errstate(all="ignore")
    def sample(self, n_samples: int = 1, random_state: Any = None, exact: bool = True) -> Any:
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
        whole = isinstance(n_samples, (int, np.integer)) and not isinstance(n_samples, bool)
        if not whole or not 1 <= n_samples < 2**63:
            found = f"n_samples is {n_samples!r}"
            raise ValueError(f"{found}: give a whole number from 1 to 2**63 - 1")
        values = self._fitted.sample(int(n_samples), rng, exact)
        kind = getattr(self, "_sklearn_output_config", {}).get("transform")
        names = getattr(self, "feature_names_in_", None)
        return (
            values
            if kind is None or names is None
            else rows.in_container(values, names, None, kind)
        )

    @np.errstate(all="ignore")
    def transform(self, X) -> Any:
        """The latents (N, D) of rows (N, D) under the best flow: standard normal if X follows that
        flow's density."""
        table = self._checked(X)
        latents = self._best.without_noise.latents(table)[0]
        kind = getattr(self, "_sklearn_output_config", {}).get("transform")
        return rows.in_container(latents, self.get_feature_names_out(), X, kind)

    def fit_transform(self, X, y=None, sample_weight=None) -> Any:
        """`fit`, and then `transform` of the same rows."""
        return self.fit(X, sample_weight=sample_weight).transform(X)

    @np.errstate(all="ignore")
    def inverse_transform(self, X, exact: bool = True) -> np.ndarray:
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
        _ = self._fitted
        files.save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> FlowDensity:
        """The estimator in a file that `save` wrote. Raises CheckpointError for any other file."""
        return files.load(cls, Path(path))

    @property
    def _fitted(self) -> Ensemble:
        if not hasattr(self, "likelihood_"):
            exceptions = sys.modules.get("sklearn.exceptions")
            kind = getattr(exceptions, "NotFittedError", ValueError)
            raise kind("this FlowDensity is not fitted yet: call fit first")
        return self._ensemble

    def _checked(self, X, named: bool = True) -> np.ndarray:
        """X as rows of as many columns as were fitted; named: with the same names."""
        _ = self._fitted
        if named:
            rows.check_names(X, getattr(self, "feature_names_in_", None))
        table = rows.checked(X)
        if table.shape[1] != self.n_features_in_:
            found = f"X has {table.shape[1]} features, but FlowDensity is expecting"
            raise ValueError(f"{found} {self.n_features_in_} features as input")
        return table


@contextmanager
def _progress(
    verbose: bool | None, ops, time_limit: float | None, workers: int
) -> Iterator[tuple[Progress, Callable]]:
    """A context with a bar over the steps of flows, as `verbose` of `FlowDensity` says: (what a fit
    calls on its way, a function that takes a line)."""
    report = tqdm.write if verbose and sys.stdout else silent
    hidden = None if verbose is None else not verbose
    bar = progress_bar(total=0, unit="step", disable=hidden, leave=False)
    start, limit = time.monotonic(), math.inf if time_limit is None else time_limit

    def begin(name: str, steps: int) -> None:
        bar.total += steps
        bar.set_description(name)

    def late() -> bool:
        return time.monotonic() - start > limit

    def in_threads(function, *given) -> list:
        pool = ThreadPoolExecutor(workers)
        try:
            return list(pool.map(function, *given))
        finally:
            pool.shutdown(cancel_futures=True)  # if it was interrupted

    with bar, compilations_shown(ops, report if hidden is not None else lambda line: None):
        progress = Progress(begin, bar.update, late)
        yield replace(progress, map=in_threads) if workers > 1 else progress, report
