"""The site of the derivations: `python -m sphinx -W -c derivations/site derivations build/site`."""

import importlib
import inspect
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]  # the extensions, and the package as it is here

project = "snfnp"
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.linkcode",
    "myst_parser",
    "mathml",
    "beside",
    "searching",
    "docstrings",
    "guides",
]
root_doc = "README"
exclude_patterns = ["site/*.py"]

smartquotes = False
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = "Self normalizing flows"
html_static_path = ["static"]
html_css_files = ["beside.css"]
html_js_files = [("play.js", {"defer": "defer"}), ("beside.js", {"defer": "defer"})]
html_favicon = "static/favicon.svg"
html_show_search_summary = False  # searching.py has a list of its own
html_copy_source = False
html_show_copyright = False
pygments_style = "a11y-light"
pygments_dark_style = "github-dark"

# Of pages whose numbers were not the reading order: the numbers that they had. Links to their old
# names lead to the new ones until the next release.
FORMER_NUMBERS = {
    "a-plane": 30,
    "notation": 1,
    "change-of-variables": 2,
    "self-normalizing": 3,
    "smooth-leaky-relu": 5,
    "adam": 6,
    "write-your-own-layer": 16,
    "write-your-own-rule": 28,
    "jacobian-vector-products": 18,
    "variational": 19,
    "lambda-controllers": 20,
    "stability": 24,
    "natural-coordinates": 29,
    "an-average-of-densities": 31,
    "many-cores": 25,
    "the-paper-reproduced": 26,
    "what-was-measured": 27,
}


def old_names(app, exception):
    """A page at each old name that leads to the new one, with the heading of the link."""
    if exception is not None or app.builder.format != "html":
        return
    for page in sorted(app.outdir.glob("[0-9]*.html")):
        number = FORMER_NUMBERS.get(page.stem[3:])
        if number is not None:
            text = (
                f'<!DOCTYPE html><html lang="en"><title>{page.stem}</title>'
                f'<link rel="canonical" href="{page.name}">'
                f"<script>location.replace('{page.name}' + location.hash)</script>"
                f'<p>This page is <a href="{page.name}">{page.stem}</a> now.</p></html>\n'
            )
            (app.outdir / f"{number:02}{page.name[2:]}").write_text(text, encoding="utf-8")


def setup(app):
    app.connect("build-finished", old_names)


def linkcode_resolve(domain, info):
    """From an entry of the API page to its source."""
    from pages import ROOT, lines_of
    from sources import site_page

    found = importlib.import_module(info["module"])
    for part in info["fullname"].split("."):
        found = getattr(found, part, None)
    found = inspect.unwrap(getattr(found, "fget", found))
    name, module = getattr(found, "__qualname__", ""), getattr(found, "__module__", None)
    file = f"{(module or '').replace('.', '/')}.py"
    lines = lines_of(ROOT / file, name)
    return f"../{site_page(file)}.html#L{lines[0]}" if lines else None
