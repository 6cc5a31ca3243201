"""The figures in the prose of the page of the results, each computed from results.json."""

import statistics
from math import nan

from reproduction.results import finished


def facts(records: dict[str, dict]) -> dict[str, str]:
    """{name: figure} for the @names@ in the prose of page.md; a figure that no row has is "–"."""
    rows = {
        (target, row.get("name", row.get("label"))): row
        for target, record in records.items()
        for row in record["rows"]
    }
    found: dict[str, tuple[float, str]] = {}
    for part in (_epochs, _times, _angles, _tests, _parts, _over_time):
        found |= part(rows)
    return {
        name: "–" if value != value else f"{value:{form}}"
        for name, (value, form) in found.items()
    }


def paired(row: dict | None, other: dict | None) -> dict[int, float]:
    """{epoch: validation NLL of a row minus another's}, the mean over the seeds of both."""
    curves = [
        {
            run["seed"]: dict(run.get("validation", []))
            for run in (own or {"runs": []})["runs"]
        }
        for own in (row, other)
    ]
    seeds = curves[0].keys() & curves[1].keys()
    each = [
        {
            epoch: curves[0][seed][epoch] - nll
            for epoch, nll in curves[1][seed].items()
            if epoch in curves[0][seed]
        }
        for seed in sorted(seeds)
    ]
    common = set.intersection(*map(set, each)) if each else set()
    return {
        epoch: statistics.fmean(own[epoch] for own in each) for epoch in sorted(common)
    }


def by_seed(row: dict | None, other: dict | None) -> list[float]:
    """Test NLL of a row minus another's, for each seed that both have."""
    ours, others = (
        {run["seed"]: run["value"] for run in finished(own or {"runs": []})}
        for own in (row, other)
    )
    return [ours[seed] - others[seed] for seed in sorted(ours.keys() & others.keys())]


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else nan


def _test(row: dict | None) -> float:
    return _mean([run["value"] for run in finished(row or {"runs": []})])


def _epochs(rows: dict) -> dict:
    """Differences on the validation images, by epochs, and when λ = 0.3 was lost."""

    def apart(target: str, name: str, other: str, epoch: int, of: str = "") -> float:
        return paired(rows.get((target, name)), rows.get((of or target, other))).get(
            epoch, nan
        )

    conv = paired(rows.get(("table1", "conv-snf")), rows.get(("table1", "conv-exact")))
    early = [difference for epoch, difference in conv.items() if epoch <= 100]
    lost = [
        run["lost"]["step"] / 500
        for run in rows.get(("table4", "conv-lambda-0.3"), {"runs": []})["runs"]
        if run.get("lost")
    ]
    return {
        "conv_early": (max(early, default=nan), ".1f"),
        "conv_200": (conv.get(200, nan), ".1f"),
        "conv_1000": (conv.get(1000, nan), "+.1f"),
        "fc_30": (apart("table1", "fc-snf", "fc-exact", 30), ".0f"),
        "fc_60": (apart("table1", "fc-snf", "fc-exact", 60), ".0f"),
        "fc_100": (apart("table1", "fc-snf", "fc-exact", 100), ".0f"),
        "weak_20": (apart("table4", "fc-lambda-0.3", "fc-exact", 20, "table1"), ".0f"),
        "weak_30": (-apart("table4", "fc-lambda-0.3", "fc-exact", 30, "table1"), ".0f"),
        "weak_behind": (apart("table4", "fc-lambda-0.3", "fc-snf", 20), ".0f"),
        "weak_lost": (max(lost, default=nan), ".0f"),
        "fc_strong": (apart("table4", "fc-lambda-10", "fc-snf", 30), ".0f"),
        "conv_strong": (apart("table4", "conv-lambda-10", "conv-snf", 30), ".0f"),
        "emerging_late": (-apart("table1", "conv-snf", "emerging", 1000), ".0f"),
        "emerging_100": (apart("table1", "conv-snf", "emerging", 100), ".1f"),
    }


def _times(rows: dict) -> dict:
    """Table 3: a convolutional step's time, as shares of exact ones'."""
    batches = [
        rows.get(("table3", label), {}).get("batch", {})
        for label in (
            "Self Normalizing Conv. 9-Layer",
            "(Exact Conv. 9-Layer by block recursion)",
            "Self Normalizing FC 2-Layer",
        )
    ]
    snf, by_rows, fc = batches
    return {
        "conv_share": (snf.get("of_exact", nan), ".2f"),
        "conv_share_paper": (snf.get("paper_of_exact", nan), ".2f"),
        "conv_by_rows": (snf.get("median", nan) / by_rows.get("median", nan), ".2f"),
        "fc_share": (fc.get("of_exact", nan), ".2f"),
    }


