"""The commands: `python -m snfnp COMMAND`, and the scripts, which run the same code.

A command is a module here with main(argv, prog=None); prog: what its help calls it. It is imported
when it runs: until then nothing here takes time.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import snfnp
from snfnp.errors import UsageError, suggestion
from snfnp.processes import terminal

COMMANDS = {
    "train": "train a flow, or go on with a run",
    "evaluate": "print the likelihood of a run, term by term",
    "sample": "draw samples from a run and write them as a picture",
    "interpolate": "draw paths between test samples, through the latents",
    "score": "compare the likelihoods of other data with the test data's",
    "angle": "print how far a run's gradient is from the exact one",
    "compare": "print runs beside each other, and draw them in one picture",
    "check": "check every gradient by finite differences",
}


def main(argv: list[str]) -> None:
    """Run the command that argv[0] names, or list all of them."""
    program = "snfnp" if Path(sys.argv[0]).stem == "snfnp" else "python -m snfnp"
    if argv == ["--version"]:
        print(f"snfnp {snfnp.__version__}")
        return
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {program} COMMAND …; COMMAND --help explains every option\n")
        for name, summary in COMMANDS.items():
            print(f"  {name:<13}{summary}")
        return
    name, *arguments = argv
    if name not in COMMANDS:
        hint = suggestion(name, COMMANDS)
        raise UsageError(f"no command is called {name}{hint}: choose from {', '.join(COMMANDS)}")
    command(f"snfnp.cli.{name}", prog=f"{program} {name}")(arguments)


def command(module: str, **settings) -> Callable[[list[str]], None]:
    """The `main` of a module with these settings; the module is imported when it is called."""
    return lambda argv: import_module(module).main(argv, **settings)


def run_script(main: Callable[[list[str]], None] = main) -> None:
    """Run a script's main(argv), or that of all commands, with exit statuses and errors as
    `terminal.run` has them."""
    status = terminal.run(lambda: main(sys.argv[1:]))
    if status:
        sys.exit(status)
