"""Check every layer, rule and map by finite differences (`python -m snfnp check`)."""

from snfnp.cli import command, run_script

if __name__ == "__main__":
    run_script(command("snfnp.cli.check"))
