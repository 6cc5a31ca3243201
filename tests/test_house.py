"""The plan of the house: imports go one way, and no family of operations lives apart."""

import ast
import re
from itertools import chain
from pathlib import Path

import pytest

from snfnp.ops.backends import DEFINITIONS

ROOT = Path(__file__).parents[1]
# From the roof down. A module imports what stands on lower floors, or belongs to itself.
FLOORS = (
    {"scripts", "__main__"},
    {"cli"},
    {"training"},
    {
        *("likelihood", "diagnostics", "gradcheck", "models", "data"),
        *("variational", "jacobian_penalty"),
    },
    {"flow"},
    {"layers"},
    {"rules"},
    {"maps", "context", "parameters"},
    {"ops", "__init__"},
    {"errors", "folders", "threads"},
)
FLOOR = {name: -floor for floor, names in enumerate(FLOORS) for name in names}
# Outside ops, what may know of a backend's libraries, and why.
KNOW_NUMBA = {
    "snfnp/threads.py": "makes the idle threads of Numba's pool sleep",
    "scripts/benchmarks/timing.py": "says how many threads a timing was taken on",
}
NUMBA = re.compile(r"numba\b|snfnp\.ops\.(jit\b|\w+\.cpu)")
CUPY = re.compile(r"cupyx?\b|snfnp\.ops\.(gpu\b|\w+\.gpu\b)")
KERNEL = re.compile(r"__global__\s+void\s+(\w+)")


