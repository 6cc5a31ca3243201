"""Compare densities of rows: this package's estimator, scikit-learn's, and flows of PyTorch.

Known densities (D = 2 and 8, 20,000 rows): the Kullback-Leibler divergence from the truth to what
was fitted, in nats, on 100,000 fresh rows. Tables of scikit-learn: the mean log-likelihood of a
fifth of the rows, held out, in nats and in standardised units, five times. Baselines: a Gaussian
mixture, by BIC; a kernel density, by cross-validation; with zuko (baselines-requirements.txt), a
spline coupling flow and a masked autoregressive flow, with early stopping, for as long as this
package's took. The time is processor time.
"""

import argparse
import time
import warnings
from functools import partial

import numpy as np
from scipy.stats import multivariate_normal
from sklearn import datasets
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity

import snfnp

ROWS, FRESH, SHOWN, KERNELS = 20_000, 100_000, 5000, 4000  # SHOWN: of FRESH, to a kernel density
TABLES = ("wine", "breast_cancer", "digits")
COMPONENTS, BANDWIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32), np.geomspace(0.03, 1.0, 12)


def mixture(rng, rows, columns):
    """Five Gaussians: rows and their log-densities."""
    fixed = np.random.default_rng(3)
    means = 2 * fixed.normal(size=(5, columns))
    roots = fixed.normal(size=(5, columns, columns)) / 2 + np.eye(columns) / 2
    of, noise = rng.integers(5, size=rows), rng.normal(size=(rows, columns))
    x = means[of] + np.einsum("nij,nj->ni", roots[of], noise)
    parts = (multivariate_normal(m, r @ r.T) for m, r in zip(means, roots, strict=True))
    return x, np.logaddexp.reduce([part.logpdf(x) for part in parts]) - np.log(5)


def banana(rng, rows, columns):
    """Pairs (a, a²/2 + 0.3 b) of normal a and b."""
    a, b = rng.normal(size=(2, rows, columns // 2))
    x = np.stack([a, a**2 / 2 + 0.3 * b], axis=2).reshape(rows, columns)
    log_density = -(a**2 + b**2).sum(axis=1) / 2 - columns / 2 * np.log(2 * np.pi)
    return x, log_density - columns // 2 * np.log(0.3)


def exponentials(rng, rows, columns):
    """Independent exponentials, rotated."""
    rotation, _ = np.linalg.qr(np.random.default_rng(7).normal(size=(columns, columns)))
    x = rng.exponential(size=(rows, columns))
    return x @ rotation.T, -x.sum(axis=1)


def table(name, seed):
    """(rows to fit, rows held out), standardised by the former; digits with the noise that makes
    whole numbers a density."""
    rng = np.random.default_rng(seed)
    x = getattr(datasets, f"load_{name}")().data.astype(float)
    x = x + rng.uniform(size=x.shape) if name == "digits" else x
    x, held_out = np.split(x[rng.permutation(len(x))], [len(x) - len(x) // 5])
    return (x - x.mean(axis=0)) / x.std(axis=0), (held_out - x.mean(axis=0)) / x.std(axis=0)


def gaussian_mixture(x, seconds):
    kinds = [(n, kind) for n in COMPONENTS for kind in ("full", "diag") if n * x.shape[1] < len(x)]
    fitted = [GaussianMixture(n, covariance_type=kind, random_state=0).fit(x) for n, kind in kinds]
    return min(fitted, key=lambda each: each.bic(x)).score_samples


def kernel_density(x, seconds):
    search = GridSearchCV(KernelDensity(rtol=1e-4), {"bandwidth": BANDWIDTHS}).fit(x[:KERNELS])
    best = search.best_params_["bandwidth"]
    if len(x) > KERNELS:  # the best width falls with the number of rows (Scott 1992)
        best *= (KERNELS / len(x)) ** (1 / (4 + x.shape[1]))
    return KernelDensity(bandwidth=best, rtol=1e-4).fit(x).score_samples


def flow(x, seconds):
    return snfnp.FlowDensity(random_state=0).fit(x).score_samples


def torch_flow(kind, x, seconds):
    import torch
    import zuko

    torch.manual_seed(0)
    moments = x.mean(axis=0), x.std(axis=0)
    x = torch.tensor((x - moments[0]) / moments[1], dtype=torch.float32)
    x, held_out = x[len(x) // 10 :], x[: len(x) // 10]
    model = getattr(zuko.flows, kind)(x.shape[1], transforms=4, hidden_features=(64, 64))
    optimiser, best = torch.optim.Adam(model.parameters(), 1e-3), (np.inf, None)
    until = time.process_time() + seconds
    while time.process_time() < until:
        for rows in torch.randperm(len(x)).split(min(256, max(16, len(x) // 8))):
            optimiser.zero_grad()
            (-model().log_prob(x[rows]).mean()).backward()
            optimiser.step()
        with torch.no_grad():
            now = float(-model().log_prob(held_out).mean())
        if now < best[0]:
            best = now, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best[1] or model.state_dict())

    def score_samples(fresh):
        fresh = torch.tensor((fresh - moments[0]) / moments[1], dtype=torch.float32)
        with torch.no_grad():
            return model().log_prob(fresh).numpy() - np.log(moments[1]).sum()

    return score_samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch", action="store_true", help="flows of zuko, too")
    args = parser.parse_args()
    methods = {"flow": flow, "mixture": gaussian_mixture, "kernels": kernel_density}
    methods |= {name: partial(torch_flow, name) for name in ("NSF", "MAF") if args.torch}
    cases = [(known, columns) for known in (mixture, banana, exponentials) for columns in (2, 8)]
    cases += [(name, seed) for name in TABLES for seed in range(5)]
    print(f"{'':18}" + "".join(f"{name:>20}" for name in methods))
    for what, number in cases:
        case = f"{getattr(what, '__name__', what)}-{number}"
        if callable(what):
            x, _ = what(np.random.default_rng(11), ROWS, number)
            fresh, truth = what(np.random.default_rng(12), FRESH, number)
        else:
            (x, fresh), truth = table(what, number), None
        seconds, row = 0.0, f"{case:18}"
        for name, fit in methods.items():
            start = time.process_time()
            score = fit(x, seconds)
            spent = time.process_time() - start
            seconds = spent if name == "flow" else seconds
            some = slice(SHOWN if name == "kernels" else None)
            nats = float(score(fresh[some]).mean())
            nats = nats if truth is None else float(truth[some].mean()) - nats
            row += f"{nats:12.4f} {spent:5.0f} s"
        print(row, flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of mixtures with more components than rows are good for
    main()
