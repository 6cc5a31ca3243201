"""The repository: imports go one way, beyond/ can be taken out, what CI reads, docstrings."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import conftest
import numpy as np
import pytest
from support.arrays import normal
from support.processes import python

from snfnp.cli import train
from snfnp.context import BackwardContext
from snfnp.layers import Layer
from snfnp.maps import Map
from snfnp.models import PRESETS
from snfnp.ops import DEFINITIONS
from snfnp.rules import Rule, SelfNormalizing

ROOT = Path(__file__).parents[1]
# From the top down. A module imports what stands on lower floors, or belongs to itself.
FLOORS = (ROOT / "snfnp/architecture.md").read_text("utf-8").split("```")[1]
FLOORS = tuple(set(floor.split()) for floor in FLOORS.splitlines()[1:])
# Outside ops, what may know of a backend's libraries, and why.
KNOW_NUMBA = {
    "snfnp/threads.py": "makes the idle threads of Numba's pool sleep",
    "scripts/benchmarks/timing.py": "sets the threads of a timing, and copies on them",
}
NUMBA = re.compile(r"numba\b|snfnp\.ops\.(jit\b|\w+\.cpu)")
BEYOND = re.compile(r"snfnp\.beyond\b")
CUPY = re.compile(r"cupyx?\b|snfnp\.ops\.(gpu\b|\w+\.gpu\b)")
OPENINGS = re.compile(
    r"(What|Where|Whether|How|The same|As|Of|Those|That|Who|Which|When|If)\b"
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
CI = ROOT / ".ci"
pytestmark = pytest.mark.skipif(not CI.exists(), reason="not a checkout")


@cache
def nodes(text):
    """Every node of a source text, the module first."""
    return [*ast.walk(ast.parse(text))]


def imports(path):
    """Every name that a file imports, wherever in the file: "snfnp.ops.RandomKey", …"""
    for node in nodes(path.read_text()):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources(root):
    """(path, path from the root, module of the package or "scripts") of every Python file."""
    for path in chain(root.glob("snfnp/**/*.py"), root.glob("scripts/**/*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        module = parts[0] if parts[0] == "scripts" else parts[1]
        yield path, path.relative_to(root).as_posix(), module


def on_floor(parts):
    """The name in FLOORS of what a path of names belongs to: snfnp, training, update, …"""
    names = {name for floor in FLOORS for name in floor}
    whole = ".".join(parts[1:3])
    return whole if whole in names else parts[1]


def upward(root):
    """Imports that do not go down, and modules that stand on no floor."""
    level = {name: -floor for floor, names in enumerate(FLOORS) for name in names}
    for path, file, module in sources(root):
        if module != "scripts":
            module = on_floor(path.relative_to(root).with_suffix("").parts)
        if module not in level:
            yield f"{file} stands on no floor"
            continue
        for name in imports(path):
            if not f"{name}.".startswith("snfnp."):
                continue
            other = on_floor((*name.split("."), ""))
            # a name of the package itself
            other = other if other in level else "__init__"
            if other != module and level[other] >= level[module]:
                yield f"{file} imports {name}"


def rings(root):
    """Files and folders that stand side by side, of the package or the scripts, and import each
    other in a ring."""
    graphs = {}
    for path, _, _ in sources(root):
        own = path.relative_to(root).with_suffix("").parts
        for name in imports(path):
            other = tuple(name.split("."))
            other = other if other[0] == "snfnp" else ("scripts", *other)
            common = len(os.path.commonprefix([own, other]))
            # `upward` sees it
            if common in (0, len(own), len(other)) or BEYOND.match(name):
                continue
            one = own[common]
            another = root.joinpath(*other[: common + 1])
            if one != "__init__" and (
                another.is_dir() or another.with_suffix(".py").exists()
            ):
                graphs.setdefault(own[:common], {}).setdefault(one, set()).add(
                    other[common]
                )
    for folder, graph in graphs.items():
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            yield f"in {'/'.join(folder)}: {' -> '.join(error.args[1])}"


def asking(root):
    """getattr and hasattr on layers, rules and maps, whose base classes have every member."""
    for path, file, module in sources(root):
        for node in nodes(path.read_text()):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if module != "scripts" and node.func.id in ("getattr", "hasattr"):
                asked = re.sub(r"\[.*\]$", "", ast.unparse(node.args[0])).split(".")[-1]
                if re.fullmatch(r"\w*(layer|rule|map)s?|[fgm]", asked):
                    yield f"{file}:{node.lineno} asks a {asked}"


def misplaced(root):
    """Imports of a backend, or of its libraries, by what does not belong to that backend."""
    for path, file, own in sources(root):
        assembles = file == "snfnp/ops/__init__.py"
        cpu = own == "ops" and (path.name.startswith("cpu") or path.name == "jit.py")
        gpu = own == "ops" and (path.name == "gpu.py" or path.parent.name == "gpu")
        for name in imports(path):
            if assembles and name.startswith("snfnp."):
                continue
            numba = NUMBA.match(name) and not (cpu or file in KNOW_NUMBA)
            if numba or CUPY.match(name) and not gpu:
                yield f"{file} imports {name}"


def beyond(root):
    """Imports of what goes beyond the paper, by other than its own files and scripts, that are not
    inside a function, where it is asked for."""
    for path, file, own in sources(root):
        for node in (
            nodes(path.read_text())[0].body if own not in ("beyond", "scripts") else ()
        ):
            text = (
                ast.unparse(node)
                if isinstance(node, (ast.Import, ast.ImportFrom))
                else ""
            )
            if re.search(r"\bsnfnp\.beyond\b|from snfnp import .*\bbeyond\b", text):
                yield f"{file}: {text}"


def guessing(root):
    """Text that is read or written in the system's encoding, which need not be UTF-8."""
    for path, file, _ in sources(root):
        for node in nodes(path.read_text("utf-8")):
            if not isinstance(node, ast.Call):
                continue
            text = getattr(node.func, "attr", "") in ("read_text", "write_text")
            if getattr(node.func, "id", "") == "open":
                text = "b" not in "".join(map(ast.unparse, node.args[1:2]))
            if text and "encoding" not in [word.arg for word in node.keywords]:
                yield f"{file}:{node.lineno} guesses an encoding"


