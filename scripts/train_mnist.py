"""Train a normalizing flow on MNIST with hand-written gradients, and print its exact likelihood."""

from snfnp.cli import command, run_script

if __name__ == "__main__":
    run_script(command("snfnp.cli.train"))
