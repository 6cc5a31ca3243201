"""Train a normalizing flow on MNIST, by hand-written gradients, and tell its exact likelihood."""

from snfnp.cli import run_script, train_command


def main(argv):
    train_command(
        argv,
        "Train a self-normalizing flow (Keller et al. 2021) or one of its baselines on MNIST. "
        "Writes a run folder with the configuration, metrics, checkpoints, samples and curves.",
    )


if __name__ == "__main__":
    run_script(main)
