"""Measure the speed of training steps: medians, minima, and ratios within one run."""

import argparse
import json
import os
import platform
from pathlib import Path

import snfnp  # first: it settles how BLAS threads wait
from snfnp import threads
from snfnp.benchmarks import convolutional, dense, glow
from snfnp.cli import run_script
from snfnp.errors import UsageError
from snfnp.ops import BACKENDS, get_ops

PARTS = ("fc", "sweep", "conv", "glow")


def main(argv):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=f"what to measure: {', '.join(PARTS)} (default: all). fc: the training step of the "
        "fully connected model; sweep: the paper's Fig. 4 over the dimension; conv: the 9-layer "
        "convolutional models; glow: 2L-16K, and the memory of 3L-32K",
    )
    parser.add_argument("--threads", default="1,2", help="thread counts (default: 1,2)")
    parser.add_argument("--backend", choices=BACKENDS, default="numba")
    parser.add_argument("--quick", action="store_true", help="fewer repeats and sizes")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--plot", type=Path, help="write the sweep's plot to this file (PNG)")
    args = parser.parse_args(argv)
    parts = args.parts or list(PARTS)
    if unknown := sorted(set(parts) - set(PARTS)):
        raise UsageError(f"no benchmark is called {unknown[0]}: choose from {', '.join(PARTS)}")
    try:
        counts = sorted({min(int(count), cores) for count in args.threads.split(",")})
    except ValueError:
        raise UsageError(f"--threads is {args.threads}: give numbers such as 1,2") from None
    if counts[0] < 1:
        raise UsageError(f"--threads is {args.threads}: give numbers of at least 1")

    ops = get_ops(args.backend)
    machine = {
        "snfnp": snfnp.__version__,
        "platform": platform.platform(),
        "cores": cores,
        "backend": ops.name,
        **threads.describe(),
    }
    blas = ", ".join(
        f"{b['internal_api']} {b['version']} {b['architecture']}" for b in machine["blas"]
    )
    print(f"{machine['platform']}, {cores} cores, {ops.name} backend, {blas}\n")
    results = {"machine": machine}
    for part in parts:
        if part == "fc":
            results[part], text = dense.report(ops, counts, args.quick)
        elif part == "glow":
            results[part], text = glow.report(ops, counts, args.quick)
        elif part == "conv":
            results[part], text = convolutional.report(ops, counts, args.quick)
        else:
            results[part], text = dense.report_sweep(ops, counts, args.quick, args.plot)
        print(text + "\n", flush=True)
    if args.json:
        try:
            args.json.write_text(json.dumps(results, indent=2) + "\n")
        except OSError as error:
            raise UsageError(f"cannot write {args.json} ({error.strerror})") from None


if __name__ == "__main__":
    run_script(main)
