"""Draw the figures of the derivations: `python scripts/figures.py [NAME …]` (default: all).

    python scripts/figures.py spline glow-step        # two of them, into derivations/figures
    python scripts/figures.py --list                  # what there is

Figures are SVG, legible on light and on dark pages, and drawn from the package's own code.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from drawings import FIGURES
from drawings.style import save

FOLDER = Path(__file__).parents[1] / "derivations" / "figures"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="figures to draw")
    parser.add_argument("--list", action="store_true", help="print the names of all figures")
    parser.add_argument("--to", type=Path, default=FOLDER, help="folder of the figures")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in FIGURES]
    if unknown:
        parser.error(f"no figure {', '.join(unknown)}: choose from {', '.join(FIGURES)}")
    if args.list:
        print("\n".join(FIGURES))
        return
    for name in args.names or FIGURES:
        print(save(FIGURES[name](), args.to / f"{name}.svg"))


if __name__ == "__main__":
    main()
