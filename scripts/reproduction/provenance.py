"""What a run was made with: the commit, the processor, and what its config.json says."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

from snfnp.training.runs.description import environment

from snfnp.errors import SnfnpError
from snfnp.training import files
from snfnp.training.runs.folder import RunFolder

_ROOT = Path(__file__).resolve().parents[2]
UNKNOWN = "not known"
_NOTED = ("commit", "processor")


def commit() -> str:
    """The checkout's commit, marked where tracked files differ from it."""
    try:
        found = _git("rev-parse", "HEAD")[:12]
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return f"{found} with changes" if changed else found


def _git(*arguments: str) -> str:
    """What git says of the checkout that this file is in, and of no repository around it."""
    command = ["git", "-C", str(_ROOT), f"--git-dir={_ROOT / '.git'}", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return run.stdout.strip()


def processor() -> str:
    """The CPU's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def here() -> dict:
    return {"commit": commit(), "processor": processor()}


def _file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.made-with.json")


def note(folder: Path) -> None:
    """Add the present commit and processor to those that trained the run in a folder."""
    known, now = _noted(folder), here()
    if now not in known:
        content = json.dumps([*known, now], indent=2) + "\n"
        files.write_atomically(_file(folder), content.encode())


def _noted(folder: Path) -> list[dict]:
    path = _file(folder)
    if not path.exists():
        return []
    try:
        noted = json.loads(files.read_bytes(path, SnfnpError, f"{path} is gone"))
    except ValueError:
        noted = None
    if not isinstance(noted, list) or not all(map(_is_note, noted)):
        raise SnfnpError(f"{path} is damaged: delete it, and the commit is {UNKNOWN}")
    return noted


def _is_note(own: object) -> bool:
    return isinstance(own, dict) and all(isinstance(own.get(name), str) for name in _NOTED)


def of_run(folder: Path) -> dict:
    """commit and processor (several where a run was gone on with), platform, backend, device,
    BLAS threads, processes, versions."""
    _, record = RunFolder.open(folder)
    noted = _noted(folder) or [dict.fromkeys(_NOTED, UNKNOWN)]
    joined = {key: ", ".join(dict.fromkeys(own[key] for own in noted)) for key in _NOTED}
    return joined | _of(record)


def distinct(origins: list[dict]) -> list[dict]:
    """Each of them once, in their order."""
    return [own for i, own in enumerate(origins) if own not in origins[:i]]


def of_now(ops) -> dict:
    """The same of this process."""
    return here() | _of(environment(ops))


def _of(record: dict) -> dict:
    pools = record.get("threads", {}).get("blas", [])
    # older runs have Numba's OpenMP among these, if a kernel had run before they were started
    threads = [own["num_threads"] for own in pools if own.get("internal_api") != "openmp"]
    return {
        "platform": record["platform"],
        "backend": record["backend"],
        "device": record["device"],
        "threads": max(threads, default=None),
        "processes": record.get("processes", 1),
        "versions": record["versions"],
    }
