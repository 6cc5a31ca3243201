"""Timing calls alternately, so that they share the machine's noise."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

Call = Callable[[], object]
_LONGEST = 200  # calls in a burst


class Timing(NamedTuple):
    """Milliseconds per call; host: the median time until a burst's calls have returned."""

    minimum: float
    median: float
    host: float


def measure(
    calls: dict[str, Call],
    bursts: int,
    seconds: float = 0.0,
    synchronise: Call = lambda: None,
    warmup: int = 3,
) -> dict[str, Timing]:
    """Time every call in `bursts` bursts of about so many seconds, of one call at the least.

    A burst is timed as a whole, from an idle device to an idle one, so that the host queues calls
    as it does in training. Bursts alternate, so that a slow spell of the machine hits all calls
    alike. synchronise: waits for the device, if calls return before it is done.
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
        once, _ = burst(call, 1)
        lengths[name] = max(1, min(_LONGEST, round(1e3 * seconds / once)))
    for _ in range(bursts):
        for name, call in calls.items():
            call()  # the first after another call finds foreign caches
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
