"""A plugin for pytest: markers that say what a test needs, and SNFNP_REQUIRE, which forbids skips.

A test marked with one of `NEEDS` is skipped, with one line that says why, where what it needs is
missing. SNFNP_REQUIRE=nvrtc,hostcuda names what must not be missing: a skip of a test with such a
marker is then a failure, and so is a session in which no such test passed. The summary counts the
tests of each marker that passed.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

NEEDS = {
    "nvrtc": "NVIDIA's run-time compiler (pip install 'nvidia-cuda-nvrtc==13.0.*')",
    "hostcuda": "g++, which compiles the kernels for the CPU",
    "device": "a GPU, or the stand-in for one (SNFNP_DEVICE)",
    "real_gpu": "a GPU",
    "mpi": "mpiexec and mpi4py (pip install '.[mpi]')",
    "docs": "what builds the site (pip install '.[docs]')",
}
VARIABLE = "SNFNP_REQUIRE"
_LACKS = pytest.StashKey[str]()  # what a test was skipped for


class Requirements:
    """The plugin. missing: for each marker a function that says why it cannot be met, or None."""

    def __init__(self, missing: dict[str, Callable[[], str | None]]):
        self._missing = missing
        self._required = {name for name in os.environ.get(VARIABLE, "").split(",") if name}
        self._passed = dict.fromkeys(NEEDS, 0)
        unknown = ", ".join(sorted(self._required - NEEDS.keys()))
        if unknown:
            raise pytest.UsageError(
                f"{VARIABLE} names {unknown}, which is none of {', '.join(NEEDS)}"
            )

    @staticmethod
    def register_markers(config) -> None:
        for name, what in NEEDS.items():
            config.addinivalue_line("markers", f"{name}: the test needs {what}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item):
        for name in _needs(item):
            why = self._missing[name]()
            if why:
                item.stash[_LACKS] = name
                pytest.skip(f"needs {name}: {why}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        needs = _needs(item)
        lacks = item.stash.get(_LACKS, None)
        required = [name for name in ([lacks] if lacks else needs) if name in self._required]
        if required and report.skipped and not hasattr(report, "wasxfail"):
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            report.outcome = "failed"
            report.longrepr = f"{VARIABLE} names {', '.join(required)}, but: {why}"
        report.needs = needs  # pytest-xdist hands a worker's reports on with what they hold
        return report

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            for name in report.needs:
                self._passed[name] += 1

    @property
    def _unmet(self) -> list[str]:
        return sorted(name for name in self._required if not self._passed[name])

    def pytest_sessionfinish(self, session, exitstatus):
        if hasattr(session.config, "workerinput"):
            return  # a worker of pytest-xdist, which has seen its share of the tests
        fine = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        if fine and self._unmet and not session.config.option.collectonly:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter, config):
        if config.option.collectonly:
            return
        counts = ", ".join(f"{name} {count}" for name, count in self._passed.items())
        terminalreporter.write_line(f"passed, by what they need: {counts}")
        for name in self._unmet:
            terminalreporter.write_line(
                f"{VARIABLE} names {name}, but no test that needs it passed", red=True
            )


def _needs(item) -> list[str]:
    return [name for name in NEEDS if item.get_closest_marker(name)]