def imports(path):
    """Every name that a file imports, wherever in the file: "snfnp.ops.RandomKey", …"""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources(root):
    """(path, path from the root, module of the package or "scripts") of every Python file."""
    for path in chain(root.glob("snfnp/**/*.py"), root.glob("scripts/**/*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield (
            path,
            path.relative_to(root).as_posix(),
            parts[0] if parts[0] == "scripts" else parts[1],
        )


def upward(root):
    """Imports that do not go down, and modules that stand on no floor."""
    for path, file, own in sources(root):
        if own not in FLOOR:
            yield f"{file} stands on no floor"
            continue
        for name in imports(path):
            package, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            other = other if other in FLOOR else "__init__"  # a name of the package itself
            if package == "snfnp" and other != own and FLOOR[other] >= FLOOR[own]:
                yield f"{file} imports {name}"


def misplaced(root):
    """Imports of a backend, or of its libraries, by what does not belong to that backend."""
    for path, file, own in sources(root):
        assembles = file in ("snfnp/ops/__init__.py", "snfnp/ops/backends.py")
        cpu = own == "ops" and (path.name.startswith("cpu") or path.name == "jit.py")
        gpu = own == "ops" and (path.name in ("gpu.py", "nccl.py") or path.parent.name == "gpu")
        for name in imports(path):
            if assembles and name.startswith("snfnp."):
                continue
            if (
                NUMBA.match(name)
                and not (cpu or file in KNOW_NUMBA)
                or CUPY.match(name)
                and not gpu
            ):
                yield f"{file} imports {name}"


def classes(path):
    """{class: (its bases, its public methods)} of a file."""
    return {
        node.name: (
            [base.id for base in node.bases if isinstance(base, ast.Name)],
            {f.name for f in node.body if isinstance(f, ast.FunctionDef) and f.name[0] != "_"},
        )
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    }


def inherited(name, known):
    """(ancestors, public methods) of a class as far as they are known, its own included."""
    ancestors, methods = {name}, set(known[name][1]) if name in known else set()
    for base in known[name][0] if name in known else ():
        more, theirs = inherited(base, known)
        ancestors, methods = ancestors | more, methods | theirs
    return ancestors, methods


def rooms(root):
    """The folders of ops, but what their GPU files share, and what is of processes."""
    folders = sorted(path for path in root.glob("snfnp/ops/*") if any(path.glob("*.*")))
    return [
        folder for folder in folders if folder.name not in ("gpu", "communication", "__pycache__")
    ]


def apart(root):
    """Overrides that belong to no definition in their folder."""
    for room in rooms(root):
        if not (room / "definition.py").exists():
            yield f"{room.name} has no definition.py"
            continue
        defined = classes(room / "definition.py")
        for path in (path for path in (room / "cpu.py", room / "gpu.py") if path.exists()):
            here, own = f"{room.name}/{path.name}", classes(path)
            known = {n for n in defined if f"snfnp.ops.{room.name}.definition.{n}" in imports(path)}
            for name, (_, methods) in own.items():
                bases = inherited(name, own)[0] & known
                if not bases:
                    yield f"{here}: {name} derives from no class of {room.name}/definition.py"
                theirs = set().union(*(inherited(base, defined)[1] for base in bases))
                yield from (f"{here}: {name}.{m} has no definition" for m in methods - theirs)


def unlaunched(root):
    """Kernels that the gpu.py of their folder does not name, or that of another folder does."""
    kernels, named = {}, {}
    for room in rooms(root):
        text, launches = room / "kernels.cu", room / "gpu.py"
        kernels[room.name] = set(KERNEL.findall(text.read_text())) if text.exists() else set()
        nodes = ast.walk(ast.parse(launches.read_text())) if launches.exists() else ()
        named[room.name] = {node.value for node in nodes if isinstance(node, ast.Constant)}
    everything = set().union(*kernels.values())
    for room, own in kernels.items():
        yield from (f"{room}/gpu.py does not launch {kernel}" for kernel in own - named[room])
        foreign = named[room] & everything - own
        yield from (f"{room}/gpu.py launches {kernel} of another room" for kernel in foreign)


@pytest.mark.parametrize("rule", [upward, misplaced, apart, unlaunched])
def test_the_house_is_as_planned(rule):
    assert list(rule(ROOT)) == []
    assert {room.name for room in rooms(ROOT)} == DEFINITIONS.keys()


GPU = "from snfnp.ops.conv.definition import Conv\nclass GpuConv(Conv):\n"
SOUND = {
    "snfnp/flow.py": "from snfnp.ops import get_ops",
    "snfnp/ops/conv/definition.py": "class Conv:\n    def forward(self): ...",
    "snfnp/ops/conv/gpu.py": GPU + "    def forward(self): launch('conv')",
    "snfnp/ops/conv/kernels.cu": "__global__ void conv()",
}


@pytest.mark.parametrize(
    "rule, files, said",
    [
        (
            upward,
            {"snfnp/flow.py": "from snfnp.training import x"},
            "flow.py imports snfnp.training.x",
        ),
        (upward, {"snfnp/maps/conv.py": "from snfnp import rules"}, "imports snfnp.rules"),
        (upward, {"snfnp/ops/a.py": "def f():\n    import snfnp.layers"}, "imports snfnp.layers"),
        (upward, {"snfnp/cli/a.py": "import snfnp.__main__"}, "imports snfnp.__main__"),
        (upward, {"snfnp/new.py": ""}, "snfnp/new.py stands on no floor"),
        (misplaced, {"snfnp/flow.py": "from numba import njit"}, "imports numba.njit"),
        (misplaced, {"scripts/a.py": "from snfnp.ops.gpu import source"}, "imports snfnp.ops.gpu"),
        (misplaced, {"snfnp/ops/conv/definition.py": "import cupy"}, "imports cupy"),
        (
            misplaced,
            {"snfnp/ops/conv/gpu.py": "from snfnp.ops import jit"},
            "imports snfnp.ops.jit",
        ),
        (apart, {"snfnp/ops/new/cpu.py": ""}, "new has no definition.py"),
        (apart, {"snfnp/ops/conv/gpu.py": "class GpuConv(Conv): ..."}, "GpuConv derives from no"),
        (apart, {"snfnp/ops/conv/gpu.py": GPU + "    def new(self): ..."}, "GpuConv.new has no"),
        (unlaunched, {"snfnp/ops/conv/kernels.cu": "__global__ void two()"}, "does not launch two"),
        (
            unlaunched,
            {"snfnp/ops/b/gpu.py": "x = 'conv'", "snfnp/ops/b/definition.py": ""},
            "launches conv",
        ),
    ],
)
def test_a_flaw_would_be_found(rule, files, said, tmp_path):
    for tree in (SOUND, files):
        assert list(rule(tmp_path)) == []
        for file, text in tree.items():
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text(text)
    assert any(said in flaw for flaw in rule(tmp_path)), list(rule(tmp_path))
