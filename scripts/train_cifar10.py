"""Train a self-normalizing Glow on CIFAR-10, or on the patches that stand in for it."""

from snfnp.cli import run_script, train_command


def main(argv):
    train_command(
        argv,
        "Train a self-normalizing Glow (Keller et al. 2021, Table 2) or its exact baseline on "
        "CIFAR-10; --data patches takes photographs that scikit-image ships instead. Writes a "
        "run folder with the configuration, metrics, checkpoints, samples and curves.",
        data="cifar-10",
        model="glow-3l-32k",
    )


if __name__ == "__main__":
    run_script(main)
