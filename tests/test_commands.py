"""The commands that README and pages give: their options exist, and what they make is a
configuration that can be trained."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys

import pytest
from pages import DERIVATIONS, ROOT

from snfnp.cli import train
from snfnp.errors import UsageError
from snfnp.models import PRESETS
from snfnp.training.options import TrainConfig

PAGE = DERIVATIONS / "26-the-paper-reproduced.md"
COMMANDS = re.findall(r"`python (scripts/\w+\.py[^`]*)`", PAGE.read_text(encoding="utf-8"))
TRAINING = sorted({command for command in COMMANDS if command.startswith("scripts/train_")})
IMAGES = {"mnist": 50_000, "cifar-10": 40_000, "imagenet32": 1_261_149}


def measured(page) -> set[str]:
    """The training commands of a page's paragraphs, blocks and tables, of new runs."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^    python (scripts/train_.*?)(?:  #.*)?$", text, flags=re.M)
    found += re.findall(r"`python (scripts/train_[^`…]*)`", text)
    rows = re.findall(r"^\| `(--[^`]+)` \|", text, flags=re.M)
    found += [f"scripts/train_mnist.py {options}" for options in rows]
    return {command for command in found if "--resume" not in command}


MEASURED = {ROOT / "README.md": 6}


def configuration(command: str, monkeypatch) -> TrainConfig:
    """What a training script makes of its options, filled in and checked."""
    script, *argv = shlex.split(command)
    made = []

    def main(argv, prog=None, **defaults):
        given = vars(train._parser(prog, defaults).parse_args(argv))
        made.append(TrainConfig(**{**defaults, **given}))

    monkeypatch.setattr(train, "main", main)
    monkeypatch.setattr(sys, "argv", [script, *argv])
    runpy.run_path(str(ROOT / script), run_name="__main__")
    return made[0].resolve(IMAGES[made[0].data])


@pytest.mark.parametrize("page", MEASURED, ids=lambda page: page.name)
def test_every_command_of_readme_and_of_the_measurements_can_be_given(page, monkeypatch):
    commands = measured(page)
    assert len(commands) == MEASURED[page]
    for command in commands:
        configuration(command, monkeypatch)


@pytest.mark.parametrize("command", TRAINING)
def test_a_command_of_the_tables_can_be_trained(command, monkeypatch):
    config = configuration(command, monkeypatch)
    shape = (28, 28, 1) if config.data == "mnist" else (32, 32, 3)
    assert config.build_flow(shape).layers


def test_every_model_has_a_command_and_every_command_a_script(monkeypatch):
    models = {configuration(command, monkeypatch).model for command in TRAINING}
    assert models == set(PRESETS) - {"vector"}  # for rows: no table has it
    assert COMMANDS and all((ROOT / command.split()[0]).is_file() for command in COMMANDS)
    with pytest.raises(UsageError):  # what cannot be trained would be found
        configuration("scripts/train_mnist.py --model emerging --kernel 5", monkeypatch)


def test_the_job_for_a_cluster_is_a_script_with_options_that_exist():
    page = (ROOT / "scripts" / "runs.md").read_text(encoding="utf-8")
    (job,) = re.findall(r"^```bash\n(.*?)^```", page, re.M | re.S)
    if shutil.which("bash"):
        subprocess.run(["bash", "-n"], input=job, text=True, check=True)
    command = job.partition("snfnp train ")[2].partition("\nstatus")[0]
    words = shlex.split(command.replace("\\\n", ""))
    given = vars(train._parser(None, {}).parse_args(words))
    assert given.pop("resume") == train.AUTO
    assert TrainConfig(**given).resolve(IMAGES["mnist"]).epochs == 1000
