"""Draw the figures of the derivations: `python scripts/figures.py [NAME …]` (default: all).

    python scripts/figures.py spline glow-step    # two of them
    python scripts/figures.py --collect RUN …     # read runs' folders, then draw their curves

Figures are SVG, legible on light and on dark pages, and drawn from the package's own code. The
curves of training (likelihoods) are drawn from scripts/drawings/likelihoods.json, which --collect
writes. Those of the paper's figures are scripts/reproduce.py's.
"""

import argparse
from pathlib import Path

from drawings import FIGURES, curves
from drawings.style import save

FOLDER = Path(__file__).parents[1] / "derivations" / "figures"


def main(argv: list[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=", ".join(FIGURES))
    add("--to", type=Path, default=FOLDER, help="folder (derivations/figures)")
    add("--collect", nargs="+", type=Path, metavar="RUN", help="read runs for likelihoods first")
    args = parser.parse_args(argv)
    if args.collect:
        print(curves.collect(args.collect))
        args.names = ["likelihoods"]
    unknown = [name for name in args.names if name not in FIGURES]
    if unknown:
        parser.error(f"no figure {', '.join(unknown)}: choose from {', '.join(FIGURES)}")
    for name in args.names or FIGURES:
        print(save(FIGURES[name](), args.to / f"{name}.svg"))


if __name__ == "__main__":
    main()
