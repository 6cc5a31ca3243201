"""Check the built site in a browser: `python derivations/site/check_browser.py build/site [PAGE]`.

Every page of the derivations, on a phone and on two wide screens, light and dark: no formula, table
or code that is cut without a hint, nothing wider than the screen, code level with its paragraph, no
error on the console, no request that leaves the machine, the site's own font. And the search: "Eq.
20" finds its derivation first, other queries have the right page first or second.

    --shots FOLDER    pictures of the pages, as they were checked
    --at PIXELS       with --shots: how far down the page

Needs Chromium; the exit status is 1 where there is a problem.
"""

import argparse
import sys
from pathlib import Path

from browser import NAMES, Browser, found
from pages import DERIVATIONS

WIDTHS = (390, 1200, 1600)
HEIGHT = 900

CHECKS = Path(__file__).parent / "checks"


def events_problems(events: list[dict]) -> list[str]:
    """Errors on the console, and requests that leave the machine."""
    problems = []
    for event in events:
        method, about = event.get("method", ""), event.get("params", {})
        if method == "Network.requestWillBeSent":
            url = about["request"]["url"]
            if not url.startswith(("file:", "data:", "blob:", "about:")):
                problems.append(f"a request that leaves the machine: {url}")
        elif method == "Runtime.exceptionThrown":
            problems.append(f"an error: {about['exceptionDetails'].get('text')}")
        elif method == "Log.entryAdded" and about["entry"]["level"] == "error":
            problems.append(f"on the console: {about['entry']['text']}")
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
            problems.append(f"on the console: {about['args']}")
    return problems


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("site", type=Path)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help='"04-dense" (default: all)')
    parser.add_argument("--shots", type=Path)
    parser.add_argument("--at", type=int, default=0)
    args = parser.parse_args(argv)
    path = found()
    if path is None:
        parser.error(f"no browser: install one of {', '.join(NAMES)}")
    if not (args.site / "index.html").is_file():
        parser.error(f"{args.site} is no built site")
    numbered = [page.stem for page in sorted(DERIVATIONS.glob("[0-9]*.md"))]
    others = [f"site/{page.stem}" for page in sorted((DERIVATIONS / "site").glob("*.md"))]
    names = args.pages or ["index", *numbered, *others, "search"]
    if args.shots:
        args.shots.mkdir(parents=True, exist_ok=True)
    problems, look = [], (CHECKS / "look.js").read_text(encoding="utf-8")
    with Browser(path) as browser:
        for name in names:
            url = (args.site.resolve() / f"{name}.html").as_uri()
            browser.screen(WIDTHS[0], HEIGHT, dark=False)
            browser.open(url + ("?q=Eq.+20" if name == "search" else ""))
            if name == "search":
                problems += [
                    f"search: {problem}"
                    for problem in browser.run((CHECKS / "search.js").read_text(encoding="utf-8"))
                ]
            for width in WIDTHS:
                for dark in (False, True):
                    mode = f"{width}-{'dark' if dark else 'light'}"
                    browser.screen(width, HEIGHT, dark)
                    found_here = browser.run(look)
                    problems += [f"{name}, {mode}: {problem}" for problem in found_here]
                    if args.shots:
                        browser.run(f"scrollTo(0, {args.at})")
                        shot = f"{name.replace('/', '-')}-{mode}.png"
                        browser.picture(args.shots / shot)
            problems += [f"{name}: {problem}" for problem in events_problems(browser.events)]
    print("\n".join(problems) or f"{len(names)} pages, no problem")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
