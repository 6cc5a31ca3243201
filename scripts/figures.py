"""Draw the figures of the derivations: `python scripts/figures.py [NAME …]` (default: all).

    python scripts/figures.py spline glow-step    # two of them

Figures are SVG, legible on light and on dark pages, and drawn from the package's own code. Those of
the paper's figures are scripts/reproduce.py's.
"""

import argparse

from drawings import FIGURES
from drawings.style import PAGES, save


def main(argv: list[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIGURES))
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in FIGURES]
    if unknown:
        parser.error(
            f"no figure {', '.join(unknown)}: choose from {', '.join(FIGURES)}"
        )
    for name in args.names or FIGURES:
        print(save(FIGURES[name](), PAGES / "figures" / f"{name}.svg"))


if __name__ == "__main__":
    main()
