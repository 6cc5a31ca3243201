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
    command = [
        "git",
        f"--git-dir={_ROOT}/.git",  # none around it
        "describe",
        "--always",
        "--abbrev=12",
        "--exclude=*",
        "--dirty= with changes",
    ]
    try:
        return subprocess.check_output(
            command, cwd=_ROOT, stderr=subprocess.DEVNULL, text=True
        ).strip()
    except (OSError, subprocess.SubprocessError):
        return _UNKNOWN["commit"]


def here() -> dict:
    """The present commit and processor."""
    file = Path("/proc/cpuinfo")
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    model = re.search(r"^model name\s*: (.*)", text, re.M)
    name = model[1].strip() if model else platform.processor() or platform.machine()
    return {"commit": commit(), "processor": name}


def _noted(folder: Path) -> tuple[Path, list[dict]]:
    """The file beside a run's folder, and its content."""
    file = folder.with_name(f"{folder.name}.made-with.json")

    def entries(content: list) -> list[dict]:
        return [{key: str(entry[key]) for key in _UNKNOWN} for entry in content]

    return file, files.read_json(file, entries, "delete it", list) or []


def note(folder: Path) -> None:
    """Add the present commit and processor to those that trained the run in a folder."""
    file, known = _noted(folder)
    now = here()
    if now not in known:
        files.write_json(file, [*known, now])


def of_run(folder: Path) -> dict:
    """The making of a run: commit and processor (several if it was resumed), platform, backend,
    device, BLAS threads, versions."""
    noted = _noted(folder)[1] or [_UNKNOWN]
    joined = {
        key: ", ".join(dict.fromkeys(entry[key] for entry in noted)) for key in _UNKNOWN
    }
    return joined | _of(RunFolder.open(folder)[1])


def of_now(ops) -> dict:
    """`of_run` for this process."""
    return here() | _of(environment(ops))


def _of(record: dict) -> dict:
    pools = record.get("threads", {}).get("blas", [])
    # older runs list Numba's OpenMP as well, if a kernel had run before they were started
    threads = [
        pool["num_threads"] for pool in pools if pool.get("internal_api") != "openmp"
    ]
    return {
        **{key: record[key] for key in ("platform", "backend", "device", "versions")},
        "threads": max(threads, default=None),
    }
