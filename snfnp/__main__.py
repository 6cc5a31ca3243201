"""`python -m snfnp`: see `snfnp.cli`."""

from snfnp.cli import run_script

if __name__ == "__main__":
    run_script()
