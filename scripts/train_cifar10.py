"""Train a self-normalizing Glow (Table 2) on CIFAR-10."""

from snfnp.cli import command, run_script

if __name__ == "__main__":
    run_script(command("snfnp.cli.train", data="cifar-10", model="glow-3l-32k"))
