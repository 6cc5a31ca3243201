"""The gain of a second core, as threads of one process and as processes, in one run.

Run by itself under mpiexec, this file is one of the processes (`_rank`).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import snfnp  # noqa: F401 (before NumPy: it settles the threads of BLAS)
from benchmarks.steps import BATCH, make_trainer, random_images, step_call
from benchmarks.timing import measure, table, threads
from snfnp.errors import UsageError
from snfnp.ops import get_ops, world
from snfnp.processes import find_mpiexec
from snfnp.threads import cores

MODELS = (
    ("fc", "self-normalizing"),
    ("conv", "self-normalizing"),
    ("emerging", "exact"),
    ("conv-exponential", "exact"),
    ("glow-2l-4k", "self-normalizing"),
    ("glow", "self-normalizing"),
)
_SLOW = ("glow",)  # two seconds a step: fewer of them


def scaling(ops, processes: int, rounds: int, models=MODELS) -> list[dict]:
    """Milliseconds of a step on one core, on all cores of a process, and of processes of one core
    each that share the batch; ratios to the first. The rounds of all three take turns."""
    count, rows = len(cores()), []
    for model, gradient in models:
        step = step_call(ops, model, gradient)
        repeats = 3 if model in _SLOW else 25
        times: dict[str, list[float]] = {"one": [], "threads": [], "processes": [], "sums": []}
        for _ in range(rounds):
            for name, number in (("one", 1), ("threads", count)):
                with threads(number):
                    times[name].append(measure({"step": step}, repeats)["step"].median)
            found = _processes(processes, model, gradient, repeats)
            times["processes"].append(found["step"])
            times["sums"].append(found["sum"])
        one, of_threads, of_processes, sums = map(statistics.median, times.values())
        rows.append(
            {
                "model": model,
                "1 core ms": one,
                f"{count} threads ms": of_threads,
                "gain": one / of_threads,
                f"{processes} processes ms": of_processes,
                "their gain": one / of_processes,
                "sum ms": sums,
                "sum / step": sums / of_processes,
            }
        )
    return rows


def _processes(processes: int, model: str, gradient: str, repeats: int) -> dict:
    """Milliseconds of a step, and of its sums, of so many processes."""
    one = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "NUMBA")}
    here = Path(__file__)
    path = os.pathsep.join([str(here.parents[1]), str(here.parents[2])])
    command = (sys.executable, here, model, gradient, str(repeats))
    done = subprocess.run(
        [find_mpiexec("scaling"), "-n", str(processes), *command],
        env=os.environ | one | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
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
    figures = ops.xp.zeros(3)

    def step() -> None:
        trainer.training_step(images)

    def sums() -> None:
        together.all_reduce(trainer.gradient, figures)

    # each by itself: in a step, a rank also waits for one that is later than itself
    found = {
        name: measure({name: call}, int(repeats))[name].median
        for name, call in (("step", step), ("sum", sums))
    }
    if together.rank == 0:
        print(json.dumps(found))


def report(ops, processes: int, quick: bool) -> tuple[dict, str]:
    """All models; processes: how many share a batch, one core each."""
    models = MODELS[:4] if quick else MODELS
    rows = scaling(ops, processes, 3 if quick else 5, models)
    text = f"training steps of {BATCH} images on several cores\n{table(rows)}"
    return {"scaling": rows}, text


if __name__ == "__main__":
    _rank(*sys.argv[1:])
