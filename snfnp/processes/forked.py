"""Values that a process of its own computes: a fork, which reads everything where it is.

See derivations/26-many-cores.md.
"""

import multiprocessing
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from snfnp import threads
from snfnp.errors import SnfnpError


def is_useful() -> bool:
    """Say whether there are cores for several processes, and a fork is safe, which it is not on
    macOS, and allowed, which it is not in a worker of a pool."""
    daemon = multiprocessing.current_process().daemon
    return sys.platform == "linux" and not daemon and threads.most() > 1


@contextmanager
def forked(values: Iterable[Any]) -> Iterator[Iterator[Any]]:
    """A context in which a forked process computes values with one thread, at once and in order,
    some of them ahead of what is read. Its end ends the process.

    Args:
        values: a generator that has not begun; its values can be pickled, and none is None. What it
            raises is raised when its next value is read.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_send_all, args=(values, receiver, sender), daemon=True
    )
    # Python 3.12 advises against forks beside threads
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        process.start()
    sender.close()
    try:
        yield _received(receiver)
    finally:
        process.kill()
        process.join()
        receiver.close()


def _send_all(values: Iterable[Any], receiver: Connection, sender: Connection) -> None:
    """The work of the process. Without the parent nothing can be sent, and it ends."""
    receiver.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    threads.limit(1)
    try:
        for value in values:
            sender.send(value)
        sender.send(None)
    except BrokenPipeError:
        return
    except Exception as error:
        sender.send(error)


def _received(receiver: Connection) -> Iterator[Any]:
    while True:
        try:
            value = receiver.recv()
        except EOFError:
            raise SnfnpError(
                "a process of this one was ended, perhaps for want of memory: set "
                "NUMBA_NUM_THREADS=1 and OPENBLAS_NUM_THREADS=1 for a single one"
            ) from None
        if value is None:
            return
        if isinstance(value, Exception):
            raise value
        yield value
