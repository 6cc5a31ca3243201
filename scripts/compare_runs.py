"""Compare runs: exact validation NLL at the same epochs, test NLL, time, and how far apart.

With --plot FILE also a picture, over the epochs and over seconds.
"""

from snfnp.cli import command, run_script

if __name__ == "__main__":
    run_script(command("snfnp.cli.compare"))
