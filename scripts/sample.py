"""Draw samples from a trained run and write them as a picture."""

from snfnp.cli import command, run_script

if __name__ == "__main__":
    run_script(command("snfnp.cli.sample"))
