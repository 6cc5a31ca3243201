"""Print the angle between the self-normalizing and the exact gradient of a trained run (Fig. 3)."""

from snfnp.cli import command, run_script

if __name__ == "__main__":
    run_script(command("snfnp.cli.angle"))
