"""Train a self-normalizing Glow on ImageNet 32x32, or on the patches that stand in for it."""

from snfnp.cli import run_script, train_command


def main(argv):
    train_command(
        argv,
        "Train a self-normalizing Glow (Keller et al. 2021, Table 2) or its exact baseline on "
        "ImageNet 32x32; --data patches takes photographs that scikit-image ships instead. Writes "
        "a run folder with the configuration, metrics, checkpoints, samples and curves.",
        data="imagenet32",
        model="glow-3l-48k",
    )


if __name__ == "__main__":
    run_script(main)
