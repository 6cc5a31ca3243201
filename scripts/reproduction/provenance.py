"""The commit, the hardware and the versions that a run was made with."""

import platform
import re
import subprocess
from pathlib import Path

from snfnp.training import files
from snfnp.training.runs.description import environment
from snfnp.training.runs.folder import RunFolder

_ROOT = Path(__file__).resolve().parents[2]
UNKNOWN = "not known"
_PLACE = ("commit", "processor")


def commit() -> str:
    """The checkout's commit, marked if tracked files differ from it."""
    # of the repository that this file is in, and of none around it
    git = ["git", "-C", str(_ROOT), f"--git-dir={_ROOT / '.git'}"]
    try:
        found, changed = (
            subprocess.run([*git, *arguments], capture_output=True, text=True, check=True).stdout
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return f"{found[:12]} with changes" if changed else found[:12]


def here() -> dict:
    """The present commit and processor."""
    file = Path("/proc/cpuinfo")
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    found = re.search(r"^model name\s*: (.*)", text, re.M)
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return {"commit": commit(), "processor": name}


def _noted(folder: Path) -> tuple[Path, list[dict]]:
    """The file beside a run's folder, and what is in it."""
    file = folder.with_name(f"{folder.name}.made-with.json")

    def words(noted: list) -> list[dict]:
        return [{key: own[key].encode().decode() for key in _PLACE} for own in noted]

    advice = "delete it, and the run's commit is not known"
    return file, files.read_json(file, words, advice, list) or []


def note(folder: Path) -> None:
    """Add the present commit and processor to those that trained the run in a folder."""
    (file, known), now = _noted(folder), here()
    if now not in known:
        files.write_json(file, [*known, now])


def of_run(folder: Path) -> dict:
    """commit and processor (several if a run was gone on with), platform, backend, device, BLAS
    threads, processes, versions."""
    noted = _noted(folder)[1] or [dict.fromkeys(_PLACE, UNKNOWN)]
    joined = {key: ", ".join(dict.fromkeys(own[key] for own in noted)) for key in _PLACE}
    return joined | _of(RunFolder.open(folder)[1])


def of_now(ops) -> dict:
    """The commit, hardware and versions of this process, as `of_run` has them."""
    return here() | _of(environment(ops))


def _of(record: dict) -> dict:
    pools = record.get("threads", {}).get("blas", [])
    # older runs have Numba's OpenMP among these, if a kernel had run before they were started
    threads = [own["num_threads"] for own in pools if own.get("internal_api") != "openmp"]
    kept = {key: record[key] for key in ("platform", "backend", "device", "versions")}
    return kept | {"threads": max(threads, default=None), "processes": record.get("processes", 1)}
