"""Draw the figures of the derivations: `python scripts/figures.py [NAME …]` (default: all).

    python scripts/figures.py spline glow-step        # two of them, into derivations/figures
    python scripts/figures.py --list                  # what there is
    python scripts/figures.py --measure --out RUNS    # the short runs behind `angles`
    python scripts/figures.py --collect RUN RUN …     # `likelihoods`, from folders of other runs

Figures are SVG, legible on light and on dark pages, and drawn from the package's own code. Only the
curves of training need data: `--measure` and `--collect` write them to scripts/drawings/*.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from drawings import FIGURES, data
from drawings.style import save

FOLDER = Path(__file__).parents[1] / "derivations" / "figures"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="figures to draw")
    parser.add_argument("--list", action="store_true", help="print the names of all figures")
    parser.add_argument("--to", type=Path, default=FOLDER, help="folder of the figures")
    parser.add_argument("--measure", action="store_true", help="train the short runs first")
    parser.add_argument("--out", type=Path, default=Path("runs/figures"), help="their folder")
    parser.add_argument("--epochs", type=int, default=20, help="how long they are")
    parser.add_argument("--collect", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in FIGURES]
    if unknown:
        parser.error(f"no figure {', '.join(unknown)}: choose from {', '.join(FIGURES)}")
    if args.list:
        print("\n".join(FIGURES))
        return
    if args.measure:
        data.measure(args.out, args.epochs)
    if args.collect:
        data.collect(args.collect)
    if not (args.measure or args.collect) or args.names:
        for name in args.names or FIGURES:
            print(save(FIGURES[name](), args.to / f"{name}.svg"))


if __name__ == "__main__":
    main()
