"""The plugin `support.requirements_plugin`, in sessions of its own: skips, failures, reports."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from support import requirements_plugin

pytest_plugins = ["pytester"]

CONFTEST = """
from support.requirements_plugin import NEEDS, Requirements

def pytest_configure(config):
    Requirements.register_markers(config)
    missing = dict.fromkeys(NEEDS, lambda: None) | {"nvrtc": lambda: "no compiler here"}
    config.pluginmanager.register(Requirements(missing))
"""
TESTS = """
import pytest

@pytest.mark.nvrtc
def test_compile():
    raise AssertionError("it ran without what it needs")

@pytest.mark.hostcuda
def test_run():
    pass

def test_plain():
    pass
"""


@pytest.fixture
def session(pytester, monkeypatch):
    """session(require=names, tests=text, *arguments) runs pytest on tests and this plugin."""
    folder = str(Path(requirements_plugin.__file__).parents[1])
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", folder)
    pytester.makeconftest(CONFTEST)

    def run(require="", tests=TESTS, *arguments, start=pytester.runpytest):
        monkeypatch.setenv(requirements_plugin.VARIABLE, require)
        pytester.makepyfile(tests)
        others = ("no:cacheprovider", "no:hypothesispytest")  # importing the latter takes a while
        return start("-rs", "--strict-markers", *(f"-p{each}" for each in others), *arguments)

    return run


def test_what_is_missing_skips_with_the_reason(session):
    result = session()
    result.assert_outcomes(passed=2, skipped=1)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*needs nvrtc: no compiler here*"])


def test_the_summary_counts_what_passed(session):
    session().stdout.fnmatch_lines(["*nvrtc 0, hostcuda 1, device 0, real_gpu 0, mpi 0, docs 0"])


def test_workers_count_together(session, pytester):
    """Each runs its share of the tests, and one alone may have met a requirement."""
    arguments, start = ("-n", "2"), pytester.runpytest_subprocess
    result = session("hostcuda", TESTS, *arguments, start=start)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*nvrtc 0, hostcuda 1, device 0, real_gpu 0, mpi 0, docs 0"])
    result = session("nvrtc", TESTS, *arguments, start=start)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*SNFNP_REQUIRE names nvrtc, but: *no compiler here*"])


def test_a_required_skip_is_a_failure(session):
    result = session("nvrtc")
    result.assert_outcomes(passed=2, errors=1)  # so pytest calls what fails before the test
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["*SNFNP_REQUIRE names nvrtc, but: *no compiler here*", "*no test that needs it passed*"]
    )


def test_requiring_what_is_there_changes_nothing(session):
    result = session("hostcuda")
    result.assert_outcomes(passed=2, skipped=1)
    assert result.ret == pytest.ExitCode.OK


def test_a_test_may_lack_what_is_not_required(session):
    both = "import pytest\n@pytest.mark.hostcuda\n@pytest.mark.nvrtc\ndef test_both(): pass"
    session("hostcuda", f"{TESTS}\n{both}").assert_outcomes(passed=2, skipped=2)


@pytest.mark.parametrize(
    "skip",
    [
        "def test_skip(): pytest.skip('in its body')",
        "@pytest.mark.skip(reason='by a mark')\ndef test_skip(): pass",
        "@pytest.fixture\ndef f(): pytest.skip('in a fixture')\ndef test_skip(f): pass",
    ],
    ids=["body", "mark", "fixture"],
)
def test_every_way_to_skip_counts(session, skip):
    test = f"import pytest\npytestmark = pytest.mark.hostcuda\n{skip}"
    session().assert_outcomes(passed=2, skipped=1)
    outcomes = session("hostcuda", test).parseoutcomes()
    assert outcomes.get("failed", 0) + outcomes.get("errors", 0) == 1
    assert "skipped" not in outcomes


def test_an_expected_failure_is_no_skip(session):
    test = "import pytest\n@pytest.mark.hostcuda\n@pytest.mark.xfail\ndef test_x(): assert False"
    session("hostcuda", TESTS + test).assert_outcomes(passed=2, skipped=1, xfailed=1)


@pytest.mark.parametrize(
    "tests, arguments",
    [
        (TESTS, ("-k", "plain")),
        ("def test_plain(): pass", ()),
        ("import pytest\npytest.skip('the whole module', allow_module_level=True)", ()),
    ],
    ids=["deselected", "none there", "module skipped"],
)
def test_a_requirement_that_nothing_meets_fails_the_session(session, tests, arguments):
    result = session("device", tests, *arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["SNFNP_REQUIRE names device, but no test that needs it passed"])


def test_collecting_only_requires_nothing(session):
    assert session("device", TESTS, "--collect-only").ret == pytest.ExitCode.OK


def test_an_unknown_name_is_a_usage_error(session):
    result = session("nvrtc,gpu")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*SNFNP_REQUIRE names gpu, which is none of nvrtc, hostcuda*"])


@pytest.mark.parametrize(
    "arguments, cores, device, processes",
    [
        (["tests", "derivations"], 2, "", 2),
        (["tests", "derivations"], 64, "", 8),
        (["tests", "derivations"], 1, "", 0),
        (["tests", "derivations"], 2, "standin", 0),
        (["tests/test_a.py", "tests/test_b.py::test_c"], 2, "", 0),
        (["tests/test_a.py", "tests/test_b.py", "tests/test_c.py"], 2, "", 2),
        (["tests/gpu", "tests/test_c.py"], 2, "", 2),
    ],
)
def test_how_many_processes(request, monkeypatch, arguments, cores, device, processes):
    """None, 0, means this one alone."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setenv("SNFNP_DEVICE", device)
    config = SimpleNamespace(args=arguments)
    assert request.config.hook.pytest_xdist_auto_num_workers(config=config) == processes


def test_every_marker_has_a_probe(request):
    """Each is registered with this very session, which would otherwise skip nothing."""
    registered = [line.partition(":")[0] for line in request.config.getini("markers")]
    assert set(requirements_plugin.NEEDS) <= set(registered)
