"""What `reproduce.py` says while it trains, and what it knows of how a run was made."""

import subprocess
from types import SimpleNamespace

import pytest
from reproduction import progress as module
from reproduction import provenance
from reproduction.progress import Progress
from reproduction.rows import Row
from reproduction.runs import Run

IDLE = SimpleNamespace(settle=lambda: None)  # a clock with nothing to wait for


def make_run(folder, name, **options):
    return Run(Row(name, (name,), options, 1.0, 1, 1), 0, 1, folder / name)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that only the test lets pass."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_the_time_that_is_left_is_in_proportion_to_the_work(tmp_path, clock, capsys):
    """Ten steps of fc in 20 seconds: the ten exact ones that are left take 4.5 times as long."""
    snf = make_run(tmp_path, "snf", model="fc")
    exact = make_run(tmp_path, "exact", model="fc", gradient="exact")
    progress = Progress([snf, exact], {snf: 10, exact: 10})
    progress.start(snf)
    line = progress.line(snf)(None, SimpleNamespace(step=0), IDLE, 10)
    with line:
        for _ in range(10):
            clock.seconds += 0.2
            line.advance()
    clock.seconds += 18  # an evaluation counts as well
    progress.finish(snf)
    progress.start(exact)
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "snf, to epoch 1; runs left: 2",
        "exact, to epoch 1; runs left: 1; time left: about 01:30",
    ]


def test_smaller_stand_ins_are_quicker_than_what_they_stand_for(tmp_path, clock):
    def cost(**options):
        return module._cost(make_run(tmp_path, "run", **options))

    whole, deeper = cost(model="glow-3l-32k"), cost(model="glow-3l-48k")
    assert whole < deeper
    assert cost(model="glow-3l-32k", depth=4, width=64) == whole / 8 / 64
    assert cost(model="glow-3l-32k", depth=4) == whole / 8


def test_what_was_done_before_is_neither_left_nor_fast(tmp_path, clock, capsys):
    run = make_run(tmp_path, "run", model="fc")
    other = make_run(tmp_path, "other", model="fc")
    progress = Progress([run, other], {run: 100, other: 10})
    line = progress.line(run)(None, SimpleNamespace(step=90), IDLE, 100)
    for _ in range(5):
        clock.seconds += 0.2
        line.advance()
    clock.seconds += 4
    progress.finish(run)  # it diverged
    progress.start(other)
    progress.close()
    assert "time left: about 00:10" in capsys.readouterr().err


def test_a_look_at_the_figures_waits_for_the_steps(tmp_path, clock):
    """So that a step that failed stops a run at once, and not at the end of its epoch."""
    run = make_run(tmp_path, "run", model="fc")
    settled = []
    line = Progress([run], {run: 9}).line(run)(
        None, SimpleNamespace(step=1), SimpleNamespace(settle=lambda: settled.append(1)), 9
    )
    for _ in range(4):
        clock.seconds += 0.1
        line.advance()
        if line.due():
            line.show()
    assert settled == [1]


def test_a_commit_is_marked_where_files_differ_from_it(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=b", "-C", tmp_path, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    assert provenance.commit() == "not known"
    (tmp_path / "file").write_text("1")
    git("init", "-q")
    git("add", "file")
    git("commit", "-qm", "one")
    assert provenance.commit() == git("rev-parse", "HEAD")[:12]
    (tmp_path / "file").write_text("2")
    assert provenance.commit().endswith(" with changes")


def test_a_run_that_was_gone_on_with_has_both_commits(tmp_path, monkeypatch):
    for commit in ("first", "first", "second"):
        monkeypatch.setattr(
            provenance, "here", lambda own=commit: {"commit": own, "processor": "p"}
        )
        provenance.note(tmp_path / "run")
    record = {"platform": "Linux", "backend": "numpy", "device": {}, "versions": {}}
    numbers = (("openblas", 1), ("openblas", 2), ("openmp", 4))
    pools = [{"internal_api": library, "num_threads": number} for library, number in numbers]
    record["threads"] = {"blas": pools}
    monkeypatch.setattr(provenance.RunFolder, "open", lambda folder: (None, record))
    found = provenance.of_run(tmp_path / "run")
    assert (found["commit"], found["processor"], found["threads"]) == ("first, second", "p", 2)
