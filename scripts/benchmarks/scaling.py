"""The gain of a second core, as threads of one process and as processes, in one run.

Run by itself under mpiexec, this file is one of the processes (`_rank`).
"""

import json
import os
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import snfnp  # noqa: F401 (before NumPy: it settles the threads of BLAS)
from benchmarks.steps import BATCH, make_trainer, random_images, step_call
from benchmarks.timing import measure, table, threads
from snfnp.errors import UsageError
from snfnp.ops import get_ops, world
from snfnp.processes.launching import find_mpiexec
from snfnp.threads import cores
from snfnp.training.batches import Repeated

_SNF = "self-normalizing"
MODELS = (("fc", _SNF), ("conv", _SNF), ("emerging", "exact"), ("conv-exponential", "exact"))
MODELS += (("glow-2l-4k", _SNF), ("glow", _SNF))


def report(ops, processes: int, quick: bool) -> tuple[dict, str]:
    """All models; processes: how many share a batch, one core each."""
    rows = scaling(ops, processes, 3 if quick else 5, MODELS[:4] if quick else MODELS)
    text = f"training steps of {BATCH} images on several cores\n{table(rows)}"
    return {"scaling": rows}, text


def scaling(ops, processes: int, rounds: int, models) -> list[dict]:
    """Milliseconds of a step on one core, on all cores of a process, and of processes of one core
    each that share the batch; ratios to the first. The rounds of all three take turns."""
    count, rows = len(cores()), []
    for model, gradient in models:
        step = step_call(ops, model, gradient)
        repeats = 3 if model == "glow" else 5 * rounds  # of two seconds each
        times: dict[str, list[float]] = {"one": [], "threads": [], "processes": [], "sums": []}
        for _ in range(rounds):
            for name, number in (("one", 1), ("threads", count)):
                with threads(number):
                    times[name].append(measure({"step": step}, repeats)["step"].median)
            found = _processes(processes, model, gradient, repeats)
            times["processes"].append(found["step"])
            times["sums"].append(found["sum"])
        one, of_threads, of_processes, sums = map(statistics.median, times.values())
        row = {"model": model, "1 core ms": one}
        row |= {f"{count} threads ms": of_threads, "gain": one / of_threads}
        row |= {f"{processes} processes ms": of_processes, "their gain": one / of_processes}
        rows.append(row | {"sum ms": sums, "sum / step": sums / of_processes})
    return rows


def _processes(processes: int, model: str, gradient: str, repeats: int) -> dict:
    """Milliseconds of a step, and of its sums, of so many processes."""
    own = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "NUMBA")}
    own["PYTHONPATH"] = os.pathsep.join(str(Path(__file__).parents[up]) for up in (1, 2))
    command = [find_mpiexec("scaling"), "-n", str(processes), sys.executable, __file__]
    command += [model, gradient, str(repeats)]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing printed"])[-1]
        raise UsageError(f"processes of mpiexec failed ({last}): measure something else")
    return json.loads(done.stdout)


def _rank(model: str, gradient: str, repeats: str) -> None:
    """One of the processes; rank 0 prints what it measured."""
    together = world()
    ops = get_ops("numba", world=together)
    trainer = make_trainer(ops, model, gradient, world=together)
    images = random_images(ops, trainer)[: BATCH // together.size]
    calls = {
        "step": partial(trainer.training_step, Repeated(images)),
        "sum": partial(together.all_reduce, trainer.gradient, ops.xp.zeros(3)),
    }
    # each by itself: in a step, a rank also waits for one that is later than itself
    found = {name: measure({name: calls[name]}, int(repeats))[name].median for name in calls}
    if together.rank == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    _rank(*sys.argv[1:])
