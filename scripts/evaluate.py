"""Print the likelihood ledger of a trained run: every term of Eq. 7, in nats and bits/dim."""

from snfnp.cli import command, run_script

if __name__ == "__main__":
    run_script(command("snfnp.cli.evaluate"))
