"""Train a self-normalizing Glow (Table 2) on ImageNet 32x32."""

from snfnp.cli import command, run_script

if __name__ == "__main__":
    run_script(command("snfnp.cli.train", data="imagenet32", model="glow-3l-48k"))
