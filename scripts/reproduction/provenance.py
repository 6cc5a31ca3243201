"""The commit, the hardware and the versions that a run was made with."""

import platform
import re
import subprocess
from pathlib import Path

from snfnp import files
from snfnp.training.runs.folder import RunFolder
from snfnp.training.runs.load import environment

_ROOT = Path(__file__).resolve().parents[2]
_UNKNOWN = {"commit": "not known", "processor": "not known"}


def commit() -> str:
    """The checkout's commit, marked if tracked files differ from it."""
    git = [
        "git",
        "-C",
        str(_ROOT),
        f"--git-dir={_ROOT / '.git'}",
    ]  # never one around it
    command = [
        *git,
        "describe",
        "--always",
        "--abbrev=12",
        "--exclude=*",
        "--dirty= with changes",
    ]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return _UNKNOWN["commit"]


def here() -> dict:
    """The present commit and processor."""
    file = Path("/proc/cpuinfo")
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    found = re.search(r"^model name\s*: (.*)", text, re.M)
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return {"commit": commit(), "processor": name}


def _noted(folder: Path) -> tuple[Path, list[dict]]:
    """The file beside a run's folder, and its content."""
    file = folder.with_name(f"{folder.name}.made-with.json")
    entries = lambda found: [{key: str(own[key]) for key in _UNKNOWN} for own in found]  # noqa: E731
    return file, files.read_json(file, entries, "delete it", list) or []


def note(folder: Path) -> None:
    """Add the present commit and processor to those that trained the run in a folder."""
    file, known = _noted(folder)
    now = here()
    if now not in known:
        files.write_json(file, [*known, now])


def of_run(folder: Path) -> dict:
    """The making of a run: commit and processor (several if it was resumed), platform, backend,
    device, BLAS threads, processes, versions."""
    noted = _noted(folder)[1] or [_UNKNOWN]
    joined = {
        key: ", ".join(dict.fromkeys(own[key] for own in noted)) for key in _UNKNOWN
    }
    return joined | _of(RunFolder.open(folder)[1])


def of_now(ops) -> dict:
    """`of_run` for this process."""
    return here() | _of(environment(ops))


def _of(record: dict) -> dict:
    pools = record.get("threads", {}).get("blas", [])
    # older runs list Numba's OpenMP as well, if a kernel had run before they were started
    threads = [
        own["num_threads"] for own in pools if own.get("internal_api") != "openmp"
    ]
    kept = {key: record[key] for key in ("platform", "backend", "device", "versions")}
    return kept | {
        "threads": max(threads, default=None),
        "processes": record.get("processes", 1),
    }
