"""Train a self-normalizing Glow on ImageNet 32x32."""

from snfnp.cli import command, run_script

SUBJECT = (
    "a self-normalizing Glow (Keller et al. 2021, Table 2) or its exact baseline on ImageNet 32x32"
)

if __name__ == "__main__":
    run_script(command("snfnp.cli.train", subject=SUBJECT, data="imagenet32", model="glow-3l-48k"))
