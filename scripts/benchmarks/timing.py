"""Timing calls alternately, so that they share the machine's noise."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

Call = Callable[[], object]
# Calls in a burst.
_SHORTEST = 5
_LONGEST = 200


class Timing(NamedTuple):
    """Milliseconds per call; host: the median time until a burst's calls have returned."""

    minimum: float
    median: float
    host: float | None = None


def measure(calls: dict[str, Call], repeats: int, warmup: int = 3) -> dict[str, Timing]:
    """Time every call `repeats` times, in short alternating bursts, after a warm-up.

    A burst keeps each call's own caches warm; alternating lets a slow spell of the machine hit
    all calls alike.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    burst = max(1, min(10, repeats // 5))
    for call in calls.values():
        for _ in range(warmup):
            call()
    while min(map(len, times.values())) < repeats:
        for name, call in calls.items():
            call()  # the first after another call finds foreign caches
            for _ in range(burst):
                start = time.perf_counter()
                call()
                times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: Timing(min(each), statistics.median(each)) for name, each in times.items()
    }


def measure_asynchronous(
    calls: dict[str, Call],
    synchronise: Call,
    bursts: int,
    seconds: float,
    warmup: int = 5,
) -> dict[str, Timing]:
    """Time calls that return before the device is done, in `bursts` alternating bursts each.

    A burst of about so many seconds is timed as a whole, from an idle device to an idle device, so
    that the host queues calls as it does in training.
    """

    def burst(call: Call, length: int) -> tuple[float, float]:
        synchronise()
        start = time.perf_counter()
        for _ in range(length):
            call()
        host = time.perf_counter() - start
        synchronise()
        return 1e3 * (time.perf_counter() - start) / length, 1e3 * host / length

    lengths = {}
    times = {name: [] for name in calls}
    for name, call in calls.items():
        for _ in range(warmup):
            call()
        once, _ = burst(call, _SHORTEST)
        lengths[name] = max(_SHORTEST, min(_LONGEST, round(1e3 * seconds / once)))
    for _ in range(bursts):
        for name, call in calls.items():
            call()  # as in `measure`
            times[name].append(burst(call, lengths[name]))
    timings = {}
    for name, bursts_of_call in times.items():
        whole, host = zip(*bursts_of_call, strict=True)
        timings[name] = Timing(
            min(whole), statistics.median(whole), statistics.median(host)
        )
    return timings


def parallel_copy() -> Callable:
    """copy(source, target) of arrays (N,), on as many threads as Numba has."""
    import numba

    @numba.njit(parallel=True)
    def copy(source, target):
        for i in numba.prange(len(source)):
            target[i] = source[i]

    return copy


def table(rows: list[dict]) -> str:
    """Rows as aligned text, with the columns of the first one."""
    names = list(rows[0])
    texts = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    columns = [[len(cell) for cell in column] for column in zip(*texts, strict=True)]
    formats = "  ".join(
        f"{{:{'>' * bool(i)}{max(lengths)}}}" for i, lengths in enumerate(columns)
    )
    return "\n".join(formats.format(*cells) for cells in texts)


def _cell(value) -> str:
    """A word or a whole number unchanged, other numbers by `digits`."""
    if value is None:
        return "-"
    return digits(value) if isinstance(value, float) else str(value)


def digits(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