@pytest.mark.parametrize("rule", [upward, rings, asking, misplaced, beyond, guessing])
def test_the_architecture_is_as_planned(rule):
    assert list(rule(ROOT)) == []
    folders = {path.parent.name for path in ROOT.glob("snfnp/ops/*/__init__.py")}
    assert folders - {"gpu"} == DEFINITIONS.keys()


# A rule, a file, what it says, and what is said of it.
VIOLATIONS = """
upward | snfnp/flow.py | from snfnp.training import x | imports snfnp.training.x
upward | snfnp/maps/conv.py | from snfnp import rules | imports snfnp.rules
upward | snfnp/ops/a.py | def f(): import snfnp.layers | imports snfnp.layers
upward | snfnp/cli/a.py | import snfnp.__main__ | imports snfnp.__main__
upward | snfnp/new.py | | snfnp/new.py stands on no floor
upward | snfnp/beyond/rules.py | import snfnp.models | imports snfnp.models
upward | snfnp/layers/a.py | def f(): import snfnp.beyond.training | beyond.training
asking | snfnp/cli/a.py | getattr(layer, 'rule', None) | a.py:1 asks a layer
asking | snfnp/ops/a.py | x = hasattr(self.rule, 'x') | a.py:1 asks a rule
asking | snfnp/a.py | getattr(self.layers[i + 1], 'x', 0) | a.py:1 asks a layers
misplaced | snfnp/flow.py | from numba import njit | imports numba.njit
misplaced | scripts/a.py | from snfnp.ops.gpu import source | imports snfnp.ops.gpu
misplaced | snfnp/ops/conv/definition.py | import cupy | imports cupy
misplaced | snfnp/ops/conv/gpu.py | from snfnp.ops import jit | imports snfnp.ops.jit
beyond | snfnp/models.py | from snfnp.beyond import variational | snfnp.beyond
guessing | snfnp/cli/a.py | x.read_text() | a.py:1 guesses an encoding
guessing | scripts/a.py | open(x, 'w') | a.py:1 guesses an encoding
"""


