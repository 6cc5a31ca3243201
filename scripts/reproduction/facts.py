"""The figures in the prose of the page of the results, each computed from results.json."""

import math
import statistics
from collections import defaultdict
from math import nan

from reproduction.results import finished


def facts(records: dict[str, dict]) -> dict[str, str]:
    """{name: figure} for the @names@ in the prose of page.md; a figure that no row has is "–"."""
    rows: dict = defaultdict(lambda: {"runs": [{}], "batch": {}, "paper": nan})
    for target, record in records.items():
        for row in record["rows"]:
            rows[target, row.get("name", row.get("label"))] = row
    figures: dict[str, tuple[float, str]] = {}
    for part in (_epochs, _times, _angles, _tests, _over_time):
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
    seeds = ours.keys() & others.keys()
    means: dict[int, float] = defaultdict(lambda: nan)
    for epoch in set().union(*(ours[seed] for seed in seeds)):
        if all(epoch in ours[seed] and epoch in others[seed] for seed in seeds):
            differences = (ours[seed][epoch] - others[seed][epoch] for seed in seeds)
            means[epoch] = statistics.fmean(differences)
    return means


def by_seed(row: dict, other: dict) -> dict[int, float]:
    """{seed: test NLL of a row minus another's}, of the seeds that both have."""
    ours, others = (
        {run["seed"]: run["value"] for run in finished(each)} for each in (row, other)
    )
    return {seed: ours[seed] - others[seed] for seed in sorted(ours) if seed in others}


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else nan


def _epochs(rows: dict) -> dict:
    """Differences on the validation images, by epochs."""
    fc = paired(rows["table1", "fc-snf"], rows["table1", "fc-exact"])
    conv = paired(rows["table1", "conv-snf"], rows["table1", "conv-exact"])
    emerging = paired(rows["table1", "conv-snf"], rows["table1", "emerging"])
    weak_fc = paired(rows["table4", "fc-lambda-0.3"], rows["table1", "fc-exact"])
    strong_fc = paired(rows["table4", "fc-lambda-10"], rows["table4", "fc-snf"])
    strong_conv = paired(rows["table4", "conv-lambda-10"], rows["table4", "conv-snf"])
    early = [difference for epoch, difference in conv.items() if epoch <= 100]
    return {
        "conv_early": (max(early, default=nan), ".1f"),
        "conv_200": (conv[200], ".1f"),
        "conv_1000": (conv[1000], "+.1f"),
        "fc_30": (fc[30], ".0f"),
        "fc_60": (fc[60], ".0f"),
        "fc_100": (fc[100], ".0f"),
        "weak_20": (weak_fc[20], ".0f"),
        "weak_30": (-weak_fc[30], ".0f"),
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
        "fc_share_paper": (fc.get("paper_of_exact", nan), ".2f"),
    }


def _angles(rows: dict) -> dict:
    """Fig. 3: the largest angle of the fully connected flow."""
    fc = rows["figure3", "fc-snf"]["runs"][0]
    return {"fc_angle": ((fc.get("largest") or (nan, nan))[1], ".1f")}


def _tests(rows: dict) -> dict:
    """Differences on the test images, by the recipe."""

    def gaps(ours: str, other: str) -> list[float]:
        return list(by_seed(rows["white", ours], rows["white", other]).values())

    figures = {
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


def _over_time(rows: dict) -> dict:
    """Fig. 5: how far SNF is ahead of exact gradients when its run ends."""
    exact, snf = (
        rows["figure5", name]["runs"][0].get("points", [])
        for name in ("fc-exact", "fc-snf")
    )
    end = snf[-1][1] if snf else nan
    before = [nll for _, seconds, nll in exact if seconds <= end]
    return {
        "ahead_in_time": (before[-1] - snf[-1][2] if before else nan, ".0f"),
        "end_of_time": (end, ".0f"),
    }
