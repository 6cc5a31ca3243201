"""Measure the speed of training steps: medians, minima, floors, and ratios within one run."""

import platform
from functools import partial
from pathlib import Path

import snfnp
from snfnp import threads
from snfnp.cli import run_script
from snfnp.errors import UsageError

CPU_PARTS = ("fc", "conv", "glow")
GPU_PARTS = ("device", "launches")
_PARTS = f"""what to measure: {", ".join(CPU_PARTS)} (default: all) or, with --backend cupy,
{", ".join(GPU_PARTS)} (default: both).
fc: the step of the fully connected model and its floor (its products alone, and Adam's bytes at the
rate of a copy); conv: the 9-layer convolutional models; glow: 2L-16K; device: the steps of three
models on a GPU, eager and as CUDA graphs, and the limits of its hardware; launches: each kernel and
product of a step alone, with its blocks and bytes"""


def main(argv):
    # Slow imports, here because `run_script` already watches for Ctrl-C.
    from benchmarks import device, launches, models

    from snfnp.cli.shared import Parser, check_file
    from snfnp.files import write_json
    from snfnp.ops import BACKENDS, get_ops

    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=_PARTS)
    add(
        "--backend",
        choices=BACKENDS,
        default="numba",
        help="the backend (default: numba)",
    )
    add("--quick", action="store_true", help="fewer repeats and sizes")
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
    cores = len(threads.cores())
    quick = args.quick
    ops = get_ops(args.backend)
    counts = sorted({1, min(2, cores)})
    machine = {
        "snfnp": snfnp.__version__,
        "platform": platform.platform(),
        "cores": cores,
        "backend": ops.name,
        "device": ops.device.describe(),
        **threads.describe(),
    }
    print(
        f"{machine['platform']}, {cores} cores, {ops.name} backend, {_where(machine)}\n"
    )
    results = {"machine": machine}
    show = partial(print, flush=True)

    def save(part: str, figures) -> None:
        """Write all figures so far: the next part may fail or be stopped."""
        results[part] = figures
        if args.json:
            write_json(args.json, results)

    for part in args.parts or known:
        if part == "device":  # shown, and written, model by model
            plan = device.QUICK if quick else device.Plan()
            device.report(partial(get_ops, "cupy"), plan, show, partial(save, part))
        elif part == "launches":
            repeats = 20 if quick else 100
            launches.report(
                partial(get_ops, "cupy"), show, partial(save, part), repeats=repeats
            )
        else:
            figures, text = models.PARTS[part](ops, counts, quick)
            show(text + "\n")
            save(part, figures)


def _where(machine: dict) -> str:
    """The hardware in words: the GPU and its libraries, or the CPU's BLAS."""
    if gpu := machine["device"]:
        text = "{name}, driver for CUDA {cuda_driver}, CUDA {cuda_runtime}, CuPy {cupy}"
        return text.format(**gpu)
    keys = ("internal_api", "version", "architecture")
    return ", ".join(
        " ".join(str(blas[key]) for key in keys) for blas in machine["blas"]
    )


if __name__ == "__main__":
    run_script(main)