@pytest.mark.parametrize("line", VIOLATIONS.strip().splitlines())
def test_a_violation_would_be_found(line, tmp_path):
    name, *words = (word.strip() for word in line.split("|"))
    file, text, said = words
    rule = globals()[name]
    fine = ("snfnp/beyond/a.py", "from snfnp.ops import get_ops")
    for path, content in (fine, (file, text)):
        assert list(rule(tmp_path)) == []
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    assert any(said in flaw for flaw in rule(tmp_path)), list(rule(tmp_path))


def test_a_ring_would_be_found(tmp_path):
    folder = tmp_path / "snfnp" / "training"
    folder.mkdir(parents=True)
    for name, other in ("ab", "ba"):
        assert not list(rings(tmp_path))
        (folder / f"{name}.py").write_text(
            f"def f():\n    import snfnp.training.{other}\n"
        )
    (ring,) = rings(tmp_path)
    assert ring.startswith("in snfnp/training: ")


def test_the_contracts_are_small():
    def members(cls):
        own = {**vars(cls), **vars(cls).get("__annotations__", {})}
        return {name for name in own if not name.startswith("_")}

    assert len(members(Layer)) <= 13 and len(members(Map)) <= 13
    assert len(members(Rule)) <= 6
    assert len(members(BackwardContext) - {"of"}) <= 7


def test_one_loop_takes_the_steps_of_every_training():
    files = [
        file
        for path, file, own in sources(ROOT)
        if own != "scripts" and ".training_step(" in path.read_text()
    ]
    assert files == ["snfnp/step/trainer.py"]


def test_the_files_from_a_command_to_eq_15_are_those_of_the_page(
    undrawn, monkeypatch, tmp_path
):
    """Those of the package that are on the stack when a gradient is computed."""
    page = (ROOT / "snfnp" / "architecture.md").read_text("utf-8")
    section = page.partition("## From a command to Eq. 15")[2].partition("\n## ")[0]
    stacks = []
    backward = SelfNormalizing.backward

    def noted(rule, *arguments, **named):
        frames = [sys._getframe(1)]
        while frames[-1].f_back is not None:
            frames.append(frames[-1].f_back)
        files = [Path(frame.f_code.co_filename) for frame in reversed(frames)]
        own = [file for file in files if ROOT / "snfnp" in file.parents]
        stacks.append(
            list(dict.fromkeys(f"{file.relative_to(ROOT / 'snfnp')}" for file in own))
        )
        return backward(rule, *arguments, **named)

    monkeypatch.setattr(SelfNormalizing, "backward", noted)
    np.save(tmp_path / "rows.npy", normal(40, 2))
    options = [
        "--epochs",
        "1",
        "--batch-size",
        "16",
        "--backend",
        "numpy",
        "--model",
        "fc",
    ]
    train.main([str(tmp_path / "rows.npy"), *options, "--out", str(tmp_path / "run")])
    files = re.findall(r"(?m)^\| `(\S+\.py)` \|", section)
    assert (
        files[:-1] in stacks
        and files[-1] == "rules/self_normalizing.py"
        and len(files) <= 6
    )


