"""`python -m snfnp`: see `snfnp.cli`."""

from snfnp.cli import main, run_script

if __name__ == "__main__":
    run_script(main)
