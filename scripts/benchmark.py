"""Measure the speed of training steps: medians, minima, and ratios within one run."""

import platform
from functools import partial
from pathlib import Path

import snfnp
from snfnp import threads
from snfnp.cli import run_script
from snfnp.errors import UsageError

CPU_PARTS = ("fc", "conv", "glow", "scaling")
# What is timed beside our steps on a GPU: ways to run PyTorch's. Compiling those takes minutes.
GPU_PARTS = {"device": (), "pytorch": ("eager", "recorded"), "compiled": ("compiled",)}
_PARTS = f"""what to measure: {", ".join(CPU_PARTS)} (default: all) or, with --backend cupy,
{" or ".join(GPU_PARTS)} (default: all in this order).
fc: the training step of the fully connected model; conv: the 9-layer convolutional models; glow:
2L-16K, and the memory of 3L-32K; scaling: what all cores gain, as threads and as processes of MPI;
device: those of three models on a GPU, eager and as CUDA graphs, beside what its hardware allows;
pytorch: in turn with the same steps in PyTorch, eager and recorded, if that is installed; compiled:
with those that its compiler made"""


def main(argv):
    # Here, where `run_script` already watches for Ctrl-C: these imports take their time.
    from benchmarks import device, models, scaling

    from snfnp.cli.shared import Parser, check_file
    from snfnp.ops import BACKENDS, get_ops
    from snfnp.training.files import write_json

    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=_PARTS)
    add("--backend", choices=BACKENDS, default="numba", help="what computes (default: numba)")
    add("--quick", action="store_true", help="fewer repeats and sizes")
    add("--json", type=Path, help="write every figure to this file")
    args = parser.parse_args(argv)
    cores, on_gpu = len(threads.cores()), args.backend == "cupy"
    parts = _parts(args.parts, on_gpu)
    if args.json:
        check_file(args.json, "json")
    counts, quick = sorted({1, min(2, cores)}), args.quick

    ops = get_ops(args.backend)
    machine = {
        "snfnp": snfnp.__version__,
        "platform": platform.platform(),
        "cores": cores,
        "backend": ops.name,
        "device": ops.device.describe(),
        **threads.describe(),
    }
    print(f"{machine['platform']}, {cores} cores, {ops.name} backend, {_where(machine)}\n")
    results, show = {"machine": machine}, partial(print, flush=True)

    def save(part: str, figures) -> None:
        """Write all figures so far: the next part may be stopped, or fail."""
        results[part] = figures
        if args.json:
            write_json(args.json, results)

    for part in parts:
        if part in GPU_PARTS:  # shown, and written, model by model
            plan = device.QUICK if quick else device.Plan()
            ways = GPU_PARTS[part]
            rivals = _pytorch(show, ways) if ways else {}
            if rivals or not ways:
                own = (partial(get_ops, "cupy"), plan, show, partial(save, part))
                device.report(*own, rivals)
            continue
        if part == "scaling":
            figures, text = scaling.report(ops, max(2, cores), quick)
        else:
            figures, text = models.PARTS[part](ops, counts, quick)
        show(text + "\n")
        save(part, figures)


def _parts(given: list[str], on_gpu: bool) -> list[str]:
    known = tuple(GPU_PARTS) if on_gpu else CPU_PARTS
    for part in sorted(set(given) - set(known)):
        if part in (*CPU_PARTS, *GPU_PARTS):
            where = "a CPU: leave --backend cupy out" if on_gpu else "a GPU: add --backend cupy"
            raise UsageError(f"{part} measures {where}, or choose from {', '.join(known)}")
        raise UsageError(f"no benchmark is called {part}: choose from {', '.join(known)}")
    return given or list(known)


def _where(machine: dict) -> str:
    """The hardware in words: the GPU and its libraries, or the CPU's BLAS."""
    if gpu := machine["device"]:
        text = "{name} (compute capability {compute_capability}), driver for CUDA {cuda_driver}, "
        return (text + "CUDA {cuda_runtime}, CuPy {cupy}").format(**gpu)
    keys = ("internal_api", "version", "architecture")
    return ", ".join(" ".join(str(blas[key]) for key in keys) for blas in machine["blas"])


def _pytorch(show, ways):
    """PyTorch's training steps, by the ways to run them; none, and a line, if it cannot.

    This is the only place that imports it: the package never does.
    """
    try:
        import torch
    except ImportError:
        show("no comparison: PyTorch is not installed\n")
        return {}
    if not torch.cuda.is_available():
        show(f"no comparison: PyTorch {torch.__version__} finds no GPU\n")
        return {}
    from torch_steps import Step

    show(f"comparison: PyTorch {torch.__version__}, CUDA {torch.version.cuda}\n")
    return {f"PyTorch, {how}": partial(Step, how=how) for how in ways}


if __name__ == "__main__":
    run_script(main)
