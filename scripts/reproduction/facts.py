"""The figures in the prose of the page of the results, each computed from results.json."""

import math
import statistics
from collections import defaultdict
from math import nan

import numpy as np

from reproduction.results import finished


def facts(records: dict[str, dict]) -> dict[str, str]:
    """{name: figure} for the @names@ in the prose of page.md; a figure that no row has is "–"."""
    rows: dict = defaultdict(lambda: {"runs": [{}], "batch": {}, "paper": nan})
    for target, record in records.items():
        for row in record["rows"]:
            rows[target, row.get("name", row.get("label"))] = row
    figures: dict[str, tuple[float, str]] = {}
    for part in (_epochs, _times, _angles, _tests, _parts, _over_time):
        figures |= part(rows)
    return {
        name: "–" if math.isnan(value) else f"{value:{form}}"
        for name, (value, form) in figures.items()
    }


def paired(row: dict, other: dict) -> dict[int, float]:
    """{epoch: validation NLL of a row minus another's}, the mean over the seeds of both; NaN where
    a seed has none."""
    ours, others = (
        {run.get("seed"): dict(run.get("validation", [])) for run in each["runs"]}
        for each in (row, other)
    )
    seeds = sorted(ours.keys() & others.keys())
    differences = defaultdict(list)
    for seed in seeds:
        for epoch in ours[seed].keys() & others[seed].keys():
            differences[epoch].append(ours[seed][epoch] - others[seed][epoch])
    means: dict[int, float] = defaultdict(lambda: nan)
    for epoch, values in differences.items():
        if len(values) == len(seeds):
            means[epoch] = statistics.fmean(values)
    return means


def by_seed(row: dict, other: dict) -> list[float]:
    """Test NLL of a row minus another's, for each seed that both have."""
    ours, others = (
        {run["seed"]: run["value"] for run in finished(each)} for each in (row, other)
    )
    return [ours[seed] - others[seed] for seed in sorted(ours.keys() & others.keys())]


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else nan


def _test(row: dict) -> float:
    return _mean([run["value"] for run in finished(row)])


def _epochs(rows: dict) -> dict:
    """Differences on the validation images, by epochs, and when λ = 0.3 was lost."""
    fc = paired(rows["table1", "fc-snf"], rows["table1", "fc-exact"])
    conv = paired(rows["table1", "conv-snf"], rows["table1", "conv-exact"])
    emerging = paired(rows["table1", "conv-snf"], rows["table1", "emerging"])
    weak_fc = paired(rows["table4", "fc-lambda-0.3"], rows["table1", "fc-exact"])
    strong_fc = paired(rows["table4", "fc-lambda-10"], rows["table4", "fc-snf"])
    strong_conv = paired(rows["table4", "conv-lambda-10"], rows["table4", "conv-snf"])
    early = [difference for epoch, difference in conv.items() if epoch <= 100]
    lost = [
        run["lost"]["step"] / 500
        for run in rows["table4", "conv-lambda-0.3"]["runs"]
        if run.get("lost")
    ]
    return {
        "conv_early": (max(early, default=nan), ".1f"),
        "conv_200": (conv[200], ".1f"),
        "conv_1000": (conv[1000], "+.1f"),
        "fc_30": (fc[30], ".0f"),
        "fc_60": (fc[60], ".0f"),
        "fc_100": (fc[100], ".0f"),
        "weak_20": (weak_fc[20], ".0f"),
        "weak_30": (-weak_fc[30], ".0f"),
        "weak_lost": (max(lost, default=nan), ".0f"),
        "fc_strong": (strong_fc[30], ".0f"),
        "conv_strong": (strong_conv[30], ".0f"),
        "emerging_late": (-emerging[1000], ".0f"),
        "emerging_100": (emerging[100], ".1f"),
    }


def _times(rows: dict) -> dict:
    """Table 3: a convolutional step's time, as shares of exact ones'."""
    snf = rows["table3", "Self Normalizing Conv. 9-Layer"]["batch"]
    by_rows = rows["table3", "(Exact Conv. 9-Layer by block recursion)"]["batch"]
    fc = rows["table3", "Self Normalizing FC 2-Layer"]["batch"]
    return {
        "conv_share": (snf.get("of_exact", nan), ".2f"),
        "conv_share_paper": (snf.get("paper_of_exact", nan), ".2f"),
        "conv_by_rows": (snf.get("median", nan) / by_rows.get("median", nan), ".2f"),
        "fc_share": (fc.get("of_exact", nan), ".2f"),
    }