# What makes the method fast, and what goes beyond it; and then what uses it.
FAST = ("cpu*.py", "jit.py", "gpu.py", "gpu", "*.cu", "*.cuh", "beyond")
USES = ("training", "density", "data", "cli", "processes")
TRAINS = """
import numpy as np
import snfnp
from snfnp.models import PRESETS

rng = np.random.default_rng(0)
images = rng.integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
small = {"levels": 1, "depth": 1, "width": 4}
options = {"backend": "numpy", "epochs": 1, "batch_size": 8, "report": None}
for model, preset in PRESETS.items():
    data = rng.normal(size=(40, 3)) if model == "vector" else images
    size = {name: small[name] for name in small if name in preset.size}
    run = snfnp.fit(data, model=model, **options, **size)
    assert np.isfinite(run.likelihood.log_prob(data)).all()
    exact = not run.flow.has_learned_inverse
    assert len(run.likelihood.sample(2, exact=exact)) == 2
    print(model)
"""
STEPS = """
from types import SimpleNamespace
import numpy as np
from snfnp.gradcheck import check_layer
from snfnp.models import PRESETS, Choices
from snfnp.ops import get_ops
from snfnp.step.batches import Batches
from snfnp.step.trainer import Trainer

ops = get_ops("numpy")
images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1)).astype(np.uint8)
data = {"batch_size": 8, "shuffle": True, "augment": False, "noise": 0.0}
rate = {"lr": 1e-3, "epochs": 1, "warmup_epochs": 0, "lr_schedule": "constant", "clip_norm": None}
objective = {"objective": "mixture", "lam": 1.0, "controller": None, "jvp_weight": 0.0}
rest = {"seed": 0, "dtype": "float64", "eval_dtype": "float64", "coordinates": "plain"}
rest |= {"recompute": False, "graph": False}
settings = SimpleNamespace(**data, **rate, **objective, **rest)
checked = set()
for model, preset in PRESETS.items():
    flow = preset.build(Choices(levels=1, depth=1, width=4), images.shape[1:])
    for _, layer, shape in flow.with_shapes():
        if (key := str((layer, shape))) not in checked:
            check_layer(layer, shape, ops=ops)
            checked.add(key)
    batches = Batches(ops, images, settings, flow.shape)
    trainer = Trainer(ops, flow, settings, batches.steps_per_epoch)
    trainer.begin(batches)
    start = trainer.p.copy()
    trainer.training_step(batches)
    assert (trainer.p != start).any()
    assert np.isfinite(trainer.likelihood().evaluate(images).nll)
    print(model)
"""


