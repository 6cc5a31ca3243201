"""The commands: `python -m snfnp COMMAND`, and the scripts, which run the same code.

A command is a module here, imported only when it runs, with main(argv, prog=None); prog is its name
in its help.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import snfnp
from snfnp.errors import UsageError, suggestion
from snfnp.processes import terminal

COMMANDS = {
    "train": "train a flow, or resume a run",
    "evaluate": "print a run's exact log-likelihood, of its own data or of others",
    "sample": "draw samples from a run, as a picture or a table",
    "angle": "print the angles between a run's gradient and the exact one",
    "compare": "compare runs in a table and a picture",
    "check": "check every gradient against finite differences",
}


def main(argv: list[str]) -> None:
    """Run the command that argv[0] names, or list all of them."""
    program = "snfnp" if Path(sys.argv[0]).stem == "snfnp" else "python -m snfnp"
    if argv == ["--version"]:
        print(f"snfnp {snfnp.__version__}")
        return
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {program} COMMAND …; COMMAND --help lists its options\n")
        for name, summary in COMMANDS.items():
            print(f"  {name:<13}{summary}")
        return
    name, *arguments = argv
    if name not in COMMANDS:
        hint = suggestion(name, COMMANDS)
        raise UsageError(
            f"no command is called {name}{hint}: choose from {', '.join(COMMANDS)}"
        )
    command(f"snfnp.cli.{name}", prog=f"{program} {name}")(arguments)


def command(module: str, **settings: Any) -> Callable[[list[str]], None]:
    """The `main` of a module with these settings; the module is imported when it is called."""
    return lambda argv: import_module(module).main(argv, **settings)


def run_script(main: Callable[[list[str]], None] = main) -> None:
    """Run a script's main(argv), or that of all commands, and exit as `terminal.run` says."""
    status = terminal.run(lambda: main(sys.argv[1:]))
    if status:
        sys.exit(status)