def _angles(rows: dict) -> dict:
    """Fig. 3: the largest angle of the fully connected flow, and where angles are above 1°."""
    fc = rows["figure3", "fc-snf"]["runs"][0]
    below, evaluations = rows["figure3", "conv-snf"]["runs"][0].get("below", (nan, nan))
    above = [epoch for epoch, mean, _ in fc.get("points", []) if mean >= 1]
    return {
        "fc_angle": (fc.get("largest", (nan, nan))[1], ".1f"),
        "fc_above_from": (min(above, default=nan), ".0f"),
        "fc_above_to": (max(above, default=nan), ".0f"),
        "conv_above": (evaluations - below, ".0f"),
    }


def _tests(rows: dict) -> dict:
    """Differences on the test images: of the relative gradient, and by the recipe."""

    def gaps(ours: str, other: str) -> list[float]:
        return by_seed(rows["white", ours], rows["white", other])

    relative = rows["table1", "fc-relative"]
    seeds = [run["value"] for run in finished(rows["white", "conv-white"])]
    figures = {
        "relative": (_test(relative), ".0f"),
        "relative_gain": (relative["paper"] - _test(relative), ".0f"),
        "conv_seeds": (max(seeds, default=nan) - min(seeds, default=nan), ".1f"),
        "fc_white_gap": (_mean(gaps("fc-white-20", "fc-white-exact")), "+.1f"),
        "conv_white_gap": (_mean(gaps("conv-white-60", "conv-white-exact")), "+.1f"),
    }
    pairs = {
        "kernels_100": gaps("glow-5x5-white", "glow-1x1-white"),
        "kernels_40": gaps("glow-5x5-white-40", "glow-1x1-white-40"),
        "glow_gap": gaps("glow-1x1-white", "glow-1x1-white-exact"),
    }
    for name, values in pairs.items():
        error = statistics.stdev(values) / len(values) ** 0.5 if values[1:] else nan
        figures[name] = (_mean(values), "+.1f")
        figures[f"{name}_error"] = (error, ".1f")
    return figures


def _parts(rows: dict) -> dict:
    """The worth of each part of the recipe, the others being there."""
    figures = {}
    for model in ("fc", "conv"):
        white, plain, steady = (
            [
                _test(
                    rows[
                        "white-parts",
                        f"ablation-{model}-{coordinates}-{objective}-{lr}",
                    ]
                )
                for objective in ("mixture", "forward")
            ]
            for coordinates, lr in (
                ("white", "cosine"),
                ("plain", "cosine"),
                ("white", "constant"),
            )
        )
        without_coordinates = np.subtract(plain, white)
        without_schedule = np.subtract(steady, white)
        figures[f"{model}_white_least"] = (min(without_coordinates), ".0f")
        figures[f"{model}_white_most"] = (max(without_coordinates), ".0f")
        figures[f"{model}_falling_least"] = (min(without_schedule), ".0f")
        figures[f"{model}_falling_most"] = (max(without_schedule), ".0f")
        figures[f"{model}_forward"] = (white[0] - white[1], ".0f")
    return figures


def _over_time(rows: dict) -> dict:
    """Fig. 5: SNF minus exact gradients at equal epochs, and when SNF's run ends."""
    exact, snf = (
        rows["figure5", name]["runs"][0].get("points", [])
        for name in ("fc-exact", "fc-snf")
    )
    exact_nll = {epoch: nll for epoch, _, nll in exact}
    differences = {epoch: nll - exact_nll.get(epoch, nan) for epoch, _, nll in snf}
    end = snf[-1][1] if snf else nan
    before = [nll for _, seconds, nll in exact if seconds <= end]
    return {
        "behind_20": (differences.get(20, nan), ".0f"),
        "behind_100": (differences.get(100, nan), ".0f"),
        "ahead_in_time": (before[-1] - snf[-1][2] if before else nan, ".0f"),
        "end_of_time": (end, ".0f"),
        "time_share": (end / exact[-1][1] if exact else nan, ".2f"),
    }
