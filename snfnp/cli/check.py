"""Check every layer, rule and map against finite differences, and print the errors."""

import time

import numpy as np

from snfnp.cli.shared import Parser
from snfnp.errors import SnfnpError, UsageError, suggestion
from snfnp.gradcheck.catalogue import catalogue
from snfnp.gradcheck.differences import GradientError, tolerance
from snfnp.ops import BACKENDS, get_ops


def main(argv: list[str], prog: str | None = None) -> None:
    """The command: `--backend`, `--layer`, `--dtype`. Raises SnfnpError if a check fails."""
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument(
        "--backend", choices=BACKENDS, default="numba", help="default: numba"
    )
    parser.add_argument(
        "--layer",
        metavar="NAME",
        default="",
        help="only layers, rules and maps whose names contain NAME (default: all)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float64", "float32"),
        default="float64",
        help="precision of the gradients; differences are in float64 (default: float64)",
    )
    args = parser.parse_args(argv)
    part = args.layer.lower()
    checks = [check for check in catalogue() if part in check.name.lower()]
    if not checks:
        names = [check.name for check in catalogue()]
        words = sorted({name.partition(",")[0] for name in names})
        raise UsageError(
            f"no layer, rule or map has {args.layer!r} in its name{suggestion(args.layer, names)}: "
            f"choose a part of one of these: {'; '.join(words)}"
        )
    ops = get_ops(args.backend)
    dtype = np.dtype(args.dtype).type
    print(
        f"{ops.name} backend, {args.dtype}: a relative error of {tolerance(dtype):.0e} is allowed"
    )
    width = max(len(check.name) for check in checks)
    print(f"{'':<7}{'':<{width}}{'worst error':>13}{'control':>10}{'seconds':>9}")
    failed = []
    for check in checks:
        start = time.perf_counter()
        try:
            report = check.run(ops=ops, dtype=dtype)
        except GradientError as error:
            failed.append(check.name)
            print(f"{check.kind:<7}{check.name:<{width}} FAILED: {error}")
            continue
        worst = max(report.errors.values())
        seconds = time.perf_counter() - start
        control = np.nanmin(list(report.controls.values()))
        print(
            f"{check.kind:<7}{check.name:<{width}}{worst:>13.1e}{control:>10.1e}{seconds:>9.2f}",
            flush=True,
        )
    if failed:
        raise SnfnpError(
            f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}"
        )
    print(
        f"{len(checks)} checks passed; control: the smallest error of a gradient that is wrong by "
        "1%, which each check must catch"
    )