@pytest.mark.slow
def test_the_method_runs_without_what_makes_it_fast_and_without_what_uses_it(tmp_path):
    """Every preset is trained on NumPy; and then built, checked, trained for a step and
    evaluated."""
    package = tmp_path / "snfnp"
    shutil.copytree(
        ROOT / "snfnp", package, ignore=shutil.ignore_patterns(*FAST, "__pycache__")
    )
    for code in (TRAINS, STEPS):
        done = python(code, cwd=tmp_path, PYTHONPATH="", PYTHONSAFEPATH="")
        assert done.stdout.split() == list(PRESETS), done.stderr
        for room in USES:
            shutil.rmtree(package / room, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--jvp-weight 0.2", "--objective variational"])
def test_options_of_beyond_are_refused_in_a_line_without_it(option, tmp_path):
    code = "import sys; sys.modules['snfnp.beyond'] = None; from snfnp import cli; cli.run_script()"
    options = f"--data mnist-sample --backend numpy {option} --out".split()
    done = python(code, "train", *options, tmp_path / "run")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: snfnp.beyond.") and "is not installed" in line


def problems(text: str) -> list[str]:
    """The openings that are refused, of the docstrings of a module, its classes and functions."""
    documented = (node for node in nodes(text) if isinstance(node, DOCUMENTED))
    openings = ((ast.get_docstring(node) or "")[:40] for node in documented)
    return [opening for opening in openings if OPENINGS.match(opening)]


@pytest.mark.parametrize("folder", ["snfnp", "scripts"])
def test_docstrings_open_with_a_noun_or_a_verb(folder):
    found = {file: problems(file.read_text()) for file in (ROOT / folder).rglob("*.py")}
    assert found and not {str(file): bad for file, bad in found.items() if bad}


def of_ci(name):
    """A script of CI as a module."""
    spec = importlib.util.spec_from_file_location(name, CI / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def declared():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_oldest_versions_are_the_lower_bounds():
    project = declared()
    extras = project["optional-dependencies"]
    oldest = of_ci("oldest").oldest
    required = project["dependencies"] + extras["test"]
    assert [line.replace("==", ">=") for line in oldest(project)] == required
    for unchecked in ("numpy", "numpy==2.0", "numpy>=2.0,<3", "numpy<3"):
        with pytest.raises(ValueError, match="is not of the form name>=version"):
            oldest(project | {"dependencies": [unchecked]})


def test_pre_commit_runs_the_ruff_that_is_pinned():
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    (pinned,) = re.findall(r"ruff-pre-commit\n    rev: v(\S+)\n", text)
    assert f"ruff=={pinned}" in declared()["optional-dependencies"]["dev"]


SOURCE = '''"""A docstring."""

a, b = 1, 2  # a comment
c = a


def f():
    """Another."""
    return "a string"
'''


@pytest.mark.slow
def test_the_size_budget_counts_tokens_by_room_and_refuses_one_too_many():
    size = of_ci("size")
    own = size.size(SOURCE)
    assert own == size.Size(lines=9, code=4, tokens=17, assignments=2, tuples=1)
    most = size.BUDGET["snfnp"]
    rooms = {"snfnp": own, "snfnp/ops": size.Size(tokens=most - 17)}
    assert size.excess(rooms) == []
    rooms["snfnp/ops"].tokens += 1
    (message,) = size.excess(rooms)
    assert message == f"snfnp has {most + 1:,} tokens of Python: its budget is {most:,}"
    assert size.size_by_room(ROOT).keys() >= {"snfnp", "snfnp/ops", "scripts", "tests"}


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_ci_can_be_parsed_and_names_tests_that_exist():
    script = CI / "run"
    subprocess.run(["bash", "-n", script], check=True)
    named = [word for word in script.read_text().split() if word.startswith("tests/")]
    assert len(named) > 8
    assert [word for word in named if not is_there(word)] == []
    for missing in (
        "tests/test_nothing.py",
        "tests/test_architecture.py::test_nothing",
    ):
        assert not is_there(missing)


def is_there(named: str) -> bool:
    """Whether a file or folder of tests, or a test named as in file.py::test, exists."""
    path, _, test = named.partition("::")
    return (ROOT / path).exists() and (
        not test or f"\ndef {test}(" in (ROOT / path).read_text()
    )


def test_missing_tools_skip_tests_and_fail_where_they_are_required(
    request, monkeypatch
):
    why = "nvidia-cuda-nvrtc is nowhere"
    monkeypatch.setitem(conftest.NEEDS, "nvrtc", lambda: why)
    item = SimpleNamespace(get_closest_marker="nvrtc".__eq__)
    with pytest.raises(pytest.skip.Exception, match=f"needs nvrtc: {why}"):
        conftest.pytest_runtest_setup(item)
    for names, said in (
        ("nvrtc", f"SNFNP_REQUIRE names nvrtc, but: {why}"),
        ("gpu", "SNFNP_REQUIRE names gpu: choose of nvrtc, hostcuda,"),
    ):
        monkeypatch.setenv("SNFNP_REQUIRE", names)
        with pytest.raises(pytest.UsageError, match=said):
            conftest.pytest_configure(request.config)


@pytest.mark.parametrize(
    "arguments, cores, device, processes",
    [
        (["tests", "derivations"], 2, "", 2),
        (["tests", "derivations"], 64, "", 8),
        (["tests", "derivations"], 1, "", 0),
        (["tests", "derivations"], 2, "standin", 0),
        (["tests/test_a.py", "tests/test_b.py::test_c"], 2, "", 0),
        (["tests/gpu", "tests/test_c.py"], 2, "", 2),
    ],
)
def test_as_many_processes_as_cores_up_to_eight(
    request, monkeypatch, arguments, cores, device, processes
):
    """0 processes means none beside this one."""
    monkeypatch.setattr(
        "os.sched_getaffinity", lambda pid: set(range(cores)), raising=False
    )
    monkeypatch.setenv("SNFNP_DEVICE", device)
    config = SimpleNamespace(args=arguments)
    assert request.config.hook.pytest_xdist_auto_num_workers(config=config) == processes
