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
html_show_search_summary = False  # its excerpts are fetched; those of searching.py are not
html_copy_source = False
html_show_copyright = False
pygments_style = "a11y-light"
pygments_dark_style = "github-dark"


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
