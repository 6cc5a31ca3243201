"""Train a self-normalizing Glow on CIFAR-10."""

from snfnp.cli import command, run_script

SUBJECT = "a self-normalizing Glow (Keller et al. 2021, Table 2) or its exact baseline on CIFAR-10"

if __name__ == "__main__":
    run_script(command("snfnp.cli.train", subject=SUBJECT, data="cifar-10", model="glow-3l-32k"))