def _angles(rows: dict) -> dict:
    """Fig. 3: the largest angle of the fully connected flow, and where angles are above 1°."""
    found = {
        name: rows.get(("figure3", f"{name}-snf"), {"runs": [{}]})["runs"][0]
        for name in ("fc", "conv")
    }
    below, of = found["conv"].get("below", (nan, nan))
    above = [epoch for epoch, mean, _ in found["fc"].get("points", []) if mean >= 1]
    return {
        "fc_angle": (found["fc"].get("largest", (nan, nan))[1], ".1f"),
        "fc_above_from": (min(above, default=nan), ".0f"),
        "fc_above_to": (max(above, default=nan), ".0f"),
        "conv_above": (of - below, ".0f"),
    }


def _tests(rows: dict) -> dict:
    """Differences on the test images: of the relative gradient, and by the recipe."""
    found = {}
    of = {name: row for (target, name), row in rows.items() if target == "white"}
    relative = rows.get(("table1", "fc-relative"))
    found["relative"] = _test(relative), ".0f"
    found["relative_gain"] = (
        (relative["paper"] - _test(relative) if relative else nan),
        ".0f",
    )
    seeds = [run["value"] for run in finished(of.get("conv-white", {"runs": []}))]
    found["conv_seeds"] = (max(seeds) - min(seeds) if seeds else nan), ".1f"
    found["fc_white_gap"] = (
        _mean(by_seed(of.get("fc-white-20"), of.get("fc-white-exact"))),
        "+.1f",
    )
    found["conv_white_gap"] = (
        _mean(by_seed(of.get("conv-white-60"), of.get("conv-white-exact"))),
        "+.1f",
    )
    pairs = {
        "kernels_100": ("glow-5x5-white", "glow-1x1-white"),
        "kernels_40": ("glow-5x5-white-40", "glow-1x1-white-40"),
        "glow_gap": ("glow-1x1-white", "glow-1x1-white-exact"),
    }
    for name, (ours, other) in pairs.items():
        values = by_seed(of.get(ours), of.get(other))
        error = statistics.stdev(values) / len(values) ** 0.5 if values[1:] else nan
        found[name] = _mean(values), "+.1f"
        found[f"{name}_error"] = error, ".1f"
    return found


def _parts(rows: dict) -> dict:
    """The worth of each part of the recipe, the others being there."""
    found = {}
    for model in ("fc", "conv"):

        def nll(*parts: str, model: str = model) -> float:
            return _test(
                rows.get(("white-parts", "-".join(("ablation", model, *parts))))
            )

        objectives = ("mixture", "forward")
        white = {own: nll("white", own, "cosine") for own in objectives}
        plain = [nll("plain", own, "cosine") - white[own] for own in objectives]
        steady = [nll("white", own, "constant") - white[own] for own in objectives]
        for name, values in (("white", plain), ("falling", steady)):
            found[f"{model}_{name}_least"] = min(values), ".0f"
            found[f"{model}_{name}_most"] = max(values), ".0f"
        found[f"{model}_forward"] = white["mixture"] - white["forward"], ".0f"
    return found


def _over_time(rows: dict) -> dict:
    """Fig. 5: SNF minus exact gradients at equal epochs, and when SNF's run ends."""
    exact, snf = (
        rows.get(("figure5", name), {"runs": [{}]})["runs"][0].get("points", [])
        for name in ("fc-exact", "fc-snf")
    )
    apart = {
        n: b[2] - a[2] for a, b in zip(exact, snf, strict=False) if (n := a[0]) == b[0]
    }
    end = snf[-1][1] if snf else nan
    before = [nll for _, seconds, nll in exact if seconds <= end]
    return {
        "behind_20": (apart.get(20, nan), ".0f"),
        "behind_100": (apart.get(100, nan), ".0f"),
        "ahead_in_time": (before[-1] - snf[-1][2] if before else nan, ".0f"),
        "end_of_time": (end, ".0f"),
        "time_share": (end / exact[-1][1] if exact else nan, ".2f"),
    }
