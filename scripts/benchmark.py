"""Measure the speed of training steps: medians, minima, floors, and ratios within one run."""

from functools import partial
from pathlib import Path

from snfnp.cli import run_script
from snfnp.errors import UsageError

CPU_PARTS = ("fc", "conv", "glow")
GPU_PARTS = ("device", "launches")
_PARTS = f"""what to measure: {", ".join(CPU_PARTS)} (default: all) or, with --backend cupy,
{", ".join(GPU_PARTS)} (default: both).
fc: the step of the fully connected model and its floor (its products alone, and Adam's bytes at the
rate of a copy); conv: the 9-layer convolutional models and their floors (products, splines and
copied bytes, each alone); glow: 2L-16K; device: the steps of three models on a GPU, eager and as
CUDA graphs, and the limits of its hardware; launches: each kernel and product of a step alone, with
its blocks and bytes"""


def main(argv):
    # Slow imports, here because `run_script` already watches for Ctrl-C.
    from benchmarks import device, launches, models
    from benchmarks.timing import table

    from snfnp.cli.shared import Parser, check_file
    from snfnp.files import write_json
    from snfnp.ops import BACKENDS, get_ops
    from snfnp.training.runs.load import environment

    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=_PARTS)
    add(
        "--backend",
        choices=BACKENDS,
        default="numba",
        help="the backend (default: numba)",
    )
    add("--quick", action="store_true", help="fewer repeats")
    add("--json", type=Path, metavar="PATH", help="write every figure to this file")
    args = parser.parse_args(argv)
    known = GPU_PARTS if args.backend == "cupy" else CPU_PARTS
    for part in sorted(set(args.parts) - set(known)):
        raise UsageError(
            f"no benchmark of {args.backend} is called {part}: "
            f"choose from {', '.join(known)}, or another --backend"
        )
    if args.json:
        check_file(args.json, "json")
    ops_of = partial(get_ops, args.backend)
    results = {"machine": environment(ops_of())}
    print(*(f"{name}: {value}" for name, value in results["machine"].items()), sep="\n")
    show = partial(print, flush=True)

    def save(part: str, figures) -> None:
        """Write all figures so far: the next part may fail or be stopped."""
        results[part] = figures
        if args.json:
            write_json(args.json, results)

    plan = device.QUICK if args.quick else device.Plan()
    for part in args.parts or known:
        show()
        if part in GPU_PARTS:  # shown, and written, case by case
            module = {"device": device, "launches": launches}[part]
            module.report(ops_of, plan, show, partial(save, part))
        else:
            rows = models.steps(models.PARTS[part], ops_of(), args.quick)
            show(table(rows))
            save(part, rows)


if __name__ == "__main__":
    run_script(main)
